"""Who held which GPU, and when: intervals that follow from the log.

A rank holds its GPUs from ``gang.allocated`` to the ``gang.released`` that names its node, also while the node is
lost: nobody else can have them meanwhile. ``Holdings`` remembers what is held or waited for now and nothing older, so
a log of any length passes through in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from spoke.events import types as e
from spoke.events.ids import ms_of
from spoke.events.model import GPU_MILLI, Slot
from spoke.events.queueing import project_of
from spoke.events.state import PoolState


@dataclass(frozen=True, slots=True)
class Holding:
    """One rank's time on one GPU. ``milli`` is its share in thousandths; times are in milliseconds since 1970.

    ``begin_id`` and ``end_id`` are the events with which it began and ended. ``begin_id`` is empty if that was before
    the log begins (then ``begin_ms`` is where the log begins), ``end_id`` while it lasts (``end_ms`` is then 0).
    """

    ticket_id: str
    name: str
    client_id: str
    user: str
    rank: int
    node_id: str
    gpu: int
    gpu_uuid: str
    milli: int
    begin_ms: int
    begin_id: str = ""
    end_ms: int = 0
    end_id: str = ""
    reason: str = ""
    project: str = ""


@dataclass(slots=True)
class _Ticket:
    """What is remembered of a ticket that waits or holds something. ``held``: by node."""

    client_id: str
    user: str
    name: str
    held: dict[str, list[Holding]]
    reason: str = ""
    project: str = ""


TELLING: frozenset[type[e.Event]] = frozenset(
    {
        *(e.ClientConnected, e.ClientLost, e.ClientClosed, e.GangQueued, e.GangAllocated, e.GangRefused),
        *(e.GangCancelled, e.GangReleasing, e.GangRepaired, e.GangReleased),
    }
)
"""The events that tell of holdings: most are others, and need not be read."""


class Holdings:
    """Takes events in their order and gives the holdings that each one ends; ``base`` is the state before them."""

    def __init__(self, base: PoolState) -> None:
        self._clients = {client_id: (client.user, client.project) for client_id, client in base.clients.items()}
        self._tickets: dict[str, _Ticket] = {}
        ms = ms_of(base.last_id)
        for ticket in base.tickets.values():
            known = _Ticket(ticket.client_id, ticket.user, ticket.spec.name, {}, ticket.reason, ticket.project)
            self._tickets[ticket.ticket_id] = known
            self._hold(ticket.ticket_id, known, (s for s in ticket.slots if s.node_id in ticket.held), ms, "")

    def take(self, recorded: e.Recorded) -> list[Holding]:
        """The holdings that end with this event, in the order of nodes and ranks."""
        event = recorded.event
        match event:
            case e.ClientConnected():
                self._clients[event.client_id] = (event.user, event.project)
            case e.ClientLost() | e.ClientClosed():
                self._clients.pop(event.client_id, None)
            case e.GangQueued():
                self._tickets[event.ticket_id] = self._known(event)
            case e.GangAllocated():
                known = self._tickets.setdefault(event.ticket_id, self._known(event))
                self._hold(event.ticket_id, known, event.slots, recorded.ms, recorded.id)
            case e.GangRefused() | e.GangCancelled():
                self._tickets.pop(event.ticket_id, None)
            case e.GangReleasing() if event.ticket_id in self._tickets:
                self._tickets[event.ticket_id].reason = event.reason
            case e.GangRepaired() if event.ticket_id in self._tickets:
                return self._repaired(recorded, event)
            case e.GangReleased():
                return self._released(recorded, event)
            case _:
                pass
        return []

    def open(self) -> Iterator[Holding]:
        """What is held now, oldest tickets first."""
        for ticket in self._tickets.values():
            for held in ticket.held.values():
                yield from held

    def _known(self, event: e.GangQueued | e.GangAllocated) -> _Ticket:
        user, project = self._clients.get(event.client_id, ("", ""))
        project = project_of(event.spec.terms.project, project, user, event.client_id)
        return _Ticket(event.client_id, user, event.spec.name, {}, project=project)

    @staticmethod
    def _hold(ticket_id: str, known: _Ticket, slots: Iterable[Slot], ms: int, event_id: str) -> None:
        for slot in slots:
            held = known.held.setdefault(slot.node_id, [])
            uuids = slot.gpu_uuids or ("",) * len(slot.gpu_ids)
            for gpu, uuid in zip(slot.gpu_ids, uuids, strict=True):
                held.append(
                    Holding(
                        ticket_id=ticket_id,
                        name=known.name,
                        client_id=known.client_id,
                        user=known.user,
                        rank=slot.global_rank,
                        node_id=slot.node_id,
                        gpu=gpu,
                        gpu_uuid=uuid,
                        milli=slot.gpu_milli or GPU_MILLI,
                        begin_ms=ms,
                        begin_id=event_id,
                        project=known.project,
                    )
                )

    def _repaired(self, recorded: e.Recorded, event: e.GangRepaired) -> list[Holding]:
        ticket, reason = self._tickets[event.ticket_id], f"rank {event.rank} was given another place"
        ended: list[Holding] = []
        for node_id, held in ticket.held.items():
            mine = [holding for holding in held if holding.rank == event.rank]
            ended += [replace(one, end_ms=recorded.ms, end_id=recorded.id, reason=reason) for one in mine]
            ticket.held[node_id] = [holding for holding in held if holding.rank != event.rank]
        self._hold(event.ticket_id, ticket, (event.slot,), recorded.ms, recorded.id)
        return ended

    def _released(self, recorded: e.Recorded, event: e.GangReleased) -> list[Holding]:
        ticket = self._tickets.get(event.ticket_id)
        if ticket is None:
            return []
        if event.final:
            del self._tickets[event.ticket_id]
        return [
            replace(holding, end_ms=recorded.ms, end_id=recorded.id, reason=ticket.reason)
            for node_id in event.nodes
            for holding in ticket.held.pop(node_id, ())
        ]
