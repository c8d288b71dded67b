"""What a client asks for, from what its user wrote to the request's specification."""

from __future__ import annotations

from collections.abc import Sequence

from spoke.client.checks import duration_ms
from spoke.errors import InvalidRequest
from spoke.events.model import GangSpec, OnFailure, Resources
from spoke.events.rules import Group, Labels, Rules, Strategy, check_texts, rules_of
from spoke.events.terms import DEFAULT, Terms

_NO_NEED = Resources()
_NO_RULES = (None, None, None, 0, None, False, None, None)


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
    if not isinstance(resources, Resources):
        raise InvalidRequest(f"resources must be spoke.Resources, like spoke.Resources(gpus=1), not {resources!r:.100}")
    for what, flag in (("strict_pack", strict_pack), ("detached", detached), ("exclusive", exclusive)):
        if type(flag) is not bool and not (flag is None and what == "strict_pack"):
            raise InvalidRequest(f"{what} must be True or False, not {flag!r:.100}")
    if isinstance(grace_s, bool) or not isinstance(grace_s, (int, float)):
        raise InvalidRequest(f"grace_s must be from 0 to 3600 seconds, not {grace_s!r:.100}")
    if gpu_ids is not None and not isinstance(gpu_ids, Sequence):
        raise InvalidRequest(f"gpu_ids must be a list of GPU indices, like [0, 1], not {gpu_ids!r:.100}")
    check_texts("gpu_models", gpu_models, "H100")
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise InvalidRequest(f"groups must be a list of spoke.Group, not {groups!r:.200}")
    rules = None
    if (strategy, where, where_not, min_gpu_memory, near, exclusive, same, prefer_same) != _NO_RULES:
        rules = rules_of(
            Rules(
                "pack" if strategy is None else strategy,
                {} if where is None else where,
                {} if where_not is None else where_not,
                min_gpu_memory,
                "" if near is None else near,
                exclusive,
                "" if same is None else same,
                prefer_same,
            )
        )
    if groups:
        if (num_nodes, actors_per_node, resources, strict_pack, strategy) != (1, 1, _NO_NEED, None, None):
            raise InvalidRequest(
                "groups were given, and num_nodes, actors_per_node, resources, strict_pack or a strategy beside them: "
                "write these into the groups"
            )
        num_nodes = sum(group.num_nodes for group in groups)
    if on_failure not in ("release", "report"):
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
        min_nodes=0 if min_nodes is None else min_nodes,
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
    if type(preemptible) is not bool:
        raise InvalidRequest(f"preemptible must be True or False, not {preemptible!r:.100}")
    untimed = expected_duration is None and max_duration is None
    if untimed and type(priority) is int and (priority, project, preemptible, reservation) == (0, "", False, ""):
        return DEFAULT
    return Terms(
        priority=priority,
        project=project,
        expected_ms=duration_ms("expected_duration", expected_duration),
        max_ms=duration_ms("max_duration", max_duration),
        preemptible=preemptible,
        reservation=reservation,
    )
