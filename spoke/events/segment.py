"""A segment of an archived log: one file, compressed and checksummed.

It is gzip (RFC 1952) over lines of JSON: a header, some thousand events a line as columns (``columns.py``), and a
footer with the number of events and a BLAKE2b checksum (RFC 7693) over all lines before it.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import orjson

from spoke.errors import LogError
from spoke.events.codec import Fields
from spoke.events.columns import Columns, to_columns

VERSION = 2
LINE_EVENTS, LINE_BYTES = 4_000, 4 << 20
"""A line is full with so many events, or so many bytes of fields."""
LINE_BYTES_MAX = 256 << 20
"""No line that is read may be longer."""
_IDS = re.compile(r"(?:[0-9]{1,19}-[0-9]{1,20} )+")
_DECODER = msgspec.json.Decoder(Columns)


class BadSegment(LogError):
    """A file is no segment, or not as it was written."""

    code = "bad_segment"


@dataclass(slots=True)
class Written:
    """How much was written."""

    events: int = 0
    last_id: str = ""


def write(path: Path, pool: str, entries: Iterable[tuple[str, Fields]]) -> Written:
    """Write entries to a file as they come, and make sure that they are on disk."""
    checksum, done = blake2b(digest_size=32), Written()
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for line in _lines(pool, entries, done):
            checksum.update(line)
            packed.write(line)
        packed.write(_line({"events": done.events, "checksum": checksum.hexdigest()}))
        packed.close()
        file.flush()
        os.fsync(file.fileno())
    return done


def _lines(pool: str, entries: Iterable[tuple[str, Fields]], done: Written) -> Iterator[bytes]:
    yield _line({"spoke": "segment", "version": VERSION, "pool": pool})
    some, size = list[tuple[str, Fields]](), 0
    for entry in entries:
        some.append(entry)
        size += sum(map(len, entry[1].values()))
        done.events, done.last_id = done.events + 1, entry[0]
        if len(some) >= LINE_EVENTS or size >= LINE_BYTES:
            yield msgspec.json.encode(to_columns(some)) + b"\n"
            some, size = [], 0
    if some:
        yield msgspec.json.encode(to_columns(some)) + b"\n"


def _line(value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"


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

            if orjson.loads(line() or b"null") != {"spoke": "segment", "version": VERSION, "pool": pool}:
                raise BadSegment(f"{path} is no segment of pool {pool}, version {VERSION}")
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
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
        raise BadSegment(f"{path} cannot be read: {error}") from error
    if footer != {"events": events, "checksum": checksum.hexdigest()} or rest:
        raise BadSegment(f"{path} is not as it was written: its checksum does not fit")
