"""The strategies: how the members of a gang go over nodes with room for them.

A *bundle* is what stays together on a node: with ``strict_pack`` the ``actors_per_node`` members of a group, which then
has a node for itself among its gang; else one member. ``pack`` takes the fewest nodes, the fullest first; ``spread``
goes round the nodes, the emptiest first, and from rack to rack; ``strict_pack`` takes one node; ``strict_spread`` gives
no two bundles the same node. The words are those of Ray's placement groups.

Each finds places exactly when there are any: for members that are alike, how many fit on a node is all that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from spoke.allocator.placement.rooms import Room, roomy, tight
from spoke.events.model import GangSpec
from spoke.events.state import NodeState

Parts = list[tuple[NodeState, int]]
HasPort = Callable[[NodeState], bool]


def fill(rooms: Sequence[Room], spec: GangSpec, has_port: HasPort, domain: str = "") -> Parts | None:
    """How many members go to which node, the node of the first one first; None if they do not all fit.

    The first node is one that ``has_port``. ``domain`` is a label of which as few values as possible are used, if whole
    groups are packed.
    """
    if spec.strict_pack:
        whole = [room for room in rooms if room.holds >= spec.actors_per_node]
        if len(whole) < spec.num_nodes:
            return None
        return take(_ordered(whole, spec, domain), spec, has_port)
    if spec.strategy == "strict_spread":
        if len(rooms) < spec.size:
            return None
        return take(_ordered(rooms, spec, domain), spec, has_port)
    if spec.strategy == "strict_pack":
        return take(sorted((room for room in rooms if room.holds >= spec.size), key=tight), spec, has_port)
    if sum(room.holds for room in rooms) < spec.size:
        return None
    if spec.strategy == "spread":
        return take(_ordered(rooms, spec, domain), spec, has_port)
    return _dense(rooms, spec, has_port)


def take(ordered: list[Room], spec: GangSpec, has_port: HasPort) -> Parts | None:
    """The first of the rooms that stand in the gang's order; None if the first member can be on none of them.

    Members that are packed take the very first.
    """
    chosen = _port_first(ordered, has_port, spec.preferred_node)
    if not chosen:
        return None
    if spec.strict_pack:
        return [(room.node, spec.actors_per_node) for room in chosen[: spec.num_nodes]]
    if spec.strategy == "strict_spread":
        return [(room.node, 1) for room in chosen[: spec.size]]
    if spec.strategy == "spread":
        return _round(chosen, spec.size)
    return [(chosen[0].node, spec.size)]


def _ordered(rooms: Sequence[Room], spec: GangSpec, domain: str) -> list[Room]:
    if spec.strategy in ("spread", "strict_spread"):
        return _from_rack_to_rack(rooms)
    if domain:
        sizes: dict[str, int] = {}
        for room in rooms:
            value = room.node.spec.labels.get(domain, "")
            sizes[value] = sizes.get(value, 0) + 1

        def key(room: Room) -> tuple[int, str]:
            value = room.node.spec.labels.get(domain, "")
            return -sizes[value], value

        return sorted(rooms, key=lambda room: (key(room), tight(room)))
    return sorted(rooms, key=tight)


def _from_rack_to_rack(rooms: Sequence[Room]) -> list[Room]:
    """The emptiest of each rack, then the next of each; nodes without the label count as one rack."""
    racks: dict[str, list[Room]] = {}
    for room in sorted(rooms, key=roomy):
        racks.setdefault(room.node.spec.labels.get("rack", ""), []).append(room)
    return [room for row in zip_longest(*racks.values()) for room in row if room is not None]


def _port_first(ordered: list[Room], has_port: HasPort, preferred: str | None) -> list[Room]:
    """The same rooms, one where the first member can be in front; empty if there is none."""
    first = next((room for room in ordered if has_port(room.node)), None)
    if preferred:
        first = next((r for r in ordered if r.node.spec.node_id == preferred and has_port(r.node)), first)
    return [first, *(room for room in ordered if room is not first)] if first is not None else []


def _round(ordered: list[Room], size: int) -> Parts | None:
    """One member to each node in turn, until all have a place."""
    here = dict.fromkeys(range(len(ordered)), 0)
    left, open_rooms = size if ordered else 0, list(range(len(ordered)))
    while left:
        open_rooms = [at for at in open_rooms if here[at] < ordered[at].holds][:left]
        for at in open_rooms:
            here[at] += 1
        left -= len(open_rooms)
    parts = [(ordered[at].node, count) for at, count in here.items() if count]
    return parts or None


def _dense(rooms: Sequence[Room], spec: GangSpec, has_port: HasPort) -> Parts | None:
    largest = sorted(rooms, key=lambda room: (-room.holds, tight(room)))
    hosts = [room for room in largest if has_port(room.node)]
    if not hosts:
        return None
    preferred = next((room for room in hosts if room.node.spec.node_id == spec.preferred_node), None)
    parts = _greedy(largest, spec.size, preferred)
    first = next((at for at, (node, _) in enumerate(parts) if has_port(node)), None)
    if first is None:  # the densest have no port left for rank 0: begin with one that has
        parts, first = _greedy(largest, spec.size, hosts[0]), 0
    return [parts[first], *parts[:first], *parts[first + 1 :]]


def _greedy(largest: list[Room], size: int, begin: Room | None) -> Parts:
    """The roomiest nodes, and for the rest the fullest one that holds it; the fewest nodes there can be."""
    parts: Parts = []
    left = size
    if begin is not None:
        parts.append((begin.node, min(left, begin.holds)))
        left -= parts[-1][1]
    rest = [room for room in largest if room is not begin]
    for at, room in enumerate(rest):
        if not left:
            break
        if room.holds >= left:
            holds = [other for other in rest[at:] if other.holds >= left]
            parts.append((min(holds, key=tight).node, left))
            break
        parts.append((room.node, room.holds))
        left -= room.holds
    return parts
