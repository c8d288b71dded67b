"""The code of "Look after actors" runs as it stands, and does what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
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


RESTARTED = """
import os

import numpy as np
import spoke


@spoke.register_actor("Restarted")
class Restarted(spoke.Actor):
    def start(self) -> int:
        return self.ctx.restarts

    def lend(self) -> spoke.BufferHandle:
        self.buffer = spoke.Buffer(np.full(1_000, 1.0 + self.ctx.restarts, "f4"))
        return self.buffer.handle

    def push(self) -> int:
        return self.ctx.push(self.ctx.restarts)

    def die(self) -> None:
        os._exit(3)

    def ask_peer(self) -> int:
        return self.ctx.peer(1).call("start").result(20)

    def receive(self) -> int:
        return self.ctx.recv(1, tag=1, timeout_s=20).result()

    def post(self) -> None:
        self.ctx.send(0, self.ctx.restarts, tag=1).result(20)
"""


def codes() -> list[str]:
    """The page's two pieces of code."""
    found = re.findall(r"^```python\n(.*?)^```$", (DOCS / "supervision.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    return found


def test_what_a_restart_breaks_and_how_it_is_taken_up(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    page: dict[str, Any] = {"__name__": "page"}
    exec(compile(codes()[1], "supervision.md", "exec"), page)
    actors = tmp_path / "restarted.py"
    actors.write_text(RESTARTED)
    care = spoke.Supervision(restart=spoke.Restart("on_failure", 3, backoff_s=0.05, backoff_max_s=0.1))
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        agents.start_agent("n0", imports=[str(actors)])
        with spoke.Client(shared_server.url, pool=pool) as client, contextlib.ExitStack() as open_:
            gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=30).result(40)
            first, second = gang.launch("Restarted", supervision=care).result(30)
            mailbox = open_.enter_context(gang.mailbox())
            kept, into = open_.enter_context(spoke.Buffer(np.ones(1_000, "f4"), gang)), np.empty(1_000, "f4")
            handle = second.call("lend").result(30)
            assert page["read_weights"](second, handle, into) is handle
            waits = first.call("receive")
            assert first.call("ask_peer").result(30) == 0
            with pytest.raises(spoke.ActorUnreachable):
                second.call("die").result(30)
            assert page["call"](second, "start") == 1
            eventually(lambda: second.call("push").result(30) == 1, "the mailbox at the new process")
            assert (mailbox.get(timeout=30).rank, second.restarts) == (1, 1)
            with pytest.raises(spoke.ActorUnreachable):
                handle.read_into(into).result(30)
            again = page["read_weights"](second, handle, into)
            assert again is not handle
            assert into.tolist() == [2.0] * 1_000
            second.call("post").result(30)
            assert waits.result(30) == 1, "the message of the new process"
            assert first.call("ask_peer").result(30) == 1
            assert kept.handle.nbytes == 4_000


def test_the_page(shared_server: EmbeddedServer, pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = codes()
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
