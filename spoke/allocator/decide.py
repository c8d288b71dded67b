"""``decide(state, asked, now_ms)``: the events that a request leads to. Pure: it reads the state and changes nothing.

Every request of a client leads to at least one event that carries its ``client_id`` and ``seq``; the fold remembers
them, and a request that arrives again leads to no event at all. What must be told to whom about an event is not
decided here but derived from it (``outbox.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spoke.allocator import health, nodes, operations, repair, tickets
from spoke.allocator.leases import check_lease
from spoke.allocator.quarantine import UNDECIDABLE
from spoke.allocator.queue import reserve, settings, turn
from spoke.errors import AuthenticationFailed, InvalidRequest, SpokeError
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import requests as r
from spoke.protocol.version import check_protocol


def decide(state: PoolState, asked: r.Asked, now_ms: int) -> list[e.Event]:
    """The events that follow from a request at server time ``now_ms``; none for one that was decided before."""
    if isinstance(asked, r.Garbage):
        return _refuse_garbage(state, asked)
    known = state.client(asked.client_id)
    if known is not None and asked.seq and known.has_decided(asked.seq):
        return []
    try:
        return _decide(state, asked, now_ms)
    except SpokeError as error:
        return [_refusal(asked, error)]


def tick(state: PoolState, now_ms: int, *, overtake: bool = True) -> list[e.Event]:
    """What the passing of time leads to; call again until it leads to nothing.

    ``overtake``: whether to look for gangs that may go before others, which takes longer.
    """
    return operations.advance(state, now_ms) or turn.advance(state, now_ms, overtake=overtake)


def waits(state: PoolState) -> bool:
    """Whether anything waits for time to pass or for places to become free, so that ``tick`` has something to do."""
    return bool(
        state.queue
        or state.alarms.next_ms is not None
        or state.preempting
        or state.queueing.reservations
        or state.draining
    )


def next_deadline_ms(state: PoolState, now_ms: int) -> int | None:
    """When ``tick`` will have something to do because of the time alone; None if never."""
    times = [at_ms for at_ms in (state.alarms.next_ms, reserve.next_ms(state, now_ms)) if at_ms is not None]
    if state.draining:
        times += operations.deadlines(state)
    return min(times, default=None)


def expire(state: PoolState, holder: str) -> list[e.Event]:
    """The events that follow when a lease has run out; none for a holder that is unknown or was replaced."""
    kind, _, name = holder.partition(":")
    if kind == "client" and name in state.clients:
        return [
            e.ClientLost(name, f"no sign of life for {state.clients[name].lease_ms / 1000:g} s"),
            *tickets.release_all_of(state, state.clients[name], "its client was lost"),
        ]
    if kind == "node":
        node_id, _, incarnation = name.rpartition(":")
        node = state.nodes.get(node_id)
        if node is not None and node.incarnation == incarnation:
            return nodes.lose(state, node, "its lease ran out")
    return []


def end_session(state: PoolState, client_id: str, limit: int) -> list[e.Event]:
    """The end of a client that floods the pool: as if its lease had run out, with the reason."""
    client = state.clients.get(client_id)
    if client is None:
        return []
    reason = f"it sent more than {limit} requests without waiting for answers, which is this pool's limit"
    return [e.ClientLost(client_id, reason), *tickets.release_all_of(state, client, "its client flooded the pool")]


def _decide(state: PoolState, asked: r.Envelope, now_ms: int) -> list[e.Event]:
    request = asked.request
    if asked.node_id:
        timed = _TIMED.get(type(request))
        if timed is not None:
            return timed(state, asked, request, now_ms)
        from_node = _FROM_NODES.get(type(request))
        if from_node is None:
            raise InvalidRequest(f"{request.TYPE} is for clients; node {asked.node_id} sent it")
        return from_node(state, asked, request)
    if isinstance(request, r.ConnectClient) and asked.client_id not in state.gone:
        return _connect(state, asked, request)
    if asked.client_id not in state.clients:
        return [
            e.RequestRefused(
                asked.client_id,
                asked.seq,
                request.TYPE,
                "lease_lost",
                f"client {asked.client_id} is not connected: its lease ran out, or it was closed; open a new client",
            )
        ]
    timed = _TIMED_FROM_CLIENTS.get(type(request))
    if timed is not None:
        return timed(state, asked, request, now_ms)
    from_client = _FROM_CLIENTS.get(type(request))
    if from_client is None:
        raise InvalidRequest(f"{request.TYPE} is for agents; client {asked.client_id} sent it")
    return from_client(state, asked, request)


def _refuse_garbage(state: PoolState, asked: r.Garbage) -> list[e.Event]:
    """The refusal of what cannot be read, or was not signed by whom it names.

    What says that it comes from a known client or a live agent, but proves nothing, is recorded without that name:
    else a stranger could use up another's sequence number, or have an agent told to stop.
    """
    known, node = state.client(asked.client_id), state.nodes.get(asked.node_id)
    named = (asked.client_id, asked.seq, "", "")
    if asked.code == AuthenticationFailed.code:
        if known is not None or (node is not None and node.incarnation == asked.incarnation):
            named = ("", 0, "", "")
        elif asked.node_id:
            named = ("", 0, asked.node_id, asked.incarnation)
    elif known is not None and asked.seq and known.has_decided(asked.seq):
        return []
    elif asked.code == UNDECIDABLE:  # it could be read, and was signed where it must be
        named = (asked.client_id, asked.seq, asked.node_id, asked.incarnation)
    client_id, seq, node_id, incarnation = named
    return [e.RequestRefused(client_id, seq, asked.request, asked.code, asked.reason, node_id, incarnation)]


def _refusal(asked: r.Envelope, error: SpokeError) -> e.Event:
    return e.RequestRefused(
        asked.client_id, asked.seq, asked.request.TYPE, error.code, str(error), asked.node_id, asked.incarnation
    )


def _connect(state: PoolState, asked: r.Envelope, request: r.ConnectClient) -> list[e.Event]:
    if asked.client_id in state.clients:
        raise InvalidRequest(f"client {asked.client_id} is connected already: choose another client id")
    check_protocol(f"client {asked.client_id}", request.protocol, request.version)
    check_lease(request.lease_ms)
    user = request.user if asked.signer is None else asked.signer.name
    return [
        e.ClientConnected(
            asked.client_id,
            asked.seq,
            request.lease_ms,
            request.host,
            request.pid,
            user,
            request.version,
            request.project,
        )
    ]


def _close(state: PoolState, asked: r.Envelope, request: r.CloseClient) -> list[e.Event]:
    released = tickets.release_all_of(state, state.clients[asked.client_id], "its client closed")
    return [*released, e.ClientClosed(asked.client_id, asked.seq)]


_TIMED_FROM_CLIENTS: dict[type[r.Request], Callable[[PoolState, r.Envelope, Any, int], list[e.Event]]] = {
    r.AllocateGang: turn.allocate,
    r.DrainNode: operations.drain,
    r.RemoveNode: operations.remove,
    r.CreateReservation: reserve.create,
}
"""The requests of clients whose answer depends on the time."""
_FROM_CLIENTS: dict[type[r.Request], Callable[[PoolState, r.Envelope, Any], list[e.Event]]] = {
    r.CloseClient: _close,
    r.CancelGang: tickets.cancel,
    r.ReleaseGang: tickets.release,
    r.AttachGang: tickets.attach,
    r.ExplainGang: tickets.explain,
    r.ReportLost: nodes.report_lost,
    r.LaunchActors: tickets.launch,
    r.StopActor: tickets.stop_actor,
    r.CordonNode: operations.cordon,
    r.UncordonNode: operations.uncordon,
    r.RepairGang: repair.repair,
    r.MoveGang: operations.move,
    r.MarkGpu: health.mark,
    r.PrioritizeGang: settings.prioritize,
    r.SetQueuePolicy: settings.set_policy,
    r.SetQuota: settings.set_quota,
    r.RemoveQuota: settings.remove_quota,
    r.CancelReservation: reserve.cancel,
}
_FROM_NODES: dict[type[r.Request], Callable[[PoolState, r.Envelope, Any], list[e.Event]]] = {
    r.RegisterNode: nodes.register,
    r.LeaveNode: nodes.leave,
    r.ReportHeld: nodes.report_held,
    r.ReportHealth: health.report,
    r.ReportStarted: nodes.report_started,
    r.ReportRestarting: nodes.report_restarting,
}
_TIMED: dict[type[r.Request], Callable[[PoolState, r.Envelope, Any, int], list[e.Event]]] = {
    r.ReportStartFailed: nodes.report_start_failed,
    r.ReportExited: nodes.report_exited,
    r.ReportHalted: nodes.report_halted,
}
"""The reports whose consequences depend on the time."""
