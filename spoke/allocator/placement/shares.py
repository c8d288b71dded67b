"""Placing shares of GPUs, best fit: the GPU whose rest is smallest, so that whole GPUs stay whole.

What is left of a shared GPU is used before a free one is opened, and among equals the node with the fewest free GPUs
is taken. How many members go to a node is exact: on each GPU as many as its free thousandths hold. The cost grows with
the number of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from spoke.allocator.placement.pack import NoFit, Placement, count_nodes, describe, has_port
from spoke.events.capacity import Amount
from spoke.events.model import GPU_MILLI, GangSpec, Resources
from spoke.events.state import NodeState, PoolState, need_of

POLICY = "share-pack/1"

_Key = tuple[int, int, int, int, str]


@dataclass(frozen=True, slots=True)
class Room:
    """A node where ``count`` members fit. ``key`` orders nodes, the tightest first."""

    key: _Key
    node: NodeState
    count: int


def place_shares(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    """Places for a gang whose members have shares, or why there are none. The state is not changed."""
    need = need_of(spec)
    rooms = [
        room for node in state.nodes.values() if node.phase == "up" and (room := _room(node, spec.resources, need))
    ]
    rooms.sort(key=lambda room: room.key)
    rooms.sort(key=lambda room: room.node.spec.node_id != spec.preferred_node)  # stable: the others stay in order
    return _strict(state, spec, rooms) if spec.strict_pack else _dense(state, spec, rooms)


def shares_never_fit(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    need, per_node = need_of(spec), spec.actors_per_node
    rooms = [_count(n, spec.resources, need, n.total, empty=True) for n in state.nodes.values() if n.phase == "up"]
    if spec.strict_pack:
        fit = sum(room >= per_node for room in rooms)
        if fit < spec.num_nodes:
            return (
                f"needs {count_nodes(spec.num_nodes)} with room for {per_node} actors with {words(spec)} each; even "
                f"with everything free, {fit} of the {count_nodes(len(rooms))} registered qualify"
            )
    elif sum(rooms) < spec.size:
        return (
            f"needs room for {spec.size} actors with {words(spec)} each; even with everything free there is room for "
            f"{sum(rooms)} on the {count_nodes(len(rooms))} registered"
        )
    return ""


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


def _room(node: NodeState, resources: Resources, need: Amount) -> Room | None:
    count = _count(node, resources, need, node.free)
    if not count:
        return None
    rests = [node.free_milli(gpu.index) - share for gpu in node.spec.gpus if (share := resources.share_of(gpu.memory))]
    free = node.free
    key = (min(r for r in rests if r >= 0), free.gpus, free.cpu_milli, free.memory, node.spec.node_id)
    return Room(key, node, count)


def _count(node: NodeState, resources: Resources, need: Amount, free: Amount, *, empty: bool = False) -> int:
    """How many members fit on a node: exact, since all of them are alike."""
    limit = free.holds(need)
    if not limit:
        return 0
    room = 0
    for gpu in node.spec.gpus:
        share = resources.share_of(gpu.memory)
        if share:
            room += (GPU_MILLI if empty else node.free_milli(gpu.index)) // share
    return min(limit, room)


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
