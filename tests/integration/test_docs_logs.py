"""The commands of "Read what actors print" run as they stand, and say what the page says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/logs.md"
SCRIPT = "echo hello from rank $RANK; echo and goodbye"
T_S = 40


@pytest.fixture
def place(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        agents.start_agent("node-0", gpus=2)
        yield shared_server.url, pool


def test_the_page(place: tuple[str, str]) -> None:
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    assert len(steps) >= 4
    with spoke.Client(place[0], pool=place[1]) as client:
        eventually(lambda: client.status().gpus_free == 2, "the node", T_S)
        gang = client.gang_allocate(1, 2, timeout=T_S).result(T_S)
        gang.launch_command(["sh", "-c", SCRIPT]).result(T_S)
        gang.wait(T_S).result(T_S)
        gang.release().result(T_S)
        assert gang.ticket_id == "t-1"
        for command, said in steps:
            words = shlex.split(command)
            env = {"SPOKE_URL": place[0], "SPOKE_POOL": place[1]}
            result = CliRunner().invoke(app, words[1:], env=env)
            assert result.exit_code == 0, f"{command}: {result.output}"
            for line in said:
                assert line in result.stdout.splitlines(), f"{command}\n{result.stdout}"
