"""The client's protocol without a server: what is asked and answered goes in, what must happen comes out."""

from __future__ import annotations

import pytest

from spoke.client import instructions as i
from spoke.client import machine as m
from spoke.client.machine import Machine
from spoke.errors import (
    AllocationCancelled,
    ClientClosed,
    LeaseLost,
    LimitExceeded,
    NoAllocator,
    ServerUnreachable,
    ServerUnsuitable,
    TicketEnded,
)
from spoke.events.model import ActorSpec, GangSpec, Member
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.fakes import granted

SPEC = GangSpec(1, 2)
DETACHED = GangSpec(1, 2, detached=True)
CONNECT = r.ConnectClient(10_000)


def connected(**options: int) -> Machine:
    machine = Machine(**options)
    machine.receive(machine.ask(CONNECT, 0), p.Done(), 0)
    return machine


def holding(spec: GangSpec = SPEC, ticket_id: str = "t-1") -> Machine:
    machine = connected()
    machine.receive(machine.ask(r.AllocateGang(spec), 0), granted(ticket_id, spec), 0)
    return machine


def actor(rank: int, phase: str = "running", launch: str = "a") -> p.ActorInfo:
    return p.ActorInfo(rank, f"actor-{rank}", "n0", f"{launch}-{rank}", phase, 100 + rank)


def launched(machine: Machine, ranks: tuple[int, ...] = (0, 1)) -> list[i.Instruction]:
    members = tuple(Member(rank, f"actor-{rank}") for rank in ranks)
    seq = machine.ask(r.LaunchActors("t-1", ActorSpec("T"), members), 0)
    return machine.receive(seq, p.Launched("t-1", tuple(actor(rank) for rank in ranks)), 0)


def ended(machine: Machine, info: p.ActorInfo, expected: bool = False) -> list[i.Instruction]:
    return machine.receive(0, p.ActorEnded("t-1", info, expected), 0)


def transmitted(outputs: list[i.Instruction]) -> list[r.Request]:
    return [output.request for output in outputs if isinstance(output, i.Transmit)]


def of_type(outputs: list[i.Instruction], kind: type[i.Instruction]) -> list[i.Instruction]:
    return [output for output in outputs if isinstance(output, kind)]


# --- asking and hearing ------------------------------------------------------------------------------------------


def test_requests_are_numbered_from_one_without_gaps() -> None:
    machine = Machine()
    assert [machine.ask(CONNECT, 0), machine.ask(r.AllocateGang(SPEC), 0)] == [1, 2]


def test_the_session_is_connected_once_the_allocator_has_answered() -> None:
    machine = Machine()
    seq = machine.ask(CONNECT, 0)
    assert not machine.connected
    assert machine.receive(seq, p.Done(), 0)[0] == i.Connected()
    assert machine.connected


def test_a_reply_resolves_its_request_and_only_once() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    first = machine.receive(seq, granted("t-1", SPEC), 0)
    assert [type(output) for output in first] == [i.Resolve]
    assert machine.receive(seq, granted("t-1", SPEC), 0) == []
    assert set(machine.tickets) == {"t-1"}


def test_a_refusal_becomes_the_exception_of_its_code() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    (output,) = machine.receive(seq, p.Failed("cancelled", "it was"), 0)
    assert isinstance(output, i.Fail)
    assert isinstance(output.error, AllocationCancelled)
    assert str(output.error) == "it was"


def test_a_limit_on_outstanding_requests_holds() -> None:
    machine = connected(outstanding_max=2)
    machine.ask(r.AllocateGang(SPEC), 0)
    machine.ask(r.AllocateGang(SPEC), 0)
    with pytest.raises(LimitExceeded, match="wait for some"):
        machine.ask(r.AllocateGang(SPEC), 0)


def test_a_refused_session_ends_with_the_reason() -> None:
    machine = Machine()
    outputs = machine.receive(machine.ask(CONNECT, 0), p.Failed("invalid", "a lease of 1 ms"), 0)
    assert of_type(outputs, i.Lost)
    with pytest.raises(Exception, match="a lease of 1 ms"):
        machine.ask(r.AllocateGang(SPEC), 0)


