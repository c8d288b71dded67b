"""The archive of a pool's log: segments in a folder, which can be verified, replayed and restored.

Files are called ``<first id>_<last id>.jsonl.gz`` (``segment.py``); one that is there is whole, since it gets its name
when it is on disk. They follow each other without a gap, which the hash chain proves. Each begins with the pool's
state, folded while the archive is written: a replay to some moment begins with the segment that holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from spoke.errors import LogError
from spoke.events import segment, snapshot
from spoke.events.chain import BEGIN, hash_of
from spoke.events.columns import HASH_DIGITS, Columns, Only, entries_of, events_of, links_of, some_events_of
from spoke.events.entries import Batch, Link, RawEntry, end_of
from spoke.events.fold import fold_all
from spoke.events.ids import order_of
from spoke.events.segment import BadSegment, Before
from spoke.events.state import PoolState
from spoke.events.strays import stray_of

SEGMENT_EVENTS = 250_000
SUFFIX = ".jsonl.gz"


class Source(Protocol):
    """The log that is archived."""

    def last_id(self) -> str:
        """The id of its newest event."""

    def base(self) -> PoolState:
        """The state before its oldest event."""

    def base_hash(self) -> str:
        """The hash of the event before its oldest."""

    def raw(self, after: str) -> Iterator[RawEntry]:
        """Its entries after an id."""


class Archive:
    """The segments of one pool in a folder."""

    def __init__(self, folder: Path, pool: str) -> None:
        self.folder, self.pool = folder, pool

    def segments(self) -> list[Path]:
        """The segment files in their order."""
        found = [path for path in self.folder.glob(f"*{SUFFIX}") if "_" in path.name]
        return sorted(found, key=lambda path: [_order_in(path, part) for part in ends_of(path)])

    def before(self, path: Path) -> Before:
        """What comes before a segment; raises BadSegment."""
        return segment.before(path, self.pool)

    def base(self) -> PoolState:
        """The state before the first archived event: empty, unless archiving began on a trimmed log. BadSegment."""
        found = self.segments()
        state = self._state_before(found[0]) if found else PoolState()
        if state is None:
            raise BadSegment(f"{found[0]} does not say in what state the pool was before it")
        return state

    def base_hash(self) -> str:
        """The hash of the event before the first archived one."""
        found = self.segments()
        return self.before(found[0]).h if found else BEGIN

    def start(self, until: str) -> PoolState:
        """The state before the last segment that begins up to ``until``: a replay to there begins with it."""
        end = end_of(until)
        for path in reversed(self.segments()[1:]):
            if order_of(ends_of(path)[0]) <= end:
                state = self._state_before(path)
                if state is not None:
                    return state
        return self.base()

    def _state_before(self, path: Path) -> PoolState | None:
        found = self.before(path).state
        return snapshot.decode(found) if found is not None else None

    def last_id(self) -> str:
        """The id of the last archived event; ``0-0`` for an empty archive."""
        found = self.segments()
        return ends_of(found[-1])[1] if found else "0-0"

    def first_id(self) -> str:
        """The id of the first archived event; ``0-0`` for an empty archive."""
        found = self.segments()
        return ends_of(found[0])[0] if found else "0-0"

    def write(self, log: Source) -> list[Path]:
        """Archive what the log holds and the archive does not; the new files. BadSegment where there is a gap."""
        after, written = self.last_id(), []
        base = log.base()
        if after != "0-0" and order_of(base.last_id) > order_of(after):
            raise BadSegment(
                f"the archive ends at event {after}, but the log begins after {base.last_id}: events between are gone; "
                f"begin a new archive in another folder"
            )
        if order_of(log.last_id()) < order_of(after):
            raise BadSegment(
                f"the archive ends at event {after}, but the log ends at {log.last_id()}: is it another log?"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        course = self._end() if after != "0-0" else _Course(base, log.base_hash())
        entries = _events(log.raw(after), course.h)
        while first := next(entries, None):
            written.append(self._write(course, chain([first], islice(entries, SEGMENT_EVENTS - 1))))
        return written

    def _write(self, course: _Course, entries: Iterator[RawEntry]) -> Path:
        part = self.folder / "next.part"
        first = next(entries)
        done = segment.write(part, self.pool, chain([first], entries), course.before(), course.take)
        course.h = done.last_hash
        path = self.folder / f"{first[0]}_{done.last_id}{SUFFIX}"
        part.rename(path)
        _sync(self.folder)
        return path

    def _end(self) -> _Course:
        """Where the archive ends; without a state, if what it holds cannot be folded: then `verify` says why."""
        *others, last = self.segments()
        course, after = _Course(None, self.before(last).h), ends_of(others[-1])[1] if others else "0-0"
        try:
            state = self.start("+")
            course, after = _Course(state, course.h), state.last_id
        except LogError:
            pass  # the hash at the end is found all the same
        try:
            for line in self.lines(after):
                course.take(line)
        except BadSegment:
            course.state = None
        return course

    def lines(self, after: str = "0-0", until: str = "+") -> Iterator[Columns]:
        """The archived entries as columns; the lines at both ends may hold more. BadSegment for a broken file."""
        begin, end = order_of(after), end_of(until)
        for path in self.segments():
            first, last = map(order_of, ends_of(path))
            if last > begin and first <= end:
                for line in segment.read(path, self.pool):
                    if order_of(line.ids[-1]) > begin:
                        yield line

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The archived entries after an id; raises BadSegment for a file that is not as it was written."""
        begin, end = order_of(after), end_of(until)
        for line in self.lines(after, until):
            try:
                found = entries_of(line)
            except ValueError as error:
                raise BadSegment(f"the archive in {self.folder} cannot be read: {error}") from error
            for entry in found:
                place = order_of(entry[0])
                if place > end:
                    return
                if place > begin:
                    yield entry

    def batches(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Batch]:
        """The archived events after an id, many at once; raises BadSegment."""
        begin, end = order_of(after), end_of(until)
        for line in self.lines(after, until):
            if order_of(line.ids[0]) > end:
                return
            try:
                batch = Batch.of(line.ids, some_events_of(line, only))
            except ValueError as error:
                raise BadSegment(f"the archive in {self.folder} cannot be read: {error}") from error
            inside = order_of(line.ids[0]) > begin and order_of(line.ids[-1]) <= end
            yield batch if inside else batch.between(begin, end)

    def links(self, after: str = "0-0", until: str = "+") -> Iterator[Link]:
        """The archived entries after an id, with what proves and what tells them; raises BadSegment."""
        begin, end = order_of(after), end_of(until)
        for line in self.lines(after, until):
            try:
                found = zip(line.ids, links_of(line), events_of(line), strict=True)
            except ValueError as error:
                raise BadSegment(f"the archive in {self.folder} cannot be read: {error}") from error
            inside = order_of(line.ids[0]) > begin and order_of(line.ids[-1]) <= end
            for event_id, (link, args), event in found:
                if not inside:
                    place = order_of(event_id)
                    if place > end:
                        return
                    if place <= begin:
                        continue
                yield Link(event_id, link, args, event)


