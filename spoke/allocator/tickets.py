"""What clients do with tickets: release, cancel, attach, launch, stop. And how a ticket is given back."""

from __future__ import annotations

from collections.abc import Iterable

from spoke.errors import AlreadyLaunched, Forbidden, InvalidRequest, RankOutOfRange, TicketEnded, UnknownTicket
from spoke.events import types as e
from spoke.events.state import ActorState, ClientState, PoolState, TicketState, ticket_number
from spoke.protocol import requests as r
from spoke.protocol.identity import owner_of
from spoke.protocol.launch import unpack_blobs

NOBODY = ("", 0)


def release(state: PoolState, asked: r.Envelope, request: r.ReleaseGang) -> list[e.Event]:
    """Give a ticket back; one that has ended is left as it is."""
    ticket = state.tickets.get(request.ticket_id)
    if ticket is None:
        _check_was_granted(state, request.ticket_id)
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"{request.ticket_id} has ended before")]
    check_may(asked, ticket)
    reason = request.reason[:500] or "its client released it"
    return give_back(ticket, reason, (asked.client_id, asked.seq))


def cancel(state: PoolState, asked: r.Envelope, request: r.CancelGang) -> list[e.Event]:
    """Withdraw an allocation request; if it was granted meanwhile, give the ticket back."""
    for ticket_id in state.clients[asked.client_id].tickets:
        if state.tickets[ticket_id].seq == request.target_seq:
            return give_back(state.tickets[ticket_id], "its client cancelled it", (asked.client_id, asked.seq))
    return [
        e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"request {request.target_seq} holds no ticket")
    ]


def explain(state: PoolState, asked: r.Envelope, request: r.ExplainGang) -> list[e.Event]:
    """Tell a client why a ticket waits, or is where it is."""
    return [e.GangExplained(find(state, request.ticket_id).ticket_id, asked.client_id, asked.seq)]


def attach(state: PoolState, asked: r.Envelope, request: r.AttachGang) -> list[e.Event]:
    """Show a ticket to another client, and tell it from now on what becomes of it."""
    ticket = live(state, request.ticket_id)
    check_may(asked, ticket)
    return [e.GangAttached(ticket.ticket_id, asked.client_id, asked.seq)]


def launch(state: PoolState, asked: r.Envelope, request: r.LaunchActors) -> list[e.Event]:
    """Start actors at some ranks of a ticket: all of them, or a refusal."""
    ticket = live(state, request.ticket_id)
    check_may(asked, ticket, admins=False)
    ranks = [member.rank for member in request.members]
    if not ranks or len(set(ranks)) != len(ranks):
        raise InvalidRequest(f"a launch names each rank once, and at least one; this one names {ranks[:20]}")
    unpack_blobs(asked.blobs, len(ranks))
    events: list[e.Event] = []
    for member in request.members:
        check_rank(ticket, member.rank)
        actor = ticket.actor(member.rank)
        if actor is not None and actor.alive:
            raise AlreadyLaunched(
                f"rank {member.rank} of ticket {ticket.ticket_id} has actor {actor.actor_id}, which is {actor.phase}: "
                f"stop it first, or launch another rank"
            )
        node_id = ticket.slots[member.rank].node_id
        if not state.nodes[node_id].incarnation:
            raise TicketEnded(
                f"rank {member.rank} of ticket {ticket.ticket_id} is on node {node_id}, which is lost: release the "
                f"ticket and ask for a new gang, or wait until the node is back"
            )
        spec = request.spec
        if request.by_group:
            group = ticket.slots[member.rank].group
            if group not in request.by_group:
                raise InvalidRequest(
                    f"rank {member.rank} of ticket {ticket.ticket_id} is of group {group!r}, and the launch says what "
                    f"to start in {', '.join(sorted(request.by_group))} only"
                )
            spec = request.by_group[group]
        events.append(
            e.ActorLaunchRequested(
                ticket.ticket_id, member.rank, member.actor_id, node_id, asked.client_id, asked.seq, spec
            )
        )
    return events


