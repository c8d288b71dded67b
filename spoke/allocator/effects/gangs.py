"""To the clients of a gang, and to the agents where its members run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spoke.allocator.effects.handlers import Cause, Handlers
from spoke.allocator.effects.kinds import Effect, ForgetTicket, Tell
from spoke.allocator.effects.telling import actor_info, command, interested, notify
from spoke.allocator.explain import explain, missing
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol.identity import owner_of
from spoke.protocol.notice import Notice

handlers = Handlers()


@handlers.of(e.GangQueued)
def _gang_queued(state: PoolState, event: e.GangQueued, cause: Cause) -> Iterator[Effect]:
    yield Tell(event.client_id, 0, p.Queued(event.seq, event.ticket_id, event.reason))


@handlers.of(e.GangAllocated)
def _gang_allocated(state: PoolState, event: e.GangAllocated, cause: Cause) -> Iterator[Effect]:
    granted = p.Granted(event.ticket_id, event.slots, event.master_addr, event.master_port)
    yield Tell(event.client_id, event.seq, granted)


@handlers.of(e.GangRefused)
def _gang_refused(state: PoolState, event: e.GangRefused, cause: Cause) -> Iterator[Effect]:
    more = missing(state, event.spec)
    yield Tell(event.client_id, event.seq, p.Failed(event.code, event.reason + (f"; {more}" if more else "")))


@handlers.of(e.GangCancelled)
def _gang_cancelled(state: PoolState, event: e.GangCancelled, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    yield Tell(ticket.client_id, ticket.seq, p.Failed("cancelled", f"the waiting gang was withdrawn: {event.reason}"))
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())


@handlers.of(e.GangExplained)
def _gang_explained(state: PoolState, event: e.GangExplained, cause: Cause) -> Iterator[Effect]:
    found = explain(state, state.tickets[event.ticket_id], cause.recorded.ms, look_ahead=False)
    yield Tell(event.client_id, event.seq, p.Explained(found))


@handlers.of(e.GangAttached)
def _gang_attached(state: PoolState, event: e.GangAttached, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    actors = tuple(map(actor_info, ticket.actors))
    granted = p.Granted(ticket.ticket_id, ticket.slots, ticket.master_addr, ticket.master_port, ticket.spec, actors)
    yield Tell(event.client_id, event.seq, granted)


@handlers.of(e.GangRepaired)
def _gang_repaired(state: PoolState, event: e.GangRepaired, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    told = p.Repaired(event.ticket_id, event.slot, event.master_addr, event.master_port)
    yield Tell(event.client_id, event.seq, told)
    for client_id in interested(state, ticket):
        if client_id != event.client_id:
            yield Tell(client_id, 0, told)
    old = ticket.slots[event.rank].node_id
    if event.rank == 0 and old != event.slot.node_id:
        yield from command(state, old, o.TakeBackPort(event.ticket_id))
    text = f"rank {event.rank} has another place, on {event.slot.node_id}"
    notice = Notice(event.ticket_id, "member_repaired", text, event.slot.node_id, (event.rank,))
    for place in sorted(ticket.alive):
        yield from command(state, place, o.NotifyActors(notice))


@handlers.of(e.GangReleasing)
def _gang_releasing(state: PoolState, event: e.GangReleasing, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    if ticket.phase == "releasing":
        return
    if ticket.members:
        close = o.CloseTicket(ticket.ticket_id, ticket.spec.grace_s)
        for node_id in sorted({actor.node_id for actor in ticket.actors}):
            yield from command(state, node_id, close)
    for client_id in interested(state, ticket):
        if client_id != event.client_id:
            yield Tell(client_id, 0, p.TicketReleasing(ticket.ticket_id, event.reason))


@handlers.of(e.GangReleased)
def _gang_released(state: PoolState, event: e.GangReleased, cause: Cause) -> Iterator[Effect]:
    if not event.final:
        return
    ticket = state.tickets[event.ticket_id]
    for client_id, seq in ticket.release_requests:
        yield Tell(client_id, seq, p.Done())
    asked = {client_id for client_id, _ in ticket.release_requests}
    for client_id in interested(state, ticket):
        if client_id not in asked:
            yield Tell(client_id, 0, p.TicketReleased(ticket.ticket_id))
    if ticket.members:  # the client leaves the secret there before the first launch
        yield ForgetTicket(ticket.ticket_id, owner_of(ticket.client_id))


@handlers.of(e.TicketPreempting, e.TicketSpared, e.TicketExpiring)
def _ticket_told(state: PoolState, event: Any, cause: Cause) -> Iterator[Effect]:
    kinds: dict[type[e.Event], str] = {e.TicketPreempting: "preempting", e.TicketExpiring: "expiring"}
    kind = kinds.get(type(event), "spared")
    ticket = state.tickets[event.ticket_id]
    ranks = tuple(range(len(ticket.slots)))
    notice = Notice(event.ticket_id, kind, event.reason, ranks=ranks, deadline_ms=getattr(event, "deadline_ms", 0))
    yield from notify(state, ticket, notice)


@handlers.of(e.ReservationCreated)
def _reservation_created(state: PoolState, event: e.ReservationCreated, cause: Cause) -> Iterator[Effect]:
    yield Tell(event.client_id, event.seq, p.Reserved(event.reservation))
