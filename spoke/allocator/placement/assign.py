"""From a placement to slots: GPUs by identity, ranks in order, and the address where rank 0 is found."""

from __future__ import annotations

from typing import NamedTuple

from spoke.allocator.placement import topology
from spoke.allocator.placement.pack import Placement
from spoke.allocator.placement.picks import picks
from spoke.events.model import GangSpec, Slot
from spoke.events.state import PoolState


class Assignment(NamedTuple):
    """The slots of a gang in rank order, and its rendezvous point (port 0: rank 0 chooses one)."""

    slots: tuple[Slot, ...]
    master_addr: str
    master_port: int


def assign(state: PoolState, spec: GangSpec, placement: Placement) -> Assignment:
    """The slots of a placed gang: on each node the nearest free GPUs, those that were asked for, or shares."""
    slots: list[Slot] = []
    in_group: dict[str, int] = {}
    for group_rank, (node_id, count) in enumerate(placement.parts):
        node = state.nodes[node_id]
        host, uuids = node.spec.address, node.gpu_uuids
        group = placement.groups[group_rank] if placement.groups else ""
        chosen = placement.picks[group_rank] if placement.picks else picks(state, node, spec, count)
        if node.plain and not group and not chosen[0].nics:  # as a rule, and in less time
            for local_rank, (ids, milli, _) in enumerate(chosen):
                mine = tuple([uuids[index] for index in ids])
                slots.append(Slot(len(slots), local_rank, group_rank, node_id, host, ids, mine, milli))
            continue
        first_rank = in_group.get(group, 0)
        in_group[group] = first_rank + count
        for local_rank, (ids, milli, nics) in enumerate(chosen):
            slots.append(
                Slot(
                    global_rank=len(slots),
                    local_rank=local_rank,
                    group_rank=group_rank,
                    node_id=node_id,
                    host=host,
                    gpu_ids=ids,
                    gpu_uuids=tuple(uuids[index] for index in ids),
                    gpu_milli=milli,
                    nics=tuple(node.spec.nics[at].name for at in nics),
                    numa_node=topology.numa_node(node, ids),
                    link=topology.farthest_link(node, ids),
                    group=group,
                    rank_in_group=first_rank + local_rank if group else 0,
                )
            )
    first = state.nodes[placement.parts[0][0]]
    ports = first.free_ports
    port = first.spec.ports.first + (ports & -ports).bit_length() - 1 if ports else 0
    return Assignment(tuple(slots), first.spec.address, port)
