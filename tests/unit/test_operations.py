"""Operators: nodes in and out of service, and waiting tickets moved in the line."""

from __future__ import annotations

import msgpack
import pytest

from spoke.errors import InvalidTransition
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.codec import decode_event
from spoke.events.fold import fold
from spoke.events.model import Slot
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import Signer
from spoke.protocol.notice import Notice
from tests.builders import MemoryPool, gang, node_spec


@pytest.fixture
def pool() -> MemoryPool:
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.register(node_spec("n2"))
    pool.connect("c")
    pool.connect("op")
    return pool


def ask(pool: MemoryPool, request: r.Request) -> p.Message | None:
    return pool.ask("op", request)


def phase(pool: MemoryPool, node_id: str) -> str:
    return pool.state.nodes[node_id].phase


def on(pool: MemoryPool, node_id: str, gpus: int = 1) -> str:
    """A ticket on this node, with its actor up."""
    pool.allocate("c", gang(1, 1, gpus, preferred_node=node_id))
    ticket = max(pool.state.tickets, key=lambda t: int(t[2:]))
    assert pool.state.tickets[ticket].slots[0].node_id == node_id
    pool.launch("c", ticket, (0,))
    pool.settle()
    return ticket


def leave_and_come_back(pool: MemoryPool, node_id: str) -> None:
    pool.report(pool.agents[node_id], r.LeaveNode())
    pool.register(node_spec(node_id))


# --- cordon ------------------------------------------------------------------------------------------------------


def test_nothing_new_is_placed_on_a_cordoned_node_and_what_runs_there_goes_on(pool: MemoryPool) -> None:
    ticket = on(pool, "n1")
    assert ask(pool, r.CordonNode("n1", "its fan rattles")) == p.Done()
    for _ in range(2):
        pool.allocate("c", gang(1, 1, 2))
    assert [pool.state.tickets[t].slots[0].node_id for t in ("t-2", "t-3")] == ["n2", "n2"]
    refused = pool.allocate("c", gang(1, 1, 1))
    assert isinstance(refused, p.Failed)
    assert pool.state.tickets[ticket].phase == "active"
    assert (pool.state.cordons["n1"].reason, pool.state.cordons["n1"].by) == ("its fan rattles", "op")
    pool.check()


def test_a_cordon_that_is_said_again_changes_its_reason(pool: MemoryPool) -> None:
    assert ask(pool, r.CordonNode("n1")) == p.Done()
    assert ask(pool, r.CordonNode("n1")) == p.Done(False)
    assert ask(pool, r.CordonNode("n1", "its fan rattles")) == p.Done()
    assert (phase(pool, "n1"), pool.state.cordons["n1"].reason) == ("cordoned", "its fan rattles")
    pool.check()


def test_a_cordon_stays_when_the_node_is_lost_or_leaves_and_comes_back(pool: MemoryPool) -> None:
    ask(pool, r.CordonNode("n1"))
    leave_and_come_back(pool, "n1")
    assert phase(pool, "n1") == "cordoned"
    pool.expire_node("n1")
    assert phase(pool, "n1") == "lost"
    pool.register(node_spec("n1"))
    assert phase(pool, "n1") == "cordoned"
    assert ask(pool, r.UncordonNode("n1")) == p.Done()
    assert phase(pool, "n1") == "up"
    assert ask(pool, r.UncordonNode("n1")) == p.Done(False)
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_a_node_that_is_lost_can_be_cordoned_and_one_that_left_uncordoned(pool: MemoryPool) -> None:
    pool.expire_node("n1")
    ask(pool, r.CordonNode("n1"))
    pool.register(node_spec("n1"))
    assert phase(pool, "n1") == "cordoned"
    pool.report(pool.agents["n1"], r.LeaveNode())
    assert ask(pool, r.UncordonNode("n1")) == p.Done()
    pool.register(node_spec("n1"))
    assert phase(pool, "n1") == "up"


def test_a_waiting_gang_gets_an_uncordoned_node_at_once(pool: MemoryPool) -> None:
    ask(pool, r.CordonNode("n1"))
    asked = pool.request("c", r.AllocateGang(gang(2, 1, 4), None))
    assert pool.answer("c", asked) is None
    ask(pool, r.UncordonNode("n1"))
    assert isinstance(pool.answer("c", asked), p.Granted)


def test_a_node_that_is_not_there_is_refused_with_those_that_are(pool: MemoryPool) -> None:
    failed = ask(pool, r.CordonNode("n9"))
    assert isinstance(failed, p.Failed)
    assert failed.code == "unknown_node"
    assert "registered are: n1, n2" in failed.reason


