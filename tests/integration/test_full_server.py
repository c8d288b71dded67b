"""A server whose memory is full to the brim: leases are renewed, and the allocator makes room by doing its work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis.exceptions as rx

import spoke
from spoke.allocator.wire import RawRequests, Wire
from spoke.cli.embedded import EmbeddedServer
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys, node_lease
from spoke.protocol.leases import renew_lease
from spoke.protocol.server import Redis, connect
from tests.fakes import eventually
from tests.integration.test_allocator_log import allocator, register

MAX = "40mb"


def fill(redis: Redis, keys: Keys) -> None:
    """What a client does that asks on and on and hears no refusal."""
    number = 0
    for size in (1 << 20, 1 << 14, 1 << 7):
        while True:
            number += 1
            asked = {"type": "gang.allocate", "v": 1, "client_id": "broken", "seq": number, "body": b"x" * size}
            try:
                redis.xadd(keys.requests, asked)  # type: ignore[arg-type]
            except rx.OutOfMemoryError:
                break
            assert number < 1_000_000


def test_one_who_fills_the_server_to_the_brim_does_not_stop_the_others(tmp_path: Path, pool: str) -> None:
    keys, holder = Keys(pool), node_lease("n1", "i")
    with EmbeddedServer(tmp_path, options=("--maxmemory", MAX)) as server, connect(server.url) as redis:
        with allocator(server.url, pool):
            register(redis, keys, "n1")
            eventually(lambda: redis.zscore(keys.leases, holder))
        fill(redis, keys)
        deadline = time.monotonic() + 3.0  # the buffers that the server lends to connections go back after a while
        while time.monotonic() < deadline:
            fill(redis, keys)
            time.sleep(0.1)
        assert renew_lease(redis, keys, holder, 60_000), "the node's agent need not kill what runs there"
        with allocator(server.url, pool):
            eventually(lambda: redis.xlen(keys.requests) < 5)
            with spoke.Client(server.url, pool=pool) as client:
                assert client.gang_allocate(1, 1, timeout=0).result(30)
        assert verify(EventLog(redis, keys.events, keys.snapshot)).problems == []


def test_large_requests_are_read_few_at_a_time(
    server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all of them at once took more memory than there may be, and longer than a leadership lasts."""
    keys, sizes, real = Keys(pool), list[int](), Wire.take_read

    def take_read(wire: Wire) -> RawRequests:
        found = real(wire)
        sizes.append(sum(len(value) for _, raw in found for value in raw.values()))
        return found

    monkeypatch.setattr(Wire, "take_read", take_read)
    with connect(server.url) as redis:
        for seq in range(64):
            redis.xadd(
                keys.requests, {"type": "gang.allocate", "client_id": "c", "seq": seq + 1, "x": b"x" * (4 << 20)}
            )
        with allocator(server.url, pool):
            eventually(lambda: redis.xlen(keys.requests) < 5)
        assert sum(sizes) > 200 << 20
        assert max(sizes) < 40 << 20
