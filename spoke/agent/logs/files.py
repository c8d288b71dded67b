"""Log files on disk: their names, what of them is there, and reading a piece of one.

``<ticket>/<rank>-<actor>.log`` is what is being written. What rotation has put aside has the offset at which it begins
behind its name, ``….log.<offset>``; ``<rank>-<actor>.idx`` says when what was written: pairs of a time and an offset
behind a first one that holds their resolution. Standard library only, since the scribe imports it.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = struct.Struct("<QQ")
"""An entry of the index: milliseconds since 1970, and the offset of what was written from then on."""
RESOLUTION_MS = 1_000
"""No two marks are nearer to each other than this; an index that has grown long has a coarser one."""
DIRECTORY_MODE, FILE_MODE = 0o750, 0o640
"""What actors print is for the agent's user and group."""
TAIL_BYTES_MAX = 1 << 20
"""The last lines of a log are looked for no farther from its end."""
_LOG = re.compile(r"(\d{1,10})-(.+)\.log\Z")
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a log: it has the bytes from offset ``start`` on."""

    path: str
    start: int
    size: int
    inode: int

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was read of a log: ``data`` from ``offset`` on; the log has ``start`` to ``end``."""

    offset: int
    data: bytes
    start: int
    end: int


def log_path(log_dir: Path, ticket_id: str, rank: int, actor_id: str) -> Path:
    """Where an actor's output goes."""
    return log_dir / ticket_id / f"{rank}-{actor_id}.log"


def index_path(log: str) -> str:
    """The index of a log."""
    return log.removesuffix(".log") + ".idx"


def segments(log: str) -> list[Segment]:
    """The files of a log, oldest first; none if it is not there."""
    directory, name = os.path.split(log)
    old: list[Segment] = []
    current: os.stat_result | None = None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                rest = entry.name.removeprefix(name)
                if rest == entry.name:
                    continue
                if not rest:
                    current = entry.stat()
                elif rest[0] == "." and rest[1:].isdigit():
                    found = entry.stat()
                    old.append(Segment(entry.path, int(rest[1:]), found.st_size, found.st_ino))
    except FileNotFoundError:
        return []
    old.sort(key=lambda segment: segment.start)
    if current is not None:
        old.append(Segment(log, old[-1].end if old else 0, current.st_size, current.st_ino))
    return old


def logs_in(directory: Path) -> Iterator[tuple[int, str, str]]:
    """The logs in a ticket's directory: rank, actor and path."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        found = _LOG.match(name)
        if found is not None:
            yield int(found[1]), found[2], str(directory / name)


def read(log: str, offset: int, size: int) -> Stretch:
    """At most ``size`` bytes from an offset on, or from the oldest byte that is there."""
    for _ in range(_TRIES):
        parts = segments(log)
        if not parts:
            break
        start, end = parts[0].start, parts[-1].end
        if not start <= offset <= end:  # rotated away, or of a log that was removed
            offset = start
        part = next(part for part in parts if offset < part.end or part is parts[-1])
        try:
            fd = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if os.fstat(fd).st_ino != part.inode:  # rotated between the look and the opening
                continue
            data = os.pread(fd, size, offset - part.start)
        finally:
            os.close(fd)
        return Stretch(offset, data, start, max(end, offset + len(data)))
    return Stretch(0, b"", 0, 0)


def offset_of_time(log: str, ms: int) -> int:
    """The offset of what was written from a moment on, to a second or so; the log's end if nothing was."""
    parts = segments(log)
    if not parts:
        return 0
    resolution_ms, marks = read_index(index_path(log))
    if not marks:
        return parts[-1].end if changed(log) < ms else parts[0].start
    # whatever is written has a mark before it that is no older than the resolution
    at = bisect_left(marks, ms - resolution_ms, key=lambda mark: mark[0])
    return max(parts[0].start, marks[at][1]) if at < len(marks) else parts[-1].end


def offset_of_tail(log: str, lines: int) -> int:
    """The offset at which the last lines begin, no farther than 1 MiB from the end."""
    parts = segments(log)
    if not parts or lines <= 0:
        return parts[-1].end if parts else 0
    end, tail = parts[-1].end, b""
    for part in reversed(parts):
        wanted = TAIL_BYTES_MAX - len(tail)
        if wanted <= 0 or tail.count(b"\n") > lines:
            break
        begin = max(0, part.size - wanted)
        tail = read(log, part.start + begin, part.size - begin).data + tail
    position = len(tail) - 1 if tail.endswith(b"\n") else len(tail)
    for _ in range(lines):
        position = tail.rfind(b"\n", 0, position)
        if position < 0:
            return end - len(tail)
    return end - len(tail) + position + 1


def read_index(path: str) -> tuple[int, list[tuple[int, int]]]:
    """The resolution in milliseconds, and times and offsets in the order in which they were written."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return RESOLUTION_MS, []
    found = list(MARK.iter_unpack(raw[: len(raw) // MARK.size * MARK.size]))
    return (found[0][0], found[1:]) if found else (RESOLUTION_MS, [])


def changed(log: str) -> int:
    """When a log was last written, in milliseconds since 1970; 0 if it is not there."""
    try:
        return os.stat(log).st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return 0
