"""Reservations: nodes that are kept for some gangs, for a time.

Nodes are chosen when the reservation is made: those that are free by its begin, as far as is known, come first. From
then on no gang gets a place there that it would hold into the reservation's time; one whose end is not known gets none
at all. Preemptible tickets that are still there are told, and released when it begins. Others stay until they end.
"""

from __future__ import annotations

from spoke.allocator.operations import check_operator
from spoke.allocator.placement.pack import NoFit
from spoke.allocator.queue.timeline import NEVER, end_of
from spoke.errors import InvalidRequest, ReservationRefused, UnknownReservation
from spoke.events import types as e
from spoke.events.model import check_name
from spoke.events.queueing import YEAR_MS, Reservation
from spoke.events.state import NodeState, PoolState
from spoke.protocol import requests as r

POLICY = "reserve/1"
RESERVATIONS_MAX = 1_000
PAST_MS = 60_000
"""A start that lies further back is a slip, and not a request that took its time."""


def create(state: PoolState, asked: r.Envelope, request: r.CreateReservation, now_ms: int) -> list[e.Event]:
    """Keep nodes for a time."""
    check_operator(asked)
    if len(state.queueing.reservations) >= RESERVATIONS_MAX:
        raise InvalidRequest(f"there are {RESERVATIONS_MAX} reservations, which is the limit: cancel some")
    if not 1 <= request.nodes <= 100_000 or not 0 <= request.gpus <= 1_024:
        raise InvalidRequest(f"{request.nodes} nodes with {request.gpus} GPUs were asked for: 1 node or more")
    if not 1_000 <= request.length_ms <= YEAR_MS:
        raise InvalidRequest(f"a reservation lasts from a second to a year, not {request.length_ms} ms")
    if request.start_ms and request.start_ms < now_ms - PAST_MS:
        raise InvalidRequest(
            f"the reservation was to begin {(now_ms - request.start_ms) // 60_000} minutes ago: give a time to come, "
            "or none, and it begins now"
        )
    start_ms = max(now_ms, request.start_ms)
    if start_ms > now_ms + YEAR_MS:
        raise InvalidRequest("a reservation begins within a year")
    for what, name in (("the project", request.project), ("the reservation's name", request.name)):
        if name:
            check_name(what, name)
    end_ms = start_ms + request.length_ms
    nodes = _choose(state, request, start_ms, end_ms, now_ms)
    client = state.clients[asked.client_id]
    reservation = Reservation(
        f"r-{state.queueing.next_reservation}",
        nodes,
        request.gpus,
        start_ms,
        end_ms,
        request.project,
        client.user or client.client_id,
        request.name,
    )
    return [e.ReservationCreated(asked.client_id, asked.seq, reservation, POLICY)]


def cancel(state: PoolState, asked: r.Envelope, request: r.CancelReservation) -> list[e.Event]:
    """Give a reservation's nodes back to everybody."""
    check_operator(asked)
    find(state, request.reservation_id)
    return [e.ReservationCancelled(request.reservation_id, asked.client_id, asked.seq)]


def find(state: PoolState, reservation_id: str) -> Reservation:
    """The reservation; raises UnknownReservation."""
    found = state.queueing.reservations.get(reservation_id)
    if found is None:
        known = ", ".join(sorted(state.queueing.reservations)[:10]) or "none"
        raise UnknownReservation(
            f"there is no reservation {reservation_id!r:.100} in this pool (any more); there are: {known}. See "
            f"`spoke reserve list`"
        )
    return found


def check_may_use(state: PoolState, reservation_id: str, project: str) -> None:
    """Raise for a reservation that is not there, or is another project's."""
    found = find(state, reservation_id)
    if found.project and found.project != project:
        raise InvalidRequest(
            f"reservation {reservation_id} is for project {found.project}, and the gang counts for {project}: name the "
            f"project, or ask without the reservation"
        )


def closed_nodes(state: PoolState, length_ms: int, now_ms: int) -> set[str]:
    """The nodes on which a gang without a reservation, that lasts so long (0: unknown), may not be placed now."""
    closed: set[str] = set()
    until_ms = now_ms + length_ms if length_ms else NEVER
    for reservation in state.queueing.reservations.values():
        if reservation.start_ms < until_ms and now_ms < reservation.end_ms:
            closed.update(reservation.nodes)
    return closed


