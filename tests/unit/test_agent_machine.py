"""The agent's state machine: events in, instructions out, with no process, no server and no clock."""

from __future__ import annotations

from typing import Any

import pytest

from spoke.agent import instructions as i
from spoke.agent.machine import AgentMachine, Settings
from spoke.events.model import ActorSpec, NodeSpec, PortRange
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from spoke.protocol.notice import Notice

LEASE_S = 10.0
MARGIN_S = 2.0
SPEC = NodeSpec("n0", "host", "10.0.0.1", "m", ports=PortRange(20_000, 4), allow_commands=True)


def a_machine(**settings: Any) -> AgentMachine:
    return AgentMachine(Settings(settings.pop("spec", SPEC), "tok", int(LEASE_S * 1000), **settings))


def deliver(machine: AgentMachine, order: o.Order, now_s: float = 0.0, blob: bytes = b"") -> list[i.Instruction]:
    return machine.order(o.Delivery(machine.incarnation, order, blob), now_s)


def renew(machine: AgentMachine, sent_at_s: float, held: bool | None = True, now_s: float | None = None) -> list[Any]:
    return machine.renewed(machine.incarnation, sent_at_s, held, sent_at_s if now_s is None else now_s)


def up(now_s: float = 0.0, **settings: Any) -> AgentMachine:
    """A machine that has joined, with a renewal sent at ``now_s``."""
    machine = a_machine(**settings)
    machine.start(now_s)
    deliver(machine, o.Welcome(int(LEASE_S * 1000)), now_s)
    renew(machine, now_s)
    assert machine.phase == "up"
    return machine


def a_start(launch_id: str = "1-0", **fields: Any) -> o.StartActor:
    values: dict[str, Any] = {
        "ticket_id": "t1",
        "launch_id": launch_id,
        "actor_id": "a1",
        "spec": ActorSpec(type_name="T"),
        "rank": 1,
        "local_rank": 0,
        "group_rank": 0,
        "world_size": 1,
        "local_world_size": 1,
        "num_nodes": 1,
        "gpu_ids": (),
        "gpu_uuids": (),
        "master_addr": "10.0.0.1",
        "master_port": 20_001,
        "grace_s": 5.0,
    }
    return o.StartActor(**{**values, **fields})


def requests(steps: list[i.Instruction]) -> list[r.Request]:
    return [step.envelope.request for step in steps if isinstance(step, i.Send)]


def without_warnings(steps: list[i.Instruction]) -> list[i.Instruction]:
    return [step for step in steps if not isinstance(step, i.Warn)]


# --- joining -------------------------------------------------------------------------------------------------------


def test_it_asks_to_register_and_renews_before_it_is_up() -> None:
    machine = a_machine()
    assert requests(machine.start(0.0)) == [r.RegisterNode(SPEC, 10_000)]
    assert deliver(machine, o.Welcome(10_000)) == [i.Renew("tok-1", 10_000)]
    assert machine.phase == "confirming"
    assert renew(machine, 1.0) == [i.ExtendLease(1.0 + LEASE_S - MARGIN_S), i.Joined()]


def test_orders_that_come_before_it_is_up_are_obeyed_when_it_is() -> None:
    machine = a_machine()
    machine.start(0.0)
    deliver(machine, o.Welcome(10_000))
    assert deliver(machine, a_start()) == []
    assert isinstance(renew(machine, 0.0)[-1], i.Spawn)


def test_a_first_renewal_that_took_too_long_proves_nothing() -> None:
    machine = a_machine()
    machine.start(0.0)
    deliver(machine, o.Welcome(10_000))
    deliver(machine, a_start())
    assert renew(machine, 0.0, now_s=LEASE_S) == [i.Renew("tok-1", 10_000)]
    assert machine.phase == "confirming"
    assert isinstance(renew(machine, LEASE_S)[-1], i.Spawn)


def test_orders_of_other_incarnations_are_ignored() -> None:
    machine = up()
    assert machine.order(o.Delivery("tok-0", a_start()), 0.0) == []
    assert machine.order(o.Delivery("tok-0", o.Reject("node_lost", "")), 0.0) == []
    assert machine.phase == "up"


