"""Granting gangs: at once when they come, or when it is their turn in the queue."""

from __future__ import annotations

from contextlib import ExitStack

from spoke.allocator.placement.choose import never_fits
from spoke.allocator.placement.pack import NoFit
from spoke.allocator.placement.select import check_near
from spoke.allocator.queue import backfill
from spoke.allocator.queue.due import due
from spoke.allocator.queue.grant import allocated, booked, place_beside
from spoke.allocator.queue.order import goes_first, in_order
from spoke.allocator.queue.preempt import preempt
from spoke.allocator.queue.quota import check_priority, over_reason, standing
from spoke.allocator.queue.reserve import check_may_use
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.queueing import project_of
from spoke.events.state import PoolState
from spoke.protocol import requests as r

TIMEOUT_MS_MAX = 10 * 365 * 24 * 3600 * 1000


def allocate(state: PoolState, asked: r.Envelope, request: r.AllocateGang, now_ms: int) -> list[e.Event]:
    """Grant the gang, put it in the queue, or refuse it."""
    spec, timeout_ms, client_id, seq = request.spec, request.timeout_ms, asked.client_id, asked.seq
    if timeout_ms is not None and not 0 <= timeout_ms <= TIMEOUT_MS_MAX:
        raise InvalidRequest(f"a timeout of {timeout_ms} ms was given: use 0 or more, or none at all to wait for ever")
    client = state.clients[client_id]
    project = project_of(spec.terms.project, client.project, client.user, client_id)
    if not (asked.signer is not None and asked.signer.is_operator):
        check_priority(state, project, spec)
    if spec.rules is not None:
        check_near(state, spec)
    if spec.terms.reservation:
        check_may_use(state, spec.terms.reservation, project)
    stands = standing(state, project, spec)
    ticket_id = f"t-{state.next_ticket}"
    reason = ""
    if stands == "over":
        reason = over_reason(state, project, spec)
    elif spec.terms.reservation or goes_first(state, project, spec, now_ms):
        placed = place_beside(state, spec, now_ms)
        if not isinstance(placed, NoFit):
            order, borrowed = state.queueing.policy.name, stands == "borrows"
            return [allocated(placed, ticket_id, client_id, seq, spec, order=order, borrowed=borrowed)]
        reason = placed.reason
    else:
        first = next(in_order(state, now_ms), None)
        if first is not None:
            reason = f"waits behind {first.ticket.ticket_id}, which goes before it ({len(state.queue)} in line)"
    never = never_fits(state, spec)
    if never:
        reason = f"cannot fit the pool as it is registered: {never}"
    if timeout_ms == 0:
        return [e.GangRefused("", client_id, seq, spec, "refused", f"{reason} (timeout=0: it did not wait)")]
    deadline_ms = 0 if timeout_ms is None else now_ms + timeout_ms
    return [e.GangQueued(ticket_id, client_id, seq, spec, deadline_ms, reason)]


def advance(state: PoolState, now_ms: int, *, overtake: bool = True) -> list[e.Event]:
    """The next step: what is due; else the next grant, or the notices to those that must make room for it.

    ``overtake``: whether to look for gangs that may go before others, which takes longer.
    """
    return due(state, now_ms) or _grant_next(state, now_ms, overtake)


def _grant_next(state: PoolState, now_ms: int, overtake: bool) -> list[e.Event]:
    """The next grant, or all those that may overtake: they cost one plan together, not one each."""
    policy, looked_at = state.queueing.policy, 0
    plan: backfill.Plan | None = None
    granted: list[e.Event] = []
    with ExitStack() as as_if:
        for ticket, borrows in in_order(state, now_ms):
            spec = ticket.spec
            placed = place_beside(state, spec, now_ms, plan)
            if not isinstance(placed, NoFit):
                order = policy.name if plan is None else f"{policy.name}+{backfill.POLICY}"
                event = allocated(
                    placed, ticket.ticket_id, ticket.client_id, ticket.seq, spec, order=order, borrowed=borrows
                )
                if plan is None:
                    return [event]
                delayed = plan.delayed_by(spec, event.slots)
                if spec.terms.reservation or not delayed:
                    granted.append(event)
                    if len(granted) >= policy.depth:
                        break
                    as_if.enter_context(booked(state, event, now_ms))
                    plan.see(event.slots)
                    continue
            elif spec.terms.reservation:
                continue
            elif never := never_fits(state, spec):
                state.waiting.set_aside(ticket.ticket_id, never)
                continue
            if plan is None:
                events = preempt(state, ticket, now_ms)
                if events or not policy.backfill or not overtake or len(state.waiting) < 2:
                    return events
                plan = backfill.Plan(state, now_ms)
            looked_at += 1
            if looked_at >= policy.depth or plan.full or not backfill.is_plannable(spec):
                break
            plan.add(ticket)
    return granted
