"""Nodes and their GPUs."""

from __future__ import annotations

from typing import Any

from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.folding.handlers import Handlers
from spoke.events.folding.lookups import handed_out_twice, node_of
from spoke.events.lifecycle import NODE, NodePhase, advance
from spoke.events.state import Cordon, GpuFault, NodeState, PoolState

handlers = Handlers()


@handlers.of(e.NodeRegistered)
def _node_registered(state: PoolState, event_id: str, event: e.NodeRegistered) -> None:
    if event.node_id != event.spec.node_id:
        raise InvalidTransition(f"event {event_id} registers node {event.node_id} as {event.spec.node_id}")
    known = state.nodes.get(event.node_id)
    advance(NODE, f"node {event.node_id}", known.phase if known else None, event_id, event.TYPE)
    cordon = state.cordons.get(event.node_id)
    phase: NodePhase = cordon.phase if cordon is not None else "up"
    node = NodeState.empty(event.spec, phase, event.incarnation, event.lease_ms, not state.changed)
    if known is not None:  # what live tickets hold on the node stays theirs
        for ticket_id in sorted(known.tickets):
            ticket = state.tickets[ticket_id]
            for slot in ticket.slots:
                if slot.node_id == event.node_id and not node.take(ticket, slot):
                    raise handed_out_twice(ticket, slot, node, event_id)
    state.apply_faults(node)
    state.nodes[event.node_id] = node
    state.index(node)


@handlers.of(e.NodeConfirmed)
def _node_confirmed(state: PoolState, event_id: str, event: e.NodeConfirmed) -> None:
    node = node_of(state, event_id, event)
    node.confirmed = True
    state.index(node)


def _advance_node(state: PoolState, event_id: str, event: Any) -> NodeState:
    node = node_of(state, event_id, event)
    node.phase = advance(NODE, f"node {event.node_id}", node.phase, event_id, event.TYPE)
    state.index(node)
    return node


@handlers.of(e.NodeLost)
def _node_lost(state: PoolState, event_id: str, event: e.NodeLost) -> None:
    _advance_node(state, event_id, event).incarnation = ""


@handlers.of(e.NodeCordoned)
def _node_cordoned(state: PoolState, event_id: str, event: e.NodeCordoned) -> None:
    _advance_node(state, event_id, event)
    state.set_cordon(event.node_id, Cordon(state.user_of(event.client_id), event_id, event.reason))


@handlers.of(e.NodeUncordoned)
def _node_uncordoned(state: PoolState, event_id: str, event: e.NodeUncordoned) -> None:
    if event.node_id in state.nodes:
        _advance_node(state, event_id, event)
    state.set_cordon(event.node_id, None)


@handlers.of(e.NodeDraining)
def _node_draining(state: PoolState, event_id: str, event: e.NodeDraining) -> None:
    _advance_node(state, event_id, event)
    known = state.cordons.get(event.node_id)
    cordon = Cordon(state.user_of(event.client_id), event_id, event.reason, "draining", event.deadline_ms, event.remove)
    if known is not None:
        cordon.waiters = known.waiters
    if event.wait:
        cordon.waiters.append((event.client_id, event.seq))
    state.set_cordon(event.node_id, cordon)


@handlers.of(e.NodeDrained)
def _node_drained(state: PoolState, event_id: str, event: e.NodeDrained) -> None:
    if _advance_node(state, event_id, event).tickets:
        raise InvalidTransition(f"event {event_id} says that node {event.node_id} is drained, which has tickets")
    _end_drain(state, event.node_id)


def _end_drain(state: PoolState, node_id: str) -> None:
    cordon = state.cordons.get(node_id)
    if cordon is not None and cordon.phase == "draining":
        cordon.phase, cordon.deadline_ms, cordon.waiters = "drained", 0, []
        state.set_cordon(node_id, cordon)


@handlers.of(e.NodeRemoved)
def _node_removed(state: PoolState, event_id: str, event: e.NodeRemoved) -> None:
    node = node_of(state, event_id, event)
    if node.tickets:
        raise InvalidTransition(
            f"event {event_id} removes node {event.node_id}, which still holds {', '.join(sorted(node.tickets))}"
        )
    advance(NODE, f"node {event.node_id}", node.phase, event_id, event.TYPE)
    state.capacity.drop(event.node_id)
    state.domains.drop(event.node_id)
    del state.nodes[event.node_id]
    _end_drain(state, event.node_id)


@handlers.of(e.GpuMarkedUnhealthy)
def _gpu_marked_unhealthy(state: PoolState, event_id: str, event: e.GpuMarkedUnhealthy) -> None:
    node = _gpu_node(state, event_id, event)
    by = state.user_of(event.client_id) if event.client_id else ""
    faults = state.faults.setdefault(event.node_id, {})
    faults[event.uuid] = GpuFault(event.kind, event.reason, by, event_id)
    node.mark_unhealthy(event.index)
    state.index(node)


@handlers.of(e.GpuMarkedHealthy)
def _gpu_marked_healthy(state: PoolState, event_id: str, event: e.GpuMarkedHealthy) -> None:
    node = _gpu_node(state, event_id, event)
    faults = state.faults.get(event.node_id, {})
    if faults.pop(event.uuid, None) is None:
        raise InvalidTransition(f"event {event_id} marks GPU {event.uuid} healthy, which is not unhealthy")
    if not faults:
        del state.faults[event.node_id]
    slots = (slot for ticket_id in node.tickets for slot in state.tickets[ticket_id].slots)
    node.mark_healthy(event.index, any(s.node_id == event.node_id and event.index in s.gpu_ids for s in slots))
    state.index(node)


def _gpu_node(state: PoolState, event_id: str, event: e.GpuMarkedUnhealthy | e.GpuMarkedHealthy) -> NodeState:
    node = node_of(state, event_id, event)
    if not any(gpu.index == event.index and gpu.uuid == event.uuid for gpu in node.spec.gpus):
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about GPU {event.index} ({event.uuid}) of node {event.node_id}, which "
            f"has no such GPU"
        )
    return node
