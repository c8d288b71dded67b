"""Memory of the server over a long life: gangs come and go, the log is trimmed, what is kept must stay flat.

The floor is the memory once the log is trimmed and the first replies have gone; the figure is that at the end, after
``--events`` more.

    python bench/long_life.py [--json] [--events 200000]       (10 million take about half an hour)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import spoke
from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.cli.embedded import EmbeddedServer
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect

KEEP_EVENTS = 40_000
SNAPSHOT_EVERY = 10_000
OUTSTANDING = 200
WARM_S = 40.0
"""Longer than replies are kept."""
MEBI = 1 << 20


def _allocator(url: str, pool: str) -> None:
    Allocator(AllocatorConfig(url, pool, snapshot_every=SNAPSHOT_EVERY, keep_events=KEEP_EVENTS)).run()


def _memory(redis: Redis) -> float:
    found: Any = redis.info("memory")
    return float(found["used_memory"]) / MEBI


def _requests(client: spoke.Client, count: int) -> None:
    """So many requests that each lead to one event."""
    for _ in range(0, count, OUTSTANDING):
        for future in [client.gang_allocate(1, 1, timeout=0) for _ in range(OUTSTANDING)]:
            future.exception(60)  # no node is there: each is refused, and recorded


def main() -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=200_000)
    options = parser.parse_args()
    pool = "bench"
    keys = Keys(pool)
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory)) as server:
        process = multiprocessing.get_context("spawn").Process(target=_allocator, args=(server.url, pool), daemon=True)
        process.start()
        redis = connect(server.url)
        log = EventLog(redis, keys.events, keys.snapshot)
        try:
            with spoke.Client(server.url, pool=pool, allocator_timeout_s=60) as client:
                while log.base().last_id == "0-0":
                    _requests(client, SNAPSHOT_EVERY)
                warm = time.monotonic() + WARM_S
                while time.monotonic() < warm:
                    _requests(client, SNAPSHOT_EVERY // 5)
                floor, begun = _memory(redis), time.perf_counter()
                _requests(client, options.events)
                spent, figure = time.perf_counter() - begun, _memory(redis)
        finally:
            redis.close()
            process.terminate()
            process.join(10)
    line = {"figure": f"server memory after {options.events:,} more events", "value": round(figure, 2), "unit": "MiB"}
    line |= {"floor": round(floor, 2), "ratio": round(figure / floor, 3)}
    if options.json:
        print(json.dumps(line))
    else:
        print(f"{line['figure']}: {figure:.2f} MiB, before {floor:.2f} MiB, ratio {line['ratio']} ({spent:.0f} s)")


if __name__ == "__main__":
    main()
