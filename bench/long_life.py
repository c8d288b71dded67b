"""Memory of server and allocator over a long life: gangs come and go, the log is archived and trimmed behind that.

One client keeps many requests under way, which allocate a gang and release it; ``spoke audit archive`` runs every few
seconds. The floor is the memory once the log has been trimmed and the first replies have gone, the figure is that at
the end, after ``--events`` more; both are medians over a minute. The server's memory swings with the log's length
between two trims, so it is also given for a thousand events in the log.

    python bench/long_life.py [--json] [--events 200000]       (10 million took 24 minutes on two shared cores)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allocate import Load, register_nodes  # the benchmark beside this one

import spoke
from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.cli.embedded import EmbeddedServer
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect

KEEP_EVENTS = 40_000
SNAPSHOT_EVERY = 10_000
CLIENT_LEASE_S = 10.0
"""Replies are kept for that long and 20 s more."""
WARM_S = 60.0
ARCHIVE_EVERY_S = 5.0
SAMPLE_EVERY_S = 5.0
MEDIAN_OF = 12
"""Samples: one minute."""
MEBI = 1 << 20
POOL = "bench"


@dataclass(frozen=True)
class Sample:
    """What was used at one moment; memory in MiB."""

    at_s: float
    events: int
    server: float
    allocator: float
    client: float
    log: int

    @property
    def server_a_thousand(self) -> float:
        """The server's memory by the log's length, in thousands of events."""
        return self.server / self.log * 1000


def _allocator(url: str) -> None:
    Allocator(
        AllocatorConfig(url, POOL, snapshot_every=SNAPSHOT_EVERY, keep_events=KEEP_EVENTS, own_process=True)
    ).run()


def _resident(pid: int | str) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBI


class Samples(threading.Thread):
    """Looks at the memory from time to time, and prints it to standard error."""

    def __init__(self, redis: Redis, allocator: int) -> None:
        super().__init__(daemon=True)
        self._redis, self._allocator, self._begun = redis, allocator, time.monotonic()
        self._stop_asked = threading.Event()
        self.taken: list[Sample] = []

    def run(self) -> None:
        """Until ``stop``."""
        while not self._stop_asked.wait(SAMPLE_EVERY_S):
            self.take()

    def take(self) -> Sample:
        """One more."""
        memory: Any = self._redis.info("memory")
        stream: Any = self._redis.xinfo_stream(Keys(POOL).events)
        sample = Sample(
            at_s=time.monotonic() - self._begun,
            events=int(stream["entries-added"]),
            server=float(memory["used_memory"]) / MEBI,
            allocator=_resident(self._allocator),
            client=_resident("self"),
            log=int(stream["length"]),
        )
        self.taken.append(sample)
        print(
            f"{sample.at_s:7.0f} s  {sample.events:>12,} events, {sample.log:>9,} in the log; MiB: server "
            f"{sample.server:.1f}, allocator {sample.allocator:.1f}, client {sample.client:.1f}",
            file=sys.stderr,
            flush=True,
        )
        return sample

    def stop(self) -> None:
        """No more."""
        self._stop_asked.set()
        self.join()


class Archiving(threading.Thread):
    """Runs `spoke audit archive` from time to time, as a timer would."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(daemon=True)
        words = ["audit", "archive", str(directory), "--url", url, "--pool", POOL]
        self._command = [sys.executable, "-m", "spoke.cli.main", *words]
        self._stop_asked = threading.Event()
        self.failed = ""

    def run(self) -> None:
        """Until ``stop``, or a run fails."""
        while not self._stop_asked.wait(ARCHIVE_EVERY_S):
            done = subprocess.run(self._command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                self.failed = done.stderr
                return

    def stop(self) -> None:
        """No more."""
        self._stop_asked.set()
        self.join()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--data", type=Path, help="an empty folder in which server's data and archive stay")
    options = parser.parse_args()
    if options.data is not None:
        _measure(options.data, options.events, options.json)
        return
    with tempfile.TemporaryDirectory(prefix="spoke-bench-") as directory:
        _measure(Path(directory), options.events, options.json)


def _measure(directory: Path, events: int, as_json: bool) -> None:
    with EmbeddedServer(directory / "data") as server:
        process = multiprocessing.get_context("spawn").Process(target=_allocator, args=(server.url,), daemon=True)
        process.start()
        redis = connect(server.url)
        log = EventLog(redis, Keys(POOL).events, Keys(POOL).snapshot)
        archiving = Archiving(server.url, directory / "archive")
        try:
            register_nodes(server.url, POOL, 64)
            samples = Samples(redis, process.pid or 0)
            with spoke.Client(server.url, pool=POOL, lease_s=CLIENT_LEASE_S, allocator_timeout_s=60) as client:
                load = Load(client)
                samples.start()
                archiving.start()
                warm_until = time.monotonic() + WARM_S
                load.begin()
                while time.monotonic() < warm_until or log.base().last_id == "0-0":
                    time.sleep(1)
                warm = samples.take().events
                while samples.taken[-1].events < warm + events:
                    assert not load.failed, load.failed[0]
                    assert not archiving.failed, archiving.failed
                    time.sleep(1)
                load.end()
        finally:
            archiving.stop()
            samples.stop()
            redis.close()
            process.terminate()
            process.join(10)
        archived = sum(path.stat().st_size for path in (directory / "archive").iterdir()) / MEBI
    _show([sample for sample in samples.taken if sample.events >= warm], events, archived, as_json)


def _show(taken: list[Sample], events: int, archived: float, as_json: bool) -> None:
    rate = (taken[-1].events - taken[0].events) / (taken[-1].at_s - taken[0].at_s)
    print(f"{rate:,.0f} events a second; {archived:,.0f} MiB of archive", file=sys.stderr)
    names = {"server_a_thousand": "server memory for a thousand events in the log"} | {
        name: f"{name} memory" for name in ("server", "allocator", "client")
    }
    for name, words in names.items():
        values = [getattr(sample, name) for sample in taken]
        floor, figure = statistics.median(values[:MEDIAN_OF]), statistics.median(values[-MEDIAN_OF:])
        line = {"figure": f"{words} after {events:,} more events", "value": round(figure, 3), "unit": "MiB"}
        line |= {"floor": round(floor, 3), "ratio": round(figure / floor, 3), "most": round(max(values), 3)}
        if as_json:
            print(json.dumps(line))
        else:
            print(f"{line['figure']}: {figure:.2f} MiB, before {floor:.2f} MiB, most {max(values):.2f} MiB")


if __name__ == "__main__":
    main()
