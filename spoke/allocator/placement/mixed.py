"""The last resort for mixed gangs: every way to share out few nodes among the groups, until one is found.

Placing the groups one after the other may fail though there are places, when one takes the node that another one needs.
So on few nodes all ways are tried, for members with whole GPUs or none, up to ``STEPS_MAX`` steps; a pool whose nodes
are like each other needs none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spoke.allocator.placement import select
from spoke.allocator.placement.rooms import Room, tight
from spoke.allocator.placement.spread import HasPort, Parts
from spoke.events.model import GangSpec
from spoke.events.state import NodeState, need_of

NODES_MAX = 12
STEPS_MAX = 4_096


def search(
    nodes: Sequence[NodeState], parts: Sequence[GangSpec], order: Sequence[int], port: HasPort
) -> list[tuple[int, Parts]] | None:
    """For each group, in the given order, how many members go to which node; None if there is no way, or too many.

    The first node of the first group is one that has a ``port``.
    """
    plain = not any(part.resources.is_share or part.resources.nics for part in parts)
    return _Search(nodes, parts, order, port).found() if plain and len(nodes) <= NODES_MAX else None


class _Search:
    def __init__(
        self, nodes: Sequence[NodeState], parts: Sequence[GangSpec], order: Sequence[int], port: HasPort
    ) -> None:
        self._nodes = sorted(nodes, key=lambda node: tight(Room(node, 0, True)))
        self._free = [[node.free_gpus.bit_count(), node.free_cpu_milli, node.free_memory] for node in self._nodes]
        self._parts, self._order = parts, order
        self._needs = [(need.gpus, need.cpu_milli, need.memory) for need in map(need_of, parts)]
        self._suits = [[not select.unsuitable(part, node) for node in self._nodes] for part in parts]
        self._ports = [port(node) for node in self._nodes]
        self._counts = [[0] * len(self._nodes) for _ in parts]
        self._steps = STEPS_MAX

    def found(self) -> list[tuple[int, Parts]] | None:
        return [(at, self._places(at)) for at in self._order] if self._groups(0) else None

    def _places(self, at: int) -> Parts:
        chosen = [node for node, count in enumerate(self._counts[at]) if count]
        if at == 0:
            chosen.sort(key=lambda node: not self._ports[node])
        return [(self._nodes[node], self._counts[at][node]) for node in chosen]

    def _groups(self, done: int) -> bool:
        """Whether the groups from here on can be placed beside those before."""
        if done == len(self._order):
            return True
        return self._members(done, 0, self._parts[self._order[done]].size)

    def _members(self, done: int, node: int, left: int) -> bool:
        """Whether the members of this group that are left can be placed from this node on, and the groups after it."""
        self._steps -= 1
        at = self._order[done]
        if not left:
            hosted = at != 0 or any(count and port for count, port in zip(self._counts[0], self._ports, strict=True))
            return hosted and self._groups(done + 1)
        if node == len(self._nodes) or self._steps < 0:
            return False
        free, need, counts = self._free[node], self._needs[at], self._counts[at]
        for count in self._choices(at, node, left):
            for kind in range(3):
                free[kind] -= count * need[kind]
            counts[node] = count
            if self._members(done, node + 1, left - count):
                return True
            counts[node] = 0
            for kind in range(3):
                free[kind] += count * need[kind]
        return False

    def _choices(self, at: int, node: int, left: int) -> Iterable[int]:
        """How many members of a group may go to a node, the most first."""
        part, free, need = self._parts[at], self._free[node], self._needs[at]
        holds = min([left, *(free[kind] // need[kind] for kind in range(3) if need[kind])])
        if not self._suits[at][node]:
            return (0,)
        if part.strict_pack or part.strategy in ("strict_pack", "strict_spread"):
            together = (
                part.actors_per_node if part.strict_pack else 1 if part.strategy == "strict_spread" else part.size
            )
            return (together, 0) if holds >= together else (0,)
        return range(holds, -1, -1)
