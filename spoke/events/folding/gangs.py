"""Gangs: waiting, placed, repaired, given back."""

from __future__ import annotations

import dataclasses
from typing import Any

from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.folding.handlers import Handlers
from spoke.events.folding.lookups import handed_out_twice, phase_after, ticket_of
from spoke.events.ids import ms_of
from spoke.events.model import Slot
from spoke.events.queueing import amounts_of, project_of
from spoke.events.state import PoolState, TicketState, need_of, ticket_number

handlers = Handlers()


@handlers.of(e.GangQueued)
def _gang_queued(state: PoolState, event_id: str, event: e.GangQueued) -> None:
    phase_after(event.ticket_id, None, event_id, event)
    ticket = _new_ticket(state, event, event_id)
    ticket.reason, ticket.deadline_ms = event.reason, event.deadline_ms
    state.queue.append(event.ticket_id)
    state.wait(ticket)
    state.watch(ticket)


@handlers.of(e.GangAllocated)
def _gang_allocated(state: PoolState, event_id: str, event: e.GangAllocated) -> None:
    ticket_id, slots, spec = event.ticket_id, event.slots, event.spec
    ticket = state.tickets.get(ticket_id)
    phase = phase_after(ticket_id, ticket.phase if ticket else None, event_id, event)
    if ticket is None:
        ticket = _new_ticket(state, event, event_id)
    else:
        _leave_queue(state, ticket)
    ticket.phase, ticket.since, ticket.reason, ticket.slots = phase, event_id, "", slots
    ticket.master_addr, ticket.master_port, ticket.policy = event.master_addr, event.master_port, event.policy
    ticket.group_sizes = _group_sizes(slots)
    for slot in slots:
        node = state.nodes.get(slot.node_id)
        if node is None or node.phase != "up":
            how = "not there" if node is None else node.phase
            raise InvalidTransition(f"event {event_id} places {ticket_id} on {slot.node_id}, which is {how}")
        if not node.take(ticket, slot):
            raise handed_out_twice(ticket, slot, node, event_id)
        ticket.held.add(slot.node_id)
    for node_id in ticket.held:
        state.index(state.nodes[node_id])
    if spec.groups:
        for group in spec.groups:
            members = tuple(slot for slot in slots if slot.group == group.name)
            state.demand.learn(group.resources, tuple(group.gpu_models) or spec.gpu_models, members)
    else:
        state.demand.learn(spec.resources, spec.gpu_models, slots)
    terms, queueing = spec.terms, state.queueing
    queueing.charge(ticket.project, amounts_of(spec, slots), 1, ms_of(event_id))
    ticket.at_head, ticket.borrowed = False, event.borrowed
    ticket.ends_ms = ticket.granted_ms + terms.max_ms if terms.max_ms else 0
    reservation = queueing.reservations.get(terms.reservation) if terms.reservation else None
    if reservation is not None:
        ticket.ends_ms = min(ticket.ends_ms or reservation.end_ms, reservation.end_ms)
    state.watch(ticket)


@handlers.of(e.GangRefused, e.GangCancelled)
def _gang_not_granted(state: PoolState, event_id: str, event: e.GangRefused | e.GangCancelled) -> None:
    if not event.ticket_id:
        return  # refused at once, it never had a ticket
    ticket = ticket_of(state, event_id, event)
    ticket.phase = phase_after(event.ticket_id, ticket.phase, event_id, event)
    _leave_queue(state, ticket)
    _forget_ticket(state, ticket)


@handlers.of(e.GangMoved)
def _gang_moved(state: PoolState, event_id: str, event: e.GangMoved) -> None:
    ticket = ticket_of(state, event_id, event)
    if ticket.phase != "queued":
        raise InvalidTransition(f"event {event_id} moves ticket {event.ticket_id}, which is {ticket.phase}")
    _leave_queue(state, ticket)
    state.queue.insert(0 if event.to == "head" else len(state.queue), event.ticket_id)
    ticket.at_head = event.to == "head"
    state.wait(ticket)


@handlers.of(e.GangPrioritized)
def _gang_prioritized(state: PoolState, event_id: str, event: e.GangPrioritized) -> None:
    ticket = ticket_of(state, event_id, event)
    terms = dataclasses.replace(ticket.spec.terms, priority=event.priority)
    ticket.spec = dataclasses.replace(ticket.spec, terms=terms)
    if ticket.phase == "queued":
        state.waiting.reprioritize(event.ticket_id, event.priority)


@handlers.of(e.GangAttached)
def _gang_attached(state: PoolState, event_id: str, event: e.GangAttached) -> None:
    ticket_of(state, event_id, event).watchers.add(event.client_id)


@handlers.of(e.GangRepaired)
def _gang_repaired(state: PoolState, event_id: str, event: e.GangRepaired) -> None:
    ticket = ticket_of(state, event_id, event)
    rank, slot = event.rank, event.slot
    ticket.phase = phase_after(event.ticket_id, ticket.phase, event_id, event)
    actor, node = ticket.actor(rank), state.nodes.get(slot.node_id)
    if not 0 <= rank < len(ticket.slots) or slot.global_rank != rank or (actor is not None and actor.alive):
        raise InvalidTransition(f"event {event_id} replaces rank {rank} of {event.ticket_id}, which cannot be replaced")
    if node is None or node.phase != "up":
        raise InvalidTransition(f"event {event_id} places {event.ticket_id} on {slot.node_id}, which is not up")
    old, before = ticket.slots[rank], amounts_of(ticket.spec, ticket.slots)
    left = state.nodes[old.node_id]
    left.give_back(ticket, old)
    ticket.slots = (*ticket.slots[:rank], slot, *ticket.slots[rank + 1 :])
    ticket.master_addr, ticket.master_port = event.master_addr, event.master_port
    ticket.group_sizes = _group_sizes(ticket.slots)
    if any(other.node_id == old.node_id for other in ticket.slots):
        left.tickets.add(event.ticket_id)
        left.exclusive = event.ticket_id if ticket.exclusive else ""
    else:
        ticket.held.discard(old.node_id)
    if not node.take(ticket, slot):
        raise handed_out_twice(ticket, slot, node, event_id)
    ticket.held.add(slot.node_id)
    state.queueing.charge(ticket.project, before, -1, ms_of(event_id))
    state.queueing.charge(ticket.project, amounts_of(ticket.spec, ticket.slots), 1, ms_of(event_id))
    state.index(left)
    state.index(node)
    if actor is not None:
        actor.stopping = True  # what ran at the old place is not started there again


