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

from heapq import nsmallest

from spoke.allocator.placement.pack import allows
from spoke.allocator.queue import reserve
from spoke.allocator.queue.timeline import NEVER, Timeline, timeline_of
from spoke.events.model import GangSpec, Slot
from spoke.events.state import PoolState, TicketState

POLICY = "backfill/1"
NODES_PER_PASS = 8_000
"""So many nodes are looked at in one plan, at most: in a large pool fewer gangs are planned."""
PLANNED_MIN = 2
FOR_EVER_MS = 2 * NEVER
"""How long a gang takes that does not say: beyond all times, also those that are not known."""


def is_plannable(spec: GangSpec) -> bool:
    """Whether it is foreseen where the gang goes. Nobody overtakes one that asks for more than room: rules, groups."""
    return spec.rules is None and not spec.groups and not spec.min_nodes


class Plan:
    """When the first gangs of the queue will start, and where, as far as durations are known."""

    def __init__(
        self, state: PoolState, now_ms: int, more: tuple[GangSpec, tuple[Slot, ...], int] | None = None
    ) -> None:
        self._state, self._now_ms = state, now_ms
        self._lines = [
            timeline_of(state, node, now_ms, more)
            for node in state.nodes.values()
            if node.phase == "up" and node.confirmed and not node.exclusive
        ]
        self._claimed: dict[str, Timeline] = {}
        self._shapes: dict[object, int] = {}
        self.starts: dict[str, int] = {}
        """Ticket -> its planned start; NEVER if it is not foreseen."""

    @property
    def full(self) -> bool:
        """Whether no more gangs are planned, since that would take too long."""
        return len(self.starts) >= max(PLANNED_MIN, NODES_PER_PASS // max(1, len(self._lines)))

    def add(self, ticket: TicketState) -> int:
        """Plan the next gang of the queue; its start."""
        spec = ticket.spec
        usable = [line for line in self._lines if allows(spec, line.node)]
        start_ms, parts = self._strict(spec, usable) if spec.strict_pack else self._dense(spec, usable)
        self.starts[ticket.ticket_id] = start_ms
        for line, count in parts:
            line.claim(start_ms, spec, count)
            self._claimed[line.node.spec.node_id] = line
        return start_ms

    def closed_to(self, spec: GangSpec) -> list[str]:
        """The nodes on which this gang would be in the way of those that are planned, if it began now."""
        length_ms = spec.terms.length_ms or FOR_EVER_MS
        if spec.strict_pack and is_plannable(spec):
            return [
                node_id
                for node_id, line in self._claimed.items()
                if (length_ms == FOR_EVER_MS and any(claim.start_ms == NEVER for claim in line.claims))
                or not line.fits(self._now_ms, spec, spec.actors_per_node, length_ms)
            ]
        until_ms = self._now_ms + length_ms
        return [n for n, line in self._claimed.items() if any(claim.start_ms < until_ms for claim in line.claims)]

    def delayed_by(self, spec: GangSpec, slots: tuple[Slot, ...]) -> str:
        """The first planned ticket that would start later if this gang got these places now; empty if none would."""
        length_ms = spec.terms.length_ms
        end_ms = self._now_ms + length_ms if length_ms else NEVER
        other = Plan(self._state, self._now_ms, (spec, slots, end_ms))
        for ticket_id, start_ms in self.starts.items():
            if other.add(self._state.tickets[ticket_id]) > start_ms:
                return ticket_id
        return ""

    def _strict(self, spec: GangSpec, usable: list[Timeline]) -> tuple[int, list[tuple[Timeline, int]]]:
        length_ms, count = spec.terms.length_ms or FOR_EVER_MS, spec.actors_per_node
        found = []
        shape = self._shapes.setdefault((spec.resources, count, spec.gpu_ids), len(self._shapes))
        reserved = bool(self._state.queueing.reservations)
        for line in usable:
            at_ms = line.earliest(spec, count, length_ms, shape)
            if at_ms is not None:
                node_id = line.node.spec.node_id
                if reserved:
                    at_ms = min(NEVER, reserve.opens_ms(self._state, node_id, at_ms, length_ms))
                found.append((at_ms, line.youngest, node_id, line))
        if len(found) < spec.num_nodes:
            return NEVER, []
        chosen = nsmallest(spec.num_nodes, found, key=lambda one: one[:3])
        return chosen[-1][0], [(line, count) for *_, line in chosen]

    def _dense(self, spec: GangSpec, usable: list[Timeline]) -> tuple[int, list[tuple[Timeline, int]]]:
        """The first time when all members together have room, on the nodes that have most."""
        length_ms = spec.terms.length_ms or FOR_EVER_MS
        last = [(line, min((c.start_ms for c in line.claims), default=NEVER)) for line in usable]
        for at_ms in sorted({time_ms for line in usable for time_ms, _ in line.steps}):
            rooms = []
            for line, claimed_ms in last:
                node_id = line.node.spec.node_id
                free_of_claims = claimed_ms >= at_ms + length_ms or not line.claims
                if free_of_claims and reserve.opens_ms(self._state, node_id, at_ms, length_ms) <= at_ms:
                    room = line.left(at_ms).holds(spec, line.node, spec.size)
                    if room:
                        rooms.append((-room, line.youngest, node_id, line))
            if -sum(room for room, *_ in rooms) >= spec.size:
                parts, left = [], spec.size
                for room, _, _, line in sorted(rooms, key=lambda one: one[:3]):
                    count = min(left, -room)
                    left -= count
                    parts.append((line, count))
                    if not left:
                        break
                return at_ms, parts
        return NEVER, []
