"""From a placement to slots: GPUs by identity, ranks in order, and the address where rank 0 is found."""

from __future__ import annotations

from dataclasses import dataclass

from spoke.allocator.placement.pack import Placement
from spoke.allocator.placement.shares import share_out
from spoke.events.model import GangSpec, Slot
from spoke.events.state import PoolState


@dataclass(frozen=True, slots=True)
class Assignment:
    """The slots of a gang in rank order, and its rendezvous point (port 0: rank 0 chooses one)."""

    slots: tuple[Slot, ...]
    master_addr: str
    master_port: int


def assign(state: PoolState, spec: GangSpec, placement: Placement) -> Assignment:
    """The slots of a placed gang: on each node the lowest free GPUs, those that were asked for, or shares."""
    slots: list[Slot] = []
    per_actor = spec.resources.gpu_count
    for group_rank, (node_id, count) in enumerate(placement.parts):
        node = state.nodes[node_id]
        uuids = {gpu.index: gpu.uuid for gpu in node.spec.gpus}
        shares = share_out(state, node, spec.resources, count) if spec.resources.is_share else None
        gpus = spec.gpu_ids or _lowest(node.free_gpus, count * per_actor)
        for local_rank in range(count):
            milli = 0
            if shares is None:
                mine = tuple(gpus[local_rank * per_actor : (local_rank + 1) * per_actor])
            else:
                mine, milli = (shares[local_rank][0],), shares[local_rank][1]
            slots.append(
                Slot(
                    global_rank=len(slots),
                    local_rank=local_rank,
                    group_rank=group_rank,
                    node_id=node_id,
                    host=node.spec.address,
                    gpu_ids=mine,
                    gpu_uuids=tuple(uuids[index] for index in mine),
                    gpu_milli=milli,
                )
            )
    first = state.nodes[placement.parts[0][0]]
    ports = first.free_ports
    port = first.spec.ports.first + (ports & -ports).bit_length() - 1 if ports else 0
    return Assignment(tuple(slots), first.spec.address, port)


def _lowest(mask: int, count: int) -> tuple[int, ...]:
    found = []
    for _ in range(count):
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)
