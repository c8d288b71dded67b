"""Who is there: the allocator, the server, the clients."""

from __future__ import annotations

from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.folding.handlers import Handlers
from spoke.events.state import GONE_CLIENTS_KEPT, ClientState, PoolState

handlers = Handlers()
TICKETS_PER_SERVER = 100_000
"""More tickets than a server can lose at its end; the numbers of those are never used again."""


@handlers.of(e.AllocatorElected)
def _allocator_elected(state: PoolState, event_id: str, event: e.AllocatorElected) -> None:
    if event.epoch <= state.epoch:
        raise InvalidTransition(
            f"event {event_id} elects {event.holder} for epoch {event.epoch}, but epoch {state.epoch} has begun"
        )
    state.epoch, state.allocator = event.epoch, event.holder


@handlers.of(e.ServerChanged)
def _server_changed(state: PoolState, event_id: str, event: e.ServerChanged) -> None:
    """Ids of tickets may have been given out that are forgotten now: none of them is given out again."""
    state.server, state.history_end = event.server, event.end
    state.changed = state.changed or bool(event.was)
    if state.next_ticket > 1:
        state.next_ticket = (state.next_ticket // TICKETS_PER_SERVER + 1) * TICKETS_PER_SERVER + 1
    for node in state.nodes.values():
        if node.incarnation:
            node.confirmed = False
            state.index(node)


@handlers.of(e.LogRegressed)
def _log_regressed(state: PoolState, event_id: str, event: e.LogRegressed) -> None:
    state.history_end = ""  # said once is enough


@handlers.of(e.ClientConnected)
def _client_connected(state: PoolState, event_id: str, event: e.ClientConnected) -> None:
    if event.client_id in state.clients:
        raise InvalidTransition(f"event {event_id} connects client {event.client_id}, which is connected")
    state.clients[event.client_id] = ClientState(
        event.client_id, event.lease_ms, event.user, event.host, event.pid, event.project
    )


@handlers.of(e.ClientLost, e.ClientClosed)
def _client_gone(state: PoolState, event_id: str, event: e.ClientLost | e.ClientClosed) -> None:
    client = state.clients.pop(event.client_id, None)
    if client is None:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about client {event.client_id}, which is not there"
        )
    client.tickets = set()
    state.gone[event.client_id] = client
    if len(state.gone) > GONE_CLIENTS_KEPT:
        del state.gone[next(iter(state.gone))]
