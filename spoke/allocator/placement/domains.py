"""Which nodes are tried together: one rack before one block before them all, and what is near before what is far.

A gang whose members are packed prefers one domain, by the narrowest of the labels ``rack``, ``block``, ``zone`` that
the pool has; ``same`` requires one value of a label; ``near`` begins beside a node or a ticket. Of several domains that
would do, the nearest, then the one with the fewest free GPUs is tried first, so that large domains stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spoke.allocator.placement.select import neighbours
from spoke.events.model import GangSpec
from spoke.events.rules import DOMAINS, NO_RULES
from spoke.events.state import NodeState, PoolState


class Trial(NamedTuple):
    """Nodes to try for the whole gang. ``prefer`` is a label of which few values are to be used."""

    nodes: Sequence[NodeState]
    prefer: str = ""


def preferred_levels(state: PoolState, spec: GangSpec) -> tuple[str, ...]:
    """The labels of which the gang prefers one value, the narrowest first."""
    wish = spec.rules.prefer_same if spec.rules is not None else None
    if wish is not None:
        return (wish,) if wish else ()
    if spec.num_nodes == 1 and spec.strict_pack and not spec.groups:
        return ()
    packed = all(part.strategy in ("pack", "strict_pack") for part in spec.parts) and spec.strategy in (
        "pack",
        "strict_pack",
    )
    return state.domains.levels if packed else ()


def trials(state: PoolState, spec: GangSpec, nodes: Sequence[NodeState]) -> Iterator[Trial]:
    """The sets of nodes in which the gang is tried, the best first. They include every set that would do."""
    rules = spec.rules or NO_RULES
    beside = neighbours(state, rules.near) if rules.near else ()
    if rules.same:
        for domain in _domains(nodes, rules.same, beside):
            yield from _nearest(domain, beside)
        return
    levels = preferred_levels(state, spec)
    wanted = next((node for node in nodes if node.spec.node_id == spec.preferred_node), None)
    for level in levels:
        for domain in _domains(nodes, level, beside):
            if wanted is None or any(
                node is wanted for node in domain
            ):  # a node that is asked for by name counts for more
                yield from _nearest(domain, beside)
    yield from _nearest(nodes, beside, levels[0] if levels else "")


def _nearest(nodes: Sequence[NodeState], beside: Sequence[NodeState], prefer: str = "") -> Iterator[Trial]:
    """What is near, then what is farther with it, in the end all of the nodes."""
    if beside:
        far = {node.spec.node_id: distance(node, beside) for node in nodes}
        for limit in sorted(set(far.values()))[:-1]:
            yield Trial([node for node in nodes if far[node.spec.node_id] <= limit])
    yield Trial(nodes, prefer)


def _domains(nodes: Sequence[NodeState], label: str, beside: Sequence[NodeState]) -> list[list[NodeState]]:
    found: dict[str, list[NodeState]] = {}
    for node in nodes:
        value = node.spec.labels.get(label)
        if value is not None:
            found.setdefault(value, []).append(node)

    def key(value: str) -> tuple[int, int, str]:
        members = found[value]
        near = min((distance(node, beside) for node in members), default=0) if beside else 0
        return near, sum(node.free_gpu_milli for node in members), value

    return [found[value] for value in sorted(found, key=key)]


def distance(node: NodeState, beside: Sequence[NodeState]) -> int:
    """How far a node is from the nearest of the others: 0 one of them, 1 in its rack, 2 in its block, 3 in its zone."""
    return min((_between(node, other) for other in beside), default=0)


def _between(node: NodeState, other: NodeState) -> int:
    if node.spec.node_id == other.spec.node_id:
        return 0
    mine, others = node.spec.labels, other.spec.labels
    for far, label in enumerate(DOMAINS, start=1):
        if label in mine and mine[label] == others.get(label):
            return far
    return len(DOMAINS) + 1


def neighbours_together(state: PoolState, ids: Sequence[str]) -> list[int]:
    """The order in which the nodes of a gang have their ranks: those of one zone, block and rack beside each other.

    The first stays first; within a rack the order stays. Indices into ``ids``.
    """
    levels = state.domains.levels[::-1]
    if not levels or len(ids) < 3:
        return list(range(len(ids)))
    places = [tuple(state.nodes[node_id].spec.labels.get(level, "") for level in levels) for node_id in ids]
    seen: dict[tuple[str, ...], int] = {}
    for place in places:
        for depth in range(1, len(place) + 1):
            seen.setdefault(place[:depth], len(seen))
    return sorted(range(len(ids)), key=lambda at: [seen[places[at][:d]] for d in range(1, len(levels) + 1)])
