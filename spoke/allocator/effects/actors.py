"""To agents, about what they run; to clients, about what became of it; and the restarts of whole gangs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from spoke.allocator.effects.handlers import Cause, Handlers
from spoke.allocator.effects.kinds import Effect, Tell
from spoke.allocator.effects.telling import actor_info, command, interested
from spoke.events import types as e
from spoke.events.state import ActorState, PoolState, TicketState
from spoke.protocol import orders as o
from spoke.protocol import replies as p

handlers = Handlers()
REASONS_MAX: Final = 5


@handlers.of(e.ActorLaunchRequested)
def _launch_requested(state: PoolState, event: e.ActorLaunchRequested, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    slot = ticket.slots[event.rank]
    start = o.StartActor(
        ticket_id=ticket.ticket_id,
        launch_id=cause.recorded.id,
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
    yield from command(state, event.node_id, start, cause.blobs.get(event.rank, b""))


@handlers.of(e.ActorStarted, e.ActorStartFailed, e.ActorExited, e.ActorLost)
def _actor_moved(state: PoolState, event: Any, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    actor = _launched(ticket, event.rank)
    info = _info_after(actor, event)
    if actor.phase == "launching" and ticket.launches[actor.launch] == 1:
        yield _launch_answer(ticket, actor.launch, info)
    if isinstance(event, e.ActorStarted):
        if event.restarts:
            for client_id in interested(state, ticket):
                yield Tell(client_id, 0, p.ActorRestarted(ticket.ticket_id, info))
    else:
        expected = actor.stopping or ticket.phase == "releasing"
        for client_id in interested(state, ticket):
            yield Tell(client_id, 0, p.ActorEnded(ticket.ticket_id, info, expected))


@handlers.of(e.ActorRestarting)
def _actor_restarting(state: PoolState, event: e.ActorRestarting, cause: Cause) -> Iterator[Effect]:
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
    for client_id in interested(state, ticket):
        yield Tell(client_id, 0, p.ActorsRestarting(ticket.ticket_id, (info,), event.rank))


@handlers.of(e.ActorStopRequested)
def _stop_requested(state: PoolState, event: e.ActorStopRequested, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    actor = _launched(ticket, event.rank)
    stop = o.StopActor(ticket.ticket_id, actor.rank, actor.launch_id, ticket.spec.grace_s)
    yield from command(state, actor.node_id, stop)
    if event.seq:
        yield Tell(event.client_id, event.seq, p.Done())


@handlers.of(e.GangRestarting)
def _gang_restarting(state: PoolState, event: e.GangRestarting, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    actors = [_launched(ticket, rank) for rank in event.ranks]
    for node_id in sorted({actor.node_id for actor in actors}):
        members = tuple((actor.rank, actor.launch_id) for actor in actors if actor.node_id == node_id)
        halt = o.HaltActors(ticket.ticket_id, event.generation, members, ticket.spec.grace_s)
        yield from command(state, node_id, halt)
    infos = []
    for actor in actors:
        phase = "launching" if actor.phase == "launching" else "restarting"
        info = replace(actor_info(actor), phase=phase, pid=0, address="", restarts=event.generation)
        if actor.rank == event.rank:
            info = replace(info, code=event.code, signal=event.signal, reason=event.reason)
        infos.append(info)
    for client_id in interested(state, ticket):
        yield Tell(client_id, 0, p.ActorsRestarting(ticket.ticket_id, tuple(infos), event.rank))


@handlers.of(e.GangRestarted)
def _gang_restarted(state: PoolState, event: e.GangRestarted, cause: Cause) -> Iterator[Effect]:
    ticket = state.tickets[event.ticket_id]
    actors = [_launched(ticket, rank) for rank in event.ranks]
    for node_id in sorted({actor.node_id for actor in actors}):
        launches = tuple(actor.launch_id for actor in actors if actor.node_id == node_id)
        yield from command(
            state, node_id, o.ResumeActors(ticket.ticket_id, event.generation, launches, event.delay_ms / 1000)
        )


def _launch_answer(ticket: TicketState, launch: str, last: p.ActorInfo) -> Tell:
    """The one answer to a launch request, given when the last of its actors is up or has failed."""
    infos = [
        last if actor.rank == last.rank else actor_info(actor) for actor in ticket.actors if actor.launch == launch
    ]
    client_id, _, seq = launch.rpartition("/")
    failed = [info for info in infos if not info.pid and info.phase in ("exited", "start_failed", "lost")]
    if not failed:
        return Tell(client_id, int(seq), p.Launched(ticket.ticket_id, tuple(infos)))
    what = f"{len(failed)} of {len(infos)} actors of ticket {ticket.ticket_id} did not start"
    return Tell(client_id, int(seq), p.Failed("start_failed", f"{what}: {_why(failed)}"))


def _why(failed: list[p.ActorInfo]) -> str:
    """Why actors did not start; a reason that several have is said once."""
    alike: dict[str, list[p.ActorInfo]] = {}
    for info in failed:
        alike.setdefault(info.reason or "it was stopped", []).append(info)
    said = [
        f"rank {infos[0].rank} ({infos[0].actor_id} on {infos[0].node_id})"
        f"{f' and {len(infos) - 1} more' if len(infos) > 1 else ''}: {reason}"
        for reason, infos in islice(alike.items(), REASONS_MAX)
    ]
    rest = sum(len(infos) for infos in islice(alike.values(), REASONS_MAX, None))
    return "; ".join(said) + (f" (and {rest} more)" if rest else "")


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
