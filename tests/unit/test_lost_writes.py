"""I9, part by part: what agent, client and fold do when the server has lost its last writes."""

from __future__ import annotations

import pytest

from spoke.agent import instructions as i
from spoke.allocator.decide import decide
from spoke.events import types as e
from spoke.events.folding.clients import TICKETS_PER_SERVER
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.builders import FakeAgent, MemoryPool, gang, node_spec
from tests.unit.test_agent_machine import a_start, deliver, requests, up
from tests.unit.test_client_machine import connected, holding, launched, transmitted

# --- the agent -----------------------------------------------------------------------------------------------------


def test_an_agent_reports_again_what_ended_and_what_it_holds() -> None:
    machine = up()
    deliver(machine, a_start("1-0"))
    deliver(machine, a_start("2-0", actor_id="a2", rank=0))
    machine.started("1-0", 7, "tcp://a", 0.0)
    ended = requests(machine.ended("1-0", 0, 0, "", 1.0))
    found = requests(deliver(machine, o.ReportHoldings("run")))
    assert found == [*ended, r.ReportHeld("run", ("2-0",), ("t1",), "2-0")]


def test_an_agent_starts_nothing_until_it_is_told_to_resume() -> None:
    machine = up()
    deliver(machine, o.ReportHoldings("run"))
    assert deliver(machine, a_start("1-0")) == []
    assert isinstance(deliver(machine, o.Resume())[-1], i.Spawn)


def test_an_agent_kills_what_the_log_does_not_know_and_says_so_when_it_is_dead() -> None:
    machine = up()
    deliver(machine, a_start("1-0"))
    machine.started("1-0", 7, "tcp://a", 0.0)
    deliver(machine, o.ReportHoldings("run"))
    assert deliver(machine, o.StopUnknown(("1-0",), ("t1",))) == [i.StopProcess("1-0", 0.0)]
    assert requests(machine.ended("1-0", -1, 9, "", 1.0))[-1] == r.ReportHeld("run", (), (), "1-0")


# --- the client ----------------------------------------------------------------------------------------------------


def test_a_client_takes_a_ticket_that_the_log_lost_for_ended() -> None:
    machine = holding()
    machine.receive(0, p.Resync(()), 1)
    assert machine.tickets == {}


def test_a_client_takes_a_launch_that_the_log_lost_for_ended() -> None:
    machine = holding()
    launched(machine)
    machine.receive(0, p.Resync((p.Holding("t-1", 2, False, ("a-0",)),)), 1)
    assert {rank: exit_.phase for rank, exit_ in machine.tickets["t-1"].exits.items()} == {1: "lost"}


def test_a_client_says_what_it_has_seen_and_the_log_has_lost() -> None:
    machine = holding()
    launched(machine)
    outputs = machine.receive(0, p.Resync((p.Holding("t-1", 2, False, ("a-0",)),)), 1)
    assert transmitted(outputs) == [r.ReportLost((), ("a-1",))]
    assert transmitted(machine.receive(0, p.Resync(()), 2))[-1] == r.ReportLost(("t-1",))


def test_a_client_gives_back_what_it_had_released_before() -> None:
    outputs = connected().receive(0, p.Resync((p.Holding("t-9", 2, False, ()),)), 1)
    assert [type(request) for request in transmitted(outputs)] == [r.ReleaseGang]


def test_a_client_asks_again_what_has_no_answer() -> None:
    machine = connected()
    asked = r.AllocateGang(gang(1, 2))
    machine.ask(asked, 0)
    assert transmitted(machine.receive(0, p.Resync(()), 1)) == [asked]


# --- the log -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> MemoryPool:
    """A pool with a ticket, whose server has changed."""
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.connect("c")
    pool.allocate("c", gang(1, 2))
    pool.record([e.ServerChanged("new", "old", pool.state.last_id)])
    return pool


def report(pool: MemoryPool, held: r.ReportHeld) -> FakeAgent:
    agent = pool.agents["n1"]
    pool.report(agent, held)
    return agent


