"""Who must be told what about an event: replies, notices, orders, leases. Pure, and derived from the event alone.

``effects`` is called with the state as it was BEFORE the event is folded. So an event has the same effects whoever
decides it, and a reader can ask of any event in the log what it set in motion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from spoke.allocator.explain import explain, missing
from spoke.events import types as e
from spoke.events.state import ActorState, NodeState, PoolState, TicketState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import owner_of
from spoke.protocol.keys import client_lease, node_lease
from spoke.protocol.notice import Notice


class Tell(NamedTuple):
    """A reply to a client's request ``seq``, or a notice (``seq`` 0)."""

    client_id: str
    seq: int
    message: p.Message


class Command(NamedTuple):
    """An order to an agent. ``stranger``: its node is not known, and may never be."""

    node_id: str
    delivery: o.Delivery
    stranger: bool = False


class GrantLease(NamedTuple):
    """A lease that runs from the moment of the commit."""

    holder: str
    lease_ms: int


class DropLease(NamedTuple):
    """A lease that ends."""

    holder: str


class ForgetTicket(NamedTuple):
    """A ticket that has ended: its secret goes."""

    ticket_id: str
    owner: str = ""


Effect = Tell | Command | GrantLease | DropLease | ForgetTicket
Blobs = Mapping[int, bytes]
_NO_BLOBS: Blobs = {}


def effects(state: PoolState, recorded: e.Recorded, blobs: Blobs = _NO_BLOBS) -> list[Effect]:
    """The effects of an event on the state before it. ``blobs`` are the opaque parts of a launch, by rank."""
    handler = _HANDLERS.get(type(recorded.event))
    if handler is None:
        return []
    found = handler(state, recorded, blobs)
    return found if type(found) is list else list(found)


def _request_refused(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.RequestRefused, recorded)
    if event.client_id and event.seq:
        yield Tell(event.client_id, event.seq, p.Failed(event.code, event.reason))
    known = event.node_id in state.nodes
    if known or (event.node_id and event.request == r.RegisterNode.TYPE):  # what else a stranger says has no answer
        reject = o.Delivery(event.incarnation, o.Reject(event.code, event.reason))
        yield Command(event.node_id, reject, stranger=not known)


def _request_answered(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.RequestAnswered, recorded)
    yield Tell(event.client_id, event.seq, p.Done(False))


