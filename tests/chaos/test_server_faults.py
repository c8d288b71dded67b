"""What a server can do to everybody at once, under load: every request has one answer, and the log verifies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis.exceptions as rx

from spoke.cli.embedded import EmbeddedServer, free_port
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.daemons import Daemons
from tests.fakes import eventually
from tests.load import Load

pytestmark = pytest.mark.timeout(240)
OUTAGE_S = 2.0
LINES_MAX = 12
"""Of all daemons together, for one outage: its begin and its end, for each of their connections at most."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """Syncs each write: what a killed server loses is for other tests."""
    options = ("--appendfsync", "always", "--busy-reply-threshold", "100")
    with EmbeddedServer(tmp_path / "server", options=options) as server:
        yield server


def killed(server: EmbeddedServer, admin: Redis) -> None:
    server.kill()
    time.sleep(OUTAGE_S)
    server.start()


def restarted(server: EmbeddedServer, admin: Redis) -> None:
    server.restart()


def cut(server: EmbeddedServer, admin: Redis) -> None:
    for _ in range(20):
        admin.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.05)


def slow(server: EmbeddedServer, admin: Redis) -> None:
    for _ in range(4):
        admin.client_pause(400, all=True)
        time.sleep(0.5)


def paused(server: EmbeddedServer, admin: Redis) -> None:
    server.pause()
    time.sleep(OUTAGE_S)
    server.resume()


def busy(server: EmbeddedServer, admin: Redis) -> None:
    with contextlib.closing(connect(server.url, timeout_s=60)) as other:

        def hold() -> None:
            with contextlib.suppress(rx.RedisError):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        eventually(lambda: _answers(admin, "BUSY"), "the server says that it is busy")
        time.sleep(OUTAGE_S)
        admin.script_kill()
        thread.join(30)
        assert not thread.is_alive()


def full(server: EmbeddedServer, admin: Redis) -> None:
    admin.config_set("maxmemory", 1)
    eventually(lambda: _answers(admin, "OOM"), "the server is full")
    time.sleep(OUTAGE_S)
    admin.config_set("maxmemory", 0)


def read_only(server: EmbeddedServer, admin: Redis) -> None:
    admin.replicaof("127.0.0.1", str(free_port()))
    time.sleep(OUTAGE_S)
    admin.replicaof("NO", "ONE")


def _answers(admin: Redis, code: str) -> bool:
    try:
        admin.set("spoke-test:probe", "x")
    except rx.RedisError as error:
        return code in f"{type(error).__name__} {error}".upper() or (code == "OOM" and "memory" in str(error))
    return False


FAULTS: list[Callable[[EmbeddedServer, Redis], None]] = [killed, restarted, cut, slow, paused, busy, full, read_only]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_pool_under_load_gets_over_it(
    server: EmbeddedServer, pool: str, tmp_path: Path, fault: Callable[[EmbeddedServer, Redis], None]
) -> None:
    keys = Keys(pool)
    with Daemons(tmp_path, pool) as daemons, contextlib.closing(connect(server.url)) as admin:
        daemons.allocator(server.url)
        daemons.agent(server.url, "n1", gpus=8, lease_s=60)
        with Load(server.url, pool) as load:
            load.goes_on(30)
            before = daemons.said().count("\n")
            fault(server, admin)
            load.goes_on(30)
        lines = daemons.said().splitlines()[before:]
        assert load.errors == []
        assert len(load.granted) == len(set(load.granted)), "a ticket was granted twice"
        log = EventLog(admin, keys.events, keys.snapshot)

        def whole() -> bool:
            state = log.recover()
            nodes = state.nodes.values()
            return len(nodes) == 1 and not state.tickets and all(n.phase == "up" and n.free == n.total for n in nodes)

        eventually(whole, "all tickets gone and all GPUs free", 60)
        report = verify(log)
        assert report.problems == []
        assert report.counts["client.lost"] == report.counts["node.lost"] == 0
        if load.refused:  # by the server, which full or read-only, or for one whose first sending was unclear
            assert report.counts["gang.allocated"] >= len(load.granted)
        else:
            assert report.counts["gang.allocated"] == len(load.granted)
        outages = 20 if fault is cut else 4 if fault is slow else 1
        assert len(lines) <= LINES_MAX * outages, "each tells of it once, not in a flood"
