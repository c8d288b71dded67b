"""Which policy places a gang, by what it asks for."""

from __future__ import annotations

from spoke.allocator.placement import pack, shares
from spoke.allocator.placement.pack import NoFit, Placement
from spoke.events.model import GangSpec
from spoke.events.state import PoolState


def place(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    """Places for the whole gang, or why there are none. The state is not changed."""
    return shares.place_shares(state, spec) if spec.resources.is_share else pack.place(state, spec)


def never_fits(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    return shares.shares_never_fit(state, spec) if spec.resources.is_share else pack.never_fits(state, spec)


def policy_of(spec: GangSpec) -> str:
    """The name and version of the policy that places the gang."""
    return shares.POLICY if spec.resources.is_share else pack.POLICY
