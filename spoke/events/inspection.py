"""The invariants after each event of a long log, by what the event touched: the ticket, its nodes, the sums it is in.

``Inspector`` keeps its own books beside the state (what each ticket holds where, which actors are alive, what projects
hold, how many wait), which it takes from tickets and slots, never from the sums that ``fold`` keeps; so an event costs
the same in a pool of any size. What an event changed where it had no business is found by ``violations``, which looks
at everything and is called now and then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from spoke.events import types as e
from spoke.events.invariants import cordon_violations, node_violations, restart_violations, ticket_violations
from spoke.events.model import Slot
from spoke.events.queueing import NOTHING, Amounts, amounts_of, plus
from spoke.events.state import PoolState, TicketState

_TOUCHES: dict[type[e.Event], str] = {
    cls: kind
    for kind, classes in {
        "actor": (
            *(e.ActorLaunchRequested, e.ActorStarted, e.ActorStartFailed),
            *(e.ActorExited, e.ActorLost, e.ActorStopRequested, e.ActorRestarting, e.ActorHalted),
        ),
        "gang": (
            *(e.GangQueued, e.GangAllocated, e.GangRefused, e.GangCancelled, e.GangMoved, e.GangPrioritized),
            *(e.GangAttached, e.GangRepaired, e.GangRestarting, e.GangRestarted, e.GangReleasing, e.GangReleased),
            *(e.TicketPreempting, e.TicketSpared, e.TicketExpiring),
        ),
        "node": (
            *(e.NodeRegistered, e.NodeReconciling, e.NodeConfirmed, e.NodeLost, e.NodeCordoned),
            *(e.NodeUncordoned, e.NodeDraining, e.NodeDrained, e.NodeRemoved),
            *(e.GpuMarkedUnhealthy, e.GpuMarkedHealthy),
        ),
    }.items()
    for cls in classes
}


@dataclass(slots=True)
class _Ticket:
    """What is known of a ticket. ``on``: its slots by node; ``held``: what it holds of each node."""

    project: str
    client_id: str
    slots: tuple[Slot, ...] = ()
    queued: bool = False
    on: dict[str, list[Slot]] = field(default_factory=dict)
    held: dict[str, Amounts] = field(default_factory=dict)
    ranks: dict[int, tuple[str, str]] = field(default_factory=dict)
    """A launched rank -> the node on which its actor may run, and the launch that waits for it; empty: none."""
    alive: dict[str, int] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)


class Inspector:
    """Call ``after`` with every event once it is folded. It begins with a state as it is."""

    def __init__(self, state: PoolState) -> None:
        self._state = state
        self._tickets: dict[str, _Ticket] = {}
        self._sums: dict[str, Amounts] = {}
        self._queued = 0
        for ticket in state.tickets.values():
            known = self._enter(ticket)
            for actor in ticket.actors:
                self._note(known, ticket, actor.rank)

    def after(self, event: e.Event) -> list[str]:
        """What is wrong with what the event touched, a sentence each."""
        match _TOUCHES.get(type(event)):
            case "actor":
                return list(self._actor(event.ticket_id, event.rank))  # type: ignore[attr-defined]
            case "gang":
                return list(self._gang(event.ticket_id, event))  # type: ignore[attr-defined]
            case "node":
                return list(self._node(event.node_id))  # type: ignore[attr-defined]
        return []

    # --- actors ---

    def _actor(self, ticket_id: str, rank: int) -> Iterator[str]:
        ticket, known = self._state.tickets[ticket_id], self._tickets[ticket_id]
        node_id, launch = self._note(known, ticket, rank)
        actor = ticket.members[rank]
        assert actor is not None
        if actor.alive and (node_id not in ticket.held or ticket.slots[rank].node_id != node_id):
            yield f"I4: actor {actor.actor_id} of {ticket_id} is {actor.phase} where the ticket holds nothing"
        yield from restart_violations(ticket, (rank,))
        here = known.alive.get(actor.node_id, 0)
        if here != ticket.alive.get(actor.node_id, 0) or len(known.alive) != len(ticket.alive):
            yield f"I4: ticket {ticket_id} counts {ticket.alive} live actors, but has {known.alive}"
        waiting = known.launches.get(launch or actor.launch, 0)
        if waiting != ticket.launches.get(launch or actor.launch, 0) or len(known.launches) != len(ticket.launches):
            yield f"I5: ticket {ticket_id} waits for {ticket.launches}, but launching are {known.launches}"

    @staticmethod
    def _note(known: _Ticket, ticket: TicketState, rank: int) -> tuple[str, str]:
        """Take in what an actor has become."""
        actor = ticket.members[rank]
        assert actor is not None
        now = (actor.node_id if actor.alive else "", actor.launch if actor.phase == "launching" else "")
        was = known.ranks.get(rank, ("", ""))
        known.ranks[rank] = now
        for counts, old, new in ((known.alive, was[0], now[0]), (known.launches, was[1], now[1])):
            if old != new:
                if new:
                    counts[new] = counts.get(new, 0) + 1
                if old:
                    counts[old] -= 1
                    if not counts[old]:
                        del counts[old]
        return actor.node_id, now[1]

    # --- gangs ---

    def _gang(self, ticket_id: str, event: e.Event) -> Iterator[str]:
        if not ticket_id:
            return  # refused at once
        ticket, was = self._state.tickets.get(ticket_id), self._tickets.get(ticket_id)
        touched = set(was.held) if was is not None else set()
        if isinstance(event, e.GangReleased) and was is not None and ticket is not None:
            freed = set(event.nodes)  # of a large gang, node by node: looking at all of it each time costs its square
            touched = freed
            yield from self._partly_released(ticket, was, freed)
        else:
            if was is not None:
                self._forget(ticket_id, was)
            if ticket is not None:
                yield from ticket_violations(self._state, ticket)
                known = self._enter(ticket, was)
                if isinstance(event, e.GangRestarting):
                    for rank in event.ranks:
                        self._note(known, ticket, rank)
                touched ^= known.held.keys()  # where it held what it holds still, nothing has happened
                if isinstance(event, e.GangRepaired) and was is not None:
                    touched |= {event.slot.node_id, was.slots[event.rank].node_id}
        for node_id in touched & self._state.nodes.keys():
            yield from node_violations(self._state, self._state.nodes[node_id], self._slots_on)
        yield from self._books(ticket_id, was)

    def _partly_released(self, ticket: TicketState, known: _Ticket, freed: set[str]) -> Iterator[str]:
        for node_id in freed:
            held = known.held.pop(node_id, NOTHING)
            self._sums[known.project] = _less(self._sums.get(known.project, NOTHING), held)
            if node_id in ticket.held or ticket.alive.get(node_id, 0) or known.alive.get(node_id, 0):
                yield f"I4: ticket {ticket.ticket_id} released node {node_id}, and something of it may run there"
        if ticket.held != known.held.keys():
            yield f"I3: ticket {ticket.ticket_id} holds {sorted(ticket.held)}, and should {sorted(known.held)}"

    def _books(self, ticket_id: str, was: _Ticket | None) -> Iterator[str]:
        """The sums that a ticket is in: its project's, its client's, the queue's."""
        state, now = self._state, self._tickets.get(ticket_id)
        for project in {known.project for known in (now, was) if known is not None}:
            booked, held = state.queueing.held(project), self._sums.get(project, NOTHING)
            if booked != held:
                yield f"project {project} is booked with {booked}, but its tickets hold {held}"
        waiting = len(state.waiting) + len(state.waiting.aside)
        if not self._queued == len(state.queue) == waiting:
            yield f"{self._queued} tickets are queued, but {len(state.queue)} in the queue and {waiting} in its order"
        if was is not None and now is None:
            client = state.clients.get(was.client_id)
            if client is not None and ticket_id in client.tickets:
                yield f"client {was.client_id} owns ticket {ticket_id}, which is not there"

    def _enter(self, ticket: TicketState, was: _Ticket | None = None) -> _Ticket:
        known = _Ticket(ticket.project, ticket.client_id, ticket.slots, ticket.phase == "queued")
        if was is not None:
            known.ranks, known.alive, known.launches = was.ranks, was.alive, was.launches
        if was is not None and was.slots is ticket.slots and was.held.keys() == ticket.held:
            known.on, known.held = was.on, was.held
        else:
            for slot in ticket.slots:
                known.on.setdefault(slot.node_id, []).append(slot)
            known.held = {node_id: amounts_of(ticket.spec, known.on.get(node_id, ())) for node_id in ticket.held}
        for amounts in known.held.values():
            self._sums[ticket.project] = plus(self._sums.get(ticket.project, NOTHING), amounts)
        self._queued += known.queued
        self._tickets[ticket.ticket_id] = known
        return known

    def _forget(self, ticket_id: str, known: _Ticket) -> None:
        del self._tickets[ticket_id]
        self._queued -= known.queued
        for amounts in known.held.values():
            self._sums[known.project] = _less(self._sums[known.project], amounts)
        if self._sums.get(known.project) == NOTHING:
            del self._sums[known.project]

    def _slots_on(self, ticket: TicketState, node_id: str) -> Iterable[Slot]:
        known = self._tickets.get(ticket.ticket_id)
        if known is None or known.slots is not ticket.slots:
            return [slot for slot in ticket.slots if slot.node_id == node_id]
        return known.on.get(node_id, ())

    # --- nodes ---

    def _node(self, node_id: str) -> Iterator[str]:
        node = self._state.nodes.get(node_id)
        if node is not None:
            yield from node_violations(self._state, node, self._slots_on)
        yield from cordon_violations(self._state)


def _less(one: Amounts, other: Amounts) -> Amounts:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2], one[3] - other[3]
