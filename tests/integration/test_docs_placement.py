"""The examples of "Placement" run in the order of the page, and print what it says they do."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/placement.md"
BLOCK = re.compile(r"^```(\w+)( title=\"[^\"]*\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page(shared_server: EmbeddedServer, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOKE_URL", shared_server.url)
    monkeypatch.setenv("SPOKE_POOL", pool)
    blocks = [(kind, title, text) for kind, title, text in BLOCK.findall(PAGE.read_text())]
    actors, topology = tmp_path / "my_actors.py", tmp_path / "topology.yaml"
    actors.write_text(next(text for kind, title, text in blocks if title))
    topology.write_text(next(text for kind, _, text in blocks if kind == "yaml"))
    room = {"gpus": 4, "imports": [str(actors)], "cpus": 8, "memory": 1 << 30}
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        for at, rack in enumerate(("r1", "r1", "r2")):
            labels = {"rack": rack, "log_dir": str(tmp_path / "logs")}
            more: dict[str, Any] = {"topology": str(topology)} if at == 0 else {}
            agents.start_agent(f"node-{at}", labels=labels, **room, **more)
        with spoke.Client() as client:
            eventually(lambda: client.status().gpus_free == 12, "three nodes")
        names: dict[str, Any] = {}
        said = ""
        try:
            for kind, title, text in blocks:
                if kind == "python" and not title:
                    out = io.StringIO()
                    with contextlib.redirect_stdout(out):
                        exec(text, names)
                    said = out.getvalue()
                elif kind == "text":
                    assert [line for line in text.splitlines() if line not in said] == [], said
                elif kind == "console":
                    command, *expected = text.splitlines()
                    said = run(command)
                    assert [line for line in expected if line not in said] == [], said
        finally:
            if "client" in names:
                names["client"].close()


def run(command: str) -> str:
    words = shlex.split(command.removeprefix("$ "))
    assert words[0] == "spoke"
    done = subprocess.run(
        [sys.executable, "-m", "spoke.cli.main", *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "400"},
        check=False,
    )
    return done.stdout + done.stderr
