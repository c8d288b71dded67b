"""The log files of a node, as readers from afar ask for them, and who may read which."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from spoke.agent.logs import files
from spoke.agent.logs.access import is_signed, may_read
from spoke.errors import Forbidden
from spoke.protocol.identity import Key
from spoke.protocol.logs import FILES_MAX, PIECE_BYTES_MAX, Asked, LogFile, LogsAnswer, Piece, Wanted

log = logging.getLogger("spoke.agent")

STARTS_KEPT = 10_000


class Shelf:
    """The log files of this node, and who may read them: everybody, if the node has no key.

    Else who signs with a ticket's log key, and administrators, who sign with what the node's key holds for them.
    """

    def __init__(self, log_dir: Path, pool: str, node_id: str, *, key: Key | None) -> None:
        self._log_dir, self._pool, self._node_id, self._locked = log_dir, pool, node_id, key is not None
        self._reading = key.reading_of(node_id) if key is not None else b""
        self._starts: dict[str, tuple[int, int]] = {}  # of the files that are being written: inode, first offset
        self._lost: dict[str, tuple[int, str]] = {}  # of what belongs into these files: how many bytes, and why

    def check(self, asked: Asked) -> None:
        """Raise Forbidden for an ask that is not signed as it should be."""
        directory = self._log_dir / asked.ask.ticket_id
        if not self._locked or not directory.is_dir() or may_read(asked, directory, self._pool, self._node_id):
            return
        if is_signed(asked, self._reading, self._pool, self._node_id):
            if not asked.ask.wanted:  # each reading begins with that
                log.info("an administrator (%s) reads the output of ticket %s", asked.reader, asked.ask.ticket_id)
            return
        raise Forbidden(
            f"the output of ticket {asked.ask.ticket_id} was asked for, which is for the user who launched it and for "
            f"administrators: set SPOKE_KEY or SPOKE_KEY_FILE to such a key"
        )

    def lost(self, path: str, nbytes: int, why: str) -> None:
        """So much of what belongs into a file could not be written, and the file does not say so (0: now it does)."""
        if nbytes:
            self._lost[path] = nbytes, why
            if len(self._lost) > STARTS_KEPT:
                del self._lost[next(iter(self._lost))]
        else:
            self._lost.pop(path, None)

    def has_news(self, asked: Asked) -> bool:
        """Whether there is something to answer; looks at no more than the files' sizes."""
        wanted = asked.ask.wanted
        return not wanted or any(one.offset < 0 or self._differs(asked, one) for one in wanted)

    def _differs(self, asked: Asked, one: Wanted) -> bool:
        """Whether there is something that the reader does not know. How much is lost grows: that it does is news."""
        return self._end(asked, one) != one.offset or (one.lost == 0 and self._path(asked, one) in self._lost)

    def _end(self, asked: Asked, one: Wanted) -> int:
        path = self._path(asked, one)
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return one.offset
        inode, start = self._starts.get(path, (0, 0))
        if inode != found.st_ino:
            parts = files.segments(path)
            start = parts[-1].start if parts else 0
            if len(self._starts) >= STARTS_KEPT:
                self._starts.clear()
            self._starts[path] = found.st_ino, start
        return start + found.st_size

    def answer(self, asked: Asked) -> tuple[LogsAnswer, bytes]:
        """The list of files, or the next pieces of those that are wanted."""
        if not asked.ask.wanted:
            return LogsAnswer(files=self._list(asked.ask.ticket_id)), b""
        pieces: list[Piece] = []
        data: list[bytes] = []
        left, behind = PIECE_BYTES_MAX, len(asked.ask.wanted)
        for one in asked.ask.wanted:
            path, share = self._path(asked, one), max(1, left // behind)
            found = files.read(path, one.offset if one.offset >= 0 else _begin(path, one), share)
            lost, why = self._lost.get(path, (0, ""))
            size = len(found.data)
            pieces.append(Piece(one.rank, one.actor, found.offset, size, found.start, found.end, lost, why))
            data.append(found.data)
            left, behind = left - len(found.data), behind - 1
        return LogsAnswer(pieces=tuple(pieces)), b"".join(data)

    def _list(self, ticket_id: str) -> tuple[LogFile, ...]:
        found = []
        for rank, actor, path in files.logs_in(self._log_dir / ticket_id):
            parts = files.segments(path)
            if parts:
                found.append(LogFile(rank, actor, parts[0].start, parts[-1].end, files.changed(path), parts[-1].inode))
        return tuple(found[:FILES_MAX])

    def _path(self, asked: Asked, one: Wanted) -> str:
        return str(files.log_path(self._log_dir, asked.ask.ticket_id, one.rank, one.actor))


def _begin(path: str, one: Wanted) -> int:
    """Where a reader begins that names no offset."""
    if one.tail >= 0:
        return files.offset_of_tail(path, one.tail)
    if one.age_ms >= 0:
        return files.offset_of_time(path, time.time_ns() // 1_000_000 - one.age_ms)
    return files.offset_of_time(path, one.since_ms) if one.since_ms >= 0 else 0
