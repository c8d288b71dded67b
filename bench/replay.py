"""Replay against only fetching and decoding the same events: from a server's stream, and from an archive.

    python bench/replay.py [--json] [--events 300000]

The log is made up (``synthetic.py``): 100 nodes of 8 GPUs, gangs of 1 to 16 actors. The archive has four segments.
Each figure is the best of ``ROUNDS``, figure and floor in turn. "Every event folded" begins with the first segment;
a replay begins with the one that holds its end, so its figure counts events that it did not read.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from allocate import figure
from synthetic import chained, events

from spoke.cli.embedded import EmbeddedServer
from spoke.events import archive as archives
from spoke.events.archive import Archive
from spoke.events.archived import StoredLog
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect

ROUNDS = 5
SEGMENTS = 4
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
            archives.SEGMENT_EVENTS = -(-options.events // SEGMENTS)
            archive = Archive(Path(folder) / "archive", POOL)
            archive.write(live)
            stored = StoredLog(archive)
            gc.collect()
            value, floor = _best([live.replay, partial(_decode, live)], options.events)
            figure("replay from a server's stream", value, "events/s", floor, options.json)
            runs: list[Callable[[], object]] = [partial(_fold, stored), stored.replay, partial(_decode, stored)]
            folded, replayed, floor = _best(runs, options.events)
            figure("every event of an archive folded", folded, "events/s", floor, options.json)
            figure("replay to the end of an archive", replayed, "events/s", floor, options.json)
            for jobs in sorted({1, len(os.sched_getaffinity(0))}):
                (verified,) = _best([partial(verify, stored, jobs=jobs)], options.events, rounds=2)
                figure(f"verify an archive, processes: {jobs}", verified, "events/s", floor, options.json)


def _fold(log: EventLog) -> None:
    """Fold all of it, whatever states are kept in between."""
    log.folded(log.base())


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