# --- releasing ---------------------------------------------------------------------------------------------------


def test_an_answered_release_ends_the_ticket() -> None:
    machine = holding()
    outputs = machine.receive(machine.ask(r.ReleaseGang("t-1"), 0), p.Done(), 0)
    assert [type(output) for output in outputs] == [i.TicketGone, i.Resolve]
    assert machine.tickets == {}


def test_a_release_under_way_can_be_joined_until_it_is_answered() -> None:
    machine = holding()
    seq = machine.ask(r.ReleaseGang("t-1"), 0)
    assert machine.release_in_progress("t-1") == seq
    machine.receive(seq, p.Done(), 0)
    assert machine.release_in_progress("t-1") is None


def test_a_dropped_gang_is_released_once() -> None:
    machine = holding()
    ticket = machine.tickets["t-1"]
    (request,) = transmitted(machine.drop(ticket, 0))
    assert isinstance(request, r.ReleaseGang)
    assert machine.drop(ticket, 0) == []


def test_a_gang_dropped_while_its_release_is_under_way_is_released_again_if_that_fails() -> None:
    machine = holding()
    ticket = machine.tickets["t-1"]
    seq = machine.ask(r.ReleaseGang("t-1"), 0)
    ticket.dropped = True
    assert machine.drop(ticket, 0) == []
    outputs = machine.send_refused(seq, ServerUnsuitable("full"), 0)
    assert [type(output) for output in outputs] == [i.Fail, i.Transmit]


def test_a_ticket_that_ended_by_itself_is_not_released() -> None:
    machine = holding()
    ticket = machine.tickets["t-1"]
    assert machine.receive(0, p.TicketReleased("t-1"), 0) == [i.TicketGone(ticket)]
    assert machine.drop(ticket, 0) == []


# --- withdrawing -------------------------------------------------------------------------------------------------


def test_a_withdrawn_allocation_is_cancelled() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    assert transmitted(machine.withdraw(seq, 0)) == [r.CancelGang(seq)]
    assert machine.withdraw(seq, 0) == []


def test_a_gang_granted_after_it_was_withdrawn_is_given_back() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(DETACHED), 0)
    machine.withdraw(seq, 0)
    (request,) = transmitted(machine.receive(seq, granted("t-7", DETACHED), 0))
    assert isinstance(request, r.ReleaseGang)
    assert request.ticket_id == "t-7"


def test_a_withdrawn_launch_stops_its_actors() -> None:
    machine = holding()
    seq = machine.ask(r.LaunchActors("t-1", ActorSpec("T"), (Member(0, "a"), Member(1, "b"))), 0)
    assert transmitted(machine.withdraw(seq, 0)) == [r.StopActor("t-1", 0), r.StopActor("t-1", 1)]


def test_a_withdrawn_release_goes_on() -> None:
    machine = holding()
    seq = machine.ask(r.ReleaseGang("t-1"), 0)
    assert machine.withdraw(seq, 0) == []
    assert machine.resend() == [seq]


# --- sending -----------------------------------------------------------------------------------------------------


def test_after_an_outage_everything_without_an_answer_goes_out_again_in_order() -> None:
    machine = connected()
    seqs = [machine.ask(r.AllocateGang(SPEC), 0) for _ in range(4)]
    machine.receive(seqs[1], granted("t-1", SPEC), 0)
    machine.withdraw(seqs[2], 0)
    assert machine.resend() == [seqs[0], seqs[3], seqs[3] + 1]  # the last one is the cancel


def test_what_nobody_waits_for_is_not_sent() -> None:
    machine = connected()
    seqs = [machine.ask(r.AllocateGang(SPEC), 0) for _ in range(2)]
    machine.withdraw(seqs[0], 0)
    assert [one.seq for one in machine.take([*seqs, 99])] == [seqs[1]]


def test_a_request_that_the_server_refused_is_forgotten() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    machine.take([seq])
    full = ServerUnsuitable("full")
    assert machine.send_refused(seq, full, 0) == [i.Fail(seq, full)]
    assert machine.outstanding == {}


