"""What will be free on a node, and when, as far as the durations of its tickets are known."""

from __future__ import annotations

from dataclasses import dataclass, field

from spoke.events.ids import order_of
from spoke.events.model import GPU_MILLI, GangSpec, Slot
from spoke.events.state import NodeState, PoolState, TicketState, mask_of

NEVER = 1 << 60
"""A time that is not known (server time)."""


def is_late(ticket: TicketState, now_ms: int) -> bool:
    """Whether a ticket that is being released has had its time; its end is a little later, whatever the time is."""
    return ticket.phase == "releasing" and ticket.granted_ms + round(ticket.spec.grace_s * 1000) <= now_ms


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


@dataclass(frozen=True, slots=True)
class Need:
    """What one member of a gang needs of a node: CPU, memory, and whole GPUs, GPUs by their ids, or a share of one.

    ``mask``: the ids of all the gang's GPUs on a node, a bit set. ``shares``: the index of a GPU -> how many
    thousandths of it a member takes there; None if it needs no share.
    """

    cpu_milli: int
    memory: int
    gpus: int
    mask: int = 0
    shares: dict[int, int] | None = None

    @classmethod
    def of(cls, spec: GangSpec, node: NodeState) -> Need:
        """What a member of a gang needs on this node."""
        need = spec.resources
        mask = mask_of(spec.gpu_ids) if spec.gpu_ids else 0
        if not need.is_share:
            return cls(need.cpu_milli, need.memory_bytes, need.gpu_count, mask)
        if not need.gpu_memory:
            return cls(need.cpu_milli, need.memory_bytes, 0, mask, dict.fromkeys(node.gpu_uuids, need.gpu_milli))
        shares = {gpu.index: share for gpu in node.spec.gpus if (share := need.share_of(gpu.memory))}
        return cls(need.cpu_milli, need.memory_bytes, 0, mask, shares)


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
            self._set(index, self.milli(index) + sign * slot.gpu_milli)

    def milli(self, index: int) -> int:
        """How many thousandths of a GPU are free."""
        return GPU_MILLI if self.whole >> index & 1 else self.parts.get(index, 0)

    def _set(self, index: int, milli: int) -> None:
        self.parts.pop(index, None)
        self.whole &= ~(1 << index)
        if milli >= GPU_MILLI:
            self.whole |= 1 << index
        elif milli > 0:
            self.parts[index] = milli

    def holds(self, need: Need, enough: int) -> int:
        """How many members of a gang fit, as far as it matters whether ``enough`` do."""
        count = enough
        if need.cpu_milli:
            count = min(count, self.cpu_milli // need.cpu_milli)
        if need.memory:
            count = min(count, self.memory // need.memory)
        if count <= 0:
            return 0
        if need.mask:
            return count if self.whole & need.mask == need.mask else 0
        if need.gpus:
            return min(count, self.whole.bit_count() // need.gpus)
        if need.shares is None:
            return count
        fit = 0
        for index in need.shares:
            fit += self.milli(index) // need.shares[index]
            if fit >= count:
                return count
        return fit

    def take(self, need: Need, count: int) -> None:
        """Take places for members, as far as there are any."""
        self.cpu_milli -= need.cpu_milli * count
        self.memory -= need.memory * count
        if need.mask:
            self.whole &= ~need.mask
        elif need.shares is not None:
            for index in sorted(need.shares, key=lambda index: (self.whole >> index & 1, index)):  # broken GPUs first
                used = min(self.milli(index) // need.shares[index], count)
                count -= used
                if used:
                    self._set(index, self.milli(index) - used * need.shares[index])
        else:
            for _ in range(min(need.gpus * count, self.whole.bit_count())):
                self.whole &= self.whole - 1


@dataclass(frozen=True, slots=True)
class Claim:
    """Places on a node that a waiting gang is planned to have from ``start_ms`` on."""

    start_ms: int
    need: Need
    count: int


@dataclass(slots=True)
class Timeline:
    """A node, what will be free on it when (each time with what is free from then on), and what is claimed.

    The first time is 0: now. ``node`` and ``steps`` are not to be changed.
    """

    node: NodeState
    steps: list[tuple[int, Room]]
    good_until_ms: int = NEVER
    """Until then it stays as it is, as far as that is for the time to say; 0: it moves with the time."""
    youngest: tuple[int, int] = (0, 0)
    """When the youngest ticket here began of which no end is known, as in its event's id; zeros if there is none."""
    claims: list[Claim] = field(default_factory=list)
    _left: dict[int, Room] = field(default_factory=dict)

    def unclaimed(self) -> Timeline:
        """The same with nothing claimed."""
        return Timeline(self.node, self.steps, self.good_until_ms, self.youngest)

    def claim(self, start_ms: int, spec: GangSpec, count: int) -> None:
        """Plan a gang here."""
        self.claims.append(Claim(start_ms, Need.of(spec, self.node), count))
        self._left.clear()

    def earliest(
        self, spec: GangSpec, count: int, length_ms: int, now_ms: int, *, from_ms: int = 0, until_ms: int = NEVER
    ) -> int | None:
        """When ``count`` members fit, for as long as they stay; None if that is not foreseen in this time."""
        need = Need.of(spec, self.node)
        for time_ms, room in self.steps:
            at_ms = max(time_ms, now_ms)
            if at_ms > until_ms:
                break
            if at_ms < from_ms or room.holds(need, count) < count:
                continue
            if not self.claims or self._stays(at_ms, need, count, length_ms):
                return at_ms
        return None

    def fits(self, at_ms: int, spec: GangSpec, count: int, length_ms: int) -> bool:
        """Whether ``count`` members fit from ``at_ms`` on beside all that is claimed of that time."""
        return self._stays(at_ms, Need.of(spec, self.node), count, length_ms)

    def _stays(self, at_ms: int, need: Need, count: int, length_ms: int) -> bool:
        if self.left(at_ms).holds(need, count) < count:
            return False
        for claim in self.claims:
            if at_ms < claim.start_ms < at_ms + length_ms and self.left(claim.start_ms).holds(need, count) < count:
                return False
        return True

    def room(self, at_ms: int, spec: GangSpec, enough: int) -> int:
        """How many members fit then beside what is claimed until then, as far as it matters whether ``enough`` do."""
        return self.left(at_ms).holds(Need.of(spec, self.node), enough)

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
                found.take(claim.need, claim.count)
        self._left[at_ms] = found
        return found


def timeline_of(
    state: PoolState, node: NodeState, now_ms: int, more: tuple[GangSpec, tuple[Slot, ...], int] | None = None
) -> Timeline:
    """The timeline of a node. ``more``: a gang's slots (here or elsewhere) that are granted now, and when it ends."""
    node_id, healthy, youngest = node.spec.node_id, ~node.unhealthy, (0, 0)
    ends: list[tuple[int, GangSpec, Slot]] = []
    room, late = Room.of(node), False
    for ticket_id in node.tickets:
        ticket = state.tickets[ticket_id]
        end_ms = end_of(ticket, now_ms)
        late |= is_late(ticket, now_ms)
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
    steps = [(0, room)]
    for end_ms, spec, slot in sorted(ends, key=lambda end: end[0]):
        if end_ms != steps[-1][0]:
            steps.append((end_ms, steps[-1][1].copy()))
        steps[-1][1].add(spec, slot, healthy)
    good_until_ms = 0 if late else steps[1][0] if len(steps) > 1 else NEVER
    return Timeline(node, steps, good_until_ms, youngest)
