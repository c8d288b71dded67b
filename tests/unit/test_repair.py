"""Another slot for a failed member: where, when not, and what everybody is told."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from spoke.client.instructions import Resolve
from spoke.client.machine import Machine
from spoke.events import types as e
from spoke.events.holdings import Holdings
from spoke.events.state import PoolState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import Signer
from tests.builders import MemoryPool, gang, node_spec
from tests.fakes import granted


@pytest.fixture
def pool() -> MemoryPool:
    pool = MemoryPool()
    for node in ("n1", "n2", "n3"):
        pool.register(node_spec(node, 4))
    pool.connect("c")
    return pool


def run(pool: MemoryPool, *shape: int, **options: object) -> str:
    """A gang that runs."""
    assert isinstance(pool.allocate("c", gang(*shape, **options)), p.Granted)  # type: ignore[arg-type]
    ticket = max(pool.state.tickets, key=lambda t: int(t[2:]))
    pool.launch("c", ticket, tuple(range(len(pool.state.tickets[ticket].slots))))
    pool.settle()
    return ticket


def fail(pool: MemoryPool, ticket: str, rank: int) -> None:
    """The process of a rank dies."""
    for agent in pool.agents.values():
        for launch_id, order in list(agent.processes.items()):
            if (order.ticket_id, order.rank) == (ticket, rank):
                pool.end(agent, launch_id, code=1)


def repair(pool: MemoryPool, ticket: str, rank: int, elsewhere: bool = False) -> p.Message | None:
    return pool.ask("c", r.RepairGang(ticket, rank, elsewhere))


def where(pool: MemoryPool, ticket: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(slot.node_id, slot.gpu_ids) for slot in pool.state.tickets[ticket].slots]


def test_a_failed_member_gets_other_gpus_of_its_node_and_the_others_keep_theirs(pool: MemoryPool) -> None:
    ticket = run(pool, 2, 2)
    before = where(pool, ticket)
    fail(pool, ticket, 1)
    answer = repair(pool, ticket, 1)
    after = where(pool, ticket)
    assert isinstance(answer, p.Repaired)
    assert after[1] == (before[1][0], (2,))
    assert [after[rank] for rank in (0, 2, 3)] == [before[rank] for rank in (0, 2, 3)]
    slot = answer.slot
    assert (slot.local_rank, slot.group_rank, slot.gpu_uuids) == (1, 0, (f"{slot.node_id}-gpu-2",))
    pool.launch("c", ticket, (1,))
    pool.settle()
    assert pool.state.tickets[ticket].actor(1).alive  # type: ignore[union-attr]
    pool.check()
    pool.check_replay(len(pool.log) - 4)


def test_a_member_whose_node_is_lost_goes_to_another(pool: MemoryPool) -> None:
    ticket = run(pool, 2, 1)
    (first, _), (second, _) = where(pool, ticket)
    (third,) = {"n1", "n2", "n3"} - {first, second}
    pool.expire_node(second)
    answer = repair(pool, ticket, 1)
    assert isinstance(answer, p.Repaired)
    assert (answer.slot.node_id, answer.slot.group_rank, answer.slot.local_rank) == (third, 1, 0)
    assert pool.state.tickets[ticket].held == {first, third}
    pool.launch("c", ticket, (1,))
    start = pool.agents[third].orders[-1].order
    assert isinstance(start, o.StartActor)
    assert (start.num_nodes, start.local_world_size, start.world_size) == (2, 1, 2)
    pool.settle()
    pool.ask("c", r.ReleaseGang(ticket))
    pool.settle()
    assert all(node.free == node.total for node in pool.state.nodes.values())
    pool.check()


def test_the_members_of_a_strict_gang_stay_on_different_nodes(pool: MemoryPool) -> None:
    ticket = run(pool, 3, 1, 3)
    fail(pool, ticket, 0)
    answer = repair(pool, ticket, 0)
    assert isinstance(answer, p.Failed)
    assert answer.code == "repair_refused"
    node = where(pool, ticket)[0][0]
    assert f"{node} has no other GPUs free for it (its old place is sound: launch it there again)" in answer.reason
    assert "on none of the 0 nodes besides n1, n2, n3" in answer.reason


def test_one_of_a_group_that_moves_away_forms_a_group_of_its_own(pool: MemoryPool) -> None:
    ticket = run(pool, 1, 2)
    fail(pool, ticket, 1)
    answer = repair(pool, ticket, 1, elsewhere=True)
    assert isinstance(answer, p.Repaired)
    assert answer.slot.node_id != where(pool, ticket)[0][0]
    assert (answer.slot.group_rank, answer.slot.local_rank) == (1, 0)
    assert pool.state.tickets[ticket].group_sizes == (1, 1)


def test_a_dense_gang_may_double_up_and_joins_the_group_there(pool: MemoryPool) -> None:
    for node in ("n2", "n3"):
        pool.ask("c", r.CordonNode(node))
    ticket = run(pool, 3, 1, strict_pack=False)
    pool.ask("c", r.UncordonNode("n2"))
    fail(pool, ticket, 2)
    moved = repair(pool, ticket, 2, elsewhere=True)
    assert isinstance(moved, p.Repaired)
    assert (moved.slot.node_id, moved.slot.group_rank) == ("n2", 1)
    pool.expire_node("n2")
    back = repair(pool, ticket, 2)
    assert isinstance(back, p.Repaired)
    assert (back.slot.node_id, back.slot.group_rank, back.slot.local_rank) == ("n1", 0, 2)
    assert pool.state.tickets[ticket].group_sizes == (3,)
    pool.check()


def test_the_master_moves_with_rank_0_and_its_port_is_held_again(pool: MemoryPool) -> None:
    ticket = run(pool, 1, 2)
    old, port = where(pool, ticket)[0][0], pool.state.tickets[ticket].master_port
    fail(pool, ticket, 0)
    answer = repair(pool, ticket, 0, elsewhere=True)
    assert isinstance(answer, p.Repaired)
    found = pool.state.tickets[ticket]
    assert (found.master_addr, found.master_port) == (answer.master_addr, answer.master_port)
    assert pool.state.nodes[old].free_ports >> (port - 20_000) & 1
    orders = [delivery.order for delivery in pool.agents[old].orders]
    assert o.TakeBackPort(ticket) in orders
    assert [one.notice.kind for one in orders if isinstance(one, o.NotifyActors)] == ["member_repaired"]
    pool.check()


def test_a_member_that_is_alive_or_never_failed_is_not_replaced(pool: MemoryPool) -> None:
    ticket = run(pool, 1, 2)
    alive = repair(pool, ticket, 0)
    assert isinstance(alive, p.Failed)
    assert alive.code == "already_launched"
    pool.allocate("c", gang(1, 1))
    fresh = repair(pool, "t-2", 0)
    assert isinstance(fresh, p.Failed)
    assert "its place on" in fresh.reason
    assert "launch it" in fresh.reason
    for wrong, code in ((r.RepairGang(ticket, 7), "rank_out_of_range"), (r.RepairGang("t-99", 0), "unknown_ticket")):
        answer = pool.ask("c", wrong)
        assert isinstance(answer, p.Failed)
        assert answer.code == code


def test_a_member_that_was_not_launched_leaves_an_unhealthy_gpu(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 1, preferred_node="n1"))
    pool.ask("c", r.MarkGpu("n1", 0, False))
    answer = repair(pool, "t-1", 0)
    assert isinstance(answer, p.Repaired)
    assert answer.slot.gpu_ids == (1,)
    assert pool.state.nodes["n1"].free_gpus == 0b1100
    pool.check()


def test_named_gpus_are_kept_on_another_node(pool: MemoryPool) -> None:
    ticket = run(pool, 1, 1, 2, gpu_ids=(1, 3))
    fail(pool, ticket, 0)
    answer = repair(pool, ticket, 0)
    assert isinstance(answer, p.Repaired)
    assert answer.slot.gpu_ids == (1, 3)


def test_shares_go_to_another_gpu(pool: MemoryPool) -> None:
    pool.allocate("c", gang(1, 2, 0.5))
    pool.launch("c", "t-1", (0, 1))
    pool.settle()
    fail(pool, "t-1", 1)
    answer = repair(pool, "t-1", 1)
    assert isinstance(answer, p.Repaired)
    assert (answer.slot.gpu_ids, answer.slot.gpu_milli) == ((1,), 500)
    assert pool.state.nodes[answer.slot.node_id].shared == {0: 500, 1: 500}
    pool.check()


def test_members_without_gpus_go_to_another_node(pool: MemoryPool) -> None:
    ticket = run(pool, 1, 1, 0, cpus=1.0)
    fail(pool, ticket, 0)
    before = where(pool, ticket)[0][0]
    assert isinstance(repair(pool, ticket, 0), p.Repaired)
    assert where(pool, ticket)[0][0] != before
    pool.check()


def test_where_requests_are_signed_the_owner_and_operators_may() -> None:
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.connect("alice.1")
    pool.allocate("alice.1", gang(1, 1))
    pool.launch("alice.1", "t-1", (0,))
    pool.settle()
    fail(pool, "t-1", 0)
    pool.connect("bob.1")
    for seq, kind, code in ((2, "user", "forbidden"), (3, "operator", "")):
        pool.handle(r.Envelope(r.RepairGang("t-1", 0), "bob.1", seq, signer=Signer(kind, "bob")))  # type: ignore[arg-type]
        answer = pool.answer("bob.1", seq)
        assert getattr(answer, "code", "") == code
    assert [type(one) for one in pool.notices["alice.1"]][-1] is p.Repaired


def test_the_holdings_follow_a_repair(pool: MemoryPool) -> None:
    ticket = run(pool, 1, 2)
    fail(pool, ticket, 1)
    repair(pool, ticket, 1)
    holdings = Holdings(PoolState())
    ended = [one for recorded in pool.log for one in holdings.take(recorded)]
    repaired = next(one for one in pool.log if isinstance(one.event, e.GangRepaired))
    assert [(one.rank, one.gpu, one.end_id) for one in ended] == [(1, 1, repaired.id)]
    assert [(one.rank, one.gpu) for one in holdings.open()] == [(0, 0), (1, 2)]


def test_a_client_sees_the_new_place_and_asks_for_it_again_when_the_server_may_have_lost_it() -> None:
    machine = Machine()
    machine.connected = True
    spec = gang(1, 2)
    seq = machine.ask(r.AllocateGang(spec), 0.0)
    (out,) = machine.receive(seq, granted("t-1", spec), 0.0)
    assert isinstance(out, Resolve)
    ticket = out.ticket
    assert ticket is not None
    was = ticket.slots
    moved = p.Repaired("t-1", replace(was[1], node_id="n9"), "m", 7)
    machine.receive(0, moved, 1.0)
    assert [slot.node_id for slot in ticket.slots] == ["n0", "n9"]
    assert (ticket.master_addr, ticket.master_port) == ("m", 7)
    machine.receive(0, p.Resync((p.Holding("t-1", seq, False, ()),)), 2.0)
    (attach,) = [one for one, asked in machine.outstanding.items() if isinstance(asked.request, r.AttachGang)]
    machine.receive(attach, granted("t-1", spec), 3.0)
    assert ticket.slots == was