def test_no_gpu_is_granted_before_its_agent_has_answered(pool: MemoryPool) -> None:
    assert pool.agents["n1"].orders[-1].order == o.ReportHoldings("new")
    pool.allocate("c", gang(1, 1), timeout_ms=None)
    assert len(pool.state.queue) == 1
    report(pool, r.ReportHeld("new", (), ("t-1",)))
    assert pool.state.queue == []
    assert isinstance(list(pool.agents["n1"].orders)[-1].order, o.Resume)


def test_a_share_of_a_node_that_has_not_answered_is_not_granted_either() -> None:
    """Neither the rest of a GPU that the log knows to be shared, nor a whole one beside it."""
    pool = MemoryPool()
    pool.register(node_spec("n1", 2))
    pool.connect("c")
    pool.allocate("c", gang(gpus=0.4))
    pool.record([e.ServerChanged("new", "old", pool.state.last_id)])
    for spec in (gang(gpus=0.4), gang(gpus=1), gang(gpus=0)):
        assert isinstance(pool.allocate("c", spec), p.Failed)
    report(pool, r.ReportHeld("new", (), ("t-1",)))
    assert pool.state.nodes["n1"].shared == {0: 400}, "what the log knows is adopted"
    answers = [pool.allocate("c", gang(gpus=share)) for share in (0.4, 1, 0.4)]
    assert [isinstance(answer, p.Granted) for answer in answers] == [True, True, False]
    pool.check()


def test_numbers_of_tickets_leave_room_for_those_that_were_lost(pool: MemoryPool) -> None:
    assert pool.state.next_ticket == TICKETS_PER_SERVER + 1


def test_an_answer_to_an_older_server_is_worth_nothing(pool: MemoryPool) -> None:
    report(pool, r.ReportHeld("old", (), ()))
    assert not pool.state.nodes["n1"].confirmed


def test_what_the_log_does_not_know_is_said_and_stopped(pool: MemoryPool) -> None:
    agent = report(pool, r.ReportHeld("new", ("99999999-0",), ("t-1", "t-7"), "99999999-0"))
    assert [type(one.event) for one in pool.log[-2:]] == [e.LogRegressed, e.NodeReconciling]
    assert agent.orders[-1].order == o.StopUnknown(("99999999-0",), ("t-7",))
    assert not pool.state.nodes["n1"].confirmed
    report(pool, r.ReportHeld("new", (), ("t-1",), "99999999-0"))
    assert isinstance(pool.log[-1].event, e.NodeConfirmed), "the loss is said once"
    assert pool.state.nodes["n1"].confirmed


def test_a_grant_that_only_its_client_knows_of_is_said_to_be_lost_once(pool: MemoryPool) -> None:
    end = pool.state.history_end
    for _ in range(2):
        assert isinstance(pool.ask("c", r.ReportLost(("t-1", "t-7"), ("1-0",))), p.Done)
    assert [one.event for one in pool.log if isinstance(one.event, e.LogRegressed)] == [e.LogRegressed("t-7", end, "c")]
    pool.check()


def test_what_a_client_says_it_has_lost_means_nothing_where_nothing_is_lost() -> None:
    pool = MemoryPool()
    pool.connect("c")
    assert isinstance(pool.ask("c", r.ReportLost(("t-7",), ("9-0",))), p.Done)
    assert not any(isinstance(one.event, e.LogRegressed) for one in pool.log)


@pytest.mark.parametrize("seen", ["", "x", "-1", "1-", "1" * 50 + "-0"])
def test_an_id_that_is_none_shows_no_loss(pool: MemoryPool, seen: str) -> None:
    agent = pool.agents["n1"]
    held = r.Envelope(r.ReportHeld("new", (), ("t-1",), seen), node_id="n1", incarnation=agent.incarnation)
    assert [type(event) for event in decide(pool.state, held, pool.now_ms)] == [e.NodeConfirmed]
