"""Placing one gang, beside what must stay free."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from spoke.allocator.placement.assign import Assignment, assign
from spoke.allocator.placement.choose import place
from spoke.allocator.placement.pack import NoFit, Placement
from spoke.allocator.queue import reserve
from spoke.events import types as e
from spoke.events.model import GangSpec
from spoke.events.state import PoolState, TicketState

Placed = tuple[Placement, str, PoolState]
"""A placement, the policy's name and version, and the state (or the part of it) that it is made for."""


def place_beside(state: PoolState, spec: GangSpec, now_ms: int, closed: Collection[str] = ()) -> Placed | NoFit:
    """Places outside of the closed nodes and of what is reserved for others; or why there are none."""
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
    shut = reserved | set(closed) if closed else reserved
    if shut and not shut.isdisjoint(node_id for node_id, _ in found.parts):
        with hidden(state, shut):
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
def hidden(state: PoolState, node_ids: Iterable[str]) -> Iterator[None]:
    """As if these nodes took no work, for as long as it lasts. The state is as before in the end."""
    away = [state.nodes[node_id] for node_id in sorted(node_ids) if node_id in state.nodes]
    away = [node for node in away if node.confirmed]
    for node in away:
        node.confirmed = False
        state.index(node)
    try:
        yield
    finally:
        for node in away:
            node.confirmed = True
            state.index(node)


@contextmanager
def without(state: PoolState, tickets: Iterable[TicketState]) -> Iterator[None]:
    """As if these live tickets were gone, for as long as it lasts. The state is as before in the end."""
    gone = [(ticket, slot) for ticket in tickets for slot in ticket.slots if slot.node_id in ticket.held]
    before = {slot.node_id: state.nodes[slot.node_id] for _, slot in gone}
    for node_id, node in before.items():  # copies: what is unhealthy is not free, and could not be taken again
        state.nodes[node_id] = replace(
            node, tickets=node.tickets.copy(), shared=node.shared.copy(), unhealthy_shared=node.unhealthy_shared.copy()
        )
    try:
        for ticket, slot in gone:
            state.nodes[slot.node_id].give_back(ticket, slot)
        for node_id in before:
            state.index(state.nodes[node_id])
        yield
    finally:
        for node_id, node in before.items():
            state.nodes[node_id] = node
            state.index(node)
