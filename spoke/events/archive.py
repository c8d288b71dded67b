"""Archived segments of a log: compressed, checksummed files that can be verified and replayed.

A segment is gzip (RFC 1952) over lines of JSON: a header, an event a line (``[id, {field: value}]``, bytes as latin-1),
and a footer with the number of events and a BLAKE2b checksum over all lines before it. Files are called
``<first id>_<last id>.jsonl.gz``; one that is there is whole, since it gets its name when it is on disk. Segments of
one pool stand in one folder and follow each other without a gap, which the hash chain proves.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from spoke.errors import LogError
from spoke.events import snapshot
from spoke.events.chain import BEGIN
from spoke.events.log import EventLog, RawEntry, end_of, order_of
from spoke.events.state import PoolState

VERSION = 1
SEGMENT_EVENTS = 100_000
LINE_BYTES_MAX = 64 << 20
"""No line that is read may be longer."""
SUFFIX = ".jsonl.gz"
BASE = "base.json"


class BadSegment(LogError):
    """A file is no segment, or not as it was written."""

    code = "bad_segment"


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
        while chunk := list(islice(entries, SEGMENT_EVENTS)):
            written.append(self._write(chunk))
        return written

    def _write(self, entries: list[RawEntry]) -> Path:
        path = self.folder / f"{entries[0][0]}_{entries[-1][0]}{SUFFIX}"
        lines = [_line({"spoke": "segment", "version": VERSION, "pool": self._pool})]
        for event_id, fields in entries:
            lines.append(_line([event_id, {k.decode("latin-1"): v.decode("latin-1") for k, v in fields.items()}]))
        checksum = blake2b(b"".join(lines), digest_size=32).hexdigest()
        lines.append(_line({"events": len(entries), "checksum": checksum}))
        _write_whole(path, [gzip.compress(b"".join(lines), mtime=0)])
        return path

    def raw(self, after: str = "0-0") -> Iterator[RawEntry]:
        """The archived entries after an id; raises BadSegment for a file that is not as it was written."""
        for path in self.segments():
            if order_of(_ends(path)[1]) > order_of(after):
                for entry in self._read(path):
                    if _order_in(path, entry[0]) > order_of(after):
                        yield entry

    def _read(self, path: Path) -> Iterator[RawEntry]:
        checksum, events, footer, rest = blake2b(digest_size=32), 0, None, b""
        try:
            with gzip.open(path, "rb") as file:
                header = orjson.loads(file.readline(LINE_BYTES_MAX) or b"null")
                if header != {"spoke": "segment", "version": VERSION, "pool": self._pool}:
                    raise BadSegment(f"{path} is no segment of pool {self._pool}, version {VERSION}")
                checksum.update(_line(header))
                while raw := file.readline(LINE_BYTES_MAX):
                    found = orjson.loads(raw)
                    if isinstance(found, dict):
                        footer = found
                        break
                    checksum.update(raw)
                    events += 1
                    yield str(found[0]), {k.encode("latin-1"): v.encode("latin-1") for k, v in found[1].items()}
                rest = file.read(1)
        except (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, zlib.error) as error:
            raise BadSegment(f"{path} cannot be read: {error}") from error
        if footer != {"events": events, "checksum": checksum.hexdigest()} or rest:
            raise BadSegment(f"{path} is not as it was written: its checksum does not fit")


def _ends(path: Path) -> tuple[str, str]:
    """The first and the last id that a segment's name names."""
    first, _, last = path.name.removesuffix(SUFFIX).partition("_")
    return first, last


def _order_in(path: Path, event_id: str) -> tuple[int, int]:
    try:
        return order_of(event_id)
    except ValueError as error:
        raise BadSegment(f"{path} is no segment: {event_id[:100]!r} is no event's id") from error


def _line(value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"


def _write_whole(path: Path, chunks: list[bytes]) -> None:
    """Write a file that is there whole or not at all, also after a power failure."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class ArchivedLog(EventLog):
    """A log that reaches back into its archive: from the first archived event to the newest in Redis."""

    def __init__(self, log: EventLog, archive: Archive) -> None:
        super().__init__(log.client, log.key, log.snapshot_key)
        self._live, self._archive = log, archive

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, archived ones first."""
        end = end_of(until)
        for event_id, fields in self._archive.raw(after):
            if order_of(event_id) > end:
                return
            after = event_id
            yield event_id, fields
        base = self._live.base().last_id
        if order_of(base) > order_of(after):
            raise BadSegment(f"the archive ends at event {after}, but the log begins after {base}: events are missing")
        yield from self._live.raw(after, until)

    def base(self) -> PoolState:
        """The state before the first archived event."""
        return self._archive.base()[0] if self._archive.segments() else self._live.base()

    def base_hash(self) -> str:
        """The hash before the first archived event."""
        return self._archive.base()[1] if self._archive.segments() else self._live.base_hash()


class StoredLog(EventLog):
    """A log read from its archive alone: no server is asked. Raises BadSegment for a folder without segments."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(None, "", "")
        self._archive = archive
        if not archive.segments():
            raise BadSegment(f"{archive.folder} holds no segments: name the folder that `spoke audit archive` wrote")

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, up to and including ``until``."""
        end = end_of(until)
        for entry in self._archive.raw(after):
            if order_of(entry[0]) > end:
                return
            yield entry

    def base(self) -> PoolState:
        """The state before the first archived event."""
        return self._archive.base()[0]

    def base_hash(self) -> str:
        """The hash before the first archived event."""
        return self._archive.base()[1]

    def last_id(self) -> str:
        """The id of the last archived event."""
        return self._archive.last_id()

    def recover(self, until: str = "+") -> PoolState:
        """The state at the end; an archive has no snapshots, so all of it is folded."""
        return self.replay(until)
