"""What a user writes in ``gang_allocate`` is checked before anything is sent, and an error names what was written."""

from __future__ import annotations

from typing import Any

import pytest

import spoke
from spoke.client.spec import gang_spec, terms_of
from spoke.events.model import GangSpec

DEFAULTS: dict[str, Any] = {
    "strategy": None,
    "where": None,
    "where_not": None,
    "min_gpu_memory": 0,
    "near": None,
    "exclusive": False,
    "same": None,
    "prefer_same": None,
    "min_nodes": None,
    "groups": (),
    "preferred_node": None,
    "gpu_ids": None,
    "gpu_models": (),
    "detached": False,
    "on_failure": "report",
    "grace_s": 5.0,
    "name": "",
}


def ask(**options: Any) -> GangSpec:
    shape = {"num_nodes": 1, "actors_per_node": 1, "resources": spoke.Resources(gpus=1), "strict_pack": None}
    return gang_spec(**{**shape, **DEFAULTS, **options})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("resources", {"gpus": 1}),
        ("resources", 1),
        ("resources", None),
        ("gpu_models", "H100"),
        ("gpu_models", None),
        ("gpu_models", [1]),
        ("gpu_ids", 0),
        ("gpu_ids", {0}),
        ("strict_pack", "yes"),
        ("detached", "no"),
        ("detached", None),
        ("exclusive", 1),
        ("grace_s", "5"),
        ("grace_s", None),
        ("on_failure", ["release"]),
        ("name", None),
        ("name", 7),
        ("name", b"resnet"),
        ("preferred_node", 1),
        ("near", ["node-1"]),
        ("where", {"rack": None}),
        ("where", ["rack"]),
        ("where", []),
        ("groups", None),
        ("groups", [{"name": "head"}]),
        ("min_nodes", ""),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_and_named(option: str, value: object) -> None:
    with pytest.raises(spoke.InvalidRequest) as refused:
        ask(**{option: value})
    assert option in str(refused.value)
    assert "must be" in str(refused.value) or option == "where"


@pytest.mark.parametrize(
    ("option", "value"),
    [("preemptible", "no"), ("preemptible", None), ("project", 7), ("project", None), ("reservation", [])],
)
def test_terms_of_the_wrong_type_are_refused_and_named(option: str, value: object) -> None:
    terms: dict[str, Any] = {
        "priority": 0,
        "project": "",
        "expected_duration": None,
        "max_duration": None,
        "preemptible": False,
        "reservation": "",
    }
    with pytest.raises(spoke.InvalidRequest, match=option):
        terms_of(**{**terms, option: value})


def test_groups_and_limits_of_the_wrong_type_are_refused_and_named() -> None:
    with pytest.raises(spoke.InvalidRequest, match=r"gpu_models of group g .*'H100'"):
        spoke.Group("g", gpu_models="H100")
    with pytest.raises(spoke.InvalidRequest, match="strict_pack of group g"):
        spoke.Group("g", strict_pack="no")  # type: ignore[arg-type]
    with pytest.raises(spoke.InvalidRequest, match="a group's name must be text"):
        spoke.Group(7)  # type: ignore[arg-type]
    with pytest.raises(spoke.InvalidRequest, match="rlimits must be a dict"):
        spoke.Supervision(rlimits=["nofile"])  # type: ignore[arg-type]


def test_what_was_not_said_asks_for_no_rules() -> None:
    assert ask().rules is None
    assert ask(where={}, near="", same="", prefer_same=None).rules is None
    assert ask(where={"rack": {"r1"}}).rules is not None
