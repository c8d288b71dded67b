"""The best connected free GPUs of a node, and the NICs nearest to them.

All members of a gang on a node get a set of GPUs that are near each other; each member gets, of these, GPUs that are
nearer still. Of sets that are equally good the one is taken whose GPUs are farthest from those that stay free, so that
well-connected sets stay whole, and of those the one with the lowest indices. The search is exact up to
``COMBINATIONS_MAX`` sets, greedy from each free GPU above. It is a function of the topology and the free GPUs, and
remembered. The distances are those of ``spoke.events.topology``; where only NUMA nodes are known, they count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb

from spoke.events.state import NodeState, indices_of
from spoke.events.topology import cost

COMBINATIONS_MAX = 2_000
_UNKNOWN = 70  # as near as through one CPU's bridges

Costs = tuple[tuple[int, ...], ...]
_Score = tuple[int, int, int, tuple[int, ...]]


def gpus_for(node: NodeState, members: int, per_member: int) -> list[tuple[int, ...]]:
    """The GPUs (indices, ascending) of each of ``members`` members with ``per_member`` whole GPUs each."""
    if not per_member:
        return [()] * members
    if node.plain:  # any are as good
        lowest = indices_of(node.free_gpus, members * per_member)
        return [lowest[at : at + per_member] for at in range(0, members * per_member, per_member)]
    spec, free = node.spec, indices_of(node.free_gpus)
    levels = spec.topology.links if spec.topology is not None else ()
    numa = tuple([gpu.numa_node for gpu in spec.gpus])
    if not levels and numa.count(numa[0]) == len(numa):
        return [free[at : at + per_member] for at in range(0, members * per_member, per_member)]
    place = {gpu.index: at for at, gpu in enumerate(spec.gpus)}
    order = tuple(gpu.index for gpu in spec.gpus)
    found = _share_out(levels, numa, tuple(place[index] for index in free), members, per_member)
    return [tuple(order[at] for at in group) for group in found]


def nics_near(node: NodeState, gpu_ids: Sequence[int], free: Iterable[int], count: int) -> tuple[int, ...]:
    """``count`` of the ``free`` NICs (places in the node's spec), the nearest to these GPUs first."""
    spec = node.spec
    places = [at for at, gpu in enumerate(spec.gpus) if gpu.index in gpu_ids]
    links = spec.topology.nic_links if spec.topology is not None else ()

    def far(nic: int) -> int:
        if links:
            return sum(cost(links[at][nic]) for at in places)
        numa = spec.nics[nic].numa_node
        return sum(_between_numa(spec.gpus[at].numa_node, numa) for at in places)

    return tuple(sorted(free, key=lambda nic: (far(nic), nic))[:count])


def numa_node(node: NodeState, gpu_ids: Sequence[int]) -> int:
    """The NUMA node on which all of these GPUs are; -1 if there is none, or it is not known."""
    found = {gpu.numa_node for gpu in node.spec.gpus if gpu.index in gpu_ids}
    return found.pop() if len(found) == 1 else -1


def farthest_link(node: NodeState, gpu_ids: Sequence[int]) -> str:
    """The farthest of the links between these GPUs; empty if it is not known or there are fewer than two."""
    topology = node.spec.topology
    if topology is None or not topology.links or len(gpu_ids) < 2:
        return ""
    places = [at for at, gpu in enumerate(node.spec.gpus) if gpu.index in gpu_ids]
    return max((topology.links[a][b] for a, b in combinations(places, 2)), key=lambda level: (cost(level), level))


def _between_numa(one: int, other: int) -> int:
    if one < 0 or other < 0:
        return _UNKNOWN
    return cost("PHB") if one == other else cost("SYS")


@lru_cache(maxsize=256)
def _costs(levels: tuple[tuple[str, ...], ...], numa: tuple[int, ...]) -> Costs:
    if levels:
        return tuple(tuple(map(cost, row)) for row in levels)
    return tuple(tuple(0 if i == j else _between_numa(a, b) for j, b in enumerate(numa)) for i, a in enumerate(numa))


@lru_cache(maxsize=4_096)
def _share_out(
    levels: tuple[tuple[str, ...], ...], numa: tuple[int, ...], free: tuple[int, ...], members: int, per_member: int
) -> tuple[tuple[int, ...], ...]:
    costs = _costs(levels, numa)
    taken = _best(costs, free, members * per_member)
    found = []
    for _ in range(members):
        mine = _best(costs, taken, per_member)
        found.append(mine)
        taken = tuple(gpu for gpu in taken if gpu not in mine)
    return tuple(sorted(found))


def _best(costs: Costs, free: tuple[int, ...], size: int) -> tuple[int, ...]:
    if size >= len(free):
        return free
    if comb(len(free), size) <= COMBINATIONS_MAX:
        sets: Iterable[tuple[int, ...]] = combinations(free, size)
    else:
        sets = {_grown(costs, free, seed, size) for seed in free}
    return min(sets, key=lambda chosen: _score(costs, free, chosen))


def _score(costs: Costs, free: tuple[int, ...], chosen: tuple[int, ...]) -> _Score:
    """Smaller is better: the farthest link, the sum of all, how near the rest is, the indices."""
    inside = [costs[a][b] for a, b in combinations(chosen, 2)]
    rest = [gpu for gpu in free if gpu not in chosen]
    return max(inside, default=0), sum(inside), -sum(costs[a][b] for a in chosen for b in rest), chosen


def _grown(costs: Costs, free: tuple[int, ...], seed: int, size: int) -> tuple[int, ...]:
    chosen = [seed]
    while len(chosen) < size:
        rest = [gpu for gpu in free if gpu not in chosen]
        chosen.append(
            min(rest, key=lambda gpu: (max(costs[gpu][c] for c in chosen), sum(costs[gpu][c] for c in chosen), gpu))
        )
    return tuple(sorted(chosen))
