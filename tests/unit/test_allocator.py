"""Decisions: placement, the line, launches, releases. A whole pool in memory, no Redis."""

from __future__ import annotations

import pytest

from spoke.events.model import Resources
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec


@pytest.fixture
def pool() -> MemoryPool:
    made = MemoryPool()
    for name in ("n1", "n2", "n3"):
        made.register(node_spec(name, 4))
    made.connect("c")
    return made


def granted(message: p.Message | None) -> p.Granted:
    assert isinstance(message, p.Granted), message
    return message


def failed(message: p.Message | None) -> p.Failed:
    assert isinstance(message, p.Failed), message
    return message


def places(message: p.Message | None) -> list[tuple[str, tuple[int, ...]]]:
    return [(slot.node_id, slot.gpu_ids) for slot in granted(message).slots]


# --- placement ---------------------------------------------------------------------------------------------------


def test_a_strict_gang_sits_on_distinct_nodes_with_its_ranks_in_order(pool: MemoryPool) -> None:
    found = granted(pool.allocate("c", gang(2, 2)))
    assert [(s.global_rank, s.local_rank, s.group_rank) for s in found.slots] == [
        (0, 0, 0),
        (1, 1, 0),
        (2, 0, 1),
        (3, 1, 1),
    ]
    assert len({s.node_id for s in found.slots}) == 2
    assert found.master_addr == "127.0.0.1"
    assert 20_000 <= found.master_port < 20_016


def test_best_fit_takes_the_tightest_node(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 1, 3, preferred_node="n2"))
    assert places(pool.allocate("c", gang(1, 1, 1))) == [("n2", (3,))]


def test_a_dense_gang_takes_as_few_nodes_as_it_can(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 1, 1, preferred_node="n1"))
    found = granted(pool.allocate("c", gang(7, 1, 1, strict_pack=False)))
    assert sorted({s.node_id for s in found.slots}) == ["n1", "n2"] or len({s.node_id for s in found.slots}) == 2
    found = granted(pool.allocate("c", gang(4, 1, 1, strict_pack=False)))
    assert len({s.node_id for s in found.slots}) == 1


def test_rank_0_goes_to_the_preferred_node_if_it_fits(pool: MemoryPool) -> None:
    assert places(pool.allocate("c", gang(2, 1, 1, preferred_node="n3")))[0][0] == "n3"
    pool.allocate("c", gang(1, 1, 3, preferred_node="n3"))
    assert places(pool.allocate("c", gang(1, 1, 4, preferred_node="n3")))[0][0] != "n3"


def test_specific_gpus_are_those_or_none(pool: MemoryPool) -> None:
    assert places(pool.allocate("c", gang(1, 2, 1, gpu_ids=(1, 3), preferred_node="n1"))) == [
        ("n1", (1,)),
        ("n1", (3,)),
    ]
    assert {node for node, _ in places(pool.allocate("c", gang(2, 1, 2, gpu_ids=(1, 3))))} == {"n2", "n3"}
    assert "GPUs [1, 3]" in failed(pool.allocate("c", gang(1, 1, 2, gpu_ids=(1, 3)))).reason
    assert "GPUs of these ids" in failed(pool.allocate("c", gang(1, 1, 1, gpu_ids=(9,)))).reason


def test_cpu_and_memory_count_too(pool: MemoryPool) -> None:
    from spoke.events.model import GangSpec

    big = GangSpec(1, 1, Resources(gpus=0, cpus=40))
    assert isinstance(pool.allocate("c", big), p.Granted)
    assert isinstance(pool.allocate("c", big), p.Granted)
    assert isinstance(pool.allocate("c", big), p.Granted)
    assert "40 CPUs" in failed(pool.allocate("c", big)).reason
    assert "memory" in failed(pool.allocate("c", GangSpec(1, 1, Resources(memory="1TiB")))).reason


def test_actors_without_gpus_leave_gpu_nodes_alone() -> None:
    from spoke.events.model import GangSpec

    pool = MemoryPool()
    pool.register(node_spec("gpu", 8))
    pool.register(node_spec("cpu", 0))
    pool.connect("c")
    assert places(pool.allocate("c", GangSpec(1, 1, Resources(cpus=1)))) == [("cpu", ())]


def test_no_gpu_is_given_twice_in_any_order(pool: MemoryPool) -> None:
    held: dict[str, list[tuple[str, int]]] = {}
    for turn in range(60):
        if turn % 3 == 2 and held:
            ticket, _ = held.popitem() if turn % 2 else (next(iter(held)), held.pop(next(iter(held))))
            assert pool.ask("c", r.ReleaseGang(ticket)) == p.Done(True)
        answer = pool.allocate("c", gang(1 + turn % 2, 1, 1 + turn % 3))
        if isinstance(answer, p.Granted):
            held[answer.ticket_id] = [(s.node_id, g) for s in answer.slots for g in s.gpu_ids]
        taken = [gpu for gpus in held.values() for gpu in gpus]
        assert len(taken) == len(set(taken))
    pool.check()


# --- the line ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_waits_in_order_and_is_granted_as_soon_as_it_fits(pool: MemoryPool) -> None:
    first = granted(pool.allocate("c", gang(3, 4, 1)))
    big = pool.request("c", r.AllocateGang(gang(3, 4, 1), None))
    small = pool.request("c", r.AllocateGang(gang(1, 1, 1), None))
    assert pool.answer("c", big) is None
    assert [n.reason for n in pool.notices["c"] if isinstance(n, p.Queued)][1].startswith("waits behind t-2")
    pool.ask("c", r.ReleaseGang(first.ticket_id))
    assert isinstance(pool.answer("c", big), p.Granted)
    assert pool.answer("c", small) is None, "the small one must not overtake"


