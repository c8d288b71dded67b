"""A segment of an archived log: one file, compressed and checksummed.

It is gzip (RFC 1952) over lines of JSON: a header, some thousand events a line as columns (``columns.py``), and a
footer with the number of events and a BLAKE2b checksum (RFC 7693) over all lines before it. The header holds the pool's
state before the first event, so that a replay may begin with any segment, and segments can be verified side by side.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import orjson

from spoke.errors import LogError
from spoke.events.chain import BEGIN, hash_of
from spoke.events.codec import Fields
from spoke.events.columns import Columns, to_columns

VERSION = 3
LINE_EVENTS, LINE_BYTES = 4_000, 4 << 20
"""A line is full with so many events, or so many bytes of fields."""
LINE_BYTES_MAX = 256 << 20
"""No line that is read may be longer."""
_IDS = re.compile(r"(?:[0-9]{1,19}-[0-9]{1,20} )+")
_DECODER = msgspec.json.Decoder(Columns)
_BROKEN = (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error)


class BadSegment(LogError):
    """A file is no segment, or not as it was written."""

    code = "bad_segment"


@dataclass(frozen=True, slots=True)
class Before:
    """What comes before the first event: the hash of the last one, and the state as a snapshot (None: not known)."""

    h: str = BEGIN
    state: bytes | None = None


@dataclass(slots=True)
class Written:
    """How much was written. ``last_hash`` is the last hash that an entry carried."""

    events: int = 0
    last_id: str = ""
    last_hash: str = BEGIN


def write(
    path: Path,
    pool: str,
    entries: Iterable[tuple[str, Fields]],
    before: Before,
    seen: Callable[[Columns], None] = lambda line: None,
) -> Written:
    """Write entries to a file as they come, and make sure that they are on disk. ``seen`` gets each line of them."""
    checksum, done = blake2b(digest_size=32), Written(last_hash=before.h)
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for line in _lines(pool, before, entries, done, seen):
            checksum.update(line)
            packed.write(line)
        packed.write(_line({"events": done.events, "checksum": checksum.hexdigest()}))
        packed.close()
        file.flush()
        os.fsync(file.fileno())
    return done


def _lines(
    pool: str,
    before: Before,
    entries: Iterable[tuple[str, Fields]],
    done: Written,
    seen: Callable[[Columns], None],
) -> Iterator[bytes]:
    state = before.state.decode("latin-1") if before.state is not None else None
    yield _line({**_head(pool), "h": before.h, "state": state})
    some, size = list[tuple[str, Fields]](), 0
    for entry in entries:
        some.append(entry)
        size += sum(map(len, entry[1].values()))
        done.events, done.last_id = done.events + 1, entry[0]
        done.last_hash = hash_of(entry[1]) or done.last_hash
        if len(some) >= LINE_EVENTS or size >= LINE_BYTES:
            yield _packed(some, seen)
            some, size = [], 0
    if some:
        yield _packed(some, seen)


def _packed(some: list[tuple[str, Fields]], seen: Callable[[Columns], None]) -> bytes:
    columns = to_columns(some)
    seen(columns)
    return msgspec.json.encode(columns) + b"\n"


def _head(pool: str) -> dict[str, Any]:
    return {"spoke": "segment", "version": VERSION, "pool": pool}


def _line(value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"


def before(path: Path, pool: str) -> Before:
    """What comes before a segment; raises BadSegment. Nothing but its first line is read."""
    try:
        with gzip.open(path, "rb") as file:
            return _before(file.readline(LINE_BYTES_MAX), path, pool)
    except _BROKEN as error:
        raise BadSegment(f"{path} cannot be read: {error}") from error


def _before(line: bytes, path: Path, pool: str) -> Before:
    found: Any = orjson.loads(line or b"null")
    if not isinstance(found, dict) or {key: found.get(key) for key in _head(pool)} != _head(pool):
        whose = found.get("pool") if isinstance(found, dict) else None
        if isinstance(whose, str) and found == {**found, **_head(whose)}:
            raise BadSegment(
                f"{path} was to be read for pool {pool}, but is of pool {whose!r:.80}: name that one (--pool; where an "
                f"archive is restored under another name, --from)"
            )
        raise BadSegment(f"{path} is no segment of pool {pool}, version {VERSION}")
    h, state = found.get("h"), found.get("state")
    if not isinstance(h, str) or not isinstance(state, str | None):
        raise BadSegment(f"{path} does not say what comes before it")
    return Before(h, state.encode("latin-1") if state is not None else None)


def read(path: Path, pool: str) -> Iterator[Columns]:
    """The events of a segment, line by line; raises BadSegment (at the end, if only the checksum does not fit)."""
    checksum, events, footer = blake2b(digest_size=32), 0, None
    try:
        with gzip.open(path, "rb") as file, ThreadPoolExecutor(1) as ahead:

            def line() -> bytes:
                raw = file.readline(LINE_BYTES_MAX)
                if not raw.startswith(b'{"events"'):
                    checksum.update(raw)
                return raw

            _before(line(), path, pool)
            following = ahead.submit(line)  # decompressing needs no lock, so it runs beside the reader
            while raw := following.result():
                if raw.startswith(b'{"events"'):
                    footer = orjson.loads(raw)
                    break
                following = ahead.submit(line)
                found = _DECODER.decode(raw)
                if len(found.ids) != len(found.order) or not _IDS.fullmatch(" ".join(found.ids) + " "):
                    raise ValueError("a line holds ids that are none")
                events += len(found.ids)
                yield found
            rest = file.read(1)
    except _BROKEN as error:
        raise BadSegment(f"{path} cannot be read: {error}") from error
    if footer != {"events": events, "checksum": checksum.hexdigest()} or rest:
        raise BadSegment(f"{path} is not as it was written: its checksum does not fit")
