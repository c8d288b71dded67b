"""Which policy places a gang, by what it asks for and what the pool has seen."""

from __future__ import annotations

from spoke.allocator.placement import pack, shares, stranding
from spoke.allocator.placement.pack import NoFit, Placement
from spoke.events.model import GangSpec
from spoke.events.state import PoolState


def place(state: PoolState, spec: GangSpec) -> tuple[Placement | NoFit, str]:
    """Places for the whole gang, or why there are none; and the policy's name and version. The state is not changed.

    In a pool that has granted shares, gangs that go to one node are scored, too: a GPU or a CPU taken at the wrong
    node strands what is left there.
    """
    if spec.resources.is_share:
        return shares.place_shares(state, spec), stranding.POLICY
    if state.shares_granted and _is_scored(spec):
        node_id = stranding.best_node(state, spec)
        if node_id:
            return Placement(((node_id, spec.size),)), stranding.POLICY
    return pack.place(state, spec), pack.POLICY


def never_fits(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    return shares.shares_never_fit(state, spec) if spec.resources.is_share else pack.never_fits(state, spec)


def _is_scored(spec: GangSpec) -> bool:
    on_one_node = (spec.num_nodes == 1 and spec.strict_pack) or spec.size == 1
    return on_one_node and not spec.gpu_ids and not spec.preferred_node