def test_timeout_0_is_refused_at_once_and_says_what_is_missing(pool: MemoryPool) -> None:
    pool.allocate("c", gang(2, 4, 1))
    reason = failed(pool.allocate("c", gang(2, 4, 1))).reason
    assert reason.startswith("needs 2 nodes with 4 GPUs free; 1 of 3 nodes qualifies: n")


def test_what_can_never_fit_says_so_and_holds_nobody_up(pool: MemoryPool) -> None:
    assert "even with everything free" in failed(pool.allocate("c", gang(1, 1, 5))).reason
    seq = pool.request("c", r.AllocateGang(gang(1, 1, 5), None))
    assert isinstance(pool.allocate("c", gang(1, 1, 1)), p.Granted)
    pool.register(node_spec("large", 8))
    assert places(pool.answer("c", seq))[0][0] == "large"


def test_the_wait_ends_after_its_time(pool: MemoryPool) -> None:
    pool.allocate("c", gang(3, 4, 1))
    seq = pool.request("c", r.AllocateGang(gang(), 5_000))
    pool.pass_time(4_000)
    assert pool.answer("c", seq) is None
    pool.pass_time(1_001)
    assert failed(pool.answer("c", seq)).code == "timeout"


def test_a_waiting_gang_can_be_cancelled_and_both_requests_are_answered(pool: MemoryPool) -> None:
    pool.allocate("c", gang(3, 4, 1))
    seq = pool.request("c", r.AllocateGang(gang(), None))
    assert pool.ask("c", r.CancelGang(seq)) == p.Done(True)
    assert failed(pool.answer("c", seq)).code == "cancelled"
    assert pool.state.queue == []


# --- actors and releases -----------------------------------------------------------------------------------------


def test_released_gpus_are_not_granted_before_the_agent_confirms(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang(3, 4, 1))).ticket_id
    launch = pool.launch("c", ticket, tuple(range(12)))
    pool.settle()
    assert isinstance(pool.answer("c", launch), p.Launched)
    release = pool.request("c", r.ReleaseGang(ticket))
    waiting = pool.request("c", r.AllocateGang(gang(), None))
    assert pool.answer("c", release) is None
    assert pool.answer("c", waiting) is None
    pool.settle()
    assert pool.answer("c", release) == p.Done(True)
    assert isinstance(pool.answer("c", waiting), p.Granted)


def test_each_node_is_free_as_soon_as_its_own_actors_are_dead(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang(2, 1, 4))).ticket_id
    pool.launch("c", ticket, (0, 1))
    pool.settle()
    nodes = [slot.node_id for slot in pool.state.tickets[ticket].slots]
    pool.request("c", r.ReleaseGang(ticket))
    while pool.deliver(pool.agents[nodes[0]]):
        pass
    assert pool.state.nodes[nodes[0]].free_gpus.bit_count() == 4
    assert pool.state.nodes[nodes[1]].free_gpus.bit_count() == 0


def test_launching_a_rank_twice_or_out_of_range_is_refused(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang(1, 2, 1))).ticket_id
    pool.launch("c", ticket, (0,))
    assert failed(pool.answer("c", pool.launch("c", ticket, (0,)))).code == "already_launched"
    assert failed(pool.answer("c", pool.launch("c", ticket, (2,)))).code == "rank_out_of_range"
    assert failed(pool.answer("c", pool.launch("c", "t-99", (0,)))).code == "unknown_ticket"


def test_a_failed_start_is_told_with_its_reason(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang(1, 1, 1))).ticket_id
    seq = pool.launch("c", ticket, (0,))
    agent = pool.agents[pool.state.tickets[ticket].slots[0].node_id]
    while pool.deliver(agent):
        pass
    pool.fail(agent, next(iter(agent.processes)))
    answer = failed(pool.answer("c", seq))
    assert answer.code == "start_failed"
    assert "no such type" in answer.reason


def test_a_reason_that_several_share_is_told_once(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang(1, 3, 1))).ticket_id
    seq = pool.launch("c", ticket, (0, 1, 2))
    agent = pool.agents[pool.state.tickets[ticket].slots[0].node_id]
    while pool.deliver(agent):
        pass
    for launch_id in list(agent.processes):
        pool.fail(agent, launch_id)
    reason = failed(pool.answer("c", seq)).reason
    assert "3 of 3 actors" in reason
    assert "and 2 more: no such type" in reason
    assert reason.count("no such type") == 1


def test_releasing_twice_is_idempotent(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang())).ticket_id
    assert pool.ask("c", r.ReleaseGang(ticket)) == p.Done(True)
    assert pool.ask("c", r.ReleaseGang(ticket)) == p.Done(False)


def test_a_lost_client_gives_everything_back_except_what_is_detached(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 1, 4))
    kept = granted(pool.allocate("c", gang(1, 1, 4, detached=True))).ticket_id
    pool.expire_client("c")
    assert list(pool.state.tickets) == [kept]


def test_a_gang_fails_as_a_whole_when_it_was_asked_to(pool: MemoryPool) -> None:
    ticket = granted(pool.allocate("c", gang(2, 1, 1, on_failure="release"))).ticket_id
    pool.launch("c", ticket, (0, 1))
    pool.settle()
    slot = pool.state.tickets[ticket].slots[0]
    agent = pool.agents[slot.node_id]
    pool.end(agent, next(iter(agent.processes)), code=3)
    assert "exited with code 3" in pool.state.tickets[ticket].reason
    pool.settle()
    assert pool.state.tickets == {}


def test_an_agent_on_another_machine_cannot_take_a_live_nodes_name(pool: MemoryPool) -> None:
    agent = pool.register(node_spec("n1", machine="another"))
    while pool.deliver(agent):
        pass
    assert agent.rejected
    assert pool.state.nodes["n1"].spec.machine == "m"
