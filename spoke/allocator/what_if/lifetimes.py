"""How long recorded tickets held their GPUs: as long they do in a simulation, whenever they are granted there."""

from __future__ import annotations

from array import array

from spoke.events import types as e
from spoke.events.state import ticket_number

LASTING: frozenset[type[e.Event]] = frozenset({e.GangAllocated, e.TicketPreempting, e.TicketSpared, e.GangReleased})
"""The events that tell how long tickets last."""
NUMBERS_SKIPPED_MAX = 1_000_000


class Lifetimes:
    """In eight bytes a ticket: -1 for one that was never granted or never ended. Give it every event of a log.

    One that was preempted would have gone on: it counts with the duration that it gave, if that is longer.
    """

    def __init__(self) -> None:
        self._held = array("q")
        self._begun: dict[int, tuple[int, int]] = {}
        self._preempted: set[int] = set()
        self._sum = self._count = 0

    def take(self, recorded: e.Recorded) -> None:
        """The next event."""
        event = recorded.event
        if isinstance(event, e.GangAllocated):
            self._begun[ticket_number(event.ticket_id) or 0] = (recorded.ms, event.spec.terms.length_ms)
        elif isinstance(event, e.TicketPreempting):
            self._preempted.add(ticket_number(event.ticket_id) or 0)
        elif isinstance(event, e.TicketSpared):
            self._preempted.discard(ticket_number(event.ticket_id) or 0)
        elif isinstance(event, e.GangReleased) and event.final:
            number = ticket_number(event.ticket_id) or 0
            if number in self._begun:
                begun_ms, length_ms = self._begun.pop(number)
                span_ms = recorded.ms - begun_ms
                if number in self._preempted:
                    self._preempted.discard(number)
                    span_ms = max(span_ms, length_ms)
                self._put(number, span_ms)

    def _put(self, number: int, span_ms: int) -> None:
        self._sum, self._count = self._sum + span_ms, self._count + 1
        if number - len(self._held) > NUMBERS_SKIPPED_MAX:
            return  # numbers jump when a server is lost; only what a log can fill is kept
        while len(self._held) <= number:
            self._held.append(-1)
        self._held[number] = span_ms

    def of(self, ticket_id: str) -> int | None:
        """The time held (ms); None for a ticket that was never given back. One that was never granted gets the mean."""
        number = ticket_number(ticket_id) or 0
        if number in self._begun:
            return None
        if 0 < number < len(self._held) and self._held[number] >= 0:
            return self._held[number]
        return self._sum // self._count if self._count else 0
