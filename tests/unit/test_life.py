"""One launch on a node: its restarts, health checks and exit hook, with no process and no clock."""

from __future__ import annotations

from typing import Any

import pytest

from spoke.agent import instructions as i
from spoke.agent.machine import AgentMachine
from spoke.events.model import ActorSpec, NodeSpec
from spoke.events.supervision import ExitHook, HealthCheck, Restart, Supervision
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from tests.unit.test_agent_machine import a_start, deliver, renew, requests, up, without_warnings

AGAIN = Restart("on_failure", 2, backoff_s=1.0, backoff_max_s=8.0, window_s=100.0)
GANG = Restart("gang")


def launched(machine: AgentMachine, now_s: float = 0.0, *, command: bool = False, **care: Any) -> o.StartActor:
    kind: dict[str, Any] = {"argv": ("x",)} if command else {"type_name": "T"}
    order = a_start(spec=ActorSpec(**kind, supervision=Supervision(**care)))
    assert deliver(machine, order, now_s, b"blob") == [i.Spawn(order, b"blob")]
    return order


def at_next(machine: AgentMachine) -> tuple[float, list[i.Instruction]]:
    """Let time pass until the machine has something to do; the lease is renewed on the way."""
    while True:
        now_s = machine.wake_at_s()
        assert now_s is not None
        steps = machine.tick(now_s)
        if any(isinstance(step, i.Renew) for step in steps):
            renew(machine, now_s)
            steps = [step for step in steps if not isinstance(step, i.Renew)]
        if steps:
            return now_s, steps


# --- restarts ------------------------------------------------------------------------------------------------------


def test_an_actor_that_fails_is_started_again_until_its_restarts_are_used_up() -> None:
    machine = up()
    order = launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "tcp://a", 0.0)
    for count in (1, 2):
        [report] = requests(machine.ended("1-0", 3, 0, "", 1.0))
        delay_ms = round(AGAIN.delay_s(count, "1-0") * 1000)
        assert report == r.ReportRestarting("t1", 1, "1-0", count, 3, 0, "", delay_ms)
        assert machine.actors_alive == ("1-0",), "the pool holds its place"
        machine.tick(1.0 + delay_ms / 1000 - 0.01)
        renew(machine, 1.0)
        assert machine.tick(1.0 + delay_ms / 1000 + 0.001) == [i.Spawn(order, b"blob", count)]
        assert requests(machine.started("1-0", 8, "tcp://b", 3.0)) == [
            r.ReportStarted("t1", 1, "1-0", 8, "tcp://b", count)
        ]
    assert requests(machine.ended("1-0", -1, 9, "", 4.0)) == [r.ReportExited("t1", 1, "1-0", -1, 9, restarts=2)]
    assert machine.actors_alive == ()


def test_one_that_ends_well_or_was_told_to_stop_is_not_started_again() -> None:
    machine = up()
    launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    assert requests(machine.ended("1-0", 0, 0, "", 1.0)) == [r.ReportExited("t1", 1, "1-0", 0)]
    machine = up()
    launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    deliver(machine, o.StopActor("t1", 1, "1-0", 5.0))
    assert requests(machine.ended("1-0", -1, 15, "", 1.0)) == [r.ReportExited("t1", 1, "1-0", -1, 15)]


def test_a_start_that_fails_counts_and_one_that_makes_no_sense_is_not_tried_again() -> None:
    machine = up()
    launched(machine, restart=AGAIN)
    machine.failed("1-0", "ImportError", 0.0)
    [report] = requests(machine.ended("1-0", 1, 0, "", 1.0))
    assert isinstance(report, r.ReportRestarting)
    assert report.reason == "ImportError"
    machine = up()
    launched(machine, restart=AGAIN)
    machine.failed("1-0", "no secret", 0.0, for_good=True)
    assert requests(machine.ended("1-0", -1, 0, "", 1.0)) == [r.ReportStartFailed("t1", 1, "1-0", "no secret")]


