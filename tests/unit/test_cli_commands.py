"""The commands through typer's runner: help, usage, errors in one line, and pools in which nothing has happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from spoke.cli.embedded import EmbeddedServer, free_port
from spoke.cli.main import REMOVED, app
from spoke.errors import InvalidRequest, NodeRemoved
from spoke.events.model import Resources

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = (
    "up",
    "run",
    "status",
    "nodes",
    "tickets",
    "explain",
    "logs",
    "log",
    "release",
    "allocator",
    "agent",
    "doctor",
)
GROUPS = (("node", "drain"), ("node", "remove"), ("ticket", "move"), ("ticket", "repair"), ("gpu", "mark"))


def spoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"SPOKE_URL": "", "SPOKE_POOL": "", "COLUMNS": "200"})


def said_one_line(result: Result) -> bool:
    return result.stderr.startswith("spoke: ") and len(result.stderr.splitlines()) == 1


def test_help_names_every_command() -> None:
    result = spoke("--help")
    assert result.exit_code == 0
    for name in (*COMMANDS, "audit"):
        assert name in result.stdout


@pytest.mark.parametrize("words", [*((name,) for name in COMMANDS), *GROUPS, ("audit", "verify"), ("audit", "replay")])
def test_every_command_has_help(words: tuple[str, ...]) -> None:
    assert spoke(*words, "--help").exit_code == 0


def test_help_of_80_columns_has_every_name_in_full() -> None:
    text = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "80"}).stdout
    assert "--actors-per-node, --nproc-per-node N" in text
    assert "--gpu-memory-per-actor SIZE" in text
    assert max(map(len, text.splitlines())) <= 80
    paragraph = text.partition("Prints every")[2].partition("\n\n")[0].splitlines()
    assert min(map(len, paragraph[1:-1])) > 60, "lines are broken where the terminal ends, and nowhere else"


def test_lists_of_commands_show_whole_sentences_in_the_order_of_use() -> None:
    text = spoke("--help").stdout
    assert "..." not in text.partition("Commands:")[2]
    assert text.index("  run ") < text.index("  status ") < text.index("  release ") < text.index("  doctor ")
    assert "..." not in spoke("audit", "--help").stdout.partition("Commands:")[2]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, spoke.cli.main; print([m for m in ('redis', 'rich', 'msgspec', 'psutil') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version() -> None:
    result = spoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("spoke ")


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("run",),
        ("release",),
        ("logs",),
        ("log", "--limit", "-1"),
        ("run", "--nodes", "x", "true"),
        ("release", "t-1", "--timeout", "-1"),
    ],
)
def test_a_command_line_that_cannot_be_read_ends_with_2(words: tuple[str, ...]) -> None:
    assert spoke(*words).exit_code == 2


@pytest.mark.parametrize(
    "words", [("status",), ("nodes",), ("tickets",), ("log",), ("audit", "verify"), ("logs", "t-1")]
)
def test_a_server_that_is_not_there_is_one_line(words: tuple[str, ...]) -> None:
    result = spoke(*words, "--url", f"redis://127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert said_one_line(result)
    assert "no server answers" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "--url", "http://x"), "must begin with redis://"),
        (("status", "--pool", "a b"), "not a usable name"),
        (("log", "--since", "tomorrow"), "neither an event's id"),
        (("agent", "--gpus", "many"), "--gpus 'many'"),
        (("agent", "--gpus", "1", "--lease", "0"), "--lease must be"),
        (("agent", "--gpus", "1", "--wait-for-server", "2d"), "--wait-for-server must be"),
        (("agent", "--gpus", "1", "--label", "x"), "NAME=VALUE"),
        (("agent", "--gpus", "1", "--label", "ra ck=r1"), "a label's key is printable text"),
        (("agent", "--gpus", "1", "--label", f"{'k' * 201}=r1"), "at most 200 characters"),
        (("agent", "--gpus", "1", "--label", "rack=a\nb"), "a value is printable text"),
        (("agent", "--gpus", "1", "--label", "rack=*"), "by which gangs ask for every value"),
        (("agent", "--gpus", "1", "--label", "rack=a", "--label", "rack=b"), "gives rack twice"),
        (("agent", "--gpus", "1", "--label", "log_dir=/x"), "by --log-dir"),
        (("agent", "--gpus", "1", *(f"--label=l{n}=x" for n in range(65))), "gives 65 labels"),
        (("agent", "--gpus", "1", "--log-dir", "/tmp/a\nb"), "--log-dir gives"),
        (("up", "--gpus", "auto", "--agents", "2"), "--agents 1"),
        (("up", "--import", "nothing.py"), "there is no such file"),
        (("agent", "--gpus", "1", "--import", "nothing.py"), "there is no such file"),
        (("run", "--memory-per-actor", "much", "true"), "not a size"),
        (("run", "--env", "x", "true"), "NAME=VALUE"),
        (("node", "drain", "n1", "--deadline", "soon"), "write e.g. 90s, 10m or 2h"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(words: tuple[str, ...], said: str) -> None:
    result = spoke(*words)
    assert result.exit_code == 1
    assert said_one_line(result), result.output
    assert said in result.stderr


class TestEmptyPool:
    """A server on which nobody has done anything."""

    def ask(self, server: EmbeddedServer, pool: str, *words: str) -> Result:
        return spoke(*words, "--url", server.url, "--pool", pool)

    def test_it_reads_well(self, shared_server: EmbeddedServer, pool: str) -> None:
        for words, said in {
            ("status",): "spoke allocator",
            ("nodes",): "No node is registered",
            ("tickets",): "No ticket",
            ("audit", "verify"): "empty",
            ("audit", "replay"): "nothing has happened",
        }.items():
            result = self.ask(shared_server, pool, *words)
            assert result.exit_code == 0, result.output
            assert said in result.stdout
        assert "is empty" in self.ask(shared_server, pool, "log").stderr

    def test_its_json_is_json(self, shared_server: EmbeddedServer, pool: str) -> None:
        def document(*words: str) -> object:
            return json.loads(self.ask(shared_server, pool, *words, "--json").stdout)

        assert document("nodes") == document("tickets") == []
        status, verified, replayed = document("status"), document("audit", "verify"), document("audit", "replay")
        assert isinstance(status, dict)
        assert (status["pool"], status["gpus"], status["nodes"]) == (pool, 0, [])
        assert isinstance(verified, dict)
        assert verified["ok"] is True
        assert isinstance(replayed, dict)
        assert replayed["last_id"] == "0-0"
        assert self.ask(shared_server, pool, "log", "--json").stdout == ""

    def test_a_ticket_that_never_was(self, shared_server: EmbeddedServer, pool: str) -> None:
        for words in (("tickets", "t-7"), ("logs", "t-7")):
            result = self.ask(shared_server, pool, *words)
            assert result.exit_code == 1
            assert said_one_line(result)
            assert "shows no ticket t-7" in result.stderr

    def test_a_broken_log_does_not_verify(self, shared_server: EmbeddedServer, pool: str) -> None:
        from spoke.protocol.keys import Keys
        from spoke.protocol.server import connect

        with connect(shared_server.url) as redis:
            redis.xadd(
                Keys(pool).events, {"type": "gang.released", "v": 1, "ticket_id": "t-9", "nodes": "[]", "final": "true"}
            )
            redis.xadd(Keys(pool).events, {"type": "node.exploded", "v": 1})
        result = self.ask(shared_server, pool, "audit", "verify")
        assert result.exit_code == 1
        assert "not ok" in result.stdout
        assert len(self.ask(shared_server, pool, "log").stdout.splitlines()) == 2
        assert self.ask(shared_server, pool, "audit", "replay").exit_code == 1


def test_an_agent_whose_node_was_removed_ends_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The systemd unit does not start it again."""

    def removed(*given: object) -> None:
        raise NodeRemoved("the node was removed: sold")

    monkeypatch.setattr("spoke.agent.service.run_agent", removed)
    result = spoke("agent", "--gpus", "1", "--url", f"redis://127.0.0.1:{free_port()}")
    assert result.exit_code == REMOVED
    assert f"RestartPreventExitStatus={REMOVED}" in (ROOT / "deploy/spoke-agent@.service").read_text()


def test_run_asks_for_a_share_by_memory_and_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Recorder:
        def __init__(self, url: str | None, pool: str | None = None) -> None:
            pass

        def gang_allocate(self, **named: Any) -> None:
            asked.update(named)
            raise InvalidRequest("that is all this test wants to know")

        def close(self, timeout: float) -> None:
            pass

    monkeypatch.setattr("spoke.Client", Recorder)
    words = ("--gpu-memory-per-actor", "10GiB", "--gpu-model", "H100", "--gpu-model", "A100", "--", "true")
    result = spoke("run", *words)
    assert said_one_line(result)
    assert asked["resources"] == Resources(gpu_memory=10 << 30)
    assert asked["resources"].is_share
    assert list(asked["gpu_models"]) == ["H100", "A100"]
