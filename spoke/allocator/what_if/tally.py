"""What became of gangs in a course of events: how long they waited, what was refused, what GPU time they held.

It is taken from events alone, recorded ones and simulated ones alike.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from spoke.events import types as e
from spoke.events.model import GPU_MILLI, GangSpec, Slot
from spoke.events.queueing import demand_of

SIZES: tuple[tuple[str, int], ...] = (("up to 1", 1), ("2 to 8", 8), ("9 to 64", 64), ("more", 1 << 40))
"""The classes of gangs, by the GPUs that they ask for at most."""

COUNTED: frozenset[type[e.Event]] = frozenset(
    {
        *(e.GangQueued, e.GangAllocated, e.GangRefused, e.GangCancelled, e.GangReleasing, e.GangRepaired),
        *(e.GangReleased, e.TicketPreempting, e.TicketSpared),
    }
)


@dataclass(slots=True)
class Waits:
    """How long gangs waited for their grant, in milliseconds."""

    ms: array[int] = field(default_factory=lambda: array("q"))

    def at(self, *shares: float) -> list[int]:
        """The waits that these shares of the gangs did not exceed; 0 if there was none."""
        found = sorted(self.ms)
        return [found[min(len(found) - 1, int(share * len(found)))] if found else 0 for share in shares]

    @property
    def mean_ms(self) -> float:
        """The mean wait."""
        return sum(self.ms) / len(self.ms) if self.ms else 0.0


@dataclass(slots=True)
class _Held:
    """What a ticket holds. ``ranks``: of which node, since when, and how many thousandths of GPUs."""

    granted_ms: int
    ranks: dict[int, tuple[str, int, int]]


@dataclass(slots=True)
class Tally:
    """Sums over a course of events. ``milli_ms``: thousandths of a GPU times milliseconds that were held."""

    waits: Waits = field(default_factory=Waits)
    by_size: dict[str, Waits] = field(default_factory=lambda: {name: Waits() for name, _ in SIZES})
    refused: int = 0
    cancelled: int = 0
    preempted: int = 0
    milli_ms: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    """Ticket -> since when it waits."""
    held: dict[str, _Held] = field(default_factory=dict)
    notices: set[str] = field(default_factory=set)
    """The tickets that were told to make room."""

    def take(self, event: e.Event, ms: int) -> None:
        """The next event."""
        if type(event) not in COUNTED:
            return
        match event:
            case e.GangQueued():
                self.waiting[event.ticket_id] = ms
            case e.GangAllocated():
                self._granted(event, ms)
            case e.GangRefused():
                self.refused += 1
                self.waiting.pop(event.ticket_id, None)
            case e.GangCancelled():
                self.cancelled += 1
                self.waiting.pop(event.ticket_id, None)
            case e.TicketPreempting():
                self.notices.add(event.ticket_id)
            case e.TicketSpared():
                self.notices.discard(event.ticket_id)
            case e.GangReleasing() if event.ticket_id in self.notices:
                self.notices.discard(event.ticket_id)
                self.preempted += not event.seq
            case e.GangRepaired() if event.ticket_id in self.held:
                ranks = self.held[event.ticket_id].ranks
                self._count(ranks.pop(event.rank), ms)
                ranks[event.rank] = (event.slot.node_id, ms, _milli(event.slot))
            case e.GangReleased() if event.ticket_id in self.held:
                ranks, freed = self.held[event.ticket_id].ranks, set(event.nodes)
                for rank in [rank for rank, part in ranks.items() if part[0] in freed]:
                    self._count(ranks.pop(rank), ms)
                if event.final:
                    del self.held[event.ticket_id]
            case _:
                pass

    def end(self, ms: int) -> None:
        """The end: what is held counts up to here."""
        for held in self.held.values():
            for part in held.ranks.values():
                self._count(part, ms)
        self.held.clear()

    def _granted(self, event: e.GangAllocated, ms: int) -> None:
        wait_ms = ms - self.waiting.pop(event.ticket_id, ms)
        self.waits.ms.append(wait_ms)
        self.by_size[size_of(event.spec)].ms.append(wait_ms)
        ranks = {slot.global_rank: (slot.node_id, ms, _milli(slot)) for slot in event.slots}
        self.held[event.ticket_id] = _Held(ms, ranks)

    def _count(self, part: tuple[str, int, int], ms: int) -> None:
        _, since_ms, milli = part
        self.milli_ms += milli * max(0, ms - since_ms)


def size_of(spec: GangSpec) -> str:
    """The class of a gang."""
    gpus = demand_of(spec)[0]
    return next(name for name, most in SIZES if gpus <= most * GPU_MILLI)


def _milli(slot: Slot) -> int:
    return slot.gpu_milli or GPU_MILLI * len(slot.gpu_ids)
