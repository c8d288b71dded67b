"""What will be free on a node, and when, as far as the durations of its tickets are known."""

from __future__ import annotations

from dataclasses import dataclass, field

from spoke.events.ids import order_of
from spoke.events.model import GPU_MILLI, GangSpec, Slot
from spoke.events.state import NodeState, PoolState, TicketState, mask_of

NEVER = 1 << 60
"""A time that is not known (server time)."""


def end_of(ticket: TicketState, now_ms: int) -> int:
    """When a live ticket will have ended, as far as is known; NEVER for one that says nothing, or is overdue."""
    grace_ms = round(ticket.spec.grace_s * 1000)
    if ticket.phase == "releasing":
        end_ms = ticket.granted_ms + grace_ms  # ``since`` is when the release began
        return end_ms if end_ms > now_ms else now_ms + max(1_000, grace_ms)
    times = [at_ms + grace_ms for at_ms in (ticket.preempt_ms, ticket.ends_ms) if at_ms]
    if ticket.spec.terms.expected_ms:
        times.append(ticket.granted_ms + ticket.spec.terms.expected_ms)
    return min((at_ms for at_ms in times if at_ms > now_ms), default=NEVER)


@dataclass(slots=True)
class Room:
    """What is free on a node at one time: whole GPUs (a bit set), free thousandths of shared ones, CPU and memory."""

    whole: int
    parts: dict[int, int]
    cpu_milli: int
    memory: int

    @classmethod
    def of(cls, node: NodeState) -> Room:
        """What is free now."""
        parts = {index: GPU_MILLI - used for index, used in node.shared.items()}
        return cls(node.free_gpus, parts, node.free_cpu_milli, node.free_memory)

    def copy(self) -> Room:
        """An independent copy."""
        return Room(self.whole, self.parts.copy(), self.cpu_milli, self.memory)

    def add(self, spec: GangSpec, slot: Slot, healthy: int, sign: int = 1) -> None:
        """Free a slot (``sign`` 1), or take it (-1), as far as its GPUs are ``healthy``."""
        need = spec.resources_of(slot.group) if spec.groups else spec.resources
        self.cpu_milli += sign * need.cpu_milli
        self.memory += sign * need.memory_bytes
        if not slot.gpu_milli:
            mask = mask_of(slot.gpu_ids) & healthy
            self.whole = self.whole | mask if sign > 0 else self.whole & ~mask
            return
        index = slot.gpu_ids[0]
        if healthy >> index & 1:
            self._set(index, self._milli(index) + sign * slot.gpu_milli)

    def _milli(self, index: int) -> int:
        return GPU_MILLI if self.whole >> index & 1 else self.parts.get(index, 0)

    def _set(self, index: int, milli: int) -> None:
        self.parts.pop(index, None)
        self.whole &= ~(1 << index)
        if milli >= GPU_MILLI:
            self.whole |= 1 << index
        elif milli > 0:
            self.parts[index] = milli

    def holds(self, spec: GangSpec, node: NodeState, enough: int) -> int:
        """How many members of a gang fit, as far as it matters whether ``enough`` do."""
        need = spec.resources
        count = enough
        if need.cpu_milli:
            count = min(count, self.cpu_milli // need.cpu_milli)
        if need.memory_bytes:
            count = min(count, self.memory // need.memory_bytes)
        if count <= 0:
            return 0
        if spec.gpu_ids:
            wanted = mask_of(spec.gpu_ids)
            return count if self.whole & wanted == wanted else 0
        if need.is_share:
            return min(count, sum(self._shares(spec, node).values()))
        return min(count, self.whole.bit_count() // need.gpu_count) if need.gpu_count else count

    def take(self, spec: GangSpec, node: NodeState, count: int) -> None:
        """Take places for members, as far as there are any."""
        need = spec.resources
        self.cpu_milli -= need.cpu_milli * count
        self.memory -= need.memory_bytes * count
        if spec.gpu_ids:
            self.whole &= ~mask_of(spec.gpu_ids)
        elif need.is_share:
            memory = {gpu.index: gpu.memory for gpu in node.spec.gpus}
            for index, times in self._shares(spec, node).items():
                used = min(times, count)
                count -= used
                if used:
                    self._set(index, self._milli(index) - used * need.share_of(memory[index]))
        else:
            for _ in range(min(need.gpu_count * count, self.whole.bit_count())):
                self.whole &= self.whole - 1

    def _shares(self, spec: GangSpec, node: NodeState) -> dict[int, int]:
        """GPU -> how many members' shares fit on it, broken GPUs first."""
        found: dict[int, int] = {}
        memory = {gpu.index: gpu.memory for gpu in node.spec.gpus}
        for index in (*self.parts, *(i for i in memory if self.whole >> i & 1)):
            share = spec.resources.share_of(memory[index])
            if share:
                found[index] = self._milli(index) // share
        return found


@dataclass(frozen=True, slots=True)
class Claim:
    """Places on a node that a waiting gang is planned to have from ``start_ms`` on."""

    start_ms: int
    spec: GangSpec
    count: int


@dataclass(slots=True)
class Timeline:
    """A node, what will be free on it when (each time with what is free from then on), and what is claimed."""

    node: NodeState
    steps: list[tuple[int, Room]]
    youngest: tuple[int, int] = (0, 0)
    """When the youngest ticket here began of which no end is known, as in its event's id; zeros if there is none."""
    claims: list[Claim] = field(default_factory=list)
    _alone: dict[int, int | None] = field(default_factory=dict)
    _left: dict[int, Room] = field(default_factory=dict)

    def claim(self, start_ms: int, spec: GangSpec, count: int) -> None:
        """Plan a gang here."""
        self.claims.append(Claim(start_ms, spec, count))
        self._left.clear()

    def earliest(self, spec: GangSpec, count: int, length_ms: int, shape: int) -> int | None:
        """When ``count`` members fit, for as long as they stay; None if that is not foreseen.

        ``shape`` numbers what is asked for: the same number, the same answer, as long as nothing is claimed.
        """
        if shape not in self._alone:
            self._alone[shape] = next(
                (at_ms for at_ms, room in self.steps if room.holds(spec, self.node, count) >= count), None
            )
        first = self._alone[shape]
        if first is None or not self.claims:
            return first
        times = (at_ms for at_ms, _ in self.steps if at_ms >= first)  # claims only make it later
        return next((at_ms for at_ms in times if self.fits(at_ms, spec, count, length_ms)), None)

    def fits(self, at_ms: int, spec: GangSpec, count: int, length_ms: int) -> bool:
        """Whether ``count`` members fit from ``at_ms`` on beside all that is claimed of that time."""
        until_ms = at_ms + length_ms
        times = [at_ms, *(claim.start_ms for claim in self.claims if at_ms < claim.start_ms < until_ms)]
        return all(self.left(time_ms).holds(spec, self.node, count) >= count for time_ms in times)

    def left(self, at_ms: int) -> Room:
        """What is free then, without what is claimed until then."""
        known = self._left.get(at_ms)
        if known is not None:
            return known
        found = self.steps[0][1]
        for time_ms, room in self.steps:
            if time_ms > at_ms:
                break
            found = room
        claims = [claim for claim in self.claims if claim.start_ms <= at_ms]
        if claims:
            found = found.copy()
            for claim in claims:
                found.take(claim.spec, self.node, claim.count)
        self._left[at_ms] = found
        return found


def timeline_of(
    state: PoolState, node: NodeState, now_ms: int, more: tuple[GangSpec, tuple[Slot, ...], int] | None = None
) -> Timeline:
    """The timeline of a node. ``more``: a gang's slots (here or elsewhere) that are granted now, and when it ends."""
    node_id, healthy, youngest = node.spec.node_id, ~node.unhealthy, (0, 0)
    ends: list[tuple[int, GangSpec, Slot]] = []
    room = Room.of(node)
    for ticket_id in node.tickets:
        ticket = state.tickets[ticket_id]
        end_ms = end_of(ticket, now_ms)
        if end_ms == NEVER:
            youngest = max(youngest, order_of(ticket.since))
        ends += [(end_ms, ticket.spec, slot) for slot in ticket.slots if slot.node_id == node_id]
    if more is not None:
        spec, slots, end_ms = more
        for slot in slots:
            if slot.node_id == node_id:
                room.add(spec, slot, healthy, -1)
                ends.append((end_ms, spec, slot))
                youngest = (NEVER, 0) if end_ms == NEVER else youngest
    steps = [(now_ms, room)]
    for end_ms, spec, slot in sorted(ends, key=lambda end: end[0]):
        if end_ms != steps[-1][0]:
            steps.append((end_ms, steps[-1][1].copy()))
        steps[-1][1].add(spec, slot, healthy)
    return Timeline(node, steps, youngest)
