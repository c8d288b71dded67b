"""To agents, about their nodes and GPUs, and to whom that concerns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spoke.allocator.effects.handlers import Cause, Handlers
from spoke.allocator.effects.kinds import Command, DropLease, Effect, GrantLease, Tell
from spoke.allocator.effects.telling import command, notify
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol.keys import node_lease
from spoke.protocol.notice import Notice

handlers = Handlers()


@handlers.of(e.NodeRegistered)
def _node_registered(state: PoolState, event: e.NodeRegistered, cause: Cause) -> Iterator[Effect]:
    yield GrantLease(node_lease(event.node_id, event.incarnation), event.lease_ms)
    yield Command(event.node_id, o.Delivery(event.incarnation, o.Welcome(event.lease_ms)))
    if state.changed:  # the request may be an old one, read again: its node may not be empty any more
        yield Command(event.node_id, o.Delivery(event.incarnation, o.ReportHoldings(state.server)))


@handlers.of(e.NodeReconciling)
def _node_reconciling(state: PoolState, event: e.NodeReconciling, cause: Cause) -> Iterator[Effect]:
    yield from command(state, event.node_id, o.StopUnknown(event.launches, event.tickets))


@handlers.of(e.NodeConfirmed)
def _node_confirmed(state: PoolState, event: e.NodeConfirmed, cause: Cause) -> Iterator[Effect]:
    yield from command(state, event.node_id, o.Resume())


@handlers.of(e.NodeLost)
def _node_lost(state: PoolState, event: e.NodeLost, cause: Cause) -> Iterator[Effect]:
    yield from _end_of_node(state, event, "node_lost")


@handlers.of(e.NodeCordoned, e.NodeUncordoned)
def _node_cordoned(state: PoolState, event: e.NodeCordoned | e.NodeUncordoned, cause: Cause) -> Iterator[Effect]:
    known = state.cordons.get(event.node_id)
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())
    if known is None:
        return
    how = "uncordoned" if isinstance(event, e.NodeUncordoned) else "only cordoned now"
    for client_id, seq in known.waiters:
        yield Tell(
            client_id, seq, p.Failed("node_busy", f"the drain of node {event.node_id} was given up: it is {how}")
        )
    if known.phase == "draining":
        text = f"node {event.node_id} is not drained any more"
        yield from _notify_node(state, event.node_id, "node_drain_ended", text, 0)


@handlers.of(e.NodeDraining)
def _node_draining(state: PoolState, event: e.NodeDraining, cause: Cause) -> Iterator[Effect]:
    if not event.wait:
        yield Tell(event.client_id, event.seq, p.Done())
    what = "is being removed" if event.remove else "is being drained"
    text = f"node {event.node_id} {what}" + (f": {event.reason}" if event.reason else "")
    yield from _notify_node(state, event.node_id, "node_draining", text, event.deadline_ms)


@handlers.of(e.NodeDrained)
def _node_drained(state: PoolState, event: e.NodeDrained, cause: Cause) -> Iterator[Effect]:
    yield from _drain_answers(state, event.node_id)


@handlers.of(e.NodeRemoved)
def _node_removed(state: PoolState, event: e.NodeRemoved, cause: Cause) -> Iterator[Effect]:
    cordon = state.cordons.get(event.node_id)
    by_operator = bool(event.client_id) or (cordon is not None and cordon.remove)
    yield from _end_of_node(state, event, "node_removed" if by_operator else "node_lost")
    yield from _drain_answers(state, event.node_id)
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())


@handlers.of(e.GpuMarkedUnhealthy, e.GpuMarkedHealthy)
def _gpu_marked(state: PoolState, event: e.GpuMarkedUnhealthy | e.GpuMarkedHealthy, cause: Cause) -> Iterator[Effect]:
    """Tell whoever holds the GPU, or a share of it."""
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())
    kind, what = ("gpu_healthy", "healthy again")
    if isinstance(event, e.GpuMarkedUnhealthy):
        kind, what = "gpu_unhealthy", f"unhealthy ({event.kind})"
    text = f"GPU {event.index} of node {event.node_id} is {what}" + (f": {event.reason}" if event.reason else "")
    for ticket_id in sorted(state.nodes[event.node_id].tickets):
        ticket = state.tickets[ticket_id]
        ranks = tuple(s.global_rank for s in ticket.slots if s.node_id == event.node_id and event.index in s.gpu_ids)
        if ranks and ticket.phase != "releasing":
            yield from notify(state, ticket, Notice(ticket_id, kind, text, event.node_id, ranks))


def _end_of_node(state: PoolState, event: Any, code: str) -> Iterator[Effect]:
    incarnation = state.nodes[event.node_id].incarnation
    if incarnation:
        yield DropLease(node_lease(event.node_id, incarnation))
        yield Command(event.node_id, o.Delivery(incarnation, o.Reject(code, event.reason)))


def _drain_answers(state: PoolState, node_id: str) -> Iterator[Effect]:
    cordon = state.cordons.get(node_id)
    for client_id, seq in cordon.waiters if cordon is not None else ():
        yield Tell(client_id, seq, p.Done())


def _notify_node(state: PoolState, node_id: str, kind: str, reason: str, deadline_ms: int) -> Iterator[Effect]:
    """Tell the owners and the actors of all tickets on a node."""
    for ticket_id in sorted(state.nodes[node_id].tickets if node_id in state.nodes else ()):
        ticket = state.tickets[ticket_id]
        if ticket.phase != "releasing":
            ranks = tuple(slot.global_rank for slot in ticket.slots if slot.node_id == node_id)
            yield from notify(state, ticket, Notice(ticket_id, kind, reason, node_id, ranks, deadline_ms))
