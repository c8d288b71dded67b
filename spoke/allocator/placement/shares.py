"""Placing shares of GPUs: where the least becomes hard to use.

The score is that of ``stranding``. On a node, what is left of a shared GPU is used before a free one is opened, the
smallest rest first. How many members go to a node is exact: on each GPU as many as its free thousandths hold. The cost
grows with the number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spoke.allocator.placement.pack import NoFit, Placement, allows, count_nodes, describe, has_port
from spoke.allocator.placement.stranding import SCALE, Key, broken, stranding
from spoke.events.capacity import Amount
from spoke.events.model import GPU_MILLI, GangSpec, Resources
from spoke.events.state import NodeState, PoolState, need_of

_BAD = 1 << 60


@dataclass(frozen=True, slots=True)
class Room:
    """A node where ``count`` members fit. ``key`` orders nodes, the tightest first."""

    key: Key
    node: NodeState
    count: int


def place_shares(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    """Places for a gang whose members have shares, or why there are none. The state is not changed."""
    need = need_of(spec)
    rooms = [room for node in _up(state, spec) if (room := _room(state, node, spec.resources, need))]
    rooms.sort(key=lambda room: room.key)
    rooms.sort(key=lambda room: room.node.spec.node_id != spec.preferred_node)  # stable: the others stay in order
    return _strict(state, spec, rooms) if spec.strict_pack else _dense(state, spec, rooms)


def shares_never_fit(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    need, per_node = need_of(spec), spec.actors_per_node
    nodes = fit = room = 0
    for node in _up(state, spec):
        here = _holds(node, spec.resources, need)
        nodes += 1
        fit += here >= per_node
        room += here
        if fit >= spec.num_nodes if spec.strict_pack else room >= spec.size:
            return ""  # as a rule after a few nodes
    if spec.strict_pack:
        return (
            f"needs {count_nodes(spec.num_nodes)} with room for {per_node} actors with {words(spec)} each; even "
            f"with everything free, {fit} of the {count_nodes(nodes)} registered qualify"
        )
    return (
        f"needs room for {spec.size} actors with {words(spec)} each; even with everything free there is room for "
        f"{room} on the {count_nodes(nodes)} registered"
    )


def share_out(node: NodeState, resources: Resources, count: int) -> list[tuple[int, int]]:
    """The GPU's index and the share in thousandths of each of ``count`` members, tightest GPU first."""
    free = {gpu.index: node.free_milli(gpu.index) for gpu in node.spec.gpus}
    share = {gpu.index: resources.share_of(gpu.memory) for gpu in node.spec.gpus}
    found: list[tuple[int, int]] = []
    for index in sorted((i for i in free if share[i]), key=lambda i: (free[i] - share[i], i)):
        times = min(free[index] // share[index], count - len(found))
        found += [(index, share[index])] * times
    assert len(found) == count, "a node was chosen that does not hold what it was chosen for"
    return found


def words(spec: GangSpec) -> str:
    """What one member needs, in words."""
    resources = spec.resources
    parts = [f"{resources.gpu_milli / GPU_MILLI:g} of a GPU"] if resources.gpu_milli else []
    if resources.gpu_memory:
        parts.append(f"{int(resources.gpu_memory) / 2**30:.3g} GiB of a GPU's memory")
    rest = need_of(spec)
    return ", ".join(parts + ([describe(rest)] if rest != Amount() else []))


def _up(state: PoolState, spec: GangSpec) -> Iterator[NodeState]:
    return (node for node in state.nodes.values() if node.phase == "up" and allows(spec, node))


def _room(state: PoolState, node: NodeState, resources: Resources, need: Amount) -> Room | None:
    if node.free_cpu_milli < need.cpu_milli or node.free_memory < need.memory:
        return None
    best, room, whole = _BAD, 0, node.free_gpus.bit_count()
    taken = 0
    for rest, share in _rests(node, resources):
        if share <= rest:
            room += rest // share
            lost = broken(rest, share)
            if lost < best:
                best, taken = lost, share
    count = min(room, node.free.holds(need)) if room else 0
    if not count:
        return None
    score = best + SCALE * (stranding(state, node, taken, need.cpu_milli) + whole)
    return Room((score, whole, node.free_cpu_milli, node.spec.node_id), node, count)


def _rests(node: NodeState, resources: Resources) -> Iterator[tuple[int, int]]:
    """Per GPU that is not taken whole: the thousandths free, and what a member needs of it."""
    if resources.gpu_memory:
        for gpu in node.spec.gpus:
            share = resources.share_of(gpu.memory)
            if share:
                yield node.free_milli(gpu.index), share
        return
    share = resources.gpu_milli
    for used in node.shared.values():
        yield GPU_MILLI - used, share
    for _ in range(node.free_gpus.bit_count()):
        yield GPU_MILLI, share


def _holds(node: NodeState, resources: Resources, need: Amount) -> int:
    """How many members the node holds with everything free: exact, since all of them are alike."""
    limit = node.total.holds(need)
    if not limit:
        return 0
    shares = (resources.share_of(gpu.memory) for gpu in node.spec.gpus if not node.is_unhealthy(gpu.index))
    return min(limit, sum(GPU_MILLI // share for share in shares if share))


def _strict(state: PoolState, spec: GangSpec, rooms: list[Room]) -> Placement | NoFit:
    fitting = [room.node for room in rooms if room.count >= spec.actors_per_node]
    needs = (
        f"needs {count_nodes(spec.num_nodes)} with room for {spec.actors_per_node} actor"
        f"{'s' * (spec.actors_per_node > 1)} with {words(spec)}"
    )
    if len(fitting) < spec.num_nodes:
        return NoFit(f"{needs}; {len(fitting)} of {count_nodes(len(state.capacity))} qualify")
    first = next((node for node in fitting if has_port(node)), None)
    if first is None:
        return NoFit(f"{needs}, one of them with a free port for rank 0; {len(fitting)} fit but have no port left")
    chosen = [first, *(node for node in fitting if node is not first)][: spec.num_nodes]
    return Placement(tuple((node.spec.node_id, spec.actors_per_node) for node in chosen))


def _dense(state: PoolState, spec: GangSpec, rooms: list[Room]) -> Placement | NoFit:
    room = sum(found.count for found in rooms)
    if room < spec.size:
        return NoFit(
            f"needs room for {spec.size} actors with {words(spec)} each; there is room for {room} on "
            f"{count_nodes(len(state.capacity))} that can take work"
        )
    left, rest = spec.size, list(rooms)
    parts: list[tuple[NodeState, int]] = []
    if rest[0].node.spec.node_id == spec.preferred_node and has_port(rest[0].node):
        taken = rest.pop(0)
        parts.append((taken.node, min(left, taken.count)))
        left -= parts[-1][1]
    while left:
        taken = next((r for r in rest if r.count >= left), None) or max(rest, key=lambda r: r.count)
        rest.remove(taken)
        parts.append((taken.node, min(left, taken.count)))
        left -= parts[-1][1]
    first = next((at for at, (node, _) in enumerate(parts) if has_port(node)), None)
    if first is None:
        return NoFit("needs a free port for rank 0; no port is left on the nodes with room")
    ordered = [parts[first], *parts[:first], *parts[first + 1 :]]
    return Placement(tuple((node.spec.node_id, count) for node, count in ordered))