def _events(entries: Iterator[RawEntry], before: str) -> Iterator[RawEntry]:
    """The entries up to the first that no allocator wrote, which will not stand in the log much longer."""
    for entry in entries:
        if stray_of(*entry, before) is not None:
            return
        before = hash_of(entry[1])
        yield entry


class _Course:
    """Follows what is archived: the state and the hash at its end. ``state`` is None from where it is not known."""

    def __init__(self, state: PoolState | None, h: str) -> None:
        self.state, self.h = state, h
        if state is not None:
            state.capacity.suspended = True  # nobody asks it, and a snapshot does not hold it

    def before(self) -> Before:
        """What comes before the next segment."""
        return Before(self.h, snapshot.encode(self.state) if self.state is not None else None)

    def take(self, line: Columns) -> None:
        """The next entries."""
        self.h = _last_hash(line) or self.h
        if self.state is None:
            return
        try:
            batch = Batch.of(line.ids, events_of(line))
            fold_all(self.state, batch.ids, batch.events)
            if batch.problem is not None:
                raise batch.problem
        except (LogError, ValueError):  # archived all the same: a later release may read it
            self.state = None


def _last_hash(line: Columns) -> str:
    if not line.odd:
        return line.h[-HASH_DIGITS:]
    return next((found for _, fields in reversed(entries_of(line)) if (found := hash_of(fields))), "")


def ends_of(path: Path) -> tuple[str, str]:
    """The first and the last id that a segment's name names."""
    first, _, last = path.name.removesuffix(SUFFIX).partition("_")
    return first, last


def _order_in(path: Path, event_id: str) -> tuple[int, int]:
    try:
        return order_of(event_id)
    except ValueError as error:
        raise BadSegment(f"{path} is no segment: {event_id[:100]!r} is no event's id") from error


def _sync(folder: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