def test_a_log_that_places_something_on_a_cordoned_node_does_not_fold(pool: MemoryPool) -> None:
    ask(pool, r.CordonNode("n1"))
    slot = Slot(0, 0, 0, "n1", "127.0.0.1", (0,), ("n1-gpu-0",))
    event = e.GangAllocated("t-1", "c", 9, gang(), (slot,), "127.0.0.1", 0, "pack/1")
    with pytest.raises(InvalidTransition, match="places t-1 on n1, which is cordoned"):
        fold(pool.state, e.Recorded("9999999-0", event))


# --- drain -------------------------------------------------------------------------------------------------------


def test_a_drain_is_over_when_the_last_ticket_has_gone(pool: MemoryPool) -> None:
    ticket = on(pool, "n1")
    asked = pool.request("op", r.DrainNode("n1", None, "new kernel", wait=True))
    assert (phase(pool, "n1"), pool.answer("op", asked)) == ("draining", None)
    pool.ask("c", r.ReleaseGang(ticket))
    assert pool.answer("op", asked) is None, "its actor may still run"
    pool.settle()
    assert (phase(pool, "n1"), pool.answer("op", asked)) == ("drained", p.Done())
    assert ask(pool, r.DrainNode("n1", wait=True)) == p.Done(False)
    leave_and_come_back(pool, "n1")
    assert phase(pool, "n1") == "drained"
    pool.check()


def test_an_empty_node_is_drained_at_once(pool: MemoryPool) -> None:
    assert ask(pool, r.DrainNode("n1", wait=True)) == p.Done()
    assert phase(pool, "n1") == "drained"


def test_owners_and_actors_hear_of_a_drain_at_once_and_are_released_at_its_deadline(pool: MemoryPool) -> None:
    ticket, other = on(pool, "n1"), on(pool, "n2")
    until_ms = pool.now_ms + 60_000
    assert ask(pool, r.DrainNode("n1", 60_000, "new kernel")) == p.Done()
    text = "node n1 is being drained: new kernel"
    (notice,) = [one for one in pool.notices["c"] if isinstance(one, p.TicketNotice)]
    assert notice == p.TicketNotice(Notice(ticket, "node_draining", text, "n1", (0,), until_ms))
    orders = [delivery.order for delivery in pool.agents["n1"].orders]
    assert orders == [o.NotifyActors(notice.notice)]
    pool.pass_time(59_000)
    assert pool.state.tickets[ticket].phase == "active"
    pool.pass_time(1_001)
    assert pool.state.tickets[ticket].phase == "releasing"
    assert "n1 is drained, and its deadline has come: new kernel" in pool.state.tickets[ticket].reason
    pool.settle()
    assert (phase(pool, "n1"), pool.state.tickets[other].phase) == ("drained", "active")
    assert any(isinstance(one, p.TicketReleasing) for one in pool.notices["c"])


def test_a_drain_that_is_given_up_tells_whoever_waits_for_it(pool: MemoryPool) -> None:
    on(pool, "n1")
    asked = pool.request("op", r.DrainNode("n1", wait=True))
    assert ask(pool, r.UncordonNode("n1")) == p.Done()
    failed = pool.answer("op", asked)
    assert isinstance(failed, p.Failed)
    assert "given up: it is uncordoned" in failed.reason
    assert [one.notice.kind for one in pool.notices["c"] if isinstance(one, p.TicketNotice)] == [
        "node_draining",
        "node_drain_ended",
    ]


def test_the_deadline_of_a_drain_can_be_changed(pool: MemoryPool) -> None:
    ticket = on(pool, "n1")
    first = pool.request("op", r.DrainNode("n1", 60_000, wait=True))
    second = pool.request("op", r.DrainNode("n1", 1_000, wait=True))
    pool.pass_time(1_001)
    assert pool.state.tickets[ticket].phase == "releasing"
    pool.settle()
    assert pool.answer("op", first) == pool.answer("op", second) == p.Done()


def test_a_drain_of_a_lost_node_ends_with_its_tickets(pool: MemoryPool) -> None:
    on(pool, "n1")
    pool.expire_node("n1")
    asked = pool.request("op", r.DrainNode("n1", 0, wait=True))
    assert pool.answer("op", asked) == p.Done()
    assert phase(pool, "n1") == "lost"
    pool.register(node_spec("n1"))
    assert phase(pool, "n1") == "drained"


def test_a_drain_ends_with_a_node_that_leaves(pool: MemoryPool) -> None:
    ticket = on(pool, "n1")
    asked = pool.request("op", r.DrainNode("n1", wait=True))
    pool.ask("c", r.ReleaseGang(ticket))
    agent = pool.agents["n1"]
    agent.processes.clear()
    pool.report(agent, r.LeaveNode())
    assert "n1" not in pool.state.nodes
    assert pool.answer("op", asked) == p.Done()
    pool.register(node_spec("n1"))
    assert phase(pool, "n1") == "drained"


# --- remove ------------------------------------------------------------------------------------------------------


