"""As long as the trial decides as it was recorded: each recorded decision is made again, and compared.

The recorded events say when the allocator looked at its queue: between the requests of one turn it does not. So the
queue is asked where the log shows that it led to something; a look between is taken where nothing was recorded for a
while, or, when the policy is not the recorded one, before each event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from msgspec.structs import replace

from spoke.allocator.what_if.world import World
from spoke.events import types as e

QUIET_MS = 1_000
"""After so long without an event the allocator has looked at its queue."""
MOMENT_MS = 10
_STEPS = (e.TicketPreempting, e.TicketSpared, e.TicketExpiring, e.ReservationEnded, e.NodeDrained)


class Difference(Exception):
    """The trial decides otherwise than it was recorded."""


class Guided:
    """Takes recorded events; raises Difference at the first that the trial would not have decided."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rest: deque[e.Event] = deque()
        self.decisions = 0

    def take(self, recorded: e.Recorded) -> None:
        """The next recorded event."""
        event, ms, world = recorded.event, recorded.ms, self._world
        if self._rest and not _same(event, self._rest[0]):
            raise _difference(event, self._rest[0])
        if self._rest:
            self._rest.popleft()
            self.decisions += 1
        else:
            if self._is_quiet(event, ms):
                would = world.step(world.now_ms)
                if would:
                    raise Difference(f"{_words(would[0])} would have been decided before {_words(event)}")
            world.pass_until(ms)
            if _is_arrival(event, world):
                self._arrival(event, ms)
            elif self._is_step(event, ms):
                self._step(event, ms)
        world.pass_until(ms)
        world.happen(event)

    def _is_quiet(self, event: e.Event, ms: int) -> bool:
        """Whether the allocator has looked at its queue since the last event, and found nothing to do."""
        gap_ms = ms - self._world.now_ms
        return gap_ms > (QUIET_MS if self._world.as_recorded else 1) and not isinstance(event, e.AllocatorElected)

    def _arrival(self, event: e.Event, ms: int) -> None:
        assert isinstance(event, (e.GangQueued, e.GangAllocated, e.GangRefused))
        self.decisions += 1
        would: e.Event | None = None
        for looked in (False, True):
            if looked:
                self._world.step(ms)  # it sets aside who cannot fit at all, and those do not stand in the way
            for now_ms in (ms, ms - 1):
                timeout_ms = None
                if isinstance(event, e.GangQueued) and event.deadline_ms:
                    timeout_ms = max(1, event.deadline_ms - now_ms)
                elif isinstance(event, e.GangRefused):
                    timeout_ms = 0
                would = self._world.arrival(event.spec, event.client_id, event.seq, timeout_ms, now_ms)
                if would is not None and _same(event, would):
                    return
        raise _difference(event, would)

    def _is_step(self, event: e.Event, ms: int) -> bool:
        """Whether the event came of time, or of the queue; some may come of a request as well."""
        state = self._world.state
        if isinstance(event, (e.GangAllocated, e.GangRefused, *_STEPS)):
            return True
        if isinstance(event, e.GangReleasing) and not event.seq:
            next_ms = state.alarms.next_ms
            due = (next_ms is not None and next_ms <= ms) or bool(state.draining)
        else:
            due = isinstance(event, e.NodeRemoved) and not event.seq and event.node_id in state.draining
        return due and any(_same(event, would[0]) for would in self._looks(event, ms))

    def _step(self, event: e.Event, ms: int) -> None:
        self.decisions += 1
        first: list[e.Event] = []
        for would in self._looks(event, ms):
            if _same(event, would[0]):
                self._rest.extend(would[1:])
                return
            first = first or would
        raise _difference(event, first[0] if first else None)

    def _looks(self, event: e.Event, ms: int) -> Iterator[list[e.Event]]:
        """What a look at the queue gives. It was taken when the event was recorded, or the moment before."""
        times = [ms, ms - 1]
        if isinstance(event, e.TicketPreempting):
            times.append(event.deadline_ms - self._world.state.queueing.policy.notice_ms)
        for now_ms in times:
            for overtake in (True, False):
                would = self._world.step(now_ms, overtake=overtake)
                if would:
                    yield would


def _difference(recorded: e.Event, would: e.Event | None) -> Difference:
    instead = "nothing" if would is None else _words(would)
    return Difference(f"{_words(recorded)} was decided, and {instead} would have been")


def _is_arrival(event: e.Event, world: World) -> bool:
    match event:
        case e.GangQueued():
            return True
        case e.GangAllocated():
            return event.ticket_id not in world.state.tickets
        case e.GangRefused():
            return not event.ticket_id
    return False


def _same(recorded: e.Event, would: e.Event) -> bool:
    """Whether two decisions are the same: names of policies and reasons in words are none."""
    if isinstance(recorded, e.TicketPreempting) and isinstance(would, e.TicketPreempting):
        near = abs(recorded.deadline_ms - would.deadline_ms) <= MOMENT_MS  # an id is taken a moment after the decision
        return near and (recorded.ticket_id, recorded.by_ticket) == (would.ticket_id, would.by_ticket)
    return recorded == would or _plain(recorded) == _plain(would)


def _plain(event: e.Event) -> e.Event:
    match event:
        case e.GangAllocated():
            return replace(event, policy="", order="")
        case e.GangQueued() | e.GangReleasing() | e.TicketSpared():
            return replace(event, reason="")
        case e.GangRefused():
            return replace(event, reason="", code="")
        case e.TicketExpiring():
            return replace(event, reason="")
    return event


def _words(event: e.Event) -> str:
    match event:
        case e.GangAllocated():
            where = ", ".join(dict.fromkeys(slot.node_id for slot in event.slots))
            return f"{event.TYPE} of {event.ticket_id} on {where[:200]}"
        case e.GangRefused() if not event.ticket_id:
            return f"{event.TYPE} of a request of {event.client_id}"
    return f"{event.TYPE} of {getattr(event, 'ticket_id', '') or getattr(event, 'node_id', '') or str(event)[:200]}"