def test_the_count_begins_anew_once_it_has_run_for_long() -> None:
    machine = up()
    launched(machine, restart=Restart("on_failure", 1, backoff_s=0.0, window_s=5.0))
    now_s = 0.0
    for count in (1, 2, 3):
        machine.started("1-0", 7, "", now_s)
        now_s += 5.0
        renew(machine, now_s)
        [report] = requests(machine.ended("1-0", 1, 0, "", now_s))
        assert isinstance(report, r.ReportRestarting)
        assert report.restarts == count
        machine.tick(now_s)
    machine.started("1-0", 7, "", now_s)
    assert isinstance(requests(machine.ended("1-0", 1, 0, "", now_s + 1.0))[0], r.ReportExited)


@pytest.mark.parametrize("how", ["stop", "close", "leave"])
def test_what_ends_it_while_it_waits_for_its_restart_ends_it_at_once(how: str) -> None:
    machine = up()
    launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 3, 0, "", 1.0)
    if how == "stop":
        steps = deliver(machine, o.StopActor("t1", 1, "1-0", 5.0), 1.1)
    elif how == "close":
        steps = deliver(machine, o.CloseTicket("t1", 5.0), 1.1)
    else:
        steps = machine.leave(1.1)
    assert requests(steps)[0] == r.ReportExited("t1", 1, "1-0", 3, 0, restarts=1)
    assert machine.actors_alive == ()
    assert not any(isinstance(step, i.Spawn) for step in machine.tick(1.9))


def test_a_node_that_loses_its_lease_forgets_what_waits_for_a_restart() -> None:
    machine = up()
    launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 3, 0, "", 1.0)
    machine.tick(50.0)
    assert machine.actors_alive == ()
    assert machine.phase == "waiting", "nothing is to be killed, and so it joins again"


def test_nothing_is_started_again_while_pool_and_agent_compare_what_runs() -> None:
    machine = up()
    order = launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 3, 0, "", 1.0)
    told = requests(deliver(machine, o.ReportHoldings("run-2"), 1.0))
    assert told[-1] == r.ReportHeld("run-2", ("1-0",), ("t1",), "1-0")
    assert machine.tick(3.0) == []
    deliver(machine, o.Resume(), 3.1)
    assert machine.tick(3.2) == [i.Spawn(order, b"blob", 1)]


def test_one_that_the_log_does_not_know_is_not_started_again() -> None:
    machine = up()
    launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 3, 0, "", 1.0)
    deliver(machine, o.ReportHoldings("run-2"), 1.0)
    told = requests(deliver(machine, o.StopUnknown(("1-0",), ("t1",)), 1.1))
    assert [type(report) for report in told] == [r.ReportExited, r.ReportHeld]
    assert machine.actors_alive == ()


