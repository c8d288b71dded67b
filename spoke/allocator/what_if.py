"""What would another policy have made of it? The recorded requests, decided again in simulated time.

Arrivals, withdrawals and what happened to nodes come at their recorded times and go through the real fold; gangs are
placed by the real line. A ticket holds its GPUs for as long as it did. One that is granted when it was is given back
with the recorded events, so that the policy under which a log was written makes the same decisions again, one by one.
One that is granted earlier or later is given back as much earlier or later. Actors are left out: they decide nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Literal, get_args

from spoke.allocator.decide import decide, tick
from spoke.errors import InvalidRequest, InvalidTransition
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import GPU_MILLI
from spoke.events.state import PoolState, ticket_number
from spoke.protocol import requests as r

Policy = Literal["recorded", "pack", "stranding"]
POLICIES: tuple[str, ...] = get_args(Policy)
"""``recorded``: as this release decides. ``pack``: tightest node first. ``stranding``: scored, as where shares are."""
_GANG = (e.GangQueued, e.GangAllocated, e.GangRefused, e.GangCancelled, e.GangMoved, e.GangReleasing, e.GangReleased)
_FOLDED = (
    *(e.AllocatorElected, e.ServerChanged, e.LogRegressed, e.ClientConnected, e.ClientLost, e.ClientClosed),
    *(e.NodeRegistered, e.NodeReconciling, e.NodeConfirmed, e.NodeUpdated, e.NodeLost, e.NodeCordoned),
    *(e.NodeUncordoned, e.NodeDraining, e.NodeRemoved, e.GpuMarkedUnhealthy, e.GpuMarkedHealthy),
    *(e.QueuePolicyChanged, e.QuotaChanged, e.QuotaRemoved),
    *(e.ReservationCreated, e.ReservationCancelled, e.ReservationEnded),
)
"""What happens to the pool whatever the policy. That a node is drained follows from its tickets."""
_END, _DEADLINE = 0, 1


@dataclass(slots=True)
class Tally:
    """What became of the gangs. Waits are in milliseconds, ``milli_ms`` in thousandths of a GPU times milliseconds."""

    waits: array[int] = field(default_factory=lambda: array("q"))
    refused: int = 0
    cancelled: int = 0
    milli_ms: int = 0

    def wait_ms(self, share: float) -> int:
        """The wait that this share of the granted gangs did not exceed; 0 if none was granted."""
        found = sorted(self.waits)
        return found[min(len(found) - 1, int(share * len(found)))] if found else 0

    @property
    def mean_wait_ms(self) -> float:
        """The mean wait of the granted gangs."""
        return sum(self.waits) / len(self.waits) if self.waits else 0.0


@dataclass(slots=True)
class Comparison:
    """What happened, and what would have. ``first_difference`` is the first decision that is another, in words."""

    happened: Tally = field(default_factory=Tally)
    would: Tally = field(default_factory=Tally)
    capacity_milli_ms: int = 0
    decisions: int = 0
    differences: int = 0
    first_difference: str = ""
    passed_over: int = 0
    """Recorded changes of nodes that could not happen in the other course of events."""

    def utilisation(self, tally: Tally) -> float:
        """The share of the pool's GPU time that was held."""
        return tally.milli_ms / self.capacity_milli_ms if self.capacity_milli_ms else 0.0


class Lifetimes:
    """How long each ticket held its GPUs, in eight bytes a ticket: -1 for one that was never granted or never ended."""

    def __init__(self) -> None:
        self._held, self._begun = array("q"), dict[int, int]()
        self._sum = self._count = 0

    def take(self, recorded: e.Recorded) -> None:
        """The next event."""
        event = recorded.event
        if isinstance(event, e.GangAllocated):
            self._begun[ticket_number(event.ticket_id) or 0] = recorded.ms
        elif isinstance(event, e.GangReleased) and event.final:
            number = ticket_number(event.ticket_id) or 0
            if number in self._begun:
                span = recorded.ms - self._begun.pop(number)
                self._put(number, span)
                self._sum, self._count = self._sum + span, self._count + 1

    def _put(self, number: int, span: int) -> None:
        if number - len(self._held) > 1_000_000:  # numbers jump when a server is lost; only what a log can fill is kept
            return
        while len(self._held) <= number:
            self._held.append(-1)
        self._held[number] = span

    def was_granted(self, ticket_id: str) -> bool:
        """Whether the ticket was ever granted."""
        number = ticket_number(ticket_id) or 0
        return number in self._begun or (0 < number < len(self._held) and self._held[number] >= 0)

    def of(self, ticket_id: str) -> int | None:
        """The time held; None for a ticket that was never given back. One that was never granted gets the mean."""
        if (ticket_number(ticket_id) or 0) in self._begun:
            return None
        if self.was_granted(ticket_id):
            return self._held[ticket_number(ticket_id) or 0]
        return self._sum // self._count if self._count else 0


