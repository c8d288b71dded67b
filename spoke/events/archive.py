"""The archive of a pool's log: segments in a folder, which can be verified, replayed and restored.

Files are called ``<first id>_<last id>.jsonl.gz`` (``segment.py``); one that is there is whole, since it gets its name
when it is on disk. They follow each other without a gap, which the hash chain proves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import orjson

from spoke.events import segment, snapshot
from spoke.events.chain import BEGIN
from spoke.events.columns import Columns, entries_of, events_of
from spoke.events.ids import order_of
from spoke.events.log import Batch, EventLog, RawEntry, end_of
from spoke.events.segment import BadSegment
from spoke.events.state import PoolState

SEGMENT_EVENTS = 250_000
SUFFIX = ".jsonl.gz"
BASE = "base.json"


class Archive:
    """The segments of one pool in a folder."""

    def __init__(self, folder: Path, pool: str) -> None:
        self.folder, self._pool = folder, pool

    def segments(self) -> list[Path]:
        """The segment files in their order."""
        found = [path for path in self.folder.glob(f"*{SUFFIX}") if "_" in path.name]
        return sorted(found, key=lambda path: [_order_in(path, part) for part in _ends(path)])

    def base(self) -> tuple[PoolState, str]:
        """The state and the hash before the first archived event; empty, unless archiving began on a trimmed log."""
        try:
            found = orjson.loads((self.folder / BASE).read_bytes())
            return snapshot.decode(found["state"].encode("latin-1")), str(found["h"])
        except FileNotFoundError:
            return PoolState(), BEGIN
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadSegment(f"{self.folder / BASE} cannot be read: {error}") from error

    def last_id(self) -> str:
        """The id of the last archived event; ``0-0`` for an empty archive."""
        found = self.segments()
        return _ends(found[-1])[1] if found else "0-0"

    def first_id(self) -> str:
        """The id of the first archived event; ``0-0`` for an empty archive."""
        found = self.segments()
        return _ends(found[0])[0] if found else "0-0"

    def write(self, log: EventLog) -> list[Path]:
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
        if after == "0-0" and base.last_id != "0-0":
            state = snapshot.encode(base).decode("latin-1")
            _write_whole(self.folder / BASE, [orjson.dumps({"h": log.base_hash(), "state": state})])
        entries = log.raw(after)
        while first := next(entries, None):
            written.append(self._write(first, islice(entries, SEGMENT_EVENTS - 1)))
        return written

    def _write(self, first: RawEntry, more: Iterator[RawEntry]) -> Path:
        part = self.folder / "next.part"
        done = segment.write(part, self._pool, chain([first], more))
        path = self.folder / f"{first[0]}_{done.last_id}{SUFFIX}"
        part.rename(path)
        _sync(self.folder)
        return path

    def lines(self, after: str = "0-0") -> Iterator[Columns]:
        """The archived entries as columns; the first line may begin before the id. BadSegment for a broken file."""
        for path in self.segments():
            if order_of(_ends(path)[1]) > order_of(after):
                for line in segment.read(path, self._pool):
                    if order_of(line.ids[-1]) > order_of(after):
                        yield line

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The archived entries after an id; raises BadSegment for a file that is not as it was written."""
        begin, end = order_of(after), end_of(until)
        for line in self.lines(after):
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

    def batches(self, after: str = "0-0", until: str = "+") -> Iterator[Batch]:
        """The archived events after an id, many at once; raises BadSegment."""
        begin, end = order_of(after), end_of(until)
        for line in self.lines(after):
            if order_of(line.ids[0]) > end:
                return
            try:
                batch = Batch.of(line.ids, events_of(line))
            except ValueError as error:
                raise BadSegment(f"the archive in {self.folder} cannot be read: {error}") from error
            inside = order_of(line.ids[0]) > begin and order_of(line.ids[-1]) <= end
            yield batch if inside else batch.between(begin, end)


def _ends(path: Path) -> tuple[str, str]:
    """The first and the last id that a segment's name names."""
    first, _, last = path.name.removesuffix(SUFFIX).partition("_")
    return first, last


def _order_in(path: Path, event_id: str) -> tuple[int, int]:
    try:
        return order_of(event_id)
    except ValueError as error:
        raise BadSegment(f"{path} is no segment: {event_id[:100]!r} is no event's id") from error


def _write_whole(path: Path, chunks: list[bytes]) -> None:
    """Write a file that is there whole or not at all, also after a power failure."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ArchivedLog(EventLog):
    """A log that reaches back into its archive: from the first archived event to the newest in Redis."""

    def __init__(self, log: EventLog, archive: Archive) -> None:
        super().__init__(log.client, log.key, log.snapshot_key)
        self._live, self._archive = log, archive

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, archived ones first."""
        yield from self._archive.raw(after, until)
        after = self._end_of_archive(after, until)
        if after:
            yield from self._live.raw(after, until)

    def batches(self, after: str = "0-0", until: str = "+") -> Iterator[Batch]:
        """The events after an id, archived ones first."""
        yield from self._archive.batches(after, until)
        after = self._end_of_archive(after, until)
        if after:
            yield from self._live.batches(after, until)

    def _end_of_archive(self, after: str, until: str) -> str:
        """Where the live log goes on; empty if it is not needed."""
        last = self._archive.last_id()
        if order_of(last) > order_of(after):
            after = last
        if order_of(after) > end_of(until):
            return ""
        base = self._live.base().last_id
        if order_of(base) > order_of(after):
            raise BadSegment(f"the archive ends at event {after}, but the log begins after {base}: events are missing")
        return after

    def first_id(self) -> str:
        """The id of the first archived event, or of the first there is."""
        return self._archive.first_id() if self._archive.segments() else self._live.first_id()

    def base(self) -> PoolState:
        """The state before the first archived event."""
        return self._archive.base()[0] if self._archive.segments() else self._live.base()

    def base_hash(self) -> str:
        """The hash before the first archived event."""
        return self._archive.base()[1] if self._archive.segments() else self._live.base_hash()


class StoredLog(EventLog):
    """A log read from its archive alone: no server is asked. Raises BadSegment for a folder without segments."""

    has_snapshot = False

    def __init__(self, archive: Archive) -> None:
        super().__init__(None, "", "")
        self._archive = archive
        if not archive.segments():
            raise BadSegment(f"{archive.folder} holds no segments: name the folder that `spoke audit archive` wrote")

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, up to and including ``until``."""
        yield from self._archive.raw(after, until)

    def batches(self, after: str = "0-0", until: str = "+") -> Iterator[Batch]:
        """The events after an id, up to and including ``until``, many at once."""
        yield from self._archive.batches(after, until)

    def base(self) -> PoolState:
        """The state before the first archived event."""
        return self._archive.base()[0]

    def base_hash(self) -> str:
        """The hash before the first archived event."""
        return self._archive.base()[1]

    def first_id(self) -> str:
        """The id of the first archived event."""
        return self._archive.first_id()

    def last_id(self) -> str:
        """The id of the last archived event."""
        return self._archive.last_id()

    def recover(self, until: str = "+") -> PoolState:
        """The state at the end; an archive has no snapshots, so all of it is folded."""
        return self.replay(until)
