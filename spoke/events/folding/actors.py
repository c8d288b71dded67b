"""Actors, and the restarts of whole gangs."""

from __future__ import annotations

from typing import Any

from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.folding.handlers import Handlers
from spoke.events.folding.lookups import actor_of, phase_after, ticket_of
from spoke.events.ids import ms_of
from spoke.events.lifecycle import ACTOR, TICKET, advance
from spoke.events.state import ActorState, PoolState

handlers = Handlers()


@handlers.of(e.ActorLaunchRequested)
def _actor_launch_requested(state: PoolState, event_id: str, event: e.ActorLaunchRequested) -> None:
    ticket = ticket_of(state, event_id, event)
    if ticket.phase != "active":
        ticket.phase = phase_after(event.ticket_id, ticket.phase, event_id, event)
    what = f"rank {event.rank} of ticket {event.ticket_id}"
    if not 0 <= event.rank < len(ticket.slots):
        raise InvalidTransition(f"event {event_id} launches {what}, which has {len(ticket.slots)} ranks")
    if event.node_id != ticket.slots[event.rank].node_id:
        raise InvalidTransition(
            f"event {event_id} launches {what} on node {event.node_id}, but its place is on "
            f"{ticket.slots[event.rank].node_id}"
        )
    known = ticket.actor(event.rank)
    phase = advance(ACTOR, what, known.phase if known else None, event_id, event.TYPE)
    key = f"{event.client_id}/{event.seq}"
    if not ticket.members:
        ticket.members = [None] * len(ticket.slots)
    actor = ActorState(event.actor_id, event.rank, event.node_id, event_id, key, event.spec, phase)
    ticket.members[event.rank] = actor
    ticket.launches[key] = ticket.launches.get(key, 0) + 1
    ticket.alive[event.node_id] = ticket.alive.get(event.node_id, 0) + 1


@handlers.of(e.ActorStarted)
def _actor_started(state: PoolState, event_id: str, event: e.ActorStarted) -> None:
    actor = _moved(state, event_id, event)
    actor.pid, actor.address = event.pid, event.address
    actor.code, actor.signal, actor.reason, actor.restarts = 0, 0, "", event.restarts


@handlers.of(e.ActorExited)
def _actor_exited(state: PoolState, event_id: str, event: e.ActorExited) -> None:
    actor = _moved(state, event_id, event)
    actor.code, actor.signal, actor.reason = event.code, event.signal, event.reason


@handlers.of(e.ActorStartFailed, e.ActorLost)
def _actor_failed(state: PoolState, event_id: str, event: e.ActorStartFailed | e.ActorLost) -> None:
    _moved(state, event_id, event).reason = event.reason


@handlers.of(e.ActorRestarting)
def _actor_restarting(state: PoolState, event_id: str, event: e.ActorRestarting) -> None:
    _, actor = actor_of(state, event_id, event)
    if event.restarts <= actor.restarts:
        raise InvalidTransition(
            f"event {event_id} starts actor {event.actor_id} of ticket {event.ticket_id} again for the "
            f"{event.restarts}th time, but that was done {actor.restarts} times"
        )
    _moved(state, event_id, event)
    actor.code, actor.signal, actor.reason = event.code, event.signal, event.reason
    actor.restarts, actor.pid, actor.address = event.restarts, 0, ""


@handlers.of(e.ActorHalted)
def _actor_halted(state: PoolState, event_id: str, event: e.ActorHalted) -> None:
    ticket, actor = actor_of(state, event_id, event)
    if actor.rank not in ticket.halting or event.generation != ticket.generation:
        raise InvalidTransition(
            f"event {event_id} halts rank {event.rank} of ticket {event.ticket_id} for generation {event.generation}, "
            f"which is not waited for"
        )
    _moved(state, event_id, event)
    actor.code, actor.signal = event.code, event.signal
    ticket.halting.discard(actor.rank)


@handlers.of(e.ActorStopRequested)
def _actor_stop_requested(state: PoolState, event_id: str, event: e.ActorStopRequested) -> None:
    _, actor = actor_of(state, event_id, event)
    actor.stopping = True


@handlers.of(e.GangRestarting)
def _gang_restarting(state: PoolState, event_id: str, event: e.GangRestarting) -> None:
    ticket = ticket_of(state, event_id, event)
    ticket.phase = advance(TICKET, f"ticket {event.ticket_id}", ticket.phase, event_id, event.TYPE)
    if event.generation <= ticket.generation or event.rank not in event.ranks:
        raise InvalidTransition(
            f"event {event_id} restarts {event.ticket_id} as generation {event.generation} for rank {event.rank} among "
            f"{list(event.ranks)[:20]}, but its generation is {ticket.generation}"
        )
    for rank in event.ranks:
        actor = ticket.actor(rank)
        if actor is None or not actor.in_gang_restarts or ticket.slots[rank].node_id != actor.node_id:
            raise InvalidTransition(
                f"event {event_id} restarts rank {rank} of {event.ticket_id}, which has no part in it"
            )
        was = actor.phase
        actor.phase = advance(ACTOR, f"rank {rank} of ticket {event.ticket_id}", was, event_id, event.TYPE)
        if was == "exited":
            ticket.alive[actor.node_id] = ticket.alive.get(actor.node_id, 0) + 1
        actor.restarts, actor.pid, actor.address = event.generation, 0, ""
        if rank == event.rank:
            actor.code, actor.signal, actor.reason = event.code, event.signal, event.reason
    ticket.generation, ticket.strikes, ticket.delay_ms = event.generation, event.strikes, event.delay_ms
    ticket.halting = set(event.ranks)


@handlers.of(e.GangRestarted)
def _gang_restarted(state: PoolState, event_id: str, event: e.GangRestarted) -> None:
    ticket = ticket_of(state, event_id, event)
    ticket.phase = advance(TICKET, f"ticket {event.ticket_id}", ticket.phase, event_id, event.TYPE)
    if event.generation != ticket.generation or ticket.halting:
        raise InvalidTransition(
            f"event {event_id} starts generation {event.generation} of {event.ticket_id}, which is at "
            f"{ticket.generation} and waits for the ranks {sorted(ticket.halting)[:20]} to end"
        )
    ticket.restarted_ms = ms_of(event_id)


def _moved(state: PoolState, event_id: str, event: Any) -> ActorState:
    ticket, actor = actor_of(state, event_id, event)
    if event.node_id != actor.node_id:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) has actor {event.actor_id} of ticket {event.ticket_id} on node "
            f"{event.node_id}, but it was launched on {actor.node_id}"
        )
    was = actor.phase
    phase = ACTOR.get((was, event.TYPE))
    if phase is None:  # the words for an error are made where there is one: this is the hot path of a replay
        phase = advance(ACTOR, f"actor {event.actor_id} of ticket {event.ticket_id}", was, event_id, event.TYPE)
    actor.phase = phase
    if was == "launching" and phase != was:
        ticket.launches[actor.launch] -= 1
        if not ticket.launches[actor.launch]:
            del ticket.launches[actor.launch]
    if not actor.alive:
        ticket.halting.discard(actor.rank)
        ticket.alive[event.node_id] -= 1
        if not ticket.alive[event.node_id]:
            del ticket.alive[event.node_id]
    return actor
