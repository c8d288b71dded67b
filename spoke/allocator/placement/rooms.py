"""How many members of a gang a node holds, now or with everything free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from spoke.events.capacity import Amount
from spoke.events.model import GPU_MILLI, GangSpec
from spoke.events.state import NodeState, mask_of, need_of

Tightness = tuple[int, int, int, int, str]


class Room(NamedTuple):
    """A node that ``holds`` so many members (at most the whole gang)."""

    node: NodeState
    holds: int
    wants_gpus: bool


def tight(room: Room) -> Tightness:
    """The key that orders nodes, the fullest first; for members without GPUs, nodes without GPUs before all."""
    node = room.node
    if room.wants_gpus:
        return (0, node.free_gpu_milli, node.free_cpu_milli, node.free_memory, node.spec.node_id)
    return (len(node.spec.gpus) and 1, 0, node.free_cpu_milli, node.free_memory, node.spec.node_id)


def roomy(room: Room) -> Tightness:
    """The key that orders nodes, the emptiest first."""
    has_gpus, gpus, cpu, memory, node_id = tight(room)
    return (has_gpus, -gpus, -cpu, -memory, node_id)


def rooms(nodes: Iterable[NodeState], spec: GangSpec, *, empty: bool = False) -> list[Room]:
    """The nodes on which at least one member fits; ``empty``: if everything there were free."""
    need, wants_gpus = need_of(spec), bool(spec.resources.gpu_count or spec.resources.is_share)
    counted = ((node, members_on(node, spec, need, empty=empty)) for node in nodes)
    return [Room(node, count, wants_gpus) for node, count in counted if count]


def members_on(node: NodeState, spec: GangSpec, need: Amount, *, empty: bool) -> int:
    """How many members of a gang fit on a node: exact, since all of them are alike."""
    resources, count = spec.resources, spec.size
    if need.gpus:
        free = len(node.spec.gpus) - node.unhealthy.bit_count() if empty else node.free_gpus.bit_count()
        count = min(count, free // need.gpus)
    if need.cpu_milli and count:
        count = min(count, (node.spec.cpu_milli if empty else node.free_cpu_milli) // need.cpu_milli)
    if need.memory and count:
        count = min(count, (node.spec.memory if empty else node.free_memory) // need.memory)
    if resources.is_share and count:
        count = min(count, _shares_on(node, spec, empty=empty))
    if resources.nics and count:
        count = min(count, usable_nics(node, empty=empty).bit_count() // resources.nics)
    if spec.gpu_ids and count:
        wanted, healthy = mask_of(spec.gpu_ids), mask_of(tuple(gpu.index for gpu in node.spec.gpus)) & ~node.unhealthy
        count = count if (healthy if empty else node.free_gpus) & wanted == wanted else 0
    return count


def usable_nics(node: NodeState, *, empty: bool = False) -> int:
    """The NICs that can be given out, as a bit set: those that work, and that nobody has for himself."""
    active = mask_of(tuple(at for at, nic in enumerate(node.spec.nics) if nic.active))
    return active if empty else active & node.free_nics


def _shares_on(node: NodeState, spec: GangSpec, *, empty: bool) -> int:
    found = 0
    for gpu in node.spec.gpus:
        share = spec.resources.share_of(gpu.memory)
        if share and not node.is_unhealthy(gpu.index):
            found += (GPU_MILLI if empty else node.free_milli(gpu.index)) // share
    return found
