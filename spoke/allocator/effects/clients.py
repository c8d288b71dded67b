"""To clients, about their sessions and requests; and all that begins anew when the server has changed."""

from __future__ import annotations

from collections.abc import Iterator

from spoke.allocator.effects.handlers import Cause, Handlers
from spoke.allocator.effects.kinds import Command, DropLease, Effect, GrantLease, Tell
from spoke.allocator.effects.telling import interested
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import client_lease, node_lease

handlers = Handlers()


@handlers.of(e.RequestRefused)
def _request_refused(state: PoolState, event: e.RequestRefused, cause: Cause) -> Iterator[Effect]:
    if event.client_id and event.seq:
        yield Tell(event.client_id, event.seq, p.Failed(event.code, event.reason))
    known = event.node_id in state.nodes
    if known or (event.node_id and event.request == r.RegisterNode.TYPE):  # what else a stranger says has no answer
        reject = o.Delivery(event.incarnation, o.Reject(event.code, event.reason))
        yield Command(event.node_id, reject, stranger=not known)


@handlers.of(e.RequestAnswered)
def _request_answered(state: PoolState, event: e.RequestAnswered, cause: Cause) -> Iterator[Effect]:
    yield Tell(event.client_id, event.seq, p.Done(False))


@handlers.of(e.ClientConnected)
def _client_connected(state: PoolState, event: e.ClientConnected, cause: Cause) -> Iterator[Effect]:
    yield GrantLease(client_lease(event.client_id), event.lease_ms)
    yield Tell(event.client_id, event.seq, p.Done())


@handlers.of(e.ClientLost)
def _client_lost(state: PoolState, event: e.ClientLost, cause: Cause) -> Iterator[Effect]:
    yield DropLease(client_lease(event.client_id))
    yield Tell(event.client_id, 0, p.SessionLost(event.reason))


@handlers.of(e.ClientClosed)
def _client_closed(state: PoolState, event: e.ClientClosed, cause: Cause) -> Iterator[Effect]:
    yield DropLease(client_lease(event.client_id))
    yield Tell(event.client_id, event.seq, p.Done())


@handlers.of(e.ServerChanged)
def _server_changed(state: PoolState, event: e.ServerChanged, cause: Cause) -> Iterator[Effect]:
    """Leases as the server has them now may be older than their holders know them: all begin anew."""
    for client in state.clients.values():
        yield GrantLease(client_lease(client.client_id), client.lease_ms)
    for node_id, node in state.nodes.items():
        if node.incarnation:
            yield GrantLease(node_lease(node_id, node.incarnation), node.lease_ms)
            report = o.ReportHoldings(event.server)
            yield Command(node_id, o.Delivery(node.incarnation, report))
    holdings: dict[str, list[p.Holding]] = {client_id: [] for client_id in state.clients}
    for ticket in state.tickets.values():
        if ticket.slots:
            launches = tuple(actor.launch_id for actor in ticket.actors)
            for client_id in interested(state, ticket):
                seq = ticket.seq if client_id == ticket.client_id else 0
                holding = p.Holding(ticket.ticket_id, seq, ticket.phase == "releasing", launches)
                holdings[client_id].append(holding)
    for client_id, held in holdings.items():
        yield Tell(client_id, 0, p.Resync(tuple(held)))
