"""Torchrun's variables as an agent sets them, and the error files that workers leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spoke.agent import instructions as i
from spoke.agent.launching import prepare
from spoke.agent.torchrun import ERROR_FILE, read_error
from spoke.events.model import ActorSpec
from spoke.protocol import requests as r
from spoke.protocol.launch import LaunchBlob, Torchrun, encode_blob
from tests.unit.test_agent_machine import a_start, deliver, requests, up
from tests.unit.test_agent_parts import SITE


def env_of(torchrun: Torchrun | None, base: dict[str, str] | None = None, **order: Any) -> dict[str, str]:
    start = a_start(spec=ActorSpec(argv=("x",)), world_size=4, local_world_size=2, num_nodes=2, **order)
    blob = encode_blob(LaunchBlob(b"s" * 32, env={"A": "1"}, torchrun=torchrun))
    env: dict[str, str] = prepare(i.Spawn(start, blob, 3), SITE, base or {}).spec["env"]
    return env


def test_workers_find_what_torchrun_sets() -> None:
    env = env_of(Torchrun("job", "trainer", 5))
    expected = {
        "ROLE_NAME": "trainer",
        "ROLE_RANK": "1",
        "ROLE_WORLD_SIZE": "4",
        "GROUP_WORLD_SIZE": "2",
        "TORCHELASTIC_RESTART_COUNT": "3",
        "TORCHELASTIC_MAX_RESTARTS": "5",
        "TORCHELASTIC_RUN_ID": "job",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": "/logs/t1/1-a1.3.error.json",
        "OMP_NUM_THREADS": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "A": "1",
    }
    assert {name: env.get(name) for name in expected} == expected
    assert "TORCHELASTIC_RUN_ID" not in env_of(None)
    assert env_of(Torchrun())["TORCHELASTIC_RUN_ID"] == "t1"


def test_what_somebody_set_stays_and_groups_are_roles() -> None:
    env = env_of(Torchrun(), {"OMP_NUM_THREADS": "8"}, group="head", rank_in_group=0, group_size=1)
    assert (env["OMP_NUM_THREADS"], env["ROLE_NAME"], env["ROLE_RANK"], env["ROLE_WORLD_SIZE"]) == (
        "8",
        "head",
        "0",
        "1",
    )


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (json.dumps({"message": {"message": "ValueError: nan", "extraInfo": {"timestamp": "1"}}}), "ValueError: nan"),
        (json.dumps({"message": "plain"}), "plain"),
        (json.dumps({"message": "x" * 9_000}), "x" * 1_000),
        (json.dumps([1]), ""),
        ("{", ""),
        ("[" * 100_000, ""),
        ("x" * 300_000, ""),
    ],
)
def test_an_error_file_may_hold_anything(tmp_path: Path, written: str, told: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(written)
    assert read_error({ERROR_FILE: str(path)}) == told
    assert read_error({ERROR_FILE: str(tmp_path / "none")}) == read_error({}) == ""


def test_what_it_says_is_told_when_it_failed() -> None:
    for code, told in ((1, "ValueError: nan"), (0, "")):
        machine = up()
        deliver(machine, a_start())
        machine.started("1-0", 7, "", 0.0)
        machine.explained("1-0", "ValueError: nan")
        assert requests(machine.ended("1-0", code, 0, "", 1.0)) == [r.ReportExited("t1", 1, "1-0", code, 0, told)]
