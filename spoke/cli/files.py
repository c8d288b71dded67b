"""Actors' log files: where they are, and reading them line by line while they grow."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spoke.client.status import NodeStatus

LOG_DIR_LABEL = "log_dir"
CHUNK_BYTES = 1 << 16
LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the output of one rank is. ``path`` is empty if its agent did not say; ``here``: on this machine."""

    rank: int
    host: str
    path: str
    here: bool

    @property
    def elsewhere(self) -> str:
        """For a rank whose output cannot be read from here: where it is."""
        if self.path:
            return f"rank {self.rank} ran on another machine: its output is at {self.host}:{self.path}"
        return f"rank {self.rank}: its output is in the log directory of its agent on {self.host}"


def place_of(ticket_id: str, rank: int, actor_id: str, address: str, node: NodeStatus | None) -> Place:
    """Where an actor's output is, as its node tells; of a node that has left the pool (None) the address is known."""
    log_dir, host = ("", address) if node is None else (node.labels.get(LOG_DIR_LABEL, ""), node.host)
    path = str(Path(log_dir) / ticket_id / f"{rank}-{actor_id}.log") if log_dir else ""
    return Place(rank, host, path, bool(path) and host == socket.gethostname())


@dataclass(slots=True)
class GrowingFile:
    """Reads whole lines of a file that grows, from ``offset`` on. The file need not be there yet."""

    path: str
    offset: int = 0
    _rest: bytearray = field(default_factory=bytearray)
    _fd: int = -1

    def lines(self) -> Iterator[bytes]:
        """The lines that were completed since last time, without their ends; a line of 1 MiB is cut."""
        while chunk := self._read():
            self._rest += chunk
            *whole, rest = self._rest.split(b"\n")
            yield from map(bytes, whole)
            self._rest = rest
            if len(rest) > LINE_BYTES_MAX:
                yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """What stands after the last line's end."""
        if self._rest:
            found, self._rest = bytes(self._rest), bytearray()
            yield found

    def _read(self) -> bytes:
        if self._fd < 0:
            try:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return b""
        chunk = os.pread(self._fd, CHUNK_BYTES, self.offset)
        self.offset += len(chunk)
        return chunk

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Prefixer:
    """Puts the rank before each line, in a colour of its own where there are colours."""

    _COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)

    def __init__(self, ranks: Iterable[int], colours: bool) -> None:
        width = max((len(str(rank)) for rank in ranks), default=1)
        self._width, self._colours = width, colours

    def line(self, rank: int, line: bytes) -> bytes:
        """The line with its prefix and its end."""
        prefix = f"[{rank:{self._width}}]"
        if self._colours:
            prefix = f"\x1b[{self._COLOURS[rank % len(self._COLOURS)]}m{prefix}\x1b[0m"
        return prefix.encode() + b" " + line + b"\n"


def size_of(path: str) -> int:
    """A file's size; 0 for one that is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def wants_colours(fd: int) -> bool:
    """Whether colours are welcome there."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or os.isatty(fd)
