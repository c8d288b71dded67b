"""Job files and the options of ``spoke run``: what they mean, and the errors of what makes no sense."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from spoke.cli.job.options import job_of
from spoke.cli.job.plan import Plan, plan_of
from spoke.cli.job.schema import JobFile, read_job
from spoke.cli.job.schema import job_of as job_from
from spoke.cli.main import app
from spoke.errors import InvalidRequest
from spoke.events.model import Resources
from spoke.events.supervision import ExitHook, HealthCheck, Restart, Supervision
from spoke.protocol.launch import Torchrun

YAML = """
name: digits
nodes: 1:4
actors_per_node: 2
gpus_per_actor: 1
memory_per_actor: 16GiB
where: {rack: [r1, r2]}
timeout: 10m
max_duration: 2h
priority: 5
command: [python, train.py, --lr, 0.1]
cwd: work
env: {OMP_NUM_THREADS: 4, MODE: fast}
env_files: [common.env]
restart: {policy: gang, max_restarts: 5, backoff: 2s, window: 10m}
start_timeout: 90s
health: {interval: 5, command: "curl -f 'http://localhost'"}
exit_hook: rm -f scratch
limits: {nofile: 65536, memlock: unlimited, as: 64GiB}
"""
TOML = """
name = "digits"
nodes = "1:4"
actors_per_node = 2
gpus_per_actor = 1
memory_per_actor = "16GiB"
timeout = "10m"
max_duration = "2h"
priority = 5
command = ["python", "train.py", "--lr", 0.1]
cwd = "work"
env_files = ["common.env"]
start_timeout = "90s"
exit_hook = "rm -f scratch"
[where]
rack = ["r1", "r2"]
[env]
OMP_NUM_THREADS = 4
MODE = "fast"
[restart]
policy = "gang"
max_restarts = 5
backoff = "2s"
window = "10m"
[health]
interval = 5
command = "curl -f 'http://localhost'"
[limits]
nofile = 65536
memlock = "unlimited"
as = "64GiB"
"""


def asked(*words: str) -> JobFile:
    """The job of a command line."""
    command: Any = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    ctx = command.make_context("run", list(words))
    return job_of(ctx, list(ctx.params["command"] or []))


def planned(*words: str) -> Plan:
    return plan_of(asked(*words))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(YAML)
    (tmp_path / "job.toml").write_text(TOML)
    (tmp_path / "common.env").write_text("# shared\nexport MODE=slow\nNAME='a b'\n\n")
    return tmp_path


def test_yaml_and_toml_say_the_same(folder: Path) -> None:
    assert read_job(str(folder / "job.yaml")) == read_job(str(folder / "job.toml"))


def test_a_job_file_is_a_plan(folder: Path) -> None:
    plan = planned(str(folder / "job.yaml"))
    assert plan.ask["num_nodes"] == 4
    assert plan.ask["min_nodes"] == 1
    assert plan.ask["resources"] == Resources(gpus=1, memory="16GiB")
    assert plan.ask["where"] == {"rack": ["r1", "r2"]}
    assert (plan.ask["timeout"], plan.ask["max_duration"], plan.ask["priority"]) == (600.0, 7200.0, 5)
    assert plan.commands == {"": ["python", "train.py", "--lr", "0.1"]}
    assert plan.cwd == str(folder / "work")
    assert plan.env == {"MODE": "fast", "NAME": "a b", "OMP_NUM_THREADS": "4"}
    assert plan.supervision[""] == Supervision(
        Restart("gang", 5, 2.0, 60.0, 600.0),
        90.0,
        HealthCheck(5.0, 5.0, 3, ("curl", "-f", "http://localhost")),
        ExitHook(("rm", "-f", "scratch"), 30.0),
        {"nofile": 65536, "memlock": -1, "as": 64 << 30},
    )
    assert plan.spec.shape == "1-4x2"


def test_plain_words_of_yaml_are_what_they_look_like(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "command: x\nenv: {A: no, B: 2026-11-26, C: 1e3, D: 0x10, E: '7', F: 12:30}\nnodes: 2\nexclusive: true"
    )
    job = read_job(str(file))
    assert job.env == {"A": "no", "B": "2026-11-26", "C": 1000.0, "D": 16, "E": "7", "F": "12:30"}
    assert (job.nodes, job.exclusive) == (2, True)


def test_options_go_before_the_file_and_may_stand_behind_it(folder: Path) -> None:
    file = str(folder / "job.yaml")
    words = ["--nodes", "2", "--env", "MODE=other", "--limit", "core=0", "--max-restarts", "1", "--name", "mine"]
    for line in ([*words, file], [file, *words], [*words[:4], file, *words[4:]]):
        plan = planned(*line)
        assert (plan.ask["num_nodes"], plan.ask["min_nodes"], plan.ask["name"]) == (2, None, "mine")
        assert plan.env["MODE"] == "other"
        assert plan.env["OMP_NUM_THREADS"] == "4"
        care = plan.supervision[""]
        assert care.restart == Restart("gang", 1, 2.0, 60.0, 600.0)
        assert care.rlimits["core"] == 0
        assert care.rlimits["nofile"] == 65536
    assert planned(file, "--restart", "never").supervision[""].restart is None
    assert planned(file, "--", "echo", "--nodes").commands == {"": ["echo", "--nodes"]}


def test_a_command_that_ends_like_a_job_file_is_one_behind_two_dashes() -> None:
    assert planned("--", "show.yaml", "-x").commands == {"": ["show.yaml", "-x"]}
    assert planned("cat", "job.yaml").commands == {"": ["cat", "job.yaml"]}


def test_options_alone_mean_what_they_meant() -> None:
    plan = planned(
        "--nodes", "2", "--gpus-per-actor", "0.5", "--where", "rack=a", "--where", "rack=b", "-e", "A=1", "x"
    )
    assert plan.ask["where"] == {"rack": ["a", "b"]}
    assert plan.ask["resources"] == Resources(gpus=0.5)
    assert (plan.env, plan.supervision, plan.torchrun) == ({"A": "1"}, {"": Supervision()}, None)
    assert plan.ask["on_failure"] == "release"
    assert planned("--timeout", "-1", "x").ask["timeout"] is None


def test_groups_have_their_own_commands() -> None:
    job = job_from(
        {
            "groups": {
                "head": {"command": "serve", "cpus_per_actor": 2, "restart": "on_failure"},
                "worker": {"nodes": "1:2", "gpus_per_actor": 1, "command": ["work", 1]},
            },
            "limits": {"core": 0},
        },
        "job.yaml",
    )
    plan = plan_of(job)
    limits = {"core": 0}
    assert plan.supervision == {
        "head": Supervision(Restart(), rlimits=limits),
        "worker": Supervision(rlimits=limits),
    }
    assert plan.commands == {"head": ["serve"], "worker": ["work", "1"]}
    assert plan.spec.shape == "1x1 head + 1-2x1 worker"


def test_actors_take_their_arguments_by_group() -> None:
    job = job_from({"groups": {"a": {"actor": "A", "args": {"x": 1}}, "b": {"actor": "B"}}}, "job.yaml")
    plan = plan_of(job)
    assert (plan.actors, plan.args) == ({"a": "A", "b": "B"}, {"a": {"x": 1}, "b": {}})


def test_torch_runs_python_scripts_and_restarts_as_torchrun_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHON_EXEC", raising=False)
    plan = planned("--torch", "--nnodes", "1:2", "--nproc-per-node", "2", "train.py", "--epochs", "3")
    assert plan.commands == {"": [sys.executable, "-u", "train.py", "--epochs", "3"]}
    assert (plan.torchrun, plan.supervision) == (Torchrun("", "default", 0), {"": Supervision()})
    assert plan.spec.shape == "1-2x2"
    plan = planned("--torch", "--max-restarts", "3", "--role", "trainer", "-m", "pkg.train")
    assert plan.commands == {"": [sys.executable, "-u", "-m", "pkg.train"]}
    assert plan.torchrun == Torchrun("", "trainer", 3)
    assert plan.supervision == {"": Supervision(Restart("gang", 3, 0.0, 0.0, 0.0))}
    monkeypatch.setenv("PYTHON_EXEC", "/opt/python")
    assert planned("--torch", "x.py").commands == {"": ["/opt/python", "-u", "x.py"]}
    assert planned("--torch", "--no-python", "bin/x").commands == {"": ["bin/x"]}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"nodez": 2}, "there is no key nodez; did you mean nodes?"),
        ({"restart": {"polcy": "gang"}}, "there is no key restart.polcy; did you mean policy?"),
        ({"groups": {"a": {"gpus": 1}}}, "there is no key groups"),
        ({"nodes": [1]}, "nodes: expected"),
        ({"env": {"A": True}}, "env"),
        ({"restart": "often"}, "restart: 'often' was written; there are never, on_failure, gang"),
        ({"restart": {"policy": 1}}, "restart.policy: "),
        ({"on_failure": "stop"}, "on_failure: 'stop' was written; there are release, report"),
        ({"priority": "high"}, "priority: expected `int`, got `str`"),
        ([1], "holds no job"),
    ],
)
def test_an_error_names_the_file_and_the_key(found: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=r"job\.yaml") as raised:
        job_from(found, "job.yaml")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "needs a command or an actor"),
        ({"command": "x", "actor": "A"}, "and not both"),
        ({"command": "x", "args": {"a": 1}}, "which only an actor takes"),
        ({"command": "x", "groups": {"a": {"command": "y"}}}, "write those into the groups"),
        ({"groups": {"a": {"command": "y"}, "b": {"actor": "B"}}}, "either in all of them"),
        ({"command": "x", "nodes": "many"}, "a number, or MIN:MAX"),
        ({"command": "x", "nodes": "4:1"}, "write MIN:MAX"),
        ({"command": "x 'y"}, "cannot be taken apart"),
        ({"command": "x", "timeout": "soon"}, "timeout: 'soon' is no time span"),
        ({"command": "x", "grace": -1}, "grace is a time span"),
        ({"command": "x", "torch": True, "restart": "on_failure"}, "restarts its workers together"),
        ({"actor": "A", "torch": True}, "torch runs one command"),
        ({"command": "x", "limits": {"files": 1}}, "there is no limit 'files'"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(found: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        plan_of(job_from(found, "job.yaml"))
    assert words in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "env.yaml").write_text("command: x\nenv_files: [broken.env]")
    (tmp_path / "broken.env").write_text("what")
    for name, words in (
        ("none.yaml", "cannot be read"),
        ("bad.yaml", "cannot be read: .* line 1, column 5"),
        ("bad.toml", "cannot be read"),
        ("env.yaml", "line 1 of"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            read_job(str(tmp_path / name))


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(InvalidRequest, match="without a policy"):
        asked("--max-restarts", "3", "x")
    with pytest.raises(InvalidRequest, match="go with --torch"):
        asked("--module", "x")
    with pytest.raises(InvalidRequest, match="never, on_failure or gang"):
        asked("--restart", "sometimes", "x")
