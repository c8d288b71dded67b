"""What a client asks for, from what its user wrote to the request's specification."""

from __future__ import annotations

from collections.abc import Sequence

from spoke.client.checks import duration_ms
from spoke.errors import InvalidRequest
from spoke.events.model import GangSpec, OnFailure, Resources
from spoke.events.rules import Group, Labels, Rules, Strategy, rules_of
from spoke.events.terms import DEFAULT, Terms

_NO_NEED = Resources()


def gang_spec(
    num_nodes: int,
    actors_per_node: int,
    resources: Resources,
    strict_pack: bool | None,
    *,
    strategy: Strategy | None,
    where: Labels | None,
    where_not: Labels | None,
    min_gpu_memory: int | str,
    near: str | None,
    exclusive: bool,
    same: str | None,
    prefer_same: str | None,
    min_nodes: int | None,
    groups: Sequence[Group],
    preferred_node: str | None,
    gpu_ids: Sequence[int] | None,
    gpu_models: Sequence[str],
    detached: bool,
    on_failure: OnFailure,
    grace_s: float,
    name: str,
    terms: Terms = DEFAULT,
) -> GangSpec:
    """The specification; see ``Client.gang_allocate`` for what each means. Raises InvalidRequest."""
    rules = None
    if strategy or where or where_not or min_gpu_memory or near or exclusive or same or prefer_same is not None:
        asked = (strategy or "pack", where or {}, where_not or {}, min_gpu_memory, near or "", bool(exclusive))
        rules = rules_of(Rules(*asked, same or "", prefer_same))
    if groups:
        if (num_nodes, actors_per_node, resources, strict_pack, strategy) != (1, 1, _NO_NEED, None, None):
            raise InvalidRequest(
                "groups were given, and num_nodes, actors_per_node, resources, strict_pack or a strategy beside them: "
                "write these into the groups"
            )
        if not all(isinstance(group, Group) for group in groups):
            raise InvalidRequest(f"groups must be a list of spoke.Group, not {groups!r:.200}")
        num_nodes = sum(group.num_nodes for group in groups)
    if type(exclusive) is not bool:
        raise InvalidRequest(f"exclusive must be True or False, not {exclusive!r}")
    if on_failure not in {"release", "report"}:
        raise InvalidRequest(f"on_failure must be 'release' or 'report', not {on_failure!r}")
    return GangSpec(
        num_nodes,
        actors_per_node,
        resources,
        strategy is None if strict_pack is None else strict_pack,
        preferred_node=preferred_node,
        gpu_ids=None if gpu_ids is None else tuple(gpu_ids),
        gpu_models=tuple(gpu_models),
        detached=detached,
        on_failure=on_failure,
        grace_s=grace_s,
        name=name,
        rules=rules,
        min_nodes=min_nodes or 0,
        groups=tuple(groups),
        terms=terms,
    )


def terms_of(
    priority: int,
    project: str,
    expected_duration: float | None,
    max_duration: float | None,
    preemptible: bool,
    reservation: str,
) -> Terms:
    """The terms of a gang, from what users write: durations in seconds. Raises InvalidRequest."""
    untimed = expected_duration is None and max_duration is None
    if untimed and type(priority) is int and not (priority or project or preemptible or reservation):
        return DEFAULT
    return Terms(
        priority=priority,
        project=project,
        expected_ms=duration_ms("expected_duration", expected_duration),
        max_ms=duration_ms("max_duration", max_duration),
        preemptible=bool(preemptible),
        reservation=reservation,
    )
