"""deploy/redis.conf starts a server that suits Spoke, and the users that it suggests have the rights they need."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rx

from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.cli.embedded import free_port, server_binary
from spoke.errors import ServerUnreachable
from spoke.protocol.keys import Keys
from spoke.protocol.leases import renew_lease
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


def test_its_users_have_the_rights_they_need_and_no_others(configured: int, pool: str) -> None:
    users = re.findall(r"^#\s+user (spoke|viewer) +on >(\S+)\s+(.*)$", CONF.read_text(), re.MULTILINE)
    assert {name for name, _, _ in users} == {"spoke", "viewer"}
    keys, urls = Keys(pool), {}
    with contextlib.closing(connect(f"redis://127.0.0.1:{configured}")) as admin:
        for name, password, rules in users:
            admin.execute_command("ACL", "SETUSER", name, "on", f">{password}", *rules.split())
            urls[name] = f"redis://{name}:{password}@127.0.0.1:{configured}"

    allocator = Allocator(AllocatorConfig(urls["spoke"], pool))
    thread = threading.Thread(target=allocator.run)
    thread.start()
    try:
        assert allocator.leading.wait(START_S)
    finally:
        allocator.stop()
        thread.join(START_S)
    assert not thread.is_alive()

    with contextlib.closing(connect(urls["spoke"])) as user:
        assert renew_lease(user, keys, "client:nobody", 1_000) is False
        user.set(keys.secret("t-1"), "5ec2e7")
        with pytest.raises(rx.NoPermissionError):
            user.get("of somebody else")
        with pytest.raises(rx.NoPermissionError):
            user.flushall()
    with contextlib.closing(connect(urls["viewer"])) as viewer:
        entries: Any = viewer.xrange(keys.events)
        assert entries[0][1][b"type"] == b"allocator.elected"
        viewer.hgetall(keys.nodes)
        for denied in (keys.secret("t-1"), keys.requests):
            with pytest.raises(rx.NoPermissionError):
                viewer.get(denied)
        with pytest.raises(rx.NoPermissionError):
            viewer.xadd(keys.requests, {"type": "gang.release"})