def test_without_an_answer_it_asks_again_as_the_same_incarnation() -> None:
    machine = a_machine()
    machine.start(0.0)
    wake_s = machine.wake_at_s()
    assert wake_s is not None
    assert machine.tick(wake_s - 0.1) == []
    steps = machine.tick(wake_s)
    assert requests(steps) == [r.RegisterNode(SPEC, 10_000)]
    assert machine.incarnation == "tok-1"


def test_a_node_id_in_use_is_tried_again_for_a_bit_more_than_the_lease_then_given_up() -> None:
    machine = a_machine()
    now_s = 0.0
    machine.start(now_s)
    refusals = 0
    while machine.phase != "left":
        refusals += 1
        steps = deliver(machine, o.Reject("node_refused", "it is alive on host-2"), now_s)
        if machine.phase == "waiting":
            now_s = machine.wake_at_s() or 0.0
            assert requests(machine.tick(now_s))
    assert steps == [i.Quit("node_refused", "the pool refused this node: it is alive on host-2")]
    assert LEASE_S < now_s < 2 * LEASE_S
    assert refusals > 5


def test_any_other_refusal_ends_it_at_once() -> None:
    machine = a_machine()
    machine.start(0.0)
    assert deliver(machine, o.Reject("invalid", "no")) == [i.Quit("invalid", "the pool refused this node: no")]


# --- one terminal report for every start ---------------------------------------------------------------------------


def test_a_start_is_reported_and_so_is_its_end() -> None:
    machine = up()
    assert deliver(machine, a_start(), blob=b"x") == [i.Spawn(a_start(), b"x")]
    assert requests(machine.started("1-0", 7, "tcp://a", 0.0)) == [r.ReportStarted("t1", 1, "1-0", 7, "tcp://a")]
    assert requests(machine.ended("1-0", 3, 0, "", 1.0)) == [r.ReportExited("t1", 1, "1-0", 3, 0)]
    assert machine.ended("1-0", 3, 0, "", 1.0) == []
    assert machine.actors_alive == ()


def test_the_same_order_twice_starts_nothing_twice_even_after_its_end() -> None:
    machine = up()
    deliver(machine, a_start())
    assert deliver(machine, a_start()) == []
    machine.started("1-0", 7, "", 0.0)
    machine.ended("1-0", 0, 0, "", 1.0)
    assert deliver(machine, a_start()) == []


def test_what_the_actor_says_of_its_failure_is_the_reason() -> None:
    machine = up()
    deliver(machine, a_start())
    assert machine.failed("1-0", "ImportError", 0.0) == [i.StopProcess("1-0", 1.0)]
    assert machine.started("1-0", 7, "", 0.0) == []
    assert requests(machine.ended("1-0", 1, 0, "", 1.0)) == [r.ReportStartFailed("t1", 1, "1-0", "ImportError")]


def test_an_end_before_the_start_is_a_failure_with_the_end_of_the_log() -> None:
    machine = up()
    deliver(machine, a_start())
    [report] = requests(machine.ended("1-0", -1, 11, "Segmentation fault", 1.0))
    assert isinstance(report, r.ReportStartFailed)
    assert "signal 11" in report.reason
    assert "Segmentation fault" in report.reason


def test_a_stop_before_the_start_is_over_is_a_failure_to_start() -> None:
    machine = up()
    deliver(machine, a_start())
    assert deliver(machine, o.StopActor("t1", 1, "1-0", 3.0)) == [i.StopProcess("1-0", 3.0)]
    assert machine.started("1-0", 7, "", 0.0) == []
    [report] = requests(machine.ended("1-0", 0, 0, "", 1.0))
    assert isinstance(report, r.ReportStartFailed)


def test_a_stop_of_what_has_ended_does_nothing() -> None:
    assert deliver(up(), o.StopActor("t1", 1, "1-0", 3.0)) == []


