"""The order of the queue: who is looked at first.

What an operator moved to the head comes before all. Then come gangs that stay within their project's quota, then those
that would borrow; among them decides the policy. A project whose next gang may not start because of a quota that does
not let it borrow holds up its own gangs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from spoke.allocator.queue.fair import dominant_share, totals
from spoke.allocator.queue.quota import standing
from spoke.events.model import GangSpec
from spoke.events.queueing import NOTHING, Amounts, demand_of, plus
from spoke.events.state import PoolState, TicketState
from spoke.events.waiting import Key

Rank = tuple[int, int, int, int, int, str]
"""Lane, borrows, dominant share (0 unless fair), minus the priority (0 if first come), place, id: least first."""


class Candidate(NamedTuple):
    """A waiting ticket whose turn it is."""

    ticket: TicketState
    borrows: bool


def in_order(state: PoolState, now_ms: int) -> Iterator[Candidate]:
    """The waiting tickets as the policy orders them, each as if those before it had got their places."""
    queueing = state.queueing
    by_priority = queueing.policy.order != "fifo"
    if queueing.policy.order != "fair" and not queueing.quotas:
        for key in state.waiting.walk(by_priority=by_priority):
            yield Candidate(state.tickets[key[3]], False)
        return
    streams = _Streams(state, now_ms, by_priority)
    while (found := streams.next()) is not None:
        yield found


def goes_first(state: PoolState, project: str, spec: GangSpec, now_ms: int) -> bool:
    """Whether a new gang would come before all that wait."""
    if not len(state.waiting):
        return True
    policy = state.queueing.policy
    own = state.waiting.ordered(project, by_priority=True)
    if policy.order == "fifo" or (own and own[0][:2] <= (1, -spec.terms.priority)):
        return False
    first = next(in_order(state, now_ms), None)
    if first is None:
        return True
    of = totals(state)
    lane = state.waiting.key(first.ticket.ticket_id)[0]
    theirs = (lane, *_rank(state, first.ticket.project, first.ticket.spec, of, now_ms))
    return (1, *_rank(state, project, spec, of, now_ms)) < theirs


def _rank(state: PoolState, project: str, spec: GangSpec, of: Amounts, now_ms: int) -> tuple[int, int, int]:
    borrows = int(standing(state, project, spec) == "borrows")
    if state.queueing.policy.order == "fair":
        return borrows, dominant_share(state, project, of, now_ms), 0
    return borrows, 0, -spec.terms.priority


class _Streams:
    """The queues of the projects, merged."""

    def __init__(self, state: PoolState, now_ms: int, by_priority: bool) -> None:
        self._state, self._now_ms = state, now_ms
        self._fair = state.queueing.policy.order == "fair"
        self._of = totals(state) if self._fair else NOTHING
        self._more: dict[str, Amounts] = {}
        self._left: dict[str, Iterator[Key]] = {}
        self._heap: list[tuple[Rank, str, bool]] = []
        for project in state.waiting.projects():
            self._left[project] = state.waiting.walk(project, by_priority=by_priority)
            found = self._head(project)
            if found is not None:
                self._heap.append(found)
        heapify(self._heap)

    def next(self) -> Candidate | None:
        """The next ticket."""
        if not self._heap:
            return None
        rank, project, borrows = heappop(self._heap)
        ticket = self._state.tickets[rank[5]]
        self._more[project] = plus(self._more.get(project, NOTHING), demand_of(ticket.spec))
        found = self._head(project)
        if found is not None:
            heappush(self._heap, found)
        return Candidate(ticket, borrows)

    def _head(self, project: str) -> tuple[Rank, str, bool] | None:
        key = next(self._left[project], None)
        if key is None:
            return None
        state, more = self._state, self._more.get(project, NOTHING)
        lane, priority, place, ticket_id = key
        stands = standing(state, project, state.tickets[ticket_id].spec, more)
        if stands == "over":
            return None
        share = dominant_share(state, project, self._of, self._now_ms, more) if self._fair else 0
        rank = (lane, int(stands == "borrows"), share, 0 if self._fair else priority, place, ticket_id)
        return rank, project, stands == "borrows"
