"""What the time brings: a wait that is over, a ticket that must go or is told so, a reservation that begins or ends."""

from __future__ import annotations

from spoke.allocator.placement.choose import never_fits
from spoke.allocator.placement.pack import NoFit
from spoke.allocator.queue import preempt, reserve
from spoke.allocator.queue.grant import place_beside
from spoke.allocator.tickets import NOBODY, give_back
from spoke.events import types as e
from spoke.events.state import PoolState, TicketState


def due(state: PoolState, now_ms: int) -> list[e.Event]:
    """The next thing that is due; nothing if nothing is."""
    ticket_id = state.alarms.due(now_ms)
    if ticket_id:
        ticket = state.tickets[ticket_id]
        return _out_of_time(state, ticket, now_ms) if ticket.phase == "queued" else _live(ticket, now_ms)
    return preempt.spare(state) or reserve.due(state, now_ms)


def _out_of_time(state: PoolState, ticket: TicketState, now_ms: int) -> list[e.Event]:
    found = place_beside(state, ticket.spec, now_ms)
    reason = found.reason if isinstance(found, NoFit) else ticket.reason
    text = f"did not fit in the time it was willing to wait: {never_fits(state, ticket.spec) or reason}"
    return [e.GangRefused(ticket.ticket_id, ticket.client_id, ticket.seq, ticket.spec, "timeout", text)]


def _live(ticket: TicketState, now_ms: int) -> list[e.Event]:
    if ticket.preempt_ms and ticket.preempt_ms <= now_ms:
        return give_back(ticket, ticket.preempt_reason, NOBODY)
    terms = ticket.spec.terms
    limit_s = terms.max_ms / 1000
    if terms.max_ms and ticket.ends_ms >= ticket.granted_ms + terms.max_ms:
        why = f"its max_duration of {limit_s:g} s"
    else:
        why = f"the time of reservation {terms.reservation}"
    if ticket.ends_ms <= now_ms:
        return give_back(ticket, f"{why} is over", NOBODY)
    return [e.TicketExpiring(ticket.ticket_id, ticket.ends_ms, f"{why} is over soon")]
