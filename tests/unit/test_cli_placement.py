"""The options about placement reach the request and the agent; events and tables say what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spoke.agent.config import AgentConfig
from spoke.cli.events import describe as words_of
from spoke.cli.main import app
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.model import GangSpec, Resources
from spoke.events.rules import Group, Rules


def asked_by(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    class Recorder:
        def __init__(self, *args: Any, **named: Any) -> None:
            pass

        def gang_allocate(self, **named: Any) -> None:
            asked.update(named)
            raise InvalidRequest("that is all this test wants to know")

        def close(self, timeout: float) -> None:
            pass

    monkeypatch.setattr("spoke.Client", Recorder)
    assert CliRunner().invoke(app, ["run", *words, "--", "true"]).exit_code == 1
    return asked


def test_run_asks_for_what_its_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--strategy spread --where rack=r1 --where rack=r2 --where-not zone=b --min-gpu-memory 40GiB --near n0"
    more = "--exclusive --same rack --nodes 2:4 --nics-per-actor 1"
    asked = asked_by(monkeypatch, *words.split(), *more.split())
    assert asked["where"] == {"rack": ["r1", "r2"]}
    assert (asked["strategy"], asked["where_not"], asked["near"]) == ("spread", {"zone": ["b"]}, "n0")
    assert (asked["exclusive"], asked["same"], asked["min_nodes"]) == (True, "rack", 2)
    assert (asked["min_gpu_memory"], asked["resources"], asked["strict_pack"]) == ("40GiB", Resources(nics=1), None)


@pytest.mark.parametrize(("text", "timeout"), [("90", 90.0), ("10m", 600.0), ("-1", None), ("0", 0.0)])
def test_a_time_limit_has_a_unit_or_is_in_seconds(
    monkeypatch: pytest.MonkeyPatch, text: str, timeout: float | None
) -> None:
    assert asked_by(monkeypatch, "--timeout", text, "--grace", "2s")["timeout"] == timeout
    assert asked_by(monkeypatch)["timeout"] == 300.0


def test_without_options_run_asks_for_nothing_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asked_by(monkeypatch)
    assert not any(asked[name] for name in ("strategy", "where", "where_not", "near", "exclusive", "same", "min_nodes"))
    assert asked["prefer_same"] is None


def test_a_label_that_is_no_pair_is_refused() -> None:
    result = CliRunner().invoke(app, ["run", "--where", "rack", "--", "true"])
    assert result.exit_code == 1


def test_an_agent_is_given_its_labels_and_topology(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs: list[AgentConfig] = []
    monkeypatch.setattr("spoke.agent.service.run_agent", lambda config, *rest: configs.append(config))
    words = ["agent", "--gpus", "4", "--label", "rack=r1", "--topology", str(tmp_path / "t.yaml"), "--node-id", "n0"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert configs[0].topology == tmp_path / "t.yaml"
    assert configs[0].labels["rack"] == "r1"


def test_the_log_says_what_was_asked_for() -> None:
    groups = (Group("boss", 1, 1, Resources(cpus=2)), Group("worker", 2, 4, Resources(gpus=1, nics=1), min_nodes=1))
    spec = GangSpec(3, 1, groups=groups, rules=Rules(exclusive=True))
    told = words_of(e.GangQueued("t-1", "c", 1, spec, 0, "waits"))
    assert "1x1 boss + 1-2x4 worker actors" in told
    assert "(boss: 2 CPU)" in told
    assert "(worker: 1 GPU, 1 NIC)" in told
    assert "exclusive" in told
    spread = GangSpec(2, 1, Resources(gpus=1), strict_pack=False, rules=Rules(strategy="strict_spread"))
    assert "2x1 actors with 1 GPU, strict spread" in words_of(e.GangQueued("t-1", "c", 1, spread, 0, ""))
