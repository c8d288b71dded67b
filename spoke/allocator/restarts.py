"""Starting a gang again as a whole, when one of its members has failed.

Its agents stop all members and say when each has ended; when the last has, they start all of them again. That is
decided here and not by a client, since it must go on when the client is away; and it needs nothing that is not in the
log, since the agents keep what the members were launched with.
"""

from __future__ import annotations

from spoke.events import types as e
from spoke.events.state import ActorState, PoolState, TicketState

LOST_IN_THE_LOG = "the log had lost that it was started again"


def restart(
    state: PoolState,
    ticket: TicketState,
    failed: ActorState,
    code: int,
    signal: int,
    reason: str,
    now_ms: int,
    *,
    generation: int = 0,
) -> list[e.Event]:
    """The restart that a member's failure leads to; empty if its policy, or what became of the others, rules it out.

    ``generation``: at least this one, which the agents have seen already.
    """
    policy = failed.spec.restart
    if policy is None or ticket.phase != "active" or not failed.in_gang_restarts:
        return []
    strikes = ticket.strikes
    if policy.window_s and ticket.restarted_ms and now_ms - ticket.restarted_ms >= policy.window_s * 1000:
        strikes = 0
    members = [actor for actor in ticket.actors if actor.in_gang_restarts]
    if strikes >= policy.max_restarts or not all(_can_restart(state, actor) for actor in members):
        return []
    strikes += 1
    generation = max(generation, 1 + max(ticket.generation, *(actor.restarts for actor in members)))
    delay_ms = round(policy.delay_s(strikes, f"{ticket.ticket_id}/{generation}") * 1000)
    ranks = tuple(actor.rank for actor in members)
    return [
        e.GangRestarting(
            ticket.ticket_id, generation, failed.rank, code, signal, reason[:4000], ranks, strikes, delay_ms
        )
    ]


def _can_restart(state: PoolState, actor: ActorState) -> bool:
    node = state.nodes.get(actor.node_id)
    return node is not None and bool(node.incarnation) and (actor.alive or actor.phase == "exited")


def halted(ticket: TicketState, actor: ActorState, code: int, signal: int) -> list[e.Event]:
    """A member has ended, as it was told to; the last one lets all begin again."""
    event = e.ActorHalted(ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, ticket.generation, code, signal)
    return [event, *resumed(ticket, actor.rank)]


def resumed(ticket: TicketState, rank: int, *, gone: bool = False) -> list[e.Event]:
    """What follows when ``rank`` is waited for no more: all begin again if it was the last.

    ``gone``: it ended for good, and does not.
    """
    if ticket.halting != {rank} or ticket.phase != "active":
        return []
    ranks = tuple(
        actor.rank for actor in _restarting(ticket) if not actor.stopping and not (gone and actor.rank == rank)
    )
    return [e.GangRestarted(ticket.ticket_id, ticket.generation, ranks, ticket.delay_ms)] if ranks else []


def give_up(ticket: TicketState, gone: list[ActorState]) -> list[e.Event]:
    """A member of a restart that is under way cannot come back: the others, which wait for it, are stopped."""
    lost = {actor.rank for actor in gone}
    if not ticket.halting or not any(actor.rank in lost for actor in _restarting(ticket)):
        return []
    return [
        e.ActorStopRequested(ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, "", 0)
        for actor in _restarting(ticket)
        if actor.rank not in lost and not actor.stopping
    ]


def _restarting(ticket: TicketState) -> list[ActorState]:
    return [
        actor
        for actor in ticket.actors
        if actor.phase in ("launching", "restarting")
        and actor.spec.restart is not None
        and actor.spec.restart.policy == "gang"
        and actor.restarts == ticket.generation
    ]