def test_a_request_that_may_stand_in_the_stream_is_given_back_if_it_is_granted_later() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    machine.take([seq])
    machine.sending_unclear([seq])
    assert [type(o) for o in machine.send_refused(seq, ServerUnreachable("away"), 0)] == [i.Fail]
    assert isinstance(transmitted(machine.receive(seq, granted("t-1", SPEC), 0))[0], r.ReleaseGang)


def test_a_request_given_up_and_queued_later_is_cancelled() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    machine.take([seq])
    machine.give_up(NoAllocator("none"), 20, asked_before=10)
    assert transmitted(machine.receive(0, p.Queued(seq, "t-1", "full"), 30)) == [r.CancelGang(seq)]


def test_the_machines_own_releases_are_never_given_up() -> None:
    machine = holding()
    (output,) = machine.drop(machine.tickets["t-1"], 0)
    assert isinstance(output, i.Transmit)
    assert machine.send_refused(output.seq, ServerUnsuitable("full"), 0) == []
    assert machine.give_up(ServerUnreachable("away"), 99, asked_before=98) == []
    assert machine.resend() == [output.seq]


# --- nobody answers ----------------------------------------------------------------------------------------------


def test_waiting_in_line_is_no_sign_of_a_missing_allocator() -> None:
    machine = connected()
    first, second = (machine.ask(r.AllocateGang(SPEC), now) for now in (1, 2))
    machine.receive(0, p.Queued(first, "t-1", "full"), 3)
    assert machine.oldest_unanswered() == 2
    outputs = machine.give_up(NoAllocator("none"), 20, asked_before=10)
    assert [output.seq for output in outputs if isinstance(output, i.Fail)] == [second]


def test_only_what_was_asked_before_is_given_up() -> None:
    machine = connected()
    seqs = [machine.ask(r.AllocateGang(SPEC), now) for now in (1, 5, 9)]
    outputs = machine.give_up(NoAllocator("none"), 20, asked_before=5)
    assert [output.seq for output in outputs if isinstance(output, i.Fail)] == seqs[:2]


def test_launches_and_releases_may_take_long_with_a_living_allocator() -> None:
    machine = holding()
    machine.ask(r.ReleaseGang("t-1"), 1)
    machine.ask(r.LaunchActors("t-1", ActorSpec("T"), (Member(0, "a"),)), 1)
    assert machine.oldest_unanswered(quick_only=True) is None
    assert machine.give_up(NoAllocator("none"), 20, asked_before=9, quick_only=True) == []


def test_the_request_for_the_session_outlives_a_missing_allocator() -> None:
    machine = Machine()
    seq = machine.ask(CONNECT, 0)
    assert machine.give_up(NoAllocator("none"), 20, asked_before=9) == []
    assert machine.receive(seq, p.Done(), 30)[0] == i.Connected()


def test_an_allocation_without_a_word_is_overdue_after_its_own_time_and_a_grace() -> None:
    machine = connected()
    seq = machine.ask(r.AllocateGang(SPEC, 5_000), 0)
    machine.ask(r.AllocateGang(SPEC, None), 0)
    assert machine.overdue(5 + m.ALLOCATE_GRACE_S - 1) == []
    assert machine.overdue(5 + m.ALLOCATE_GRACE_S) == [seq]


# --- the end of the session --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["notice", "refusal"])
def test_a_lost_session_fails_everything(how: str) -> None:
    machine = holding()
    launched(machine)
    wait, _ = machine.watch(machine.tickets["t-1"], [0])
    seq = machine.ask(r.AllocateGang(SPEC), 0)
    if how == "notice":
        outputs = machine.receive(0, p.SessionLost("no sign of life"), 0)
    else:
        outputs = machine.receive(machine.ask(r.AttachGang("t-1"), 0), p.Failed("lease_lost", "not connected"), 0)
    assert {o.seq for o in outputs if isinstance(o, i.Fail)} >= {seq}
    assert all(isinstance(o.error, LeaseLost) for o in outputs if isinstance(o, i.Fail))
    assert [o.wait_id for o in outputs if isinstance(o, i.WaitFailed)] == [wait]
    assert len(of_type(outputs, i.TicketGone)) == 1
    with pytest.raises(LeaseLost):
        machine.ask(r.AllocateGang(SPEC), 0)