def test_a_class_that_is_not_up_in_time_is_ended_and_a_command_is_not() -> None:
    machine = up(start_limit_s=5.0)
    deliver(machine, a_start())
    deliver(machine, a_start("2-0", spec=ActorSpec(argv=("x",))))
    assert machine.wake_at_s() is not None
    renew(machine, 4.0)
    assert [s for s in machine.tick(5.0) if isinstance(s, i.StopProcess)] == [i.StopProcess("1-0", 1.0)]
    assert [s for s in machine.tick(6.0) if isinstance(s, i.StopProcess)] == []
    [report] = requests(machine.ended("1-0", -1, 9, "", 6.0))
    assert isinstance(report, r.ReportStartFailed)
    assert "5 s" in report.reason


def test_commands_are_refused_where_they_are_not_allowed() -> None:
    machine = up(spec=NodeSpec("n0", "h", "a"))
    [report] = requests(deliver(machine, a_start(spec=ActorSpec(argv=("x",)))))
    assert isinstance(report, r.ReportStartFailed)
    assert "start the agent with --allow-commands" in report.reason


def test_names_that_would_lead_out_of_the_log_directory_are_refused() -> None:
    for bad in ({"ticket_id": "../x"}, {"actor_id": "a/../../b"}, {"actor_id": ".."}):
        steps = deliver(up(), a_start(**bad))
        assert isinstance(requests(steps)[0], r.ReportStartFailed)
        assert len(steps) == 1


def test_the_keepers_death_ends_all_its_actors() -> None:
    machine = up()
    deliver(machine, a_start("1-0"))
    deliver(machine, a_start("2-0"))
    machine.started("1-0", 7, "", 0.0)
    steps = machine.keeper_lost(1.0)
    assert steps[0] == i.ExtendLease(LEASE_S - MARGIN_S)
    exited, failed = requests(steps)
    assert exited == r.ReportExited("t1", 1, "1-0", -1, 9)
    assert isinstance(failed, r.ReportStartFailed)


# --- tickets and ports ---------------------------------------------------------------------------------------------


def test_close_ticket_while_launching_stops_everything_of_it_and_lets_nothing_more_start() -> None:
    machine = up()
    deliver(machine, a_start("1-0"))
    deliver(machine, a_start("2-0"))
    deliver(machine, a_start("3-0", ticket_id="t2"))
    assert deliver(machine, o.CloseTicket("t1", 2.0)) == [i.StopProcess("1-0", 2.0), i.StopProcess("2-0", 2.0)]
    [report] = requests(deliver(machine, a_start("4-0")))
    assert isinstance(report, r.ReportStartFailed)


def test_the_port_is_lent_to_rank_0_and_held_again_before_the_tickets_last_end_is_told() -> None:
    machine = up()
    assert deliver(machine, a_start("1-0", rank=0))[0] == i.LendPort(20_001)
    assert deliver(machine, a_start("2-0", rank=1)) == [i.Spawn(a_start("2-0", rank=1), b"")]
    deliver(machine, o.CloseTicket("t1", 2.0))
    assert len(machine.ended("1-0", 0, 0, "", 1.0)) == 1
    steps = machine.ended("2-0", 0, 0, "", 1.0)
    assert steps[0] == i.HoldPort(20_001)
    assert len(requests(steps)) == 1


def test_the_port_stays_lent_while_the_ticket_is_open() -> None:
    machine = up()
    deliver(machine, a_start("1-0", rank=0))
    assert len(machine.ended("1-0", 0, 0, "", 1.0)) == 1
    assert deliver(machine, o.CloseTicket("t1", 2.0)) == [i.HoldPort(20_001)]
    assert deliver(machine, o.CloseTicket("t1", 2.0)) == []


def test_ports_of_others_are_not_lent() -> None:
    assert len(deliver(up(), a_start(rank=0, master_port=29_500))) == 1


# --- the lease (I7) ------------------------------------------------------------------------------------------------


def test_the_lease_is_sure_from_the_moment_the_renewal_was_sent() -> None:
    machine = up()
    assert renew(machine, 3.0, now_s=5.0) == [i.ExtendLease(3.0 + LEASE_S - MARGIN_S)]
    deliver(machine, a_start())
    assert without_warnings(machine.tick(10.9))[:1] == [i.Renew("tok-1", 10_000)]
    assert i.KillAll() in machine.tick(11.0)


