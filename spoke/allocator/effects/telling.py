"""Whom to tell of a ticket, and how."""

from __future__ import annotations

from collections.abc import Iterator

from spoke.allocator.effects.kinds import Command, Effect, Tell
from spoke.events.state import ActorState, PoolState, TicketState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol.notice import Notice


def interested(state: PoolState, ticket: TicketState) -> list[str]:
    """The clients that are told what becomes of a ticket, and are still there."""
    if not ticket.watchers:
        return [ticket.client_id] if ticket.client_id in state.clients else []
    return sorted(client_id for client_id in {ticket.client_id, *ticket.watchers} if client_id in state.clients)


def command(state: PoolState, node_id: str, order: o.Order, blob: bytes = b"") -> Iterator[Command]:
    """An order to a node's agent, if there is one."""
    node = state.nodes.get(node_id)
    if node is not None and node.incarnation:
        yield Command(node_id, o.Delivery(node.incarnation, order, blob))


def notify(state: PoolState, ticket: TicketState, notice: Notice) -> Iterator[Effect]:
    """Tell a ticket's clients and its running actors something that they should know."""
    for client_id in interested(state, ticket):
        yield Tell(client_id, 0, p.TicketNotice(notice))
    for place in sorted(ticket.alive):
        yield from command(state, place, o.NotifyActors(notice))


def actor_info(actor: ActorState) -> p.ActorInfo:
    """An actor as clients see it."""
    return p.ActorInfo(
        rank=actor.rank,
        actor_id=actor.actor_id,
        node_id=actor.node_id,
        launch_id=actor.launch_id,
        phase=actor.phase,
        pid=actor.pid,
        address=actor.address,
        code=actor.code,
        signal=actor.signal,
        reason=actor.reason,
        restarts=actor.restarts,
    )