def reserved_from(state: PoolState, now_ms: int) -> set[str]:
    """The nodes that are reserved, now or later."""
    return {node_id for one in state.queueing.reservations.values() if now_ms < one.end_ms for node_id in one.nodes}


def opens_ms(state: PoolState, node_id: str, at_ms: int, length_ms: int) -> int:
    """When a gang of this length may be on a node, at ``at_ms`` or later."""
    for reservation in sorted(state.queueing.reservations.values(), key=lambda one: one.start_ms):
        if node_id in reservation.nodes and at_ms < reservation.end_ms and reservation.start_ms < at_ms + length_ms:
            at_ms = reservation.end_ms
    return at_ms


def part_of(state: PoolState, reservation_id: str, now_ms: int) -> PoolState | NoFit:
    """The pool that a gang of this reservation sees: its nodes alone; or why there is none now."""
    found = state.queueing.reservations.get(reservation_id)
    if found is None:
        return NoFit(f"asks for reservation {reservation_id}, which is over")
    if now_ms < found.start_ms:
        return NoFit(f"asks for reservation {reservation_id}, which begins in {(found.start_ms - now_ms) / 1000:.0f} s")
    nodes = {node_id: state.nodes[node_id] for node_id in found.nodes if node_id in state.nodes}
    part = PoolState(
        nodes=nodes,
        tickets=state.tickets,
        demand=state.demand,
    )
    for node in nodes.values():
        part.index(node)
    return part


def due(state: PoolState, now_ms: int) -> list[e.Event]:
    """What is due of the reservations: one that is over ends, and one that begins has its nodes cleared."""
    notice_ms = state.queueing.policy.notice_ms
    for found in state.queueing.reservations.values():
        if found.end_ms <= now_ms:
            return [e.ReservationEnded(found.reservation_id)]
        if found.start_ms - notice_ms <= now_ms and state.queueing.policy.preempt:
            events = _clear(state, found, now_ms, notice_ms)
            if events:
                return events
    return []


def next_ms(state: PoolState, now_ms: int) -> int | None:
    """When something is due of them, after now."""
    times: list[int] = []
    for found in state.queueing.reservations.values():
        times += [found.start_ms - state.queueing.policy.notice_ms, found.start_ms, found.end_ms]
    return min((at for at in times if at > now_ms), default=None)


def _clear(state: PoolState, found: Reservation, now_ms: int, notice_ms: int) -> list[e.Event]:
    events: list[e.Event] = []
    at_ms = max(found.start_ms, now_ms + notice_ms)
    named = {ticket_id for n in found.nodes if n in state.nodes for ticket_id in state.nodes[n].tickets}
    for ticket_id in sorted(named):
        ticket = state.tickets[ticket_id]
        terms = ticket.spec.terms
        if ticket.phase not in ("allocated", "active") or not terms.preemptible or ticket.preempt_ms:
            continue
        if terms.reservation == found.reservation_id or (ticket.ends_ms and ticket.ends_ms <= at_ms):
            continue
        reason = f"its places are reserved ({found.reservation_id})"
        events.append(e.TicketPreempting(ticket_id, found.reservation_id, at_ms, reason, POLICY))
    return events


def _choose(state: PoolState, request: r.CreateReservation, start_ms: int, end_ms: int, now_ms: int) -> tuple[str, ...]:
    taken = {
        node_id
        for other in state.queueing.reservations.values()
        if other.start_ms < end_ms and start_ms < other.end_ms
        for node_id in other.nodes
    }
    found: list[tuple[int, int, int, str]] = []
    for node_id, node in state.nodes.items():
        if node.phase == "up" and node.total.gpus >= request.gpus and node_id not in taken:
            free_ms = _free_ms(state, node, now_ms)
            found.append((int(free_ms > start_ms), len(node.tickets), node.total.gpus, node_id))
    if len(found) < request.nodes:
        raise ReservationRefused(
            f"{request.nodes} nodes with {request.gpus} GPUs were to be reserved; {len(found)} of {len(state.nodes)} "
            f"nodes have so many and are not reserved in that time: ask for fewer, or another time"
        )
    return tuple(sorted(node_id for *_, node_id in sorted(found)[: request.nodes]))


def _free_ms(state: PoolState, node: NodeState, now_ms: int) -> int:
    """When the node is free, as far as is known; preemptible tickets do not count."""
    ends = [end_of(state.tickets[t], now_ms) for t in node.tickets if not state.tickets[t].spec.terms.preemptible]
    return max(ends, default=now_ms)
