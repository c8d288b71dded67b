"""Restarts as the pool decides and records them, and as a client hears of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spoke.allocator import views
from spoke.client import instructions as i
from spoke.client.machine import Machine
from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import ActorSpec, Member
from spoke.events.supervision import Restart, Supervision
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.builders import FakeAgent, MemoryPool, gang, node_spec

GANG = Supervision(Restart("gang", 2, backoff_s=1.0, window_s=60.0))
ALONE = Supervision(Restart("on_failure", 2))


class Play:
    """A pool of two nodes with a gang of two, one member on each, all of which is up."""

    def __init__(self, care: Supervision | None = GANG, on_failure: str = "report") -> None:
        self.pool = pool = MemoryPool()
        self.agents = [pool.register(node_spec(f"n{n}", 2)) for n in range(2)]
        pool.connect("c")
        pool.allocate("c", gang(2, 1, on_failure=on_failure))
        members = tuple(Member(rank, f"a{rank}") for rank in range(2))
        pool.request("c", r.LaunchActors("t-1", ActorSpec("T", supervision=care), members))
        pool.settle()
        self.launches = [one.launch_id for one in self.ticket.actors]
        self.clear()

    @property
    def ticket(self):  # type: ignore[no-untyped-def]
        return self.pool.state.tickets["t-1"]

    @property
    def phases(self) -> list[str]:
        return [one.phase for one in self.ticket.actors]

    def clear(self) -> None:
        for agent in self.agents:
            agent.orders.clear()
        self.pool.notices.clear()

    def tell(self, rank: int, report: type[r.Request], **fields: object) -> list[str]:
        """A report of the agent of a rank; the types of the events that it led to."""
        before = len(self.pool.log)
        self.pool.report(self.agents[rank], report("t-1", rank, self.launches[rank], **fields))
        self.pool.check()
        return [one.event.TYPE for one in self.pool.log[before:]]

    def orders(self, agent: FakeAgent) -> list[o.Order]:
        found = [delivery.order for delivery in agent.orders]
        agent.orders.clear()
        return found

    def halt_all(self, generation: int = 1) -> list[str]:
        self.tell(0, r.ReportHalted, restarts=generation, code=1)
        return self.tell(1, r.ReportHalted, restarts=generation, code=-1, signal=15)


def test_an_actors_restart_is_recorded_with_its_count_and_told_to_the_client() -> None:
    play = Play(ALONE)
    fields = {"restarts": 1, "code": 3, "signal": 0, "reason": "", "delay_ms": 500}
    assert play.tell(0, r.ReportRestarting, **fields) == ["actor.restarting"]
    assert play.phases == ["restarting", "running"]
    assert play.ticket.alive == {"n0": 1, "n1": 1}, "it keeps its place"
    [notice] = play.pool.notices["c"]
    assert isinstance(notice, p.ActorsRestarting)
    assert [(one.phase, one.code, one.restarts) for one in notice.actors] == [("restarting", 3, 1)]
    assert play.tell(0, r.ReportRestarting, **fields) == [], "told twice"
    assert play.tell(0, r.ReportExited, code=3) == [], "of the process before"
    assert play.tell(0, r.ReportStarted, pid=9, address="tcp://n", restarts=1) == ["actor.started"]
    assert isinstance(play.pool.notices["c"][-1], p.ActorRestarted)
    assert play.ticket.actor(0).pid == 9
    assert play.tell(0, r.ReportExited, code=4, restarts=1) == ["actor.exited"]
    assert views.ticket_fields(play.ticket)["rank.0"].count(b'"restarts":1') == 1


def test_a_launch_is_answered_once_however_often_its_actors_are_started() -> None:
    pool = MemoryPool()
    agent = pool.register(node_spec("n0", 2))
    pool.connect("c")
    pool.allocate("c", gang(1, 2))
    spec = ActorSpec("T", supervision=ALONE)
    seq = pool.request("c", r.LaunchActors("t-1", spec, (Member(0, "a"), Member(1, "b"))))
    while pool.deliver(agent):
        pass
    first, second = (one.launch_id for one in pool.state.tickets["t-1"].actors)
    pool.start(agent, second)
    pool.report(agent, r.ReportRestarting("t-1", 1, second, 1, 1, 0, "", 0))
    pool.report(agent, r.ReportRestarting("t-1", 0, first, 1, 1, 0, "so it is", 0))
    assert pool.state.tickets["t-1"].actor(0).phase == "launching"  # type: ignore[union-attr]
    assert pool.answer("c", seq) is None
    pool.report(agent, r.ReportStarted("t-1", 0, first, 7, "tcp://x", 1))
    answer = pool.answer("c", seq)
    assert isinstance(answer, p.Launched)
    assert [one.phase for one in answer.actors] == ["running", "restarting"]
    pool.check()


def test_a_members_failure_stops_all_and_starts_all_in_the_same_places() -> None:
    play = Play()
    slots = play.ticket.slots
    assert play.tell(0, r.ReportExited, code=3) == ["gang.restarting"], "its end is in that event"
    assert play.phases == ["restarting", "restarting"]
    for rank, agent in enumerate(play.agents):
        assert play.orders(agent) == [o.HaltActors("t-1", 1, ((rank, play.launches[rank]),), 5.0)]
    assert play.tell(1, r.ReportHalted, restarts=1, code=-1, signal=15) == ["actor.halted"]
    assert play.orders(play.agents[1]) == [], "nobody begins before the last has ended"
    assert play.tell(0, r.ReportHalted, restarts=1, code=3) == ["actor.halted", "gang.restarted"]
    [resume] = play.orders(play.agents[1])
    assert isinstance(resume, o.ResumeActors)
    assert 0.5 <= resume.delay_s <= 1.0
    assert play.tell(0, r.ReportHalted, restarts=1, code=3) == [], "told twice"
    for rank in range(2):
        assert play.tell(rank, r.ReportStarted, pid=8, restarts=1) == ["actor.started"]
    assert play.phases == ["running", "running"]
    assert (play.ticket.slots, play.ticket.generation) == (slots, 1)
    for cut in range(0, len(play.pool.log), 3):
        play.pool.check_replay(cut)


def test_one_that_had_ended_well_begins_again_with_the_others() -> None:
    play = Play()
    assert play.tell(1, r.ReportExited, code=0) == ["actor.exited"]
    assert play.tell(0, r.ReportExited, code=3) == ["gang.restarting"]
    assert play.phases == ["restarting", "restarting"]
    assert play.halt_all() == ["actor.halted", "gang.restarted"]


@pytest.mark.parametrize("on_failure", ["report", "release"])
def test_when_its_restarts_are_used_up_a_failure_is_one(on_failure: str) -> None:
    play = Play(on_failure=on_failure)
    for generation in (1, 2):
        assert play.tell(0, r.ReportExited, code=3, restarts=generation - 1) == ["gang.restarting"]
        play.halt_all(generation)
        for rank in range(2):
            play.tell(rank, r.ReportStarted, pid=8, restarts=generation)
    found = play.tell(0, r.ReportExited, code=3, restarts=2)
    assert found[:2] == (["actor.exited"] if on_failure == "report" else ["actor.exited", "gang.releasing"])


def test_the_count_begins_anew_when_the_gang_has_run_for_long() -> None:
    play = Play()
    for generation in range(1, 6):
        assert play.tell(0, r.ReportExited, code=3, restarts=generation - 1) == ["gang.restarting"]
        play.halt_all(generation)
        for rank in range(2):
            play.tell(rank, r.ReportStarted, pid=8, restarts=generation)
        play.pool.pass_time(60_000)


def test_a_start_that_fails_restarts_the_gang_and_one_that_cannot_be_repeated_gives_it_up() -> None:
    play = Play()
    play.tell(0, r.ReportExited, code=3)
    play.halt_all()
    assert play.tell(1, r.ReportStartFailed, reason="no GPU", restarts=1) == ["gang.restarting"]
    play.clear()
    found = play.tell(0, r.ReportStartFailed, reason="forgotten", restarts=2, forgotten=True)
    assert found == ["actor.start_failed", "actor.stop_requested"]
    assert [type(order) for order in play.orders(play.agents[1])] == [o.StopActor]
    assert play.tell(1, r.ReportStartFailed, reason="told to stop", restarts=2) == ["actor.start_failed"]
    assert not play.ticket.halting


@pytest.mark.parametrize("on_failure", ["report", "release"])
def test_a_node_that_is_lost_in_the_middle_ends_the_restart(on_failure: str) -> None:
    play = Play(on_failure=on_failure)
    play.tell(0, r.ReportExited, code=3)
    play.tell(0, r.ReportHalted, restarts=1, code=3)
    play.clear()
    play.pool.expire_node("n1")
    play.pool.check()
    kinds = [type(order) for order in play.orders(play.agents[0])]
    assert kinds == ([o.StopActor] if on_failure == "report" else [o.CloseTicket])
    play.tell(0, r.ReportExited, code=3, restarts=1)
    if on_failure == "report":
        assert play.phases == ["exited", "lost"]
        assert not play.ticket.halting
    else:
        assert play.pool.state.tickets == {}


def test_a_release_in_the_middle_frees_all_when_the_agents_have_said_so() -> None:
    play = Play()
    play.tell(0, r.ReportExited, code=3)
    play.tell(0, r.ReportHalted, restarts=1, code=3)
    play.pool.request("c", r.ReleaseGang("t-1"))
    assert play.tell(1, r.ReportHalted, restarts=1, code=0) == ["actor.halted"], "and nothing begins"
    play.tell(0, r.ReportExited, code=3, restarts=1)
    play.tell(1, r.ReportExited, code=0, restarts=1)
    assert play.pool.state.tickets == {}


def test_a_member_that_is_stopped_by_hand_is_left_out() -> None:
    play = Play()
    play.tell(0, r.ReportExited, code=3)
    play.pool.request("c", r.StopActor("t-1", 1))
    assert play.tell(0, r.ReportHalted, restarts=1, code=3) == ["actor.halted"]
    assert play.tell(1, r.ReportExited, code=-1, signal=15, restarts=1) == ["actor.exited", "gang.restarted"]
    assert play.pool.log[-1].event.ranks == (0,)  # type: ignore[attr-defined]


def test_restarts_that_the_log_lost_are_taken_up_from_what_the_agents_say() -> None:
    play = Play()
    found = play.tell(0, r.ReportHalted, restarts=4, code=3)
    assert found == ["gang.restarting"]
    assert play.ticket.generation == 4, "as the agents have seen it: they halt again and say so"
    assert play.halt_all(4) == ["actor.halted", "gang.restarted"]
    play = Play(ALONE)
    assert play.tell(0, r.ReportStarted, pid=9, restarts=3) == ["actor.restarting", "actor.started"]
    assert play.tell(1, r.ReportStartFailed, reason="x", restarts=2) == ["actor.restarting", "actor.start_failed"]


def test_one_that_began_again_before_the_log_lost_that_counts_as_halted() -> None:
    play = Play()
    play.tell(0, r.ReportExited, code=3)
    play.tell(0, r.ReportHalted, restarts=1, code=3)
    found = play.tell(1, r.ReportStarted, pid=8, restarts=1)
    assert found == ["actor.halted", "gang.restarted", "actor.started"]


def test_members_of_a_repaired_rank_are_not_started_at_their_old_place() -> None:
    play = Play()
    play.tell(1, r.ReportExited, code=0)
    play.pool.request("c", r.RepairGang("t-1", 1))
    assert play.tell(0, r.ReportExited, code=3) == ["gang.restarting"]
    assert play.pool.log[-1].event.ranks == (0,)  # type: ignore[attr-defined]


def test_fold_refuses_restarts_that_cannot_be() -> None:
    play = Play()
    state = play.pool.state
    bad: list[e.Event] = [
        e.GangRestarting("t-1", 0, 0, 1, 0, "", (0, 1), 1, 0),
        e.GangRestarting("t-1", 1, 5, 1, 0, "", (0, 1), 1, 0),
        e.GangRestarting("t-1", 1, 0, 1, 0, "", (0, 7), 1, 0),
        e.GangRestarted("t-1", 3, (0, 1), 0),
        e.ActorHalted("t-1", 0, "a0", "n0", 1, 0),
        e.ActorRestarting("t-1", 0, "a0", "n0", 0, 1, 0, "", 0),
    ]
    for event in bad:
        with pytest.raises(InvalidTransition):
            fold(state, e.Recorded("9999999-0", event))


# --- the client ----------------------------------------------------------------------------------------------------


def test_a_wait_for_all_goes_on_when_one_that_had_ended_begins_again() -> None:
    machine = Machine()
    seq = machine.ask(r.AllocateGang(gang(1, 2)), 0.0)
    [granted] = machine.receive(seq, p.Granted("t-1", (), "h", 1), 0.0)
    ticket = granted.ticket  # type: ignore[union-attr]
    infos = [p.ActorInfo(rank, f"a{rank}", "n", f"{rank}-0", "running", 7, "tcp://x") for rank in range(2)]
    ticket.saw(infos)  # type: ignore[union-attr]
    wait_id, _ = machine.watch(ticket, [0, 1])  # type: ignore[arg-type]
    ended = replace(infos[0], phase="exited")
    assert machine.receive(0, p.ActorEnded("t-1", ended, False), 0.0) == [i.ActorChanged(ticket, 0)]  # type: ignore[arg-type]
    again = tuple(replace(one, phase="restarting", restarts=1, code=1) for one in infos)
    [noticed] = machine.receive(0, p.ActorsRestarting("t-1", again, 1), 0.0)
    assert "rank 1 (a1) exited with code 1; all 2 members are started again (restart 1)" in noticed.notice.reason  # type: ignore[union-attr]
    assert ticket.exits == {}  # type: ignore[union-attr]
    machine.receive(0, p.ActorRestarted("t-1", replace(infos[0], restarts=1, pid=9)), 0.0)
    assert ticket.actors[0].pid == 9  # type: ignore[union-attr]
    other = p.ActorEnded("t-1", replace(infos[1], phase="exited"), False)
    assert machine.receive(0, other, 0.0) == [i.ActorChanged(ticket, 1)], "0 runs again"  # type: ignore[arg-type]
    [over, _] = machine.receive(0, p.ActorEnded("t-1", ended, False), 0.0)
    assert over.wait_id == wait_id  # type: ignore[union-attr]