def test_a_session_ends_once() -> None:
    machine = holding()
    assert machine.end(ClientClosed("closed"))
    assert machine.end(ClientClosed("closed")) == []
    assert machine.receive(2, granted("t-1", SPEC), 0) == []


# --- exits -------------------------------------------------------------------------------------------------------


def test_a_wait_is_over_when_its_last_actor_has_ended() -> None:
    machine = holding()
    launched(machine)
    ticket = machine.tickets["t-1"]
    wait, outputs = machine.watch(ticket, [0, 1])
    assert outputs == []
    assert ended(machine, actor(0, "exited")) == [i.ActorChanged(ticket, 0)]
    assert ended(machine, actor(1, "exited")) == [i.WaitOver(wait, ticket), i.ActorChanged(ticket, 1)]
    assert [end.rank for end in ticket.exits_of([0, 1])] == [0, 1]


def test_waiting_for_what_has_ended_is_over_at_once() -> None:
    machine = holding()
    launched(machine)
    ended(machine, actor(0, "exited"))
    ticket = machine.tickets["t-1"]
    wait, outputs = machine.watch(ticket, [0])
    assert outputs == [i.WaitOver(wait, ticket)]


def test_an_actor_that_ended_before_its_launch_was_answered_counts_as_ended() -> None:
    machine = holding()
    ended(machine, actor(0, "exited"))
    launched(machine)
    assert set(machine.tickets["t-1"].exits) == {0}


def test_a_rank_launched_again_runs_again() -> None:
    machine = holding()
    launched(machine)
    ended(machine, actor(0, "exited"))
    ticket = machine.tickets["t-1"]
    ticket.saw([actor(0, launch="b")])
    assert ticket.exits == {}


def test_the_end_of_the_ticket_is_the_end_of_all_its_actors() -> None:
    machine = holding()
    launched(machine)
    ticket = machine.tickets["t-1"]
    wait, _ = machine.watch(ticket, [0, 1])
    machine.receive(0, p.TicketReleasing("t-1", "rank 0 failed"), 0)
    outputs = machine.receive(0, p.TicketReleased("t-1"), 0)
    assert outputs == [i.WaitOver(wait, ticket), i.TicketGone(ticket)]
    assert {end.phase for end in ticket.exits.values()} == {"lost"}
    assert "rank 0 failed" in ticket.exits[0].reason


def test_a_forgotten_wait_is_not_told() -> None:
    machine = holding()
    launched(machine)
    ticket = machine.tickets["t-1"]
    wait, _ = machine.watch(ticket, [0])
    machine.unwatch(wait)
    assert ended(machine, actor(0, "exited")) == [i.ActorChanged(ticket, 0)]


def test_attaching_shows_the_actors_that_run_and_those_that_ended() -> None:
    machine = connected()
    message = granted("t-5", SPEC, (actor(0), actor(1, "exited")))
    (output,) = machine.receive(machine.ask(r.AttachGang("t-5"), 0), message, 0)
    assert isinstance(output, i.Resolve)
    assert output.ticket is not None
    assert not output.ticket.owned
    assert set(output.ticket.exits) == {1}


def test_attaching_to_an_own_ticket_leaves_it_owned() -> None:
    machine = holding()
    machine.receive(machine.ask(r.AttachGang("t-1"), 0), granted("t-1", SPEC), 0)
    assert machine.tickets["t-1"].owned


def test_a_ticket_that_ended_is_an_error_of_its_own() -> None:
    machine = connected()
    (output,) = machine.receive(machine.ask(r.AttachGang("t-1"), 0), p.Failed("ticket_ended", "gone"), 0)
    assert isinstance(output, i.Fail)
    assert isinstance(output.error, TicketEnded)