def test_after_the_keepers_death_actors_are_started_again_by_their_policy() -> None:
    machine = up()
    launched(machine, restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    [report] = requests(machine.keeper_lost(1.0))
    assert isinstance(report, r.ReportRestarting)
    assert (report.code, report.signal) == (-1, 9)


# --- gangs ---------------------------------------------------------------------------------------------------------


def test_a_gang_is_halted_and_resumed_member_by_member() -> None:
    machine = up()
    order = launched(machine, restart=GANG)
    machine.started("1-0", 7, "", 0.0)
    halt = o.HaltActors("t1", 1, ((1, "1-0"),), 2.0)
    assert deliver(machine, halt, 1.0) == [i.StopProcess("1-0", 2.0)]
    assert requests(machine.ended("1-0", -1, 15, "", 1.5)) == [r.ReportHalted("t1", 1, "1-0", 1, -1, 15)]
    assert machine.actors_alive == ("1-0",)
    assert requests(deliver(machine, halt, 1.6)) == [r.ReportHalted("t1", 1, "1-0", 1, -1, 15)], "said again"
    deliver(machine, o.ResumeActors("t1", 1, ("1-0",), 0.5), 2.0)
    assert machine.tick(2.4) == []
    assert machine.tick(2.5) == [i.Spawn(order, b"blob", 1)]
    assert deliver(machine, halt, 2.6) == [], "an old order stops nothing that is newer"
    assert deliver(machine, o.ResumeActors("t1", 1, ("1-0",), 0.5), 2.6) == []


def test_a_member_that_failed_or_ended_well_can_be_started_again_with_its_gang() -> None:
    for code in (0, 3):
        machine = up()
        order = launched(machine, restart=GANG)
        machine.started("1-0", 7, "", 0.0)
        assert requests(machine.ended("1-0", code, 0, "", 1.0)) == [r.ReportExited("t1", 1, "1-0", code)]
        assert machine.actors_alive == ()
        told = requests(deliver(machine, o.HaltActors("t1", 1, ((1, "1-0"),), 2.0), 1.1))
        assert told == [r.ReportHalted("t1", 1, "1-0", 1, code)]
        deliver(machine, o.ResumeActors("t1", 1, ("1-0",), 0.0), 1.2)
        assert machine.tick(1.2) == [i.Spawn(order, b"blob", 1)]


def test_a_halted_member_ends_when_its_ticket_is_closed() -> None:
    machine = up()
    launched(machine, restart=GANG)
    machine.started("1-0", 7, "", 0.0)
    deliver(machine, o.HaltActors("t1", 1, ((1, "1-0"),), 2.0), 1.0)
    machine.ended("1-0", -1, 15, "", 1.5)
    told = requests(deliver(machine, o.CloseTicket("t1", 5.0), 2.0))
    assert told == [r.ReportExited("t1", 1, "1-0", -1, 15, restarts=1)]


def test_a_member_that_the_agent_does_not_know_is_said_to_be_forgotten() -> None:
    machine = up()
    [report] = requests(deliver(machine, o.HaltActors("t1", 1, ((1, "1-0"),), 2.0)))
    assert isinstance(report, r.ReportStartFailed)
    assert report.forgotten
    assert report.restarts == 1


def test_what_was_kept_for_a_restart_goes_with_its_ticket_and_with_a_new_launch_of_its_rank() -> None:
    for order in (o.CloseTicket("t1", 1.0), a_start("2-0")):
        machine = up()
        launched(machine, restart=GANG)
        machine.started("1-0", 7, "", 0.0)
        machine.ended("1-0", 0, 0, "", 1.0)
        deliver(machine, order, 1.1)
        [report] = requests(deliver(machine, o.HaltActors("t1", 1, ((1, "1-0"),), 2.0), 1.2))
        assert isinstance(report, r.ReportStartFailed)


# --- time limits and health ----------------------------------------------------------------------------------------


def test_its_own_time_limit_goes_before_the_agents() -> None:
    machine = up(start_limit_s=5.0)
    launched(machine, start_timeout_s=2.0)
    assert machine.wake_at_s() == 2.0
    assert machine.tick(2.0) == [i.StopProcess("1-0", 1.0)]
    [report] = requests(machine.ended("1-0", -1, 15, "", 2.5))
    assert report == r.ReportStartFailed("t1", 1, "1-0", "it was not up within the time limit of 2 s")


def test_an_actor_is_asked_for_its_health_and_killed_when_it_hangs() -> None:
    machine = up()
    launched(machine, health=HealthCheck(interval_s=1.0, timeout_s=0.5, failures=2))
    machine.started("1-0", 7, "tcp://a", 0.0)
    now_s, steps = at_next(machine)
    assert (now_s, steps) == (1.0, [i.Probe("1-0", "tcp://a", b"blob", (0, 1), 0.5)])
    assert machine.probed("1-0", (0, 1), "", 1.1) == []
    assert machine.probed("1-0", (0, 1), "late", 1.2) == [], "each question has one answer"
    now_s, steps = at_next(machine)
    assert now_s == pytest.approx(2.1)
    [warning] = machine.probed("1-0", (0, 2), "nobody is there", 2.5)
    assert isinstance(warning, i.Warn)
    now_s, steps = at_next(machine)
    assert now_s == pytest.approx(3.5)
    now_s, steps = at_next(machine)  # no answer at all
    assert now_s == pytest.approx(6.0)
    assert without_warnings(steps) == [i.StopProcess("1-0", 5.0)]
    [report] = requests(machine.ended("1-0", -1, 9, "", 6.1))
    assert report == r.ReportExited(
        "t1", 1, "1-0", -1, 9, "2 health checks in a row failed: nobody answered", restarts=0
    )


def test_a_command_is_up_when_its_health_command_succeeds() -> None:
    machine = up()
    order = launched(machine, command=True, start_timeout_s=9.0, health=HealthCheck(1.0, 0.5, 1, ["check"]))
    assert machine.started("1-0", 7, "", 0.0) == []
    now_s, steps = at_next(machine)
    assert steps == [i.SpawnHelper(order, b"blob", "health", 0)]
    assert machine.ended("1-0+health", 1, 0, "", now_s) == [], "not yet"
    now_s, steps = at_next(machine)
    assert requests(machine.ended("1-0+health", 0, 0, "", now_s)) == [r.ReportStarted("t1", 1, "1-0", 7, "")]
    now_s, steps = at_next(machine)
    now_s, steps = at_next(machine)
    assert steps == [i.StopProcess("1-0+health", 0.0)], "it takes too long"
    steps = machine.ended("1-0+health", -1, 9, "", now_s)
    assert without_warnings(steps) == [i.StopProcess("1-0", 5.0)]
    [report] = requests(machine.ended("1-0", -1, 15, "", now_s))
    assert isinstance(report, r.ReportExited)
    assert report.reason == "its health check failed: it took too long"


def test_an_actor_has_ended_only_when_the_check_of_its_health_has() -> None:
    machine = up()
    launched(machine, command=True, health=HealthCheck(1.0, 0.5, 1, ["check"]))
    machine.started("1-0", 7, "", 0.0)
    at_next(machine)
    assert machine.ended("1-0", 1, 0, "", 1.1) == [i.StopProcess("1-0+health", 0.0)]
    assert machine.actors_alive == ("1-0",)
    [report] = requests(machine.ended("1-0+health", -1, 9, "", 1.2))
    assert isinstance(report, r.ReportStartFailed)


def test_an_agent_that_runs_no_commands_runs_no_exit_hooks_either() -> None:
    machine = up(spec=NodeSpec("n0", "host", "10.0.0.1", "m"))
    [report] = requests(
        deliver(machine, a_start(spec=ActorSpec("T", supervision=Supervision(exit_hook=ExitHook(["x"])))))
    )
    assert isinstance(report, r.ReportStartFailed)
    assert "--allow-commands" in report.reason


# --- exit hooks ----------------------------------------------------------------------------------------------------


def test_the_exit_hook_runs_before_the_end_is_told() -> None:
    machine = up()
    order = launched(machine, exit_hook=ExitHook(["clean"], 3.0))
    machine.started("1-0", 7, "", 0.0)
    assert machine.ended("1-0", 2, 0, "", 1.0) == [i.SpawnHelper(order, b"blob", "hook", 0, 2, 0)]
    assert machine.actors_alive == ("1-0",)
    assert deliver(machine, o.CloseTicket("t1", 0.0), 1.1) == [], "it has its own time"
    now_s, steps = at_next(machine)
    assert (now_s, without_warnings(steps)) == (4.0, [i.StopProcess("1-0+hook", 0.0)])
    assert requests(machine.ended("1-0+hook", -1, 9, "", 4.1)) == [r.ReportExited("t1", 1, "1-0", 2)]


def test_no_exit_hook_when_everything_must_end_at_once() -> None:
    machine = up()
    launched(machine, exit_hook=ExitHook(["clean"]))
    machine.started("1-0", 7, "", 0.0)
    machine.leave(1.0, at_once=True)
    assert isinstance(requests(machine.ended("1-0", -1, 9, "", 1.0))[0], r.ReportExited)
    machine = up()
    launched(machine, exit_hook=ExitHook(["clean"]))
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 0, 0, "", 1.0)
    assert i.StopProcess("1-0+hook", 0.0) in machine.leave(1.1, at_once=True)


def test_it_runs_each_time_that_an_actor_ends() -> None:
    machine = up()
    order = launched(machine, exit_hook=ExitHook(["clean"]), restart=AGAIN)
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 2, 0, "", 1.0)
    [report] = requests(machine.ended("1-0+hook", 0, 0, "", 1.1))
    assert isinstance(report, r.ReportRestarting)
    machine.tick(2.2)
    assert machine.ended("1-0", 1, 0, "", 2.3) == [
        i.SpawnHelper(order, b"blob", "hook", 1, 1, 0, "its process exited with code 1 before it was up")
    ]