def test_an_empty_node_is_removed_and_its_agent_told(pool: MemoryPool) -> None:
    assert ask(pool, r.RemoveNode("n1", reason="sold")) == p.Done()
    assert "n1" not in pool.state.nodes
    agent = pool.agents["n1"]
    assert agent.orders[-1].order == o.Reject("node_removed", "sold")
    event = pool.log[-1].event
    assert isinstance(event, e.NodeRemoved)
    assert (event.client_id, event.reason) == ("op", "sold")


def test_a_node_with_tickets_is_removed_by_force_alone_and_only_when_they_have_ended(pool: MemoryPool) -> None:
    ticket = on(pool, "n1")
    failed = ask(pool, r.RemoveNode("n1"))
    assert isinstance(failed, p.Failed)
    assert (failed.code, ticket in failed.reason) == ("node_busy", True)
    asked = pool.request("op", r.RemoveNode("n1", force=True))
    assert (phase(pool, "n1"), pool.answer("op", asked)) == ("draining", None)
    assert pool.state.tickets[ticket].phase == "releasing"
    pool.settle()
    assert "n1" not in pool.state.nodes
    assert pool.answer("op", asked) == p.Done()
    assert pool.agents["n1"].rejected


# --- the line ----------------------------------------------------------------------------------------------------


def test_a_waiting_ticket_moves_to_the_head_and_to_the_tail(pool: MemoryPool) -> None:
    big = on(pool, "n1", 4)
    on(pool, "n2", 4)
    asked = {name: pool.request("c", r.AllocateGang(gang(1, 1, 4, name=name), None)) for name in ("a", "b", "d")}
    a, b, d = pool.state.queue
    assert ask(pool, r.MoveGang(d, "head")) == p.Done()
    assert ask(pool, r.MoveGang(a, "tail")) == p.Done()
    assert pool.state.queue == [d, b, a]
    pool.ask("c", r.ReleaseGang(big))
    pool.settle()
    assert isinstance(pool.answer("c", asked["d"]), p.Granted)
    assert pool.state.queue == [b, a]
    pool.check_replay(len(pool.log) - 2)


def test_only_a_ticket_that_waits_is_moved(pool: MemoryPool) -> None:
    ticket = on(pool, "n1")
    failed = ask(pool, r.MoveGang(ticket))
    assert isinstance(failed, p.Failed)
    assert "only a ticket that waits can be moved" in failed.reason
    unknown = ask(pool, r.MoveGang("t-99"))
    assert isinstance(unknown, p.Failed)
    assert unknown.code == "unknown_ticket"


# --- who may -----------------------------------------------------------------------------------------------------

OPERATIONS = [
    r.CordonNode("n1"),
    r.UncordonNode("n1"),
    r.DrainNode("n1"),
    r.RemoveNode("n1"),
    r.MoveGang("t-1", "head"),
]


@pytest.mark.parametrize("request_", OPERATIONS, ids=lambda request: request.TYPE)
@pytest.mark.parametrize(("kind", "may"), [("user", False), ("operator", True), ("admin", True)])
def test_where_requests_are_signed_operations_are_for_operators(request_: r.Request, kind: str, may: bool) -> None:
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.connect("alice.1")
    pool.ask("alice.1", r.AllocateGang(gang(2, 1), None))
    pool.connect("bob.1")
    pool.handle(r.Envelope(request_, "bob.1", 2, signer=Signer(kind, "bob")))  # type: ignore[arg-type]
    answer = pool.answer("bob.1", 2)
    assert (isinstance(answer, p.Failed) and answer.code == "forbidden") is not may, answer


def test_an_owner_may_step_back_in_the_line_and_not_forward() -> None:
    pool = MemoryPool()
    pool.connect("alice.1")
    pool.ask("alice.1", r.AllocateGang(gang(), None))
    for seq, to, may in ((3, "tail", True), (4, "head", False)):
        envelope = r.Envelope(r.MoveGang("t-1", to), "alice.1", seq, signer=Signer("user", "alice"))  # type: ignore[arg-type]
        pool.handle(envelope)
        assert isinstance(pool.answer("alice.1", seq), p.Done) is may


# --- what was written before -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "event"),
    [
        ({"type": "node.removed", "node_id": "n1", "reason": "sold"}, e.NodeRemoved("n1", "sold")),
        (
            {"type": "node.draining", "node_id": "n1", "client_id": "c", "seq": "3"},
            e.NodeDraining("n1", "c", 3, "", 0, False, False),
        ),
    ],
)
def test_events_of_older_logs_are_read(fields: dict[str, str], event: e.Event) -> None:
    raw = {key.encode(): value.encode() for key, value in {**fields, "v": "1"}.items()}
    assert decode_event("1-0", raw).event == event


def test_snapshots_of_older_releases_are_read(pool: MemoryPool) -> None:
    on(pool, "n1")
    plain = msgpack.unpackb(snapshot.encode(pool.state))
    assert plain.pop("cordons") == plain.pop("faults") == {}
    assert snapshot.decode(msgpack.packb(plain)) == pool.state
