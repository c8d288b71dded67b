"""Placing one gang, beside what must stay free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from spoke.allocator.placement.assign import Assignment, assign
from spoke.allocator.placement.choose import place
from spoke.allocator.placement.pack import NoFit, Placement
from spoke.allocator.queue import reserve
from spoke.allocator.queue.backfill import Plan
from spoke.allocator.queue.timeline import NEVER
from spoke.events import types as e
from spoke.events.model import GangSpec
from spoke.events.state import PoolState, TicketState

Placed = tuple[Placement, str, PoolState]
"""A placement, the policy's name and version, and the state (or the part of it) that it is made for."""


def place_beside(state: PoolState, spec: GangSpec, now_ms: int, plan: Plan | None = None) -> Placed | NoFit:
    """Places outside of what is reserved for others, and of what is planned for others; or why there are none."""
    terms = spec.terms
    if terms.reservation:
        part = reserve.part_of(state, terms.reservation, now_ms)
        if isinstance(part, NoFit):
            return part
        found, policy = place(part, spec)
        return found if isinstance(found, NoFit) else (found, policy, part)
    reserved = reserve.closed_nodes(state, terms.length_ms, now_ms) if state.queueing.reservations else set()
    found, policy = place(state, spec)
    if isinstance(found, NoFit):
        return found
    taken = [node_id for node_id, _ in found.parts]
    if reserved.isdisjoint(taken) and (plan is None or plan.claimed.isdisjoint(taken)):
        return found, policy, state
    shut = reserved.union(plan.closed_to(spec)) if plan is not None else reserved
    if shut.isdisjoint(taken):
        return found, policy, state
    with state.capacity.passing_over(shut):
        found, policy = place(state, spec)
        why = found.reason if isinstance(found, NoFit) else ""
    if isinstance(found, NoFit):
        return NoFit(f"{why} (nodes that are reserved, or planned for gangs before it, are left out)")
    return found, policy, state


def allocated(
    placed: Placed, ticket_id: str, client_id: str, seq: int, spec: GangSpec, *, order: str, borrowed: bool
) -> e.GangAllocated:
    """The event that grants a placement."""
    found, policy, part = placed
    got: Assignment = assign(part, spec, found)
    return e.GangAllocated(
        ticket_id, client_id, seq, spec, got.slots, got.master_addr, got.master_port, policy, order, borrowed
    )


@contextmanager
def booked(state: PoolState, event: e.GangAllocated, now_ms: int) -> Iterator[None]:
    """As if a waiting gang had these places already, for as long as it lasts. The state is as before in the end."""
    waiting, terms = state.tickets[event.ticket_id], event.spec.terms
    reservation = state.queueing.reservations.get(terms.reservation)
    ends = [now_ms + terms.max_ms] * bool(terms.max_ms) + [reservation.end_ms if reservation is not None else NEVER]
    ticket = replace(
        waiting,
        phase="allocated",
        since=f"{now_ms}-0",
        slots=event.slots,
        master_port=event.master_port,
        held={slot.node_id for slot in event.slots},
        ends_ms=min(ends) % NEVER,
    )
    with _replaced(state, ticket.held):
        state.tickets[ticket.ticket_id] = ticket
        try:
            for slot in ticket.slots:
                taken = state.nodes[slot.node_id].take(ticket, slot)
                assert taken, "a place was chosen that is not free"
            for node_id in ticket.held:
                state.index(state.nodes[node_id])
            yield
        finally:
            state.tickets[ticket.ticket_id] = waiting


@contextmanager
def without(state: PoolState, tickets: Iterable[TicketState]) -> Iterator[None]:
    """As if these live tickets were gone, for as long as it lasts. The state is as before in the end."""
    gone = [(ticket, slot) for ticket in tickets for slot in ticket.slots if slot.node_id in ticket.held]
    nodes = dict.fromkeys(slot.node_id for _, slot in gone)
    with _replaced(state, nodes):
        for ticket, slot in gone:
            state.nodes[slot.node_id].give_back(ticket, slot)
        for node_id in nodes:
            state.index(state.nodes[node_id])
        yield


@contextmanager
def _replaced(state: PoolState, node_ids: Iterable[str]) -> Iterator[None]:
    """Copies in the place of nodes, to be changed at will: what is unhealthy could not be taken again."""
    before = {node_id: state.nodes[node_id] for node_id in node_ids}
    for node_id, node in before.items():
        state.nodes[node_id] = replace(
            node, tickets=node.tickets.copy(), shared=node.shared.copy(), unhealthy_shared=node.unhealthy_shared.copy()
        )
    try:
        yield
    finally:
        for node_id, node in before.items():
            state.nodes[node_id] = node
            state.index(node)
