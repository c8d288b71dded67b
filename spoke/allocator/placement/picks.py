"""Which GPUs and NICs of a node the members get that go there."""

from __future__ import annotations

from spoke.allocator.placement import topology
from spoke.allocator.placement.pack import Pick
from spoke.allocator.placement.rooms import usable_nics
from spoke.allocator.placement.shares import share_out
from spoke.events.model import GangSpec
from spoke.events.state import NodeState, PoolState, indices_of


def picks(state: PoolState, node: NodeState, spec: GangSpec, count: int) -> list[Pick]:
    """What each of ``count`` members gets on a node where they fit: the GPUs nearest to each other, NICs near them."""
    resources, per_actor = spec.resources, spec.resources.gpu_count
    if node.plain and per_actor and not (spec.gpu_ids or resources.nics):  # as a rule, and in less time
        lowest = indices_of(node.free_gpus, count * per_actor)
        return [Pick(lowest[at : at + per_actor]) for at in range(0, count * per_actor, per_actor)]
    gpus: list[tuple[tuple[int, ...], int]]
    if resources.is_share:
        gpus = [((index,), milli) for index, milli in share_out(state, node, resources, count)]
    elif spec.gpu_ids:
        gpus = [(spec.gpu_ids[at * per_actor : (at + 1) * per_actor], 0) for at in range(count)]
    else:
        gpus = [(ids, 0) for ids in topology.gpus_for(node, count, per_actor)]
    if not resources.nics:
        return [Pick(ids, milli) for ids, milli in gpus]
    free = list(indices_of(usable_nics(node)))
    found = []
    for ids, milli in gpus:
        nics = topology.nics_near(node, ids, free, resources.nics)
        free = [nic for nic in free if nic not in nics]
        found.append(Pick(ids, milli, nics))
    return found