@handlers.of(e.GangReleasing)
def _gang_releasing(state: PoolState, event_id: str, event: e.GangReleasing) -> None:
    ticket = ticket_of(state, event_id, event)
    if ticket.phase != "releasing":
        ticket.phase = phase_after(event.ticket_id, ticket.phase, event_id, event)
        ticket.reason, ticket.since = event.reason, event_id
        ticket.preempt_ms, ticket.preempt_for, ticket.preempt_reason = 0, "", ""
        state.watch(ticket)
    if event.seq:
        ticket.release_requests.append((event.client_id, event.seq))


@handlers.of(e.GangReleased)
def _gang_released(state: PoolState, event_id: str, event: e.GangReleased) -> None:
    ticket = ticket_of(state, event_id, event)
    phase_after(event.ticket_id, ticket.phase, event_id, event)
    freed = set(event.nodes)
    if not freed <= ticket.held or event.final != (freed == ticket.held):
        raise InvalidTransition(
            f"event {event_id} frees {sorted(freed)} of ticket {event.ticket_id}, which holds {sorted(ticket.held)}"
        )
    busy = freed & ticket.alive.keys()
    if busy:
        raise InvalidTransition(
            f"event {event_id} frees {sorted(busy)} of ticket {event.ticket_id}, whose actors may still run there"
        )
    gone = [slot for slot in ticket.slots if slot.node_id in freed]
    for slot in gone:
        state.nodes[slot.node_id].give_back(ticket, slot)
    for node_id in freed:
        state.index(state.nodes[node_id])
    ticket.held -= freed
    state.queueing.charge(ticket.project, amounts_of(ticket.spec, gone), -1, ms_of(event_id))
    if event.final:
        _forget_ticket(state, ticket)


@handlers.of(e.TicketPreempting)
def _ticket_preempting(state: PoolState, event_id: str, event: e.TicketPreempting) -> None:
    ticket = _live_ticket(state, event_id, event)
    ticket.preempt_ms, ticket.preempt_for, ticket.preempt_reason = event.deadline_ms, event.by_ticket, event.reason
    state.watch(ticket)


@handlers.of(e.TicketSpared)
def _ticket_spared(state: PoolState, event_id: str, event: e.TicketSpared) -> None:
    ticket = _live_ticket(state, event_id, event)
    ticket.preempt_ms, ticket.preempt_for, ticket.preempt_reason = 0, "", ""
    state.watch(ticket)


@handlers.of(e.TicketExpiring)
def _ticket_expiring(state: PoolState, event_id: str, event: e.TicketExpiring) -> None:
    ticket = _live_ticket(state, event_id, event)
    ticket.warned = True
    state.watch(ticket)


def _live_ticket(state: PoolState, event_id: str, event: Any) -> TicketState:
    ticket = ticket_of(state, event_id, event)
    if ticket.phase not in ("allocated", "active"):
        raise InvalidTransition(f"event {event_id} ({event.TYPE}) is about {event.ticket_id}, which is {ticket.phase}")
    return ticket


def _new_ticket(state: PoolState, event: e.GangQueued | e.GangAllocated, event_id: str) -> TicketState:
    number = ticket_number(event.ticket_id)
    if number is None or number < state.next_ticket:
        raise InvalidTransition(f"event {event_id} ({event.TYPE}) gives out the ticket id {event.ticket_id} again")
    state.next_ticket = number + 1
    ticket = TicketState(
        event.ticket_id, event.client_id, event.seq, event.spec, "queued", event_id, need_of(event.spec)
    )
    state.tickets[event.ticket_id] = ticket
    client = state.clients.get(event.client_id)
    named = event.spec.terms.project
    if client is None:
        ticket.project = named or event.client_id
    else:
        client.tickets.add(event.ticket_id)
        ticket.user = client.user
        ticket.project = project_of(named, client.project, client.user, event.client_id)
    return ticket


def _forget_ticket(state: PoolState, ticket: TicketState) -> None:
    del state.tickets[ticket.ticket_id]
    state.alarms.set(ticket.ticket_id, 0)
    state.releasing.pop(ticket.ticket_id, None)
    client = state.clients.get(ticket.client_id)
    if client is not None:
        client.tickets.discard(ticket.ticket_id)


def _leave_queue(state: PoolState, ticket: TicketState) -> None:
    state.queue.remove(ticket.ticket_id)
    state.waiting.remove(ticket.ticket_id)


def _group_sizes(slots: tuple[Slot, ...]) -> tuple[int, ...]:
    """How many members each group has, by its rank; a repaired gang may have a group that is empty."""
    if len(slots) == 1:
        return (*(0,) * slots[0].group_rank, 1)
    sizes: dict[int, int] = {}  # a Counter takes three times as long
    for slot in slots:
        sizes[slot.group_rank] = sizes.get(slot.group_rank, 0) + 1
    return tuple(sizes.get(group, 0) for group in range(max(sizes, default=-1) + 1))
