"""Which policy places a gang, by what it asks for and what the pool has seen."""

from __future__ import annotations

from dataclasses import dataclass, field

from spoke.allocator.placement import elastic, general, pack, shares, stranding
from spoke.allocator.placement.pack import NoFit, Placement
from spoke.events.model import GangSpec
from spoke.events.state import PoolState

_ANSWERS_MAX = 1_024


@dataclass(slots=True)
class _Answers:
    """What was found out about gangs that do not fit, which are asked about again and again.

    ``misfits`` holds while nothing changes on any node, ``never`` while the nodes are the same ones.
    """

    version: int = -1
    misfits: dict[GangSpec, tuple[NoFit, str]] = field(default_factory=dict)
    hardware: int = -1
    never: dict[GangSpec, str] = field(default_factory=dict)


def place(state: PoolState, spec: GangSpec) -> tuple[Placement | NoFit, str]:
    """Places for the whole gang, or why there are none; and the policy's name and version. The state is not changed.

    In a pool that has granted shares, gangs that go to one node are scored, too: a GPU or a CPU taken at the wrong
    node strands what is left there. A gang that asks for more than room is placed by the general way.
    """
    answers = _answers(state)
    passing_over = bool(state.capacity.shut)
    if not passing_over and answers.version == state.capacity.version and spec in answers.misfits:
        return answers.misfits[spec]
    found, policy = elastic.place(state, spec, _place) if elastic.is_elastic(spec) else _place(state, spec)
    if isinstance(found, NoFit) and not passing_over:
        if answers.version != state.capacity.version or len(answers.misfits) >= _ANSWERS_MAX:
            answers.version = state.capacity.version
            answers.misfits.clear()
        answers.misfits[spec] = found, policy
    return found, policy


def never_fits(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    answers = _answers(state)
    if answers.hardware != state.capacity.hardware or len(answers.never) >= _ANSWERS_MAX:
        answers.hardware = state.capacity.hardware
        answers.never.clear()
    known = answers.never.get(spec)
    if known is None:
        known = _never_fits(state, elastic.fewest(spec) if elastic.is_elastic(spec) else spec)
        answers.never[spec] = known
    return known


def _never_fits(state: PoolState, spec: GangSpec) -> str:
    if general.applies(state, spec):
        return general.never_fits(state, spec)
    return shares.shares_never_fit(state, spec) if spec.resources.is_share else pack.never_fits(state, spec)


def _place(state: PoolState, spec: GangSpec) -> tuple[Placement | NoFit, str]:
    if general.applies(state, spec):
        return general.place(state, spec), general.policy(spec)
    if spec.resources.is_share:
        return shares.place_shares(state, spec), stranding.POLICY
    if (state.demand.shares_granted or state.demand.usual.models) and _is_scored(spec):
        node_id = stranding.best_node(state, spec)
        if node_id:
            return Placement(((node_id, spec.size),)), stranding.POLICY
    return pack.place(state, spec), pack.POLICY


def _is_scored(spec: GangSpec) -> bool:
    on_one_node = (spec.num_nodes == 1 and spec.strict_pack) or spec.size == 1
    return on_one_node and not spec.gpu_ids and not spec.preferred_node


def _answers(state: PoolState) -> _Answers:
    found: _Answers | None = state.derived.get(_Answers)
    if found is None:
        found = state.derived[_Answers] = _Answers()
    return found
