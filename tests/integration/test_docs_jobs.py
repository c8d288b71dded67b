"""The files and commands of "Run jobs from files" as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/jobs.md"
RUN_S = 60


@pytest.fixture
def place(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Path]:
    """A folder with the page's files, and a pool of two nodes."""
    for name, text in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        for node in ("node-0", "node-1"):
            agents.start_agent(node)
        with spoke.Client(shared_server.url, pool=pool) as client:
            eventually(lambda: client.status().gpus_free == 8, "both nodes")
        os.environ["SPOKE_URL"], os.environ["SPOKE_POOL"] = shared_server.url, pool
        try:
            yield tmp_path
        finally:
            del os.environ["SPOKE_URL"], os.environ["SPOKE_POOL"]


def ran(place: Path, command: str, code: int = 0) -> str:
    words = shlex.split(command)
    assert words[0] == "spoke"
    done = subprocess.run(
        [sys.executable, "-m", "spoke.cli.main", *words[1:]],
        cwd=place,
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.stdout}"
    return done.stdout


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.timeout(180)
def test_the_page(place: Path) -> None:
    dry, plain, slow, other, mixed = commands()
    said = ran(place, dry)
    assert "asks for   'digits' 1-4x2 actors with 1 GPU" in said
    assert "it would be granted" in said
    assert re.search(r"^ *3 +node-1", said, re.MULTILINE), said
    assert "MODE" in said
    assert "fast" not in said, "values are not shown"
    said = ran(place, plain)
    for rank in range(4):
        assert f"rank {rank} of 4 in mode fast" in said
        assert f"rank {rank} ended with code 0" in said
    said = ran(place, slow)
    assert "rank 1 of 2 in mode slow" in said
    said = ran(place, other)
    assert said.count("another command") == 4
    said = ran(place, mixed)
    assert "head on node-" in said
    assert "worker 0 of 2" in said
    assert "worker 1 of 2" in said


@pytest.mark.timeout(120)
def test_a_dry_run_says_why_a_job_would_wait_or_be_refused_and_takes_nothing(place: Path) -> None:
    with spoke.Client() as client:
        gang = client.gang_allocate(2, 1, spoke.Resources(gpus=3), name="big").result(20)
        said = ran(place, "spoke run --dry-run --nodes 2 --gpus-per-actor 2 -- true")
        assert "it would wait in line" in said
        assert "2 nodes with 1 member, 2 GPUs each" in said, said
        assert "big" in said
        said = ran(place, "spoke run --dry-run --nodes 2 --gpus-per-actor 2 --timeout 0 -- true", code=1)
        assert "it would be refused" in said
        said = ran(place, "spoke run --dry-run --reservation r-9 -- true", code=1)
        assert "there is no reservation" in said
        assert [ticket.ticket_id for ticket in client.status().tickets] == [gang.ticket_id]


@pytest.mark.timeout(120)
def test_a_rank_that_fails_is_started_again_and_that_is_said(place: Path) -> None:
    script = 'if [ "$SPOKE_RESTART_COUNT" -lt 2 ]; then exit 7; fi; echo well at last'
    (place / "again.toml").write_text(
        f'command = ["sh", "-c", {script!r}]\n[restart]\npolicy = "on_failure"\nbackoff = 0\nbackoff_max = 0\n'
    )
    said = ran(place, "spoke run again.toml")
    assert "rank 0 (rank-0) exited with code 7; it is started again (restart 2)" in said
    assert "well at last" in said
    said = ran(place, "spoke run again.toml --max-restarts 1", code=7)
    assert "ended with code 7" in said


def test_errors_name_the_file_and_the_key(place: Path) -> None:
    (place / "bad.yaml").write_text("command: ls\nnodez: 3")
    assert "bad.yaml: there is no key nodez; did you mean nodes?" in ran(place, "spoke run bad.yaml", code=1)
    assert "name what to run" in ran(place, "spoke run --nodes 2", code=2)
    assert "MIN:MAX" in ran(place, "spoke run --nodes many ls", code=2)
