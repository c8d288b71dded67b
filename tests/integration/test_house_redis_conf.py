"""deploy/redis.conf starts a server that suits Spoke."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spoke.cli.embedded import free_port, server_binary
from spoke.errors import ServerUnreachable
from spoke.protocol.server import check_server, connect

CONF = Path(__file__).resolve().parents[2] / "deploy" / "redis.conf"
START_S = 20.0


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[int]:
    """The port of a server that runs with the file as it is, but for its port and directory."""
    port = free_port()
    command = [server_binary(), str(CONF), "--port", str(port), "--dir", str(tmp_path), "--daemonize", "no"]
    with open(tmp_path / "server.out", "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        url, deadline = f"redis://127.0.0.1:{port}", time.monotonic() + START_S
        with contextlib.closing(connect(url)) as client:
            while True:
                try:
                    check_server(client, url)
                    break
                except ServerUnreachable:
                    said = (tmp_path / "server.out").read_text()
                    assert process.poll() is None, said
                    assert time.monotonic() < deadline, said
                    time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def test_it_keeps_what_it_accepts(configured: int) -> None:
    with contextlib.closing(connect(f"redis://127.0.0.1:{configured}")) as client:
        found: Any = client.config_get("maxmemory-policy", "appendonly", "appendfsync", "timeout", "tcp-keepalive")
    assert found == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "timeout": "0",
        "tcp-keepalive": "60",
    }
