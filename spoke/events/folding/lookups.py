"""What an event is about, in the state; errors say why an event cannot follow."""

from __future__ import annotations

from typing import Any

from spoke.errors import InvalidTransition
from spoke.events.lifecycle import NODE, TICKET, TicketPhase, advance
from spoke.events.model import Slot
from spoke.events.state import ActorState, NodeState, PoolState, TicketState, indices_of
from spoke.events.types import Event


def node_of(state: PoolState, event_id: str, event: Any) -> NodeState:
    """The event's node."""
    node = state.nodes.get(event.node_id)
    if node is None:
        advance(NODE, f"node {event.node_id}", None, event_id, event.TYPE)
        raise AssertionError("unreachable")
    return node


def ticket_of(state: PoolState, event_id: str, event: Any) -> TicketState:
    """The event's ticket."""
    ticket = state.tickets.get(event.ticket_id)
    if ticket is None:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about ticket {event.ticket_id}, which is not there"
        )
    return ticket


def actor_of(state: PoolState, event_id: str, event: Any) -> tuple[TicketState, ActorState]:
    """The event's actor, and its ticket."""
    ticket = ticket_of(state, event_id, event)
    actor = ticket.actor(event.rank)
    if actor is None or actor.actor_id != event.actor_id:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about actor {event.actor_id} at rank {event.rank} of ticket "
            f"{event.ticket_id}, which was never launched"
        )
    return ticket, actor


def phase_after(ticket_id: str, was: TicketPhase | None, event_id: str, event: Event) -> TicketPhase:
    """The ticket's phase after the event; the words for an error are made where there is one."""
    phase = TICKET.get((was, event.TYPE))
    return phase if phase is not None else advance(TICKET, f"ticket {ticket_id}", was, event_id, event.TYPE)


def handed_out_twice(ticket: TicketState, slot: Slot, node: NodeState, event_id: str) -> InvalidTransition:
    """The error for a slot that its node cannot give."""
    if not node.is_open_to(ticket):
        whose = node.exclusive or ", ".join(sorted(node.tickets - {ticket.ticket_id}))
        return InvalidTransition(
            f"event {event_id} places ticket {ticket.ticket_id} on node {slot.node_id} beside {whose}, and one of them "
            f"has its nodes for itself"
        )
    need = ticket.need_of(slot)
    return InvalidTransition(
        f"event {event_id} gives rank {slot.global_rank} of ticket {ticket.ticket_id} GPUs {slot.gpu_ids}"
        f"{f' (a share of {slot.gpu_milli} thousandths)' if slot.gpu_milli else ''}, "
        f"NICs {slot.nics}, {need.cpu_milli} mCPU and {need.memory} bytes of node {slot.node_id}, where GPUs "
        f"{indices_of(node.free_gpus)} (and of {node.shared} the rest), NICs {indices_of(node.free_nics)} (by their "
        f"order), {node.free_cpu_milli} mCPU and "
        f"{node.free_memory} bytes are free: something was handed out twice"
    )
