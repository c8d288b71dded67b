"""Every audit command over a long log: time and memory of each, and whether memory is bounded.

    python bench/long_log.py FOLDER [--json] [--events 10000000] [--only NAME ...]

The log is made up (``synthetic.py``), archived in FOLDER/archive and kept there for the next run: ten million events
take some minutes and 300 MB. Each command is a process of its own; its CPU time counts its children, its memory is the
largest resident set of one process. What a command writes goes to FOLDER and is deleted; ``MB written`` is what it was.
``restore`` and ``archive`` need 4 GiB for the server, which is not counted. The floor of memory is a command that
reads nothing (``spoke --version``).
"""

from __future__ import annotations

import argparse
import json
import marshal
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

from synthetic import START_MS, STEP_MS, chained, events

from spoke.cli.embedded import EmbeddedServer
from spoke.events.archive import Archive
from spoke.events.entries import RawEntry
from spoke.events.log import EventLog
from spoke.events.state import PoolState

POOL = "bench"
BATCH = 5_000
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Figure:
    """What one command took."""

    name: str
    cpu_s: float
    wall_s: float
    memory_mib: float
    written_mb: float


class _Made(EventLog):
    """A log that another process makes up: so that making and archiving it share two cores."""

    def __init__(self, count: int) -> None:
        super().__init__(None, "", "")
        self._count = count

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        maker = multiprocessing.Process(target=_make, args=(theirs, self._count), daemon=True)
        maker.start()
        theirs.close()
        while some := marshal.loads(ours.recv_bytes()):
            yield from some
        maker.join()

    def base(self) -> PoolState:
        return PoolState()

    def base_hash(self) -> str:
        return ""

    def last_id(self) -> str:
        return f"{START_MS + (self._count - 1) * STEP_MS}-0"


def _make(out: Connection, count: int) -> None:
    log = chained(events(count))
    while some := list(islice(log, BATCH)):
        out.send_bytes(marshal.dumps(some))
    out.send_bytes(marshal.dumps([]))


def made(folder: Path, count: int) -> Path:
    """The archive of a made-up log; made now if it is not there."""
    archive = folder / f"archive-{count}"
    if not archive.is_dir():
        part = folder / "archive.part"
        shutil.rmtree(part, ignore_errors=True)
        began = time.perf_counter()
        Archive(part, POOL).write(_Made(count))
        part.rename(archive)
        print(f"made {count:,} events in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return archive


def commands(archive: Path, out: Path, count: int) -> dict[str, list[str]]:
    """What is measured, by name: the arguments of ``spoke``."""
    last_ms = START_MS + (count - 1) * STEP_MS
    middle, late = f"{(START_MS + last_ms) // 2}-0", f"{last_ms - 3 * HOUR_MS}-0"
    hour = f"{(START_MS + last_ms) // 2 + HOUR_MS}-0"
    stored = ["--archive", str(archive), "--offline", "--pool", POOL]

    def audit(*words: str) -> list[str]:
        return ["audit", *words, *stored]

    return {
        "nothing": ["--version"],
        "verify": audit("verify"),
        "replay": audit("replay"),
        "replay --until": audit("replay", "--until", middle),
        "replay --diff": audit("replay", "--diff", middle, hour),
        "history gpu": audit("history", "gpu", "node-0007:3"),
        "history ticket": audit("history", "ticket", "t-1000"),
        "usage by user": audit("usage"),
        "usage by ticket": audit("usage", "--by", "ticket"),
        "usage by ticket, csv": audit("usage", "--by", "ticket", "-o", str(out / "usage.csv")),
        "usage by ticket, parquet": audit("usage", "--by", "ticket", "-o", str(out / "usage.parquet")),
        "usage --since": audit("usage", "--since", late),
        "timeline": ["timeline", "-o", str(out / "all.html"), *stored],
        "timeline --since": ["timeline", "-o", str(out / "late.html"), "--since", late, *stored],
        "timeline svg": ["timeline", "-o", str(out / "all.svg"), *stored],
        "timeline png": ["timeline", "-o", str(out / "all.png"), *stored],
        "export jsonl": audit("export", "-o", str(out / "events.jsonl")),
        "export parquet": audit("export", "-o", str(out / "events.parquet")),
        "query": audit("query", "SELECT type, count(*) FROM events GROUP BY type ORDER BY 2 DESC"),
        "query sorted": audit("query", "--csv", "SELECT id, ticket_id, h FROM events ORDER BY h"),
        "what-if": audit("what-if"),
        "restore": ["audit", "restore", str(archive), "--from", POOL, "--pool", "anew"],
        "archive": ["audit", "archive", str(out / "again"), "--pool", "anew"],
    }


def measured(name: str, words: list[str], out: Path, environment: dict[str, str]) -> Figure:
    """Run one command to its end; RuntimeError if it fails."""
    began = time.perf_counter()
    with open(out / "stdout", "wb") as stdout, open(out / "stderr", "wb") as stderr:
        command = [sys.executable, "-m", "spoke.cli.main", *words]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env={**os.environ, **environment})
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name}: exit code {process.returncode}\n{(out / 'stderr').read_text()[-2000:]}")
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Figure(name, used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024, written / 1e6)


def show(found: Figure, as_json: bool) -> None:
    """One line of it."""
    if as_json:
        print(json.dumps({"figure": found.name, **{k: v for k, v in asdict(found).items() if k != "name"}}))
        return
    print(
        f"{found.name:26} {found.cpu_s:7.1f} s CPU {found.wall_s:7.1f} s {found.memory_mib:7.0f} MiB "
        f"{found.written_mb:9.1f} MB written",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--make", action="store_true", help="only make the log")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    archive = made(options.folder, options.events)
    if options.make:
        return
    out = options.folder / "out"
    chosen = commands(archive, out, options.events)
    names = options.only or list(chosen)
    server = EmbeddedServer(options.folder / "server") if {"restore", "archive"} & set(names) else None
    if server is not None:
        server.start()
    try:
        for name in names:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            environment = {"SPOKE_URL": server.url} if server is not None else {}
            show(measured(name, chosen[name], out, environment), options.json)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        if server is not None:
            server.stop()
            shutil.rmtree(options.folder / "server")


if __name__ == "__main__":
    main()
