"""When a waiting ticket would start, by the expected durations of those that hold places. Pure.

The pool is copied, and lives on in the copy: each ticket ends when it is expected to, and the line moves on by the real
decisions. A ticket that says no expected duration never ends there, so what comes out is a moment by which it starts if
all durations are kept, or that nobody knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from spoke.allocator import decide as core
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.ids import order_of
from spoke.events.state import PoolState, TicketState

STEPS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Forecast:
    """When it would start (server time), or 0; and why, in words."""

    starts_ms: int
    words: str


def expected_end_ms(ticket: TicketState) -> int | None:
    """When a ticket is expected to end (server time); None if it does not say how long it will take."""
    length_ms = ticket.spec.terms.length_ms
    if not length_ms or ticket.phase not in ("allocated", "active"):
        return None
    return ticket.granted_ms + length_ms


def forecast(state: PoolState, ticket_id: str, now_ms: int, *, steps_max: int = STEPS_MAX) -> Forecast:
    """When a waiting ticket would start. The state is not changed."""
    future = _Future(snapshot.copy(state), now_ms, steps_max)
    unknown = [t.ticket_id for t in state.tickets.values() if t.slots and expected_end_ms(t) is None]
    known = sorted(t.ticket_id for t in state.tickets.values() if t.slots and expected_end_ms(t) is not None)
    if not known:
        return Forecast(0, "unknown: no ticket that holds places says how long it will take")
    while future.steps < steps_max:
        ended = future.next_end()
        if ended is None:
            some = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
            return Forecast(0, f"unknown: {some} did not say how long they will take" if unknown else "unknown")
        future.let_end(ended)
        found = future.state.tickets.get(ticket_id)
        if found is None:
            return Forecast(0, "its own time limit comes before")
        if found.phase != "queued":
            return Forecast(future.now_ms, "by the expected durations of those before it")
    return Forecast(0, "unknown: too much happens before")


class _Future:
    """A copy of the pool that lives on by itself."""

    def __init__(self, state: PoolState, now_ms: int, steps_max: int) -> None:
        self.state, self.now_ms, self.steps, self._steps_max = state, now_ms, 0, steps_max

    def next_end(self) -> TicketState | None:
        """The ticket that is expected to end next."""
        ends = [
            (end_ms, t.ticket_id) for t in self.state.tickets.values() if (end_ms := expected_end_ms(t)) is not None
        ]
        return self.state.tickets[min(ends)[1]] if ends else None

    def let_end(self, ticket: TicketState) -> None:
        """Let the ticket end at its time, or now if that is over, and let the line move on."""
        self.now_ms = max(self.now_ms, expected_end_ms(ticket) or 0)
        for actor in ticket.actors:
            if actor.alive:
                self._fold(e.ActorExited(ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, 0))
        self._fold(e.GangReleasing(ticket.ticket_id, "", 0, "it is expected to end"))
        self._fold(e.GangReleased(ticket.ticket_id, tuple(sorted(ticket.held)), True))
        while self.steps < self._steps_max and (events := core.tick(self.state, self.now_ms)):
            for event in events:
                self._fold(event)

    def _fold(self, event: e.Event) -> None:
        self.steps += 1
        last_ms, last_seq = order_of(self.state.last_id)
        ms, seq = (self.now_ms, 0) if self.now_ms > last_ms else (last_ms, last_seq + 1)
        fold(self.state, e.Recorded(f"{ms}-{seq}", event))
