"""Serves actors' output to whoever asks for it: one thread takes the asks in, one looks at the files and answers.

Apart from the agent's other conversations with the server, with connections of their own: whoever reads, and however
much, delays no order and no lease. While nobody asks, neither thread does anything but wait.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import time
from pathlib import Path

from spoke.agent.logs import files
from spoke.agent.logs.access import is_signed, may_read
from spoke.agent.logs.desk import READERS_MAX, Desk, Place
from spoke.agent.watcher import LogWatcher
from spoke.agent.wire import Conversation, Outage
from spoke.errors import Forbidden, LimitExceeded, LogsUnavailable
from spoke.events.codec import DecodeError
from spoke.protocol.identity import Key
from spoke.protocol.keys import Keys
from spoke.protocol.logs import (
    FILES_MAX,
    PIECE_BYTES_MAX,
    REPLIES_KEPT_MS,
    Asked,
    LogFile,
    LogsAnswer,
    Piece,
    Wanted,
    decode_ask,
    encode_answer,
)
from spoke.protocol.server import read_stream

log = logging.getLogger("spoke.agent")

BLOCK_MS = 1_000
BATCH_MAX = 64
IDLE_S = 1.0
STARTS_KEPT = 10_000


class Shelf:
    """The log files of this node, and who may read them: everybody, if the node has no key.

    Else who signs with a ticket's log key, and administrators, who sign with what the node's key holds for them.
    """

    def __init__(self, log_dir: Path, pool: str, node_id: str, *, key: Key | None) -> None:
        self._log_dir, self._pool, self._node_id, self._locked = log_dir, pool, node_id, key is not None
        self._reading = key.reading_of(node_id) if key is not None else b""
        self._starts: dict[str, tuple[int, int]] = {}  # of the files that are being written: inode, first offset

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

    def has_news(self, asked: Asked) -> bool:
        """Whether there is something to answer; looks at no more than the files' sizes."""
        wanted = asked.ask.wanted
        return not wanted or any(one.offset < 0 or self._end(asked, one) != one.offset for one in wanted)

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
            pieces.append(Piece(one.rank, one.actor, found.offset, len(found.data), found.start, found.end))
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


class LogServer:
    """The two threads."""

    def __init__(
        self, url: str, keys: Keys, node_id: str, outage: Outage, shelf: Shelf, watcher: LogWatcher | None = None
    ) -> None:
        self._asks: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._intake = _Intake(url, keys, node_id, outage, self._asks)
        self._counter = _Counter(url, keys, node_id, outage, self._asks, shelf, watcher)

    def start(self) -> None:
        """Begin."""
        self._counter.start()
        self._intake.start()

    def stop(self) -> None:
        """End the threads."""
        self._intake.stop()
        self._counter.stop()


class _Intake(Conversation):
    """Reads asks and deletes them; what stands in the stream is what is still to be read."""

    def __init__(
        self, url: str, keys: Keys, node_id: str, outage: Outage, asks: queue.SimpleQueue[Asked | None]
    ) -> None:
        super().__init__("log-asks", url, keys, outage, timeout_s=BLOCK_MS / 1000 + 5.0)
        self._stream, self._asks = keys.logs(node_id), asks

    def _turn(self) -> bool:
        found = read_stream(self._client, self._stream, "0", block_ms=BLOCK_MS, count=BATCH_MAX)
        if found:
            self._client.xdel(self._stream, *(entry_id for entry_id, _ in found))
        for _, fields in found:
            try:
                self._asks.put(decode_ask(fields))
            except DecodeError as error:
                log.debug("%s", error)
        return True


class _Counter(Conversation):
    """Looks at the files for which readers wait, and answers."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        node_id: str,
        outage: Outage,
        asks: queue.SimpleQueue[Asked | None],
        shelf: Shelf,
        watcher: LogWatcher | None,
    ) -> None:
        super().__init__("log-answers", url, keys, outage, timeout_s=5.0)
        self._keys, self._node_id, self._asks, self._shelf = keys, node_id, asks, shelf
        self._desk, self._watcher = Desk(), watcher

    def _wake(self) -> None:
        self._asks.put(None)

    def _turn(self) -> bool:
        wait_s = self._desk.wait_s(time.monotonic())
        worked = False
        try:
            asked = self._asks.get(timeout=IDLE_S if wait_s is None else max(wait_s, 0.0001))
            while True:
                if asked is not None:
                    worked = self._take(asked) or worked
                asked = self._asks.get_nowait()
        except queue.Empty:
            pass
        for place in self._desk.due(time.monotonic()):
            worked = self._look(place) or worked
        return worked

    def _take(self, asked: Asked) -> bool:
        if self._desk.take(asked, time.monotonic()):
            return False
        reason = f"{READERS_MAX} readers wait at this agent already: try again later"
        self._send(asked, LogsAnswer(code=LimitExceeded.code, reason=reason), b"")
        return True

    def _look(self, place: Place) -> bool:
        asked, now_s = place.asked, time.monotonic()
        answer, data = LogsAnswer(), b""
        try:
            ready = self._shelf.has_news(asked)
            if ready or now_s >= place.until_s:
                self._shelf.check(asked)
                answer, data = self._shelf.answer(asked)
        except Forbidden as error:
            answer = LogsAnswer(code=error.code, reason=str(error))
        except OSError as error:
            why = os.strerror(error.errno or errno.EIO)
            reason = f"the output of ticket {asked.ask.ticket_id} cannot be read on its node: {why}"
            answer = LogsAnswer(code=LogsUnavailable.code, reason=reason)
        except Exception:  # a defect here must not leave every other reader without an answer
            log.exception("the output of ticket %s cannot be read", asked.ask.ticket_id)
            answer = LogsAnswer(code=LogsUnavailable.code, reason="the agent failed at it: see its log")
        news = bool(data or answer.code or not asked.ask.wanted or any(one.offset < 0 for one in asked.ask.wanted))
        if not self._desk.may_answer(place, now_s, news=news):
            return False
        self._desk.answered(place, len(data))
        self._send(asked, answer, data)
        return True

    def _send(self, asked: Asked, answer: LogsAnswer, data: bytes) -> None:
        key = self._keys.logs_reply(asked.reader, self._node_id)
        pipeline = self._client.pipeline(transaction=False)
        # no reader has two asks at one agent, so nobody misses what this removes
        pipeline.xadd(key, encode_answer(asked.seq, answer, data), maxlen=1, approximate=False)  # type: ignore[arg-type]
        pipeline.pexpire(key, REPLIES_KEPT_MS)
        pipeline.execute()
        if self._watcher is not None:
            if answer.code:
                self._watcher.refused(answer.code)
            else:
                self._watcher.answered(len(data))
