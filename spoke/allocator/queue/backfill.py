"""Conservative backfill: a later gang may start first if that delays no planned start of those before it.

A plan gives each gang that waits, in the order of the queue, the earliest time and the nodes that are foreseen to have
room, beside what those before it were given (Mu'alem and Feitelson, "Utilization, Predictability, Workloads, and User
Runtime Estimates in Scheduling the IBM SP2 with Backfilling", IEEE TPDS 2001). It is made anew each time, and never
kept: the real placement decides when the time has come.

The bound. Be E the longest time that tickets with a known duration last, D the longest that others do (those without
``expected_duration``, and those that are overdue). A gang that is the first of the queue, and stays it, starts within
D + E, whatever smaller gangs arrive:

- While its start is unknown, it is planned on the nodes whose youngest ticket of unknown end is the oldest, and no gang
  of unknown duration is placed there. So that age never falls: after D none of those tickets is left, and the start is
  known.
- Once its start is known it is at most E away, and no gang is granted that would move it: the plan is made with and
  without that gang, and compared.

So a gang with k gangs before it starts within (k + 1) (D + E), if none comes before it by its priority or share, and
nodes do not go away.
"""

from __future__ import annotations

from heapq import heapify, heappushpop

import numpy as np

from spoke.allocator.placement.pack import allows
from spoke.allocator.placement.table import Ints, least
from spoke.allocator.queue import reserve
from spoke.allocator.queue.profiles import NOWHERE, profiles_of
from spoke.allocator.queue.timeline import NEVER, Timeline, timeline_of
from spoke.events.model import GangSpec, Slot
from spoke.events.state import PoolState, TicketState

POLICY = "backfill/1"
NODES_PER_PASS = 640_000
"""So many nodes are gone through in one plan, at most: in a very large pool fewer gangs are planned."""
PLANNED_MIN = 2
FOR_EVER_MS = 2 * NEVER
"""How long a gang takes that does not say: beyond all times, also those that are not known."""
_Parts = list[tuple[str, int]]


def is_plannable(spec: GangSpec) -> bool:
    """Whether it is foreseen where the gang goes. Nobody overtakes one that asks for more than room: rules, groups."""
    return spec.rules is None and not spec.groups and not spec.min_nodes


