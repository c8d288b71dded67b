"""Verifying an archive by its segments, in several processes at a time.

A segment says what comes before it: a state and a hash. So each can be verified by itself; and where one ends, the next
must begin with the same state and the same hash.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from spoke.errors import LogError
from spoke.events import snapshot
from spoke.events.archive import Archive, ends_of
from spoke.events.archived import StoredLog
from spoke.events.entries import end_of
from spoke.events.ids import order_of
from spoke.events.log import EventLog, WatchedLog
from spoke.events.state import PoolState
from spoke.events.walk import Report, walk

BYTES_ALONE = 4 << 20
"""An archive that is smaller is not worth the start of another process."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Segments that are verified in one go: the first says in what state the pool was, later ones do not."""

    folder: str
    pool: str
    first: str
    until: str
    anchor: str


@dataclass(slots=True)
class Checked:
    """What was found of a stretch, and the states (as snapshots) at both its ends. ``report`` comes without a state."""

    stretch: Stretch
    report: Report
    before_hash: str
    before: bytes
    after: bytes


def archived(log: EventLog, until: str, anchor: str, jobs: int) -> Iterator[Report] | None:
    """The reports of the log's archived stretches in their order; None if the log has no archive. Raises BadSegment."""
    archive = log.archive()
    stretches = _stretches(archive, until, anchor) if archive is not None else []
    if not stretches or archive is None:
        return None
    if sum(path.stat().st_size for path in archive.segments()) < BYTES_ALONE:
        jobs = 1
    return _joined(log, _checked(stretches, min(jobs, len(stretches))), len(stretches))


def _stretches(archive: Archive, until: str, anchor: str) -> list[Stretch]:
    found: list[Stretch] = []
    for path in archive.segments():
        first, last = ends_of(path)
        if order_of(first) > end_of(until):
            break
        end = last if order_of(last) <= end_of(until) else until
        if not found or archive.before(path).state is not None:
            found.append(Stretch(str(archive.folder), archive.pool, path.name, end, anchor))
        else:
            begun = found.pop()
            found.append(Stretch(begun.folder, begun.pool, begun.first, end, anchor))
    return found


def check(stretch: Stretch) -> Checked:
    """Verify a stretch; raises BadSegment for a file that is not as it was written."""
    archive = Archive(Path(stretch.folder), stretch.pool)
    before = archive.before(Path(stretch.folder, stretch.first))
    state = snapshot.decode(before.state) if before.state is not None else archive.base()
    begins = snapshot.encode(state)
    report = walk(StoredLog(archive), state, before.h, stretch.until, stretch.anchor)
    ends, report.state = snapshot.encode(report.state), PoolState()
    return Checked(stretch, report, before.h, begins, ends)


def _checked(stretches: list[Stretch], jobs: int) -> Iterator[Checked]:
    if jobs < 2:
        yield from map(check, stretches)
        return
    rest = iter(stretches)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_be_a_worker)
    running: deque[Future[Checked]] = deque()
    try:
        while True:
            while len(running) < 2 * jobs and (stretch := next(rest, None)):
                running.append(pool.submit(check, stretch))
            if not running:
                return
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise LogError(
            "a process that verified part of the archive was ended by something else (out of memory?): try --jobs 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _be_a_worker() -> None:
    """End without a word on Ctrl-C, and when the process that asked is gone: nobody else would tell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="spoke-verify-parent", daemon=True).start()


def _joined(log: EventLog, parts: Iterator[Checked], count: int) -> Iterator[Report]:
    """The reports, with what is wrong where one stretch ends and the next begins."""
    end: Checked | None = None
    for at, part in enumerate(parts, start=1):
        report, first = part.report, ends_of(Path(part.stretch.first))[0]
        joints = list(_joint(end, part)) if end is not None else []
        if joints:
            report.problems, report.first_bad = joints + report.problems, first
            report.broken_off = True
        if report.broken_off or at == count:
            report.state = snapshot.decode(part.after)
        if isinstance(log, WatchedLog) and report.events:
            log.tell(report.events, report.last_id)
        end = part
        yield report


def _joint(end: Checked, begin: Checked) -> Iterator[str]:
    what = f"{begin.stretch.first} begins"
    if begin.before_hash != end.report.last_hash:
        yield (
            f"chain: {what} after an event with the hash {begin.before_hash}, but the segment before it ends with "
            f"{end.report.last_hash}: events between them are gone, or were changed"
        )
    elif begin.before != end.after:
        yield f"I8: {what} with another state than the events before it fold to"