def test_it_renews_every_third_of_the_lease_one_at_a_time() -> None:
    machine = up()
    assert machine.wake_at_s() == pytest.approx(LEASE_S / 3)
    assert machine.tick(LEASE_S / 3) == [i.Renew("tok-1", 10_000)]
    assert machine.tick(LEASE_S / 3 + 1) == []


def test_a_renewal_of_unknown_outcome_is_tried_again_soon_and_proves_nothing() -> None:
    machine = up()
    machine.tick(4.0)
    assert renew(machine, 4.0, held=None, now_s=5.0) == []
    assert machine.tick(5.0 + LEASE_S / 20) == [i.Renew("tok-1", 10_000)]
    assert i.KillAll() in machine.tick(LEASE_S - MARGIN_S)


def test_out_of_time_it_kills_everything_and_joins_again_only_when_all_is_dead() -> None:
    machine = up()
    deliver(machine, a_start("1-0"))
    deliver(machine, a_start("2-0"))
    machine.started("1-0", 7, "", 0.0)
    steps = without_warnings(machine.tick(LEASE_S))
    assert steps == [i.DropUnsent(), i.KillAll()]
    assert deliver(machine, a_start("3-0")) == []
    assert machine.ended("1-0", -1, 9, "", 8.0) == []
    assert machine.phase == "clearing"
    assert requests(machine.ended("2-0", -1, 9, "", 8.0)) == []
    wake_s = machine.wake_at_s()
    assert wake_s is not None
    assert requests(machine.tick(wake_s)) == [r.RegisterNode(SPEC, 10_000)]
    assert machine.incarnation == "tok-2"
    assert renew(machine, 0.0) == []


def test_a_late_answer_to_an_old_incarnations_renewal_is_ignored() -> None:
    machine = up()
    machine.tick(LEASE_S)
    machine.tick(machine.wake_at_s() or 0.0)
    assert machine.renewed("tok-1", 9.0, True, 9.0) == []
    assert machine.phase == "joining"


@pytest.mark.parametrize("how", ["renewal", "order"])
def test_a_lost_lease_clears_at_once(how: str) -> None:
    machine = up()
    deliver(machine, a_start())
    if how == "renewal":
        steps = renew(machine, 1.0, held=False)
    else:
        steps = deliver(machine, o.Reject("node_lost", "its lease ran out"), 1.0)
    assert i.KillAll() in steps
    assert machine.phase == "clearing"


def test_a_keeper_that_does_not_kill_in_time_is_killed() -> None:
    machine = up()
    deliver(machine, a_start())
    machine.tick(LEASE_S)
    assert machine.tick(machine.wake_at_s() or 0.0) == [i.KillKeeper()]
    machine.keeper_lost(12.0)
    assert machine.phase == "waiting"


def test_ports_are_held_again_before_it_joins_anew() -> None:
    machine = up()
    deliver(machine, a_start(rank=0))
    machine.tick(LEASE_S)
    assert machine.ended("1-0", -1, 9, "", 9.0) == [i.HoldPort(20_001)]


def test_joining_again_and_again_takes_longer_each_time() -> None:
    machine = up()
    pauses = []
    now_s = 0.0
    for _ in range(8):
        deliver(machine, o.Reject("node_lost", "started anew"), now_s)
        wake_s = machine.wake_at_s() or 0.0
        pauses.append(wake_s - now_s)
        now_s = wake_s
        machine.tick(now_s)
        deliver(machine, o.Welcome(10_000), now_s)
        renew(machine, now_s)
        assert machine.phase == "up"
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(5.0)


# --- leaving -------------------------------------------------------------------------------------------------------


def test_leaving_stops_everything_reports_it_and_says_goodbye() -> None:
    machine = up(leave_s_max=4.0)
    deliver(machine, a_start("1-0", grace_s=60.0))
    machine.started("1-0", 7, "", 0.0)
    assert machine.leave(1.0) == [i.StopProcess("1-0", 4.0)]
    assert isinstance(requests(deliver(machine, a_start("2-0")))[0], r.ReportStartFailed)
    steps = machine.ended("1-0", 0, 0, "", 2.0)
    assert [type(request) for request in requests(steps)] == [r.ReportExited, r.LeaveNode]
    assert steps[-1] == i.Quit()
    assert machine.wake_at_s() is None or machine.phase == "left"


