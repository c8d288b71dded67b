"""Elastic gangs: as many nodes as fit now, from the fewest that are enough to the most that were asked for.

Whoever fits on more nodes fits on fewer, so the number is found by halving. The groups of a mixed gang grow one after
the other, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spoke.allocator.placement.pack import NoFit, Placement
from spoke.events.model import GangSpec
from spoke.events.state import PoolState

Found = tuple[Placement | NoFit, str]
Placer = Callable[[PoolState, GangSpec], Found]


def is_elastic(spec: GangSpec) -> bool:
    """Whether the gang may get fewer nodes than it asks for."""
    if not spec.groups:
        return 0 < spec.min_nodes < spec.num_nodes
    return any(least < most for least, most in _ranges(spec))


def fewest(spec: GangSpec) -> GangSpec:
    """The gang with no more nodes than are enough."""
    return _with_nodes(spec, [least for least, _ in _ranges(spec)])


def place(state: PoolState, spec: GangSpec, placer: Placer) -> Found:
    """Places for as much of the gang as fits, or why even the fewest nodes do not."""
    ranges = _ranges(spec)
    most = placer(state, _with_nodes(spec, [most for _, most in ranges]))
    if isinstance(most[0], Placement):
        return most
    nodes = [least for least, _ in ranges]
    best = placer(state, _with_nodes(spec, nodes))
    if isinstance(best[0], NoFit):
        return best
    for at, (_, limit) in enumerate(ranges):
        fits, beyond = nodes[at], limit + 1
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            found = placer(state, _with_nodes(spec, [*nodes[:at], middle, *nodes[at + 1 :]]))
            if isinstance(found[0], Placement):
                fits, best = middle, found
            else:
                beyond = middle
        nodes[at] = fits
    return best


def _ranges(spec: GangSpec) -> list[tuple[int, int]]:
    return [(one.min_nodes or one.num_nodes, one.num_nodes) for one in spec.groups or (spec,)]


def _with_nodes(spec: GangSpec, nodes: list[int]) -> GangSpec:
    """The same gang with exactly so many nodes (for each group)."""
    if not spec.groups:
        return replace(spec, num_nodes=nodes[0], min_nodes=0)
    groups = tuple(replace(g, num_nodes=n, min_nodes=0) for g, n in zip(spec.groups, nodes, strict=True))
    return replace(spec, num_nodes=sum(nodes), groups=groups)
