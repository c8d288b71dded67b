"""Preemption: which tickets must make room for the gang whose turn it is.

Of lower priority and ``preemptible``; or borrowed, by a project that has more than its quota, when the gang is within
the quota of its own project: then whatever the priorities. The cheapest set is chosen: the lowest priorities first,
then the least work that is lost (GPUs held, times how long). The first sets are tried in the order of their cost; if
none of them is enough, all are taken and given back one by one, the dearest first. Either way the gang would not fit
without any one.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from spoke.allocator.placement.pack import NoFit
from spoke.allocator.queue.grant import place_beside, without
from spoke.allocator.queue.quota import can_reclaim, is_over
from spoke.events import types as e
from spoke.events.queueing import NOTHING, Amounts, amounts_of, plus
from spoke.events.state import PoolState, TicketState

POLICY = "preempt/1"
VICTIMS_MAX = 512
"""So many tickets, the cheapest, are considered."""
SETS_TRIED_MAX = 200


def preempt(state: PoolState, ticket: TicketState, now_ms: int) -> list[e.Event]:
    """Notices to the tickets that must make room for a gang that does not fit; none if that would not help.

    What is being released already, or told to make room for this gang, counts as gone.
    """
    policy = state.queueing.policy
    if not policy.preempt or not state.preemptible or ticket.spec.terms.reservation:
        return []
    going = [state.tickets[t] for t in state.releasing]
    going += [state.tickets[t] for t in state.preempting if state.tickets[t].preempt_for == ticket.ticket_id]
    with without(state, going):
        if _fits(state, ticket, now_ms):
            return []
        victims = _eligible(state, ticket, now_ms)
        chosen = _choose(state, ticket, victims, now_ms)
    events: list[e.Event] = []
    for victim in chosen:
        if victim.spec.terms.priority < ticket.spec.terms.priority and victim.spec.terms.preemptible:
            why = f"priority {ticket.spec.terms.priority} goes before {victim.spec.terms.priority}"
        else:
            why = f"project {victim.project} borrows what is project {ticket.project}'s quota"
        reason = f"makes room for {ticket.ticket_id}: {why}"
        deadline_ms = now_ms + policy.notice_ms
        if victim.ends_ms:
            deadline_ms = min(deadline_ms, max(now_ms + 1, victim.ends_ms))
        events.append(e.TicketPreempting(victim.ticket_id, ticket.ticket_id, deadline_ms, reason, POLICY))
    return events


def spare(state: PoolState) -> list[e.Event]:
    """Tickets that were to make room for one that does not wait any more."""
    for ticket_id in state.preempting:
        by = state.tickets[ticket_id].preempt_for
        waiting = state.tickets.get(by)
        if by in state.queueing.reservations or (waiting is not None and waiting.phase == "queued"):
            continue
        return [e.TicketSpared(ticket_id, f"{by} does not wait for its places any more")]
    return []


def _fits(state: PoolState, ticket: TicketState, now_ms: int) -> bool:
    return not isinstance(place_beside(state, ticket.spec, now_ms), NoFit)


def _eligible(state: PoolState, ticket: TicketState, now_ms: int) -> list[tuple[int, TicketState]]:
    """Who may be preempted, each with its cost, the cheapest first."""
    reclaims = can_reclaim(state, ticket)
    lowest = min((state.tickets[t].spec.terms.priority for t in state.preemptible), default=0)
    found: list[tuple[int, TicketState]] = []
    taken: dict[str, Amounts] = {}
    for ticket_id in sorted(state.preemptible, key=lambda t: (-state.tickets[t].granted_ms, t)):  # youngest first
        victim = state.tickets[ticket_id]
        if victim.preempt_ms:
            continue
        terms, project = victim.spec.terms, victim.project
        may = terms.preemptible and terms.priority < ticket.spec.terms.priority
        if not may and reclaims and victim.borrowed and project != ticket.project:
            gone = taken.get(project, NOTHING)
            may = is_over(state, project, gone)
            if may:
                taken[project] = plus(gone, amounts_of(victim.spec, victim.slots))
        if may:
            work = (1 + amounts_of(victim.spec, victim.slots)[0]) * (1 + max(0, now_ms - victim.granted_ms))
            found.append((work + (terms.priority - lowest << 80), victim))
    found.sort(key=lambda one: (one[0], one[1].ticket_id))
    return found[:VICTIMS_MAX]


def _choose(
    state: PoolState, ticket: TicketState, victims: list[tuple[int, TicketState]], now_ms: int
) -> list[TicketState]:
    def enough(gone: Iterable[TicketState]) -> bool:
        with without(state, gone):
            return _fits(state, ticket, now_ms)

    if not victims or not enough(victim for _, victim in victims):
        return []
    heap: list[tuple[int, tuple[int, ...]]] = [(victims[0][0], (0,))]
    for _ in range(SETS_TRIED_MAX):
        if not heap:
            break
        cost, chosen = heappop(heap)
        last = chosen[-1]
        if last + 1 < len(victims):  # every set comes exactly once, and none before a cheaper one
            heappush(heap, (cost + victims[last + 1][0], (*chosen, last + 1)))
            heappush(heap, (cost - victims[last][0] + victims[last + 1][0], (*chosen[:-1], last + 1)))
        if enough(victims[at][1] for at in chosen):
            return [victims[at][1] for at in chosen]
    kept = [victim for _, victim in victims]
    for _, victim in reversed(victims):
        rest = [one for one in kept if one is not victim]
        if rest and enough(rest):
            kept = rest
    return kept