def test_the_lease_is_renewed_while_it_leaves() -> None:
    machine = up()
    deliver(machine, a_start())
    machine.leave(1.0)
    assert machine.tick(LEASE_S / 3) == [i.Renew("tok-1", 10_000)]


def test_leaving_at_once_has_no_grace() -> None:
    machine = up()
    deliver(machine, a_start())
    machine.leave(1.0)
    assert machine.leave(1.0) == []
    assert machine.leave(1.1, at_once=True) == [i.StopProcess("1-0", 0.0)]


def test_leaving_with_nothing_to_stop_ends_at_once() -> None:
    steps = up().leave(1.0)
    assert [type(request) for request in requests(steps)] == [r.LeaveNode]
    assert steps[-1] == i.Quit()


def test_leaving_while_it_clears_ends_when_all_is_dead() -> None:
    machine = up()
    deliver(machine, a_start())
    machine.tick(LEASE_S)
    assert machine.leave(11.0) == []
    assert machine.ended("1-0", -1, 9, "", 11.1) == [i.Quit()]


def test_leaving_before_it_was_welcomed_ends_at_once() -> None:
    machine = a_machine()
    machine.start(0.0)
    assert machine.leave(1.0)[-1] == i.Quit()


def test_a_node_whose_orders_were_trimmed_begins_anew_with_nothing_running() -> None:
    machine = up()
    deliver(machine, a_start("1-0"))
    before = machine.incarnation
    steps = machine.orders_lost(1.0)
    assert any(isinstance(step, i.KillAll) for step in steps)
    assert any(isinstance(step, i.Warn) and "trimmed" in step.text for step in steps)
    assert machine.orders_lost(1.0) == [], "once"
    machine.ended("1-0", -1, 9, "", 2.0)
    asked = [step.envelope.request for step in machine.tick(100.0) if isinstance(step, i.Send)]
    assert [type(request) for request in asked] == [r.RegisterNode]
    assert machine.incarnation != before


# --- operators ---------------------------------------------------------------------------------------------------


def test_an_agent_whose_node_was_removed_kills_what_is_left_and_ends_for_good() -> None:
    machine = up()
    deliver(machine, a_start())
    steps = deliver(machine, o.Reject("node_removed", "sold"), 1.0)
    assert i.KillAll() in steps
    assert not any(isinstance(step, i.Quit) for step in steps)
    (end,) = machine.ended("1-0", -1, 9, "", 1.1)
    assert end == i.Quit("node_removed", "the node was removed: sold")
    assert machine.phase == "left"


def test_an_empty_node_that_was_removed_ends_at_once() -> None:
    assert deliver(up(), o.Reject("node_removed", "sold"), 1.0)[-1] == i.Quit(
        "node_removed", "the node was removed: sold"
    )


def test_a_notice_rings_actors_that_are_up_and_those_that_come_up_later() -> None:
    machine = up()
    for launch_id, spec in (("1-0", "T"), ("2-0", "T"), ("3-0", "")):
        what = ActorSpec(spec) if spec else ActorSpec(argv=("sleep", "9"))
        deliver(machine, a_start(launch_id, spec=what))
    machine.started("1-0", 1, "tcp://x:1", 0.0)
    machine.started("3-0", 3, "", 0.0)
    notice = Notice("t1", "node_draining", "new kernel", "n0")
    assert deliver(machine, o.NotifyActors(notice)) == [i.Notify(("1-0",), notice)], "a command cannot hear it"
    assert machine.started("2-0", 2, "tcp://x:2", 0.0)[-1] == i.Notify(("2-0",))


def test_the_port_of_a_rank_0_that_moved_away_is_held_again() -> None:
    machine = up()
    deliver(machine, a_start(rank=0))
    machine.started("1-0", 1, "tcp://x:1", 0.0)
    machine.ended("1-0", 1, 0, "", 1.0)
    assert deliver(machine, o.TakeBackPort("t1")) == [i.HoldPort(20_001)]
    assert deliver(machine, o.TakeBackPort("t1")) == []
