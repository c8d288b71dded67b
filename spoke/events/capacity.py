"""The nodes of a pool ordered by what is free on them, so that placing a gang does not look at every node.

Nodes that can host actors stand in sorted lists: one per number of free GPUs, and, for actors without GPUs, one
ordered by free CPU, which is brought up to date when such actors are placed. Finding the tightest node that fits is a
bisection, whatever the size of the pool. The index is a pure function of the nodes' free resources: rebuilt from a
snapshot, it is the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush

import msgspec

from spoke.events.model import NodeSpec


class Amount(msgspec.Struct, frozen=True):
    """GPUs (a count), CPU (thousandths of a core) and memory (bytes), together."""

    gpus: int = 0
    cpu_milli: int = 0
    memory: int = 0

    def times(self, n: int) -> Amount:
        """``n`` times this amount."""
        return Amount(self.gpus * n, self.cpu_milli * n, self.memory * n)

    def holds(self, need: Amount) -> int:
        """How many times ``need`` fits in here (a large number if it needs nothing)."""
        return min(
            self.gpus // need.gpus if need.gpus else _UNBOUNDED,
            self.cpu_milli // need.cpu_milli if need.cpu_milli else _UNBOUNDED,
            self.memory // need.memory if need.memory else _UNBOUNDED,
        )


_UNBOUNDED = 1 << 40
_MOVED_FEW, _MOVED_PART = 64, 8
_Key = tuple[int, int, str]  # cpu_milli, memory, node id


class _ByCpu:
    """Nodes in the order of their free CPU: those without GPUs, and those with. What moves is put right when asked."""

    __slots__ = ("_keys", "_lists", "_moved")

    def __init__(self) -> None:
        self._lists: tuple[list[_Key], list[_Key]] = ([], [])
        self._keys: dict[str, tuple[bool, _Key]] = {}  # as they stand in the lists
        self._moved: dict[str, tuple[bool, _Key] | None] = {}

    def move(self, node_id: str, has_gpus: bool, key: _Key) -> None:
        """Enter a node, or move it to another place."""
        self._moved[node_id] = has_gpus, key

    def remove(self, node_id: str) -> None:
        """Take a node out."""
        self._moved[node_id] = None

    def lists(self) -> tuple[list[_Key], list[_Key]]:
        """The nodes without GPUs, and those with, in order."""
        if len(self._moved) > max(_MOVED_FEW, len(self._keys) // _MOVED_PART):
            self._put_in_order()
        for node_id, now in self._moved.items():
            old = self._keys.pop(node_id, None)
            if old is not None:
                ordered = self._lists[old[0]]
                del ordered[bisect_left(ordered, old[1])]
            if now is not None:
                self._keys[node_id] = now
                insort(self._lists[now[0]], now[1])
        self._moved.clear()
        return self._lists

    def _put_in_order(self) -> None:
        """Sort everything, which takes less than to move much of it."""
        for node_id, now in self._moved.items():
            if now is None:
                self._keys.pop(node_id, None)
            else:
                self._keys[node_id] = now
        self._moved.clear()
        for has_gpus in (False, True):
            self._lists[has_gpus][:] = sorted(key for those, key in self._keys.values() if those is has_gpus)


class CapacityIndex:
    """Which nodes have how much free, in best-fit order."""

    __slots__ = (
        "_by_cpu",
        "_by_gpus",
        "_closed",
        "_free",
        "_shapes",
        "_specs",
        "_totals",
        "changed",
        "hardware",
        "shut",
        "suspended",
        "version",
    )

    def __init__(self) -> None:
        self.suspended = False
        self._free: dict[str, Amount] = {}
        self._totals: dict[str, Amount] = {}
        self._by_gpus: dict[int, list[_Key]] = {}
        self._by_cpu = _ByCpu()
        self._shapes: Counter[Amount] = Counter()
        self._closed: dict[str, Amount] = {}  # counted, but nobody can have of them what is free
        self._specs: dict[str, NodeSpec] = {}
        self.version = 0
        """Grows with whatever changes on a node."""
        self.hardware = 0
        """Grows when nodes come or go, or are other ones than before: not with what is free on them."""
        self.changed: set[str] | None = None
        """The nodes that changed since the reader that set this looked last; None as long as nobody reads it."""
        self.shut: frozenset[str] = frozenset()
        """Nodes that are passed over for one decision, though they could take work. Set by ``passing_over`` alone."""

    def put(self, node_id: str, free: Amount, total: Amount, spec: NodeSpec) -> None:
        """Enter a node, or move it to where its free amount now belongs. Call it for every change on a node."""
        self.version += 1
        if self.changed is not None:
            self.changed.add(node_id)
        if self._closed:
            self._open(node_id)
        if self._specs.get(node_id) is not spec:
            self._specs[node_id] = spec
            self.hardware += 1
        old_free = self._free.get(node_id)
        if old_free is not None:
            if self._totals[node_id] == total:
                if old_free != free:
                    self._unlist(node_id, old_free)
                    self._list(node_id, free, total)
                return
            self._unlist(node_id, old_free)
            self._forget_total(node_id)
        self.hardware += 1
        self._totals[node_id] = total
        self._shapes[total] += 1
        self._list(node_id, free, total)

    def drop(self, node_id: str) -> None:
        """Take a node out. Call it for every change on a node that is not in, too."""
        self.version += 1
        if self.changed is not None:
            self.changed.add(node_id)
        self._open(node_id)
        self.hardware += 1
        free = self._free.get(node_id)
        if free is None:
            return
        self._unlist(node_id, free)
        self._by_cpu.remove(node_id)
        self._forget_total(node_id)
        del self._free[node_id], self._specs[node_id]

    def _forget_total(self, node_id: str) -> None:
        total = self._totals.pop(node_id)
        self._uncount(total)

    def close(self, node_id: str, total: Amount) -> None:
        """Count a node whose free amount nobody can have: somebody has it for himself."""
        self.drop(node_id)
        self._closed[node_id] = total
        self._shapes[total] += 1

    def _open(self, node_id: str) -> None:
        total = self._closed.pop(node_id, None)
        if total is not None:
            self._uncount(total)

    def _uncount(self, total: Amount) -> None:
        self._shapes[total] -= 1
        if not self._shapes[total]:
            del self._shapes[total]

    def _list(self, node_id: str, free: Amount, total: Amount) -> None:
        key = (free.cpu_milli, free.memory, node_id)
        ordered = self._by_gpus.get(free.gpus)
        if ordered is None:
            self._by_gpus[free.gpus] = [key]
        else:
            insort(ordered, key)
        self._by_cpu.move(node_id, total.gpus > 0, key)
        self._free[node_id] = free

    def _unlist(self, node_id: str, free: Amount) -> None:
        ordered = self._by_gpus[free.gpus]
        del ordered[bisect_left(ordered, (free.cpu_milli, free.memory, node_id))]
        if not ordered:
            del self._by_gpus[free.gpus]

    @contextmanager
    def passing_over(self, node_ids: Iterable[str]) -> Iterator[None]:
        """As if these nodes took no work, for as long as it lasts: for decisions, which alone look at ``shut``."""
        before, self.shut = self.shut, frozenset(node_ids)
        try:
            yield
        finally:
            self.shut = before

    def __len__(self) -> int:
        return len(self._free) + len(self._closed) - sum(n in self._free or n in self._closed for n in self.shut)

    def free(self, node_id: str) -> Amount | None:
        """What is free on a node; None for one that cannot host actors."""
        return self._free.get(node_id)

    def fitting(self, need: Amount) -> Iterator[str]:
        """Nodes where ``need`` fits, tightest first: fewest free GPUs, then least CPU, then least memory.

        For a need without GPUs, nodes that have none come first, so that GPUs are not stranded.
        """
        gpus, memory, shut = need.gpus, need.memory, self.shut
        start = (need.cpu_milli, 0, "")
        by_gpus = self._by_gpus
        lists = (by_gpus[free] for free in sorted(by_gpus) if free >= gpus) if gpus else self._by_cpu.lists()
        for ordered in lists:
            for at in range(bisect_left(ordered, start), len(ordered)):
                if ordered[at][1] >= memory and ordered[at][2] not in shut:
                    yield ordered[at][2]

    def roomiest(self, need: Amount) -> Iterator[tuple[str, int]]:
        """Nodes with how many times ``need`` fits there, most often first; nodes where it does not fit are left out."""
        if need.gpus:
            lists = [(gpus // need.gpus, self._by_gpus[gpus]) for gpus in sorted(self._by_gpus, reverse=True)]
        else:
            lists = [(_UNBOUNDED, ordered) for ordered in self._by_cpu.lists()]
        heap: list[tuple[int, int, str]] = []
        seen = 0
        for at, (most, ordered) in enumerate(lists):
            if not most:
                break
            later = max((bound for bound, _ in lists[at + 1 :]), default=0)
            for cpu_milli, memory, node_id in reversed(ordered):
                bound = max(later, min(most, cpu_milli // need.cpu_milli if need.cpu_milli else _UNBOUNDED))
                while heap and -heap[0][0] >= bound:  # nothing that comes can beat it
                    count, _, best = heappop(heap)
                    yield best, -count
                count = min(most, Amount(0, cpu_milli, memory).holds(Amount(0, need.cpu_milli, need.memory)))
                if count and node_id not in self.shut:
                    seen += 1
                    heappush(heap, (-count, seen, node_id))
        while heap:
            count, _, best = heappop(heap)
            yield best, -count

    def shapes(self) -> Iterator[tuple[Amount, int]]:
        """The distinct total capacities of the nodes, and how many nodes have each."""
        yield from self._shapes.items()