def stop_actor(state: PoolState, asked: r.Envelope, request: r.StopActor) -> list[e.Event]:
    """Stop one actor; the ticket keeps its slot."""
    ticket = live(state, request.ticket_id)
    check_may(asked, ticket)
    check_rank(ticket, request.rank)
    actor = ticket.actor(request.rank)
    if actor is None or not actor.alive:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"no actor runs at rank {request.rank}")]
    return [
        e.ActorStopRequested(ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, asked.client_id, asked.seq)
    ]


def release_all_of(state: PoolState, client: ClientState, reason: str) -> list[e.Event]:
    """Give back all that a client holds and waits for, unless it is detached."""
    events: list[e.Event] = []
    for ticket_id in sorted(client.tickets, key=lambda t: ticket_number(t) or 0):
        ticket = state.tickets[ticket_id]
        if (ticket.phase == "queued" or not ticket.spec.detached) and ticket.phase != "releasing":
            events += give_back(ticket, reason, NOBODY)
    return events


def give_back(
    ticket: TicketState, reason: str, by: tuple[str, int], *, dead: Iterable[ActorState] = ()
) -> list[e.Event]:
    """End a ticket. What runs is told to stop first; ``dead`` are actors whose end the same decision records."""
    client_id, seq = by
    if ticket.phase == "queued":
        return [e.GangCancelled(ticket.ticket_id, client_id, seq, reason)]
    events: list[e.Event] = [e.GangReleasing(ticket.ticket_id, client_id, seq, reason)]
    if ticket.phase != "releasing":
        events += free_nodes(ticket, ticket.held, dead)
    return events


def free_nodes(ticket: TicketState, candidates: Iterable[str], dead: Iterable[ActorState] = ()) -> list[e.Event]:
    """Free the candidate nodes on which nothing of a releasing ticket is alive any more (I4)."""
    dying: dict[str, int] = {}
    for actor in dead:
        dying[actor.node_id] = dying.get(actor.node_id, 0) + 1
    free = tuple(sorted(n for n in candidates if ticket.alive.get(n, 0) == dying.get(n, 0)))
    return [e.GangReleased(ticket.ticket_id, free, len(free) == len(ticket.held))] if free else []


def check_may(asked: r.Envelope, ticket: TicketState, *, admins: bool = True, operators: bool = False) -> None:
    """Where requests are signed, a ticket obeys its user; ``admins``: and administrators, who do not run code in it."""
    signer, owner = asked.signer, owner_of(ticket.client_id)
    if signer is None or (admins and signer.kind == "admin") or (owner and signer.name == owner):
        return
    if operators and signer.kind == "operator":
        return
    raise Forbidden(
        f"{asked.request.TYPE}: ticket {ticket.ticket_id} is {owner or 'nobody'}'s and {signer} asked: use a key of "
        f"that user" + (", or an administrator's" if admins else "")
    )


def find(state: PoolState, ticket_id: str) -> TicketState:
    """The ticket, waiting or live; raises TicketEnded or UnknownTicket."""
    ticket = state.tickets.get(ticket_id)
    if ticket is None:
        _check_was_granted(state, ticket_id)
        raise TicketEnded(f"ticket {ticket_id} has ended: it was released, cancelled or lost; ask for a new gang")
    return ticket


def live(state: PoolState, ticket_id: str) -> TicketState:
    """The ticket, which holds its slots; raises TicketEnded, UnknownTicket, InvalidRequest."""
    ticket = find(state, ticket_id)
    if ticket.phase == "queued":
        raise InvalidRequest(f"ticket {ticket_id} still waits in line ({ticket.reason}): wait until it is granted")
    if ticket.phase == "releasing":
        raise TicketEnded(f"ticket {ticket_id} is being released ({ticket.reason}): ask for a new gang")
    return ticket


def check_rank(ticket: TicketState, rank: int) -> None:
    """Raise RankOutOfRange for a rank that the ticket does not have."""
    if not 0 <= rank < len(ticket.slots):
        raise RankOutOfRange(
            f"rank {rank} of ticket {ticket.ticket_id} was asked for; it has ranks 0 to {len(ticket.slots) - 1}"
        )


def _check_was_granted(state: PoolState, ticket_id: str) -> None:
    number = ticket_number(ticket_id)
    if number is None or not 1 <= number < state.next_ticket:
        raise UnknownTicket(
            f"there is no ticket {ticket_id[:100]!r} in this pool: `spoke tickets` lists them; is it the right pool?"
        )
