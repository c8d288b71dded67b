"""The code of "Look after actors" runs as it stands, and does what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at

DOCS = Path(__file__).resolve().parents[2] / "docs/how-to"
ACTORS = """
import numpy as np
import spoke

"""


def test_the_page(shared_server: EmbeddedServer, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "supervision.md").read_text(), re.MULTILINE | re.DOTALL)
    model = re.search(
        r"^@spoke\.register_actor.*?(?=^```$)", (DOCS / "actors.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert model
    actors = tmp_path / "my_actors.py"
    actors.write_text(ACTORS + model[0])
    monkeypatch.setenv("SPOKE_URL", shared_server.url)
    monkeypatch.setenv("SPOKE_POOL", pool)
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        agents.start_agent("n0", imports=[str(actors)])
        with spoke.Client() as client:
            eventually(lambda: client.status().gpus_free == 4, "the node")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, "supervision.md", "exec"), {"__name__": "page"})
        assert said.getvalue() == "running 0\n"
        for rank in range(2):  # they are stopped in order, so they end with code 0
            (path,) = (tmp_path / "logs").rglob(f"{rank}-*.log")
            eventually(lambda path=path: path.read_text() != "", "what the hook prints")  # type: ignore[misc]
            assert f"rank {rank}: code 0, signal 0" in path.read_text()
