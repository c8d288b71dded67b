"""Replay against only fetching and decoding the same events: from a server's stream, and from an archive.

    python bench/replay.py [--json] [--events 300000]

The log is made up (``synthetic.py``): 100 nodes of 8 GPUs, gangs of 1 to 16 actors. Each figure is the best of
``ROUNDS``, figure and floor in turn.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from allocate import figure
from synthetic import chained, events

from spoke.cli.embedded import EmbeddedServer
from spoke.events.archive import Archive, StoredLog
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect

ROUNDS = 5
POOL = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=300_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spoke-bench-") as folder, EmbeddedServer(Path(folder) / "data") as server:
        keys = Keys(POOL)
        with connect(server.url) as redis:
            pipe = redis.pipeline(transaction=False)
            for at, (event_id, fields) in enumerate(chained(events(options.events)), start=1):
                pipe.xadd(keys.events, dict(fields), id=event_id)
                if at % 1_000 == 0:
                    pipe.execute()
            pipe.execute()
            live = EventLog(redis, keys.events, keys.snapshot)
            archive = Archive(Path(folder) / "archive", POOL)
            archive.write(live)
            stored = StoredLog(archive)
            gc.collect()
            for name, log in (("a server's stream", live), ("an archive", stored)):
                value, floor = _best([log.replay, partial(_decode, log)], options.events)
                figure(f"replay from {name}", value, "events/s", floor, options.json)
            value, floor = _best([stored.replay, partial(_decode, live)], options.events)
            figure("replay from an archive, floor: the stream decoded", value, "events/s", floor, options.json)
            (verified,) = _best([partial(verify, stored)], options.events, rounds=1)
            figure("verify an archive", verified, "events/s", floor, options.json)


def _decode(log: EventLog) -> None:
    """Only fetch and decode."""
    deque(log.batches(), maxlen=0)


def _best(runs: list[Callable[[], object]], events: int, rounds: int = ROUNDS) -> list[float]:
    """Events a second of each, the best of some rounds in turn."""
    best = [0.0] * len(runs)
    for _ in range(rounds):
        for at, run in enumerate(runs):
            began = time.perf_counter()
            run()
            best[at] = max(best[at], events / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main()