def _server_changed(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    """Leases as the server has them now may be older than their holders know them: all begin anew."""
    for client in state.clients.values():
        yield GrantLease(client_lease(client.client_id), client.lease_ms)
    for node_id, node in state.nodes.items():
        if node.incarnation:
            yield GrantLease(node_lease(node_id, node.incarnation), node.lease_ms)
            report = o.ReportHoldings(recorded.event.server)  # type: ignore[attr-defined]
            yield Command(node_id, o.Delivery(node.incarnation, report))
    holdings: dict[str, list[p.Holding]] = {client_id: [] for client_id in state.clients}
    for ticket in state.tickets.values():
        if ticket.slots:
            launches = tuple(actor.launch_id for actor in ticket.actors)
            for client_id in _interested(state, ticket):
                seq = ticket.seq if client_id == ticket.client_id else 0
                holding = p.Holding(ticket.ticket_id, seq, ticket.phase == "releasing", launches)
                holdings[client_id].append(holding)
    for client_id, held in holdings.items():
        yield Tell(client_id, 0, p.Resync(tuple(held)))


def _node_reconciling(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.NodeReconciling, recorded)
    yield from _command(state, event.node_id, o.StopUnknown(event.launches, event.tickets))


def _node_confirmed(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.NodeConfirmed, recorded)
    yield from _command(state, event.node_id, o.Resume())


# --- clients -----------------------------------------------------------------------------------------------------


def _client_connected(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.ClientConnected, recorded)
    yield GrantLease(client_lease(event.client_id), event.lease_ms)
    yield Tell(event.client_id, event.seq, p.Done())


def _client_lost(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.ClientLost, recorded)
    yield DropLease(client_lease(event.client_id))
    yield Tell(event.client_id, 0, p.SessionLost(event.reason))


def _client_closed(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.ClientClosed, recorded)
    yield DropLease(client_lease(event.client_id))
    yield Tell(event.client_id, event.seq, p.Done())


# --- nodes -------------------------------------------------------------------------------------------------------


def _node_registered(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.NodeRegistered, recorded)
    yield GrantLease(node_lease(event.node_id, event.incarnation), event.lease_ms)
    yield Command(event.node_id, o.Delivery(event.incarnation, o.Welcome(event.lease_ms)))
    if state.changed:  # the request may be an old one, read again: its node may not be empty any more
        yield Command(event.node_id, o.Delivery(event.incarnation, o.ReportHoldings(state.server)))


def _node_lost(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    yield from _end_of_node(state, recorded.event, "node_lost")


def _end_of_node(state: PoolState, event: Any, code: str) -> Iterator[Effect]:
    incarnation = state.nodes[event.node_id].incarnation
    if incarnation:
        yield DropLease(node_lease(event.node_id, incarnation))
        yield Command(event.node_id, o.Delivery(incarnation, o.Reject(code, event.reason)))


def _node_cordoned(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event: Any = recorded.event
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


def _node_draining(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.NodeDraining, recorded)
    if not event.wait:
        yield Tell(event.client_id, event.seq, p.Done())
    what = "is being removed" if event.remove else "is being drained"
    text = f"node {event.node_id} {what}" + (f": {event.reason}" if event.reason else "")
    yield from _notify_node(state, event.node_id, "node_draining", text, event.deadline_ms)


def _node_drained(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    yield from _drain_answers(state, recorded.event.node_id)  # type: ignore[attr-defined]


def _node_removed(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.NodeRemoved, recorded)
    cordon = state.cordons.get(event.node_id)
    by_operator = bool(event.client_id) or (cordon is not None and cordon.remove)
    yield from _end_of_node(state, event, "node_removed" if by_operator else "node_lost")
    yield from _drain_answers(state, event.node_id)
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())


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


def notify(state: PoolState, ticket: TicketState, notice: Notice) -> Iterator[Effect]:
    """Tell a ticket's clients and its running actors something that they should know."""
    for client_id in _interested(state, ticket):
        yield Tell(client_id, 0, p.TicketNotice(notice))
    for place in sorted(ticket.alive):
        yield from _command(state, place, o.NotifyActors(notice))


# --- GPUs --------------------------------------------------------------------------------------------------------


def _gpu_marked(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    """Tell whoever holds the GPU, or a share of it."""
    event: Any = recorded.event
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


# --- gangs -------------------------------------------------------------------------------------------------------


def _gang_queued(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangQueued, recorded)
    yield Tell(event.client_id, 0, p.Queued(event.seq, event.ticket_id, event.reason))


def _gang_allocated(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> list[Effect]:
    event = _as(e.GangAllocated, recorded)
    granted = p.Granted(event.ticket_id, event.slots, event.master_addr, event.master_port)
    return [Tell(event.client_id, event.seq, granted)]


def _gang_refused(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangRefused, recorded)
    more = missing(state, event.spec)
    yield Tell(event.client_id, event.seq, p.Failed(event.code, event.reason + (f"; {more}" if more else "")))


def _gang_cancelled(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangCancelled, recorded)
    ticket = state.tickets[event.ticket_id]
    yield Tell(ticket.client_id, ticket.seq, p.Failed("cancelled", f"the waiting gang was withdrawn: {event.reason}"))
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())


def _gang_moved(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangMoved, recorded)
    yield Tell(event.client_id, event.seq, p.Done())


def _answered(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event: Any = recorded.event
    yield Tell(event.client_id, event.seq, p.Done())


def _ticket_told(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event: Any = recorded.event
    kinds: dict[type[e.Event], str] = {e.TicketPreempting: "preempting", e.TicketExpiring: "expiring"}
    kind = kinds.get(type(event), "spared")
    ticket = state.tickets[event.ticket_id]
    ranks = tuple(range(len(ticket.slots)))
    notice = Notice(event.ticket_id, kind, event.reason, ranks=ranks, deadline_ms=getattr(event, "deadline_ms", 0))
    yield from notify(state, ticket, notice)


def _gang_explained(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangExplained, recorded)
    found = explain(state, state.tickets[event.ticket_id], recorded.ms, look_ahead=False)
    yield Tell(event.client_id, event.seq, p.Explained(found))


def _gang_attached(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangAttached, recorded)
    ticket = state.tickets[event.ticket_id]
    actors = tuple(map(actor_info, ticket.actors))
    granted = p.Granted(ticket.ticket_id, ticket.slots, ticket.master_addr, ticket.master_port, ticket.spec, actors)
    yield Tell(event.client_id, event.seq, granted)


def _gang_repaired(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangRepaired, recorded)
    ticket = state.tickets[event.ticket_id]
    told = p.Repaired(event.ticket_id, event.slot, event.master_addr, event.master_port)
    yield Tell(event.client_id, event.seq, told)
    for client_id in _interested(state, ticket):
        if client_id != event.client_id:
            yield Tell(client_id, 0, told)
    old = ticket.slots[event.rank].node_id
    if event.rank == 0 and old != event.slot.node_id:
        yield from _command(state, old, o.TakeBackPort(event.ticket_id))
    text = f"rank {event.rank} has another place, on {event.slot.node_id}"
    notice = Notice(event.ticket_id, "member_repaired", text, event.slot.node_id, (event.rank,))
    for place in sorted(ticket.alive):
        yield from _command(state, place, o.NotifyActors(notice))


def _gang_restarting(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangRestarting, recorded)
    ticket = state.tickets[event.ticket_id]
    actors = [_launched(ticket, rank) for rank in event.ranks]
    for node_id in sorted({actor.node_id for actor in actors}):
        members = tuple((actor.rank, actor.launch_id) for actor in actors if actor.node_id == node_id)
        halt = o.HaltActors(ticket.ticket_id, event.generation, members, ticket.spec.grace_s)
        yield from _command(state, node_id, halt)
    infos = []
    for actor in actors:
        phase = "launching" if actor.phase == "launching" else "restarting"
        info = replace(actor_info(actor), phase=phase, pid=0, address="", restarts=event.generation)
        if actor.rank == event.rank:
            info = replace(info, code=event.code, signal=event.signal, reason=event.reason)
        infos.append(info)
    for client_id in _interested(state, ticket):
        yield Tell(client_id, 0, p.ActorsRestarting(ticket.ticket_id, tuple(infos), event.rank))


def _gang_restarted(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangRestarted, recorded)
    ticket = state.tickets[event.ticket_id]
    actors = [_launched(ticket, rank) for rank in event.ranks]
    for node_id in sorted({actor.node_id for actor in actors}):
        launches = tuple(actor.launch_id for actor in actors if actor.node_id == node_id)
        yield from _command(
            state, node_id, o.ResumeActors(ticket.ticket_id, event.generation, launches, event.delay_ms / 1000)
        )


def _gang_releasing(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangReleasing, recorded)
    ticket = state.tickets[event.ticket_id]
    if ticket.phase == "releasing":
        return
    if ticket.members:
        close = o.CloseTicket(ticket.ticket_id, ticket.spec.grace_s)
        for node_id in sorted({actor.node_id for actor in ticket.actors}):
            yield from _command(state, node_id, close)
    for client_id in _interested(state, ticket):
        if client_id != event.client_id:
            yield Tell(client_id, 0, p.TicketReleasing(ticket.ticket_id, event.reason))


def _gang_released(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.GangReleased, recorded)
    if not event.final:
        return
    ticket = state.tickets[event.ticket_id]
    for client_id, seq in ticket.release_requests:
        yield Tell(client_id, seq, p.Done())
    asked = {client_id for client_id, _ in ticket.release_requests}
    for client_id in _interested(state, ticket):
        if client_id not in asked:
            yield Tell(client_id, 0, p.TicketReleased(ticket.ticket_id))
    if ticket.members:  # the client leaves the secret there before the first launch
        yield ForgetTicket(ticket.ticket_id, owner_of(ticket.client_id))


# --- actors ------------------------------------------------------------------------------------------------------


def _launch_requested(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.ActorLaunchRequested, recorded)
    ticket = state.tickets[event.ticket_id]
    slot = ticket.slots[event.rank]
    start = o.StartActor(
        ticket_id=ticket.ticket_id,
        launch_id=recorded.id,
        actor_id=event.actor_id,
        spec=event.spec,
        rank=event.rank,
        local_rank=slot.local_rank,
        group_rank=slot.group_rank,
        world_size=len(ticket.slots),
        local_world_size=ticket.group_sizes[slot.group_rank],
        num_nodes=sum(size > 0 for size in ticket.group_sizes),
        gpu_ids=slot.gpu_ids,
        gpu_uuids=slot.gpu_uuids,
        master_addr=ticket.master_addr,
        master_port=ticket.master_port,
        grace_s=ticket.spec.grace_s,
        gpu_milli=slot.gpu_milli,
        nics=slot.nics,
        numa_node=slot.numa_node,
        group=slot.group,
        rank_in_group=slot.rank_in_group,
        group_size=sum(other.group == slot.group for other in ticket.slots) if slot.group else 0,
    )
    yield from _command(state, event.node_id, start, blobs.get(event.rank, b""))


def _actor_moved(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event: Any = recorded.event
    ticket = state.tickets[event.ticket_id]
    actor = _launched(ticket, event.rank)
    info = _info_after(actor, event)
    if actor.phase == "launching" and ticket.launches[actor.launch] == 1:
        yield _launch_answer(ticket, actor.launch, info)
    if isinstance(event, e.ActorStarted):
        if event.restarts:
            for client_id in _interested(state, ticket):
                yield Tell(client_id, 0, p.ActorRestarted(ticket.ticket_id, info))
    else:
        expected = actor.stopping or ticket.phase == "releasing"
        for client_id in _interested(state, ticket):
            yield Tell(client_id, 0, p.ActorEnded(ticket.ticket_id, info, expected))


def _actor_restarting(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.ActorRestarting, recorded)
    ticket = state.tickets[event.ticket_id]
    actor = _launched(ticket, event.rank)
    info = replace(
        actor_info(actor),
        phase="launching" if actor.phase == "launching" else "restarting",
        pid=0,
        address="",
        code=event.code,
        signal=event.signal,
        reason=event.reason,
        restarts=event.restarts,
    )
    for client_id in _interested(state, ticket):
        yield Tell(client_id, 0, p.ActorsRestarting(ticket.ticket_id, (info,), event.rank))


def _stop_requested(state: PoolState, recorded: e.Recorded, blobs: Blobs) -> Iterator[Effect]:
    event = _as(e.ActorStopRequested, recorded)
    ticket = state.tickets[event.ticket_id]
    actor = _launched(ticket, event.rank)
    stop = o.StopActor(ticket.ticket_id, actor.rank, actor.launch_id, ticket.spec.grace_s)
    yield from _command(state, actor.node_id, stop)
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())


def _launch_answer(ticket: TicketState, launch: str, last: p.ActorInfo) -> Tell:
    """The one answer to a launch request, given when the last of its actors is up or has failed."""
    infos = [
        last if actor.rank == last.rank else actor_info(actor) for actor in ticket.actors if actor.launch == launch
    ]
    client_id, _, seq = launch.rpartition("/")
    failed = [info for info in infos if not info.pid and info.phase in ("exited", "start_failed", "lost")]
    if not failed:
        return Tell(client_id, int(seq), p.Launched(ticket.ticket_id, tuple(infos)))
    told = "; ".join(f"rank {i.rank} ({i.actor_id} on {i.node_id}): {i.reason or 'it was stopped'}" for i in failed[:5])
    more = f" (and {len(failed) - 5} more)" if len(failed) > 5 else ""
    what = f"{len(failed)} of {len(infos)} actors of ticket {ticket.ticket_id} did not start"
    return Tell(client_id, int(seq), p.Failed("start_failed", f"{what}: {told}{more}"))


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


def _info_after(actor: ActorState, event: Any) -> p.ActorInfo:
    """The actor as it is after an event that has not been folded yet."""
    phases: dict[type[e.Event], str] = {
        e.ActorStarted: "running",
        e.ActorStartFailed: "start_failed",
        e.ActorExited: "exited",
    }
    return replace(
        actor_info(actor),
        phase=phases.get(type(event), "lost"),
        pid=getattr(event, "pid", actor.pid),
        address=getattr(event, "address", actor.address),
        code=getattr(event, "code", 0),
        signal=getattr(event, "signal", 0),
        reason=getattr(event, "reason", ""),
        restarts=getattr(event, "restarts", actor.restarts),
    )


def _launched(ticket: TicketState, rank: int) -> ActorState:
    actor = ticket.actor(rank)
    assert actor is not None
    return actor


def _interested(state: PoolState, ticket: TicketState) -> list[str]:
    """The clients that are told what becomes of a ticket, and are still there."""
    if not ticket.watchers:
        return [ticket.client_id] if ticket.client_id in state.clients else []
    return sorted(client_id for client_id in {ticket.client_id, *ticket.watchers} if client_id in state.clients)


def _command(state: PoolState, node_id: str, order: o.Order, blob: bytes = b"") -> Iterator[Command]:
    node: NodeState | None = state.nodes.get(node_id)
    if node is not None and node.incarnation:
        yield Command(node_id, o.Delivery(node.incarnation, order, blob))


def _as(cls: type[Any], recorded: e.Recorded) -> Any:
    assert isinstance(recorded.event, cls)
    return recorded.event


_HANDLERS: dict[type[e.Event], Callable[[PoolState, e.Recorded, Blobs], Iterable[Effect]]] = {
    e.ServerChanged: _server_changed,
    e.NodeReconciling: _node_reconciling,
    e.NodeConfirmed: _node_confirmed,
    e.RequestRefused: _request_refused,
    e.RequestAnswered: _request_answered,
    e.ClientConnected: _client_connected,
    e.ClientLost: _client_lost,
    e.ClientClosed: _client_closed,
    e.NodeRegistered: _node_registered,
    e.NodeLost: _node_lost,
    e.NodeCordoned: _node_cordoned,
    e.NodeUncordoned: _node_cordoned,
    e.NodeDraining: _node_draining,
    e.NodeDrained: _node_drained,
    e.NodeRemoved: _node_removed,
    e.GpuMarkedUnhealthy: _gpu_marked,
    e.GpuMarkedHealthy: _gpu_marked,
    e.GangQueued: _gang_queued,
    e.GangAllocated: _gang_allocated,
    e.GangRefused: _gang_refused,
    e.GangCancelled: _gang_cancelled,
    e.GangMoved: _gang_moved,
    e.GangPrioritized: _answered,
    e.TicketPreempting: _ticket_told,
    e.TicketSpared: _ticket_told,
    e.TicketExpiring: _ticket_told,
    e.QueuePolicyChanged: _answered,
    e.QuotaChanged: _answered,
    e.QuotaRemoved: _answered,
    e.ReservationCreated: _answered,
    e.ReservationCancelled: _answered,
    e.GangExplained: _gang_explained,
    e.GangAttached: _gang_attached,
    e.GangRepaired: _gang_repaired,
    e.GangRestarting: _gang_restarting,
    e.GangRestarted: _gang_restarted,
    e.GangReleasing: _gang_releasing,
    e.GangReleased: _gang_released,
    e.ActorLaunchRequested: _launch_requested,
    e.ActorStarted: _actor_moved,
    e.ActorStartFailed: _actor_moved,
    e.ActorExited: _actor_moved,
    e.ActorRestarting: _actor_restarting,
    e.ActorLost: _actor_moved,
    e.ActorStopRequested: _stop_requested,
}
