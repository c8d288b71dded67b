"""Daemons that are started before their server: they wait for it, for a time, and say so once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from spoke.cli.embedded import EmbeddedServer, free_port
from tests.daemons import Daemons
from tests.fakes import eventually
from tests.integration.test_security_wire import run_a_gang

WAIT_S = 40.0


def test_daemons_wait_for_a_server_that_comes_later(tmp_path: Path, pool: str) -> None:
    server = EmbeddedServer(tmp_path / "server", port=free_port())
    with Daemons(tmp_path, pool) as daemons:
        daemons.allocator(server.url)
        daemons.agent(server.url, "n1")
        eventually(lambda: daemons.said().count("trying again for up to 60 s") == 2, "both wait", WAIT_S)
        with server:
            run_a_gang(daemons, server.url, pool)
            assert daemons.said().count("trying again for up to") == 2


def test_daemons_give_up_with_a_clear_error_or_when_told_to_stop(tmp_path: Path, pool: str) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with Daemons(tmp_path, pool) as daemons:
        gives_up = [
            daemons.allocator(url, "--wait-for-server", "0.5"),
            daemons.agent(url, "n1", "--wait-for-server", "0.5"),
        ]
        assert [process.wait(WAIT_S) for process in gives_up] == [1, 1]
        assert daemons.said().count("(tried for 0.5 s: --wait-for-server)") == 2
        assert "Traceback" not in daemons.said()
        told = daemons.said().count("trying again")
        patient = daemons.allocator(url)
        eventually(lambda: daemons.said().count("trying again") > told, "it waits", WAIT_S)
        begun = time.monotonic()
        os.kill(patient.pid, signal.SIGTERM)
        assert patient.wait(WAIT_S) == 0
        assert time.monotonic() - begun < 10
        assert "Traceback" not in daemons.said()