@dataclass(slots=True)
class _Gang:
    """A recorded arrival. ``was`` is the ticket's id in the log, ``now`` in the simulation."""

    was: str
    now: str
    arrived_ms: int
    granted_ms: int | None = None
    milli: int = 0
    as_recorded: bool = False
    """Granted when it was."""


class WhatIf:
    """The simulation: give it every event of a log, then ``finish``."""

    def __init__(self, policy: Policy, lifetimes: Lifetimes) -> None:
        self._policy, self._lifetimes = policy, lifetimes
        self._state, self.result = PoolState(), Comparison()
        self._by_was, self._by_now = dict[str, _Gang](), dict[str, _Gang]()
        self._held = dict[str, tuple[int, int]]()  # recorded: ticket -> since, thousandths
        self._ends: list[tuple[int, int, str]] = []
        self._fresh: list[_Gang] = []
        self._grants = dict[str, e.GangAllocated]()
        self._steps = self._ms = self._due_ms = self._deadline_ms = self._gpus = 0
        self._changed = True
        self._releasing = ""  # the ticket of the event before, if that began its release

    def take(self, recorded: e.Recorded) -> None:
        """The next recorded event."""
        event, ms = recorded.event, recorded.ms
        if not isinstance(event, (*_GANG, *_FOLDED)):
            return
        if isinstance(event, e.GangRefused) and self._was_out_of_time(event):
            self.result.happened.refused += 1  # the line lets go of those before it grants anything
            self._withdraw(event, event.ticket_id)
            return
        same = isinstance(event, e.GangReleased) and event.ticket_id == self._releasing and ms - self._due_ms <= 1
        self._releasing = event.ticket_id if isinstance(event, e.GangReleasing) else ""
        if not same:  # else both were decided at once
            self._advance(self._due_ms)
        if isinstance(event, e.GangAllocated) and event.ticket_id in self._by_was:
            self._was_granted(event, ms)
            return
        self._shift()
        self._until(ms)
        self._pass(ms)
        match event:
            case e.GangQueued():
                timeout = event.deadline_ms - ms if event.deadline_ms else None
                self._arrive(event, timeout and max(1, timeout), ms)
            case e.GangAllocated():
                self._arrive(event, None, ms)
                self._was_granted(event, ms)
            case e.GangRefused():
                self.result.happened.refused += 1
                if event.ticket_id:
                    self._withdraw(event, event.ticket_id)
                else:
                    self._arrive(event, 0, ms)
            case e.GangCancelled():
                self.result.happened.cancelled += 1
                self._withdraw(event, event.ticket_id)
            case e.GangReleasing() | e.GangReleased():
                self._was_released(event, ms)
            case e.GangMoved():
                gang = self._by_was.get(event.ticket_id)
                if gang is not None and gang.now in self._state.queue:
                    self._fold(replace(event, ticket_id=gang.now))
            case _:
                self._happen(event)
        self._due_ms = ms

    def finish(self, end_ms: int) -> Comparison:
        """What came of it; whatever goes on counts up to ``end_ms``."""
        self._advance(self._due_ms)
        self._shift()
        self._until(end_ms)
        self._pass(max(end_ms, self._ms))
        for since, milli in self._held.values():
            self.result.happened.milli_ms += milli * max(0, end_ms - since)
        for gang in self._by_now.values():
            if gang.granted_ms is not None:
                self.result.would.milli_ms += gang.milli * max(0, end_ms - gang.granted_ms)
        return self.result

    # --- what was recorded ---

    def _arrive(self, event: e.GangQueued | e.GangAllocated | e.GangRefused, timeout: int | None, ms: int) -> None:
        request = r.AllocateGang(event.spec, timeout)
        asked = r.Envelope(request, event.client_id, event.seq)
        decided, *more = decide(self._state, asked, ms) or [event]
        was = event.ticket_id
        if not isinstance(decided, (e.GangQueued, e.GangAllocated)):
            self.result.would.refused += 1
            self._compare(event, decided)
            return
        gang = _Gang(was, decided.ticket_id, ms)
        self._by_now[gang.now] = gang
        if was:
            self._by_was[was] = gang
        if timeout:
            heappush(self._ends, (ms + timeout, _DEADLINE, gang.now))
        for step in (decided, *more):
            self._decided(step, ms)
        if not isinstance(event, e.GangAllocated):
            self._compare(event, decided)

    def _was_out_of_time(self, event: e.GangRefused) -> bool:
        """Whether the refusal came with what the event before brought about."""
        gang = self._by_was.get(event.ticket_id)
        ticket = self._state.tickets.get(gang.now) if gang is not None else None
        return ticket is not None and 0 < ticket.deadline_ms <= self._due_ms and event.code == "timeout"

    def _was_granted(self, event: e.GangAllocated, ms: int) -> None:
        gang, happened = self._by_was.get(event.ticket_id), self.result.happened
        self._held[event.ticket_id] = (ms, _milli(event))
        if gang is None:  # granted before the log begins is never seen here; a grant has an arrival
            return
        happened.waits.append(ms - gang.arrived_ms)
        if gang in self._fresh:
            self._fresh.remove(gang)
            gang.granted_ms, gang.as_recorded = ms, True
            self.result.would.waits.append(ms - gang.arrived_ms)
            self._compare(event, self._grants.pop(gang.now))
        else:
            self._differ(f"{event.ticket_id} was granted at {ms}, and would not have been then")

    def _was_released(self, event: e.GangReleasing | e.GangReleased, ms: int) -> None:
        gang = self._by_was.get(event.ticket_id)
        if isinstance(event, e.GangReleased) and event.final and event.ticket_id in self._held:
            since, milli = self._held.pop(event.ticket_id)
            self.result.happened.milli_ms += milli * (ms - since)
        if gang is None or not gang.as_recorded:
            return
        ticket = self._state.tickets.get(gang.now)
        if ticket is None:
            return
        if isinstance(event, e.GangReleasing):
            self._fold(replace(event, ticket_id=gang.now, seq=0))
        elif event.final:
            self._release(gang, ms)
        elif set(event.nodes) < ticket.held:
            self._fold(replace(event, ticket_id=gang.now))

    def _withdraw(self, event: e.GangRefused | e.GangCancelled, was: str) -> None:
        """A gang that waited in vain: it leaves the line, or gives back what it would have been granted."""
        gang = self._by_was.pop(was, None)
        if gang is None or gang.now not in self._state.tickets:
            return
        if gang.granted_ms is None:
            self._fold(replace(event, ticket_id=gang.now))
            del self._by_now[gang.now]
            tally = self.result.would
            if isinstance(event, e.GangRefused):
                tally.refused += 1
            else:
                tally.cancelled += 1
            self.result.decisions += 1
        elif isinstance(event, e.GangCancelled):
            self._release(gang, self._ms)

    def _happen(self, event: e.Event) -> None:
        self._changed = True
        if isinstance(event, e.NodeRemoved) and event.node_id not in self._state.nodes:
            return  # its drain ended in the simulation, too
        try:
            self._fold(event)
        except InvalidTransition:
            self.result.passed_over += 1

    # --- what would have happened ---

    def _advance(self, ms: int) -> None:
        """Move the line on, and the drains; gangs that are out of time leave it when their time comes."""
        while steps := tick(self._state, min(ms, self._deadline_ms)):
            for step in steps:
                self._decided(step, ms)

    def _decided(self, decided: e.Event, ms: int) -> None:
        self._fold(decided)
        if isinstance(decided, e.GangAllocated):
            gang = self._by_now[decided.ticket_id]
            gang.granted_ms, gang.milli = ms, _milli(decided)
            self._grants[gang.now] = decided
            self._fresh.append(gang)
        elif isinstance(decided, e.GangRefused):
            self.result.would.refused += 1
            gang = self._by_now.pop(decided.ticket_id)
            self._by_was.pop(gang.was, None)

    def _shift(self) -> None:
        """What was granted by the last event, and was not then: it ends when its time is over."""
        for gang in self._fresh:
            assert gang.granted_ms is not None
            del self._grants[gang.now]
            self.result.would.waits.append(gang.granted_ms - gang.arrived_ms)
            span = self._lifetimes.of(gang.was)
            if span is not None:
                heappush(self._ends, (gang.granted_ms + span, _END, gang.now))
            self._differ(f"{gang.was or 'a refused gang'} would have been granted at {gang.granted_ms}")
        self._fresh.clear()

    def _until(self, ms: int) -> None:
        """What would have ended before the next recorded event."""
        while self._ends and self._ends[0][0] < ms:
            at, kind, now = heappop(self._ends)
            gang = self._by_now.get(now)
            if gang is None:
                continue
            self._pass(at)
            if kind == _END and gang.granted_ms is not None:
                self._release(gang, at)
                self._advance(at)
            elif kind == _DEADLINE and gang.granted_ms is None and self._lifetimes.was_granted(gang.was):
                self._deadline_ms = at
                self._advance(at)
                self._deadline_ms = 0
            self._shift()

    def _release(self, gang: _Gang, ms: int) -> None:
        ticket = self._state.tickets.get(gang.now)
        if ticket is not None:
            if ticket.phase != "releasing":
                self._fold(e.GangReleasing(gang.now, "", 0, ""))
            self._fold(e.GangReleased(gang.now, tuple(sorted(ticket.held)), True))
        self.result.would.milli_ms += gang.milli * (ms - (gang.granted_ms or ms))
        self._by_now.pop(gang.now, None)
        self._by_was.pop(gang.was, None)

    def _fold(self, event: e.Event) -> None:
        self._steps += 1
        fold(self._state, e.Recorded(f"{self._ms}-{self._steps}", event))
        if self._policy != "recorded":  # which policy places a gang follows from whether shares were granted
            self._state.demand.shares_granted = int(self._policy == "stranding")

    def _pass(self, ms: int) -> None:
        """Time goes on: count what the pool had."""
        if self._ms and ms > self._ms:
            up = (n for n in self._state.nodes.values() if n.phase != "lost")
            gpus = sum(len(node.spec.gpus) for node in up) if self._changed else self._gpus
            self._gpus, self._changed = gpus, False
            self.result.capacity_milli_ms += gpus * GPU_MILLI * (ms - self._ms)
        self._ms = max(ms, self._ms)

    def _compare(self, happened: e.Event, would: e.Event) -> None:
        self.result.decisions += 1
        if happened != would:
            self._differ(f"{happened} was decided, and {would} would have been")

    def _differ(self, words: str) -> None:
        self.result.differences += 1
        self.result.first_difference = self.result.first_difference or words


def _milli(event: e.GangAllocated) -> int:
    return sum(slot.gpu_milli or GPU_MILLI * len(slot.gpu_ids) for slot in event.slots)


def what_if(read: Callable[[], Iterable[e.Recorded]], base: PoolState, policy: Policy, end_ms: int) -> Comparison:
    """Run a log (read twice) through a policy. Raises InvalidRequest for a log that was trimmed."""
    if base.last_id != "0-0":
        raise InvalidRequest(
            f"what-if needs the log from its beginning, and it reaches back to {base.last_id} only: give --archive"
        )
    lifetimes = Lifetimes()
    for recorded in read():
        lifetimes.take(recorded)
        end_ms = max(end_ms, recorded.ms)
    simulation = WhatIf(policy, lifetimes)
    for recorded in read():
        simulation.take(recorded)
    return simulation.finish(end_ms)