class Plan:
    """When the first gangs of the queue will start, and where, as far as durations are known.

    Most nodes are looked at as columns (``profiles``), all at once; those on which something is claimed, or that a
    gang would get now (``more``: its slots, and when it ends), one by one.
    """

    def __init__(
        self, state: PoolState, now_ms: int, more: tuple[GangSpec, tuple[Slot, ...], int] | None = None
    ) -> None:
        self._state, self._now_ms = state, now_ms
        self._with: Plan | None = None
        self._profiles = profiles_of(state, now_ms)
        self._lines: dict[str, Timeline] = {}
        if more is not None:
            for node_id in sorted({slot.node_id for slot in more[1]}):
                self._lines[node_id] = timeline_of(state, state.nodes[node_id], now_ms, more)
        self._younger = self._profiles.younger
        if self._lines:
            rows = [self._profiles.table.row_of[node_id] for node_id in self._lines]
            self._younger = self._younger.copy()
            self._younger[:, rows] = np.array([line.youngest for line in self._lines.values()]).T
        self._reserved = reserve.reserved_from(state, now_ms)
        self.claimed: set[str] = set()
        """The nodes on which a gang is planned."""
        self.starts: dict[str, int] = {}
        """Ticket -> its planned start; NEVER if it is not foreseen."""

    @property
    def full(self) -> bool:
        """Whether no more gangs are planned, since that would take too long."""
        return len(self.starts) >= max(PLANNED_MIN, NODES_PER_PASS // max(1, len(self._profiles.table.ids)))

    def add(self, ticket: TicketState) -> int:
        """Plan the next gang of the queue; its start."""
        spec = ticket.spec
        start_ms, parts = self._strict(spec) if spec.strict_pack else self._dense(spec)
        self.starts[ticket.ticket_id] = start_ms
        for node_id, count in parts:
            self._line(node_id).claim(start_ms, spec, count)
            self.claimed.add(node_id)
        return start_ms

    def closed_to(self, spec: GangSpec) -> list[str]:
        """The nodes on which this gang would be in the way of those that are planned, if it began now."""
        length_ms = spec.terms.length_ms or FOR_EVER_MS
        claimed = [(node_id, self._lines[node_id]) for node_id in sorted(self.claimed)]
        if spec.strict_pack and is_plannable(spec):
            return [
                node_id
                for node_id, line in claimed
                if (length_ms == FOR_EVER_MS and any(claim.start_ms == NEVER for claim in line.claims))
                or not line.fits(self._now_ms, spec, spec.actors_per_node, length_ms)
            ]
        until_ms = self._now_ms + length_ms
        return [n for n, line in claimed if any(claim.start_ms < until_ms for claim in line.claims)]

    def delayed_by(self, spec: GangSpec, slots: tuple[Slot, ...]) -> str:
        """The first planned ticket that would start later if this gang got these places now; empty if none would.

        None does that is planned on other nodes: with less free on a node that it did not choose, it chooses the same.
        """
        if self.claimed.isdisjoint(slot.node_id for slot in slots):
            return ""
        length_ms = spec.terms.length_ms
        end_ms = self._now_ms + length_ms if length_ms else NEVER
        self._with = other = Plan(self._state, self._now_ms, (spec, slots, end_ms))
        for ticket_id, start_ms in self.starts.items():
            if other.add(self._state.tickets[ticket_id]) > start_ms:
                return ticket_id
        return ""

    def see(self, slots: tuple[Slot, ...]) -> None:
        """The gang that ``delayed_by`` was asked about has these places in the state now."""
        self._profiles = profiles_of(self._state, self._now_ms)
        self._younger = self._profiles.younger
        taken = {slot.node_id for slot in slots}
        if not self.claimed.isdisjoint(taken):
            assert self._with is not None, "whether it delays others was not asked"
            for ticket_id in list(self.starts)[len(self._with.starts) :]:
                self._with.add(self._state.tickets[ticket_id])
            self._lines, self.claimed, self.starts = self._with._lines, self._with.claimed, self._with.starts
            taken -= self.claimed
        for node_id in taken:
            self._lines.pop(node_id, None)

    def _line(self, node_id: str) -> Timeline:
        line = self._lines.get(node_id)
        if line is None:
            line = self._lines[node_id] = self._profiles.line(self._state, node_id)
        return line

    def _chosen(self, keys: Ints, count: int) -> list[int]:
        """The rows with the least keys; of equals, those whose youngest ticket of unknown end is the oldest."""
        return [int(row) for row in least([keys, *self._younger, self._profiles.table.order], count)]

    def _strict(self, spec: GangSpec) -> tuple[int, _Parts]:
        length_ms, count, wanted = spec.terms.length_ms or FOR_EVER_MS, spec.actors_per_node, spec.num_nodes
        table = self._profiles.table
        times = np.maximum(self._profiles.earliest(self._state, spec, count), self._now_ms)
        alone = {table.row_of[n]: n for n in (*self._lines, *self._reserved) if n in table.row_of}
        rows = np.array(list(alone), np.int64)
        at_best = times[rows]
        times[rows] = NOWHERE
        best = [-int(at_ms) for at_ms in (np.partition(times, wanted - 1) if wanted < len(times) else times)[:wanted]]
        heapify(best)
        for at in np.argsort(at_best, kind="stable"):
            from_ms, until_ms = int(at_best[at]), -best[0]
            if from_ms > until_ms or from_ms >= NOWHERE:
                break  # those that are left are not among the first
            row = int(rows[at])
            at_ms = self._earliest(alone[row], spec, count, length_ms, from_ms, until_ms)
            if at_ms is not None:
                times[row] = at_ms
                heappushpop(best, -at_ms)
        if -best[0] >= NOWHERE or len(best) < wanted:
            return NEVER, []
        chosen = self._chosen(times, wanted)
        return int(times[chosen[-1]]), [(table.ids[row], count) for row in chosen]

    def _earliest(
        self, node_id: str, spec: GangSpec, count: int, length_ms: int, from_ms: int, until_ms: int
    ) -> int | None:
        """When members fit on a node beside what is claimed and reserved there, not before ``from_ms``."""
        line, at_ms = self._lines.get(node_id), from_ms
        if line is not None:
            found = line.earliest(spec, count, length_ms, self._now_ms, from_ms=from_ms, until_ms=until_ms)
            if found is None:
                return None
            at_ms = found
        if node_id in self._reserved:
            at_ms = min(NEVER, reserve.opens_ms(self._state, node_id, at_ms, length_ms))
        return at_ms

    def _dense(self, spec: GangSpec) -> tuple[int, _Parts]:
        """The first time when all members together have room, on the nodes that have most."""
        profiles, table = self._profiles, self._profiles.table
        alone = {table.row_of[n]: n for n in (*self._lines, *self._reserved) if n in table.row_of}
        rows = np.setdiff1d(np.arange(len(table.ids)), list(alone))
        members, times = profiles.members(self._state, spec, spec.size, rows), profiles.times[rows]
        more = np.diff(members, axis=1, prepend=0)
        changes = more != 0
        nodes = {row: self._state.nodes[node_id] for row, node_id in alone.items() if table.usable[row]}
        lines = {row: self._line(node.spec.node_id) for row, node in nodes.items() if allows(spec, node)}
        at, by = [times[changes]], [more[changes]]
        for line in lines.values():
            moments = self._moments(line, spec)
            at.append(np.array(moments, np.int64))
            by.append(np.diff([self._room(line, spec, at_ms) for at_ms in moments], prepend=0))
        every, place = np.unique(np.maximum(np.concatenate(at), self._now_ms), return_inverse=True)
        room = np.cumsum(np.bincount(place, np.concatenate(by), len(every)).astype(np.int64))
        enough = np.flatnonzero(room >= spec.size)
        if not len(enough):
            return NEVER, []
        start_ms = int(every[enough[0]])
        here = np.zeros(len(profiles.times), np.int64)
        here[rows] = np.where(times <= start_ms, members, 0).max(axis=1)
        for row, line in lines.items():
            here[row] = self._room(line, spec, start_ms)
        parts, left = [], spec.size
        for row in self._chosen(-here, min(spec.size, int(np.count_nonzero(here)))):
            parts.append((table.ids[row], min(left, int(here[row]))))
            left -= parts[-1][1]
            if not left:
                break
        return start_ms, parts

    def _moments(self, line: Timeline, spec: GangSpec) -> list[int]:
        """When the room on a node changes for a gang that would begin then, for whatever reason."""
        length_ms, node_id = spec.terms.length_ms or FOR_EVER_MS, line.node.spec.node_id
        found = {time_ms for time_ms, _ in line.steps}
        found.update(claim.start_ms - length_ms + 1 for claim in line.claims)
        if node_id in self._reserved:
            for one in self._state.queueing.reservations.values():
                if node_id in one.nodes:
                    found.update((one.start_ms - length_ms + 1, one.end_ms))
        return [self._now_ms, *sorted(at_ms for at_ms in found if self._now_ms < at_ms <= NEVER)]

    def _room(self, line: Timeline, spec: GangSpec, at_ms: int) -> int:
        """How many members have room on a node from then on, until they end."""
        length_ms, node_id = spec.terms.length_ms or FOR_EVER_MS, line.node.spec.node_id
        if any(claim.start_ms < at_ms + length_ms for claim in line.claims):
            return 0
        if node_id in self._reserved and reserve.opens_ms(self._state, node_id, at_ms, length_ms) > at_ms:
            return 0
        return line.room(at_ms, spec, spec.size)
