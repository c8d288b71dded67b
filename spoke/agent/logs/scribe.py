"""The scribe: a small process beside the keeper that takes what actors print, and writes it to their logs.

Actors print into pipes, and not into files, for three reasons: a disk that is full must cost output, not actors, which
would die of the error; a log can be rotated without losing a byte; and somebody knows when what was written. It is not
the keeper that writes, since a disk that hangs must not keep the keeper from killing. The keeper holds the pipes' read
ends, too: should the scribe die, nobody gets SIGPIPE, nothing of what is in the pipes is lost, and another scribe goes
on. One thread and the standard library only.

Messages are JSON datagrams. From the keeper: ``open`` (with the pipe's read end: ``id``, ``log``, ``bytes``,
``files``), ``finish`` (nothing of the actor is alive any more). To it: ``lost`` (so many ``bytes`` of what belongs into
``log`` could not be written, and the log does not say so yet; 0 once it does), ``finished``, with the end of what this
launch printed. When the keeper is gone, the scribe writes what is left in the pipes, and ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from spoke.agent.datagrams import hear_all
from spoke.agent.logs.files import DIRECTORY_MODE, FILE_MODE, MARK, RESOLUTION_MS, index_path, read_index, segments

READ_BYTES = 1 << 16
TAIL_BYTES = 2_000
MARKS_MAX = 65_536
"""An index that would grow longer keeps every other mark."""
AGAIN_S = 1.0
"""How often a log that cannot be written is tried again, and how often the keeper is told how much is lost."""
OWING_MAX = 1_000
"""So many logs of actors that have ended are kept in mind, to say in them what was lost once that can be written."""
ROTATED_MIN = 1
PIPE_READS_MAX = 32
"""More is in no pipe, unless somebody still writes into it."""
LAST_S = 2.0
"""For how long pipes are emptied that somebody still holds open, when the keeper is gone."""


def now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class LogWriter:
    """One log: appends, rotates, and notes the times. Whatever the disk does, it does not raise.

    ``bytes_max`` is the size at which the file is put aside, ``files_max`` how many such files are kept.
    """

    def __init__(self, path: str, bytes_max: int, files_max: int) -> None:
        self.path, self._bytes_max, self._files_max = path, bytes_max, max(ROTATED_MIN, files_max)
        self._fd = self._index_fd = self._dir_fd = -1
        self._start = self._size = 0
        self._marks = 0
        self._resolution_ms, self._marked_ms = RESOLUTION_MS, -RESOLUTION_MS
        self.lost, self.why = 0, ""
        self._again_s = 0.0

    def write(self, data: bytes) -> None:
        """Append; what cannot be written is counted, and told in the log as soon as that is possible."""
        if not self.say_what_was_lost() or (self._fd < 0 and not self._open()):
            self.lost += len(data)
            return
        size, begin = len(data), self._start + self._size
        try:
            if self._size >= self._bytes_max:
                cut = data.find(b"\n") + 1  # at the end of a line, if there is one
                self._append(data[:cut])
                data = data[cut:]
                self._rotate()
            self._mark()
            self._append(data)
        except OSError as error:
            written = self._start + self._size - begin
            self._failed(error)
            self.lost += size - written

    def say_what_was_lost(self) -> bool:
        """Say in the log how much was lost before, unless that was tried just now; False where it cannot be written."""
        if not self.lost:
            return True
        if self._fd < 0 and not self._open():
            return False
        try:
            self._append(f"\n[spoke: {self.lost} bytes of output were lost here: {self.why}]\n".encode())
        except OSError as error:
            self._failed(error)
            return False
        self.lost = 0
        return True

    def close(self) -> None:
        """Say what was lost, if that can be written, and close the files."""
        self._again_s = 0.0
        self.say_what_was_lost()
        self._close_files()

    def _close_files(self) -> None:
        for fd in (self._fd, self._index_fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._index_fd = self._dir_fd = -1

    # --- the file ----------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Open the files, after a failure no sooner than a moment later."""
        if time.monotonic() < self._again_s:
            return False
        try:
            directory = os.path.dirname(self.path)
            os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
            self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # tells whoever clears up that it is in use; not all filesystems can
                fcntl.flock(self._dir_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
            last = segments(self.path)[-1]
            self._start, self._size = last.start, last.size
            self._open_index()
        except OSError as error:
            self._failed(error)
        return self._fd >= 0

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def _failed(self, error: OSError) -> None:
        """What was to be written is lost; close all, and try again later."""
        self.why = os.strerror(error.errno or errno.EIO)
        if not self.lost:  # the first of a row: on standard error, which is the agent's, since the log cannot say it
            with contextlib.suppress(OSError, ValueError):
                text = f"spoke: output that belongs into {self.path} is lost until it can be written: {self.why}"
                print(text, file=sys.stderr, flush=True)
        self._close_files()
        self._again_s = time.monotonic() + AGAIN_S

    def _rotate(self) -> None:
        """Put the file aside under the offset at which it begins, and remove those that are too many."""
        os.rename(self.path, f"{self.path}.{self._start}")
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        os.close(self._fd)
        self._fd, self._start, self._size = fd, self._start + self._size, 0
        for old in segments(self.path)[: -1 - self._files_max]:
            os.unlink(old.path)

    # --- the index ---------------------------------------------------------------------------------------------------

    def _open_index(self) -> None:
        path = index_path(self.path)
        self._resolution_ms, marks = read_index(path)
        self._marks = len(marks)
        self._index_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        size = os.fstat(self._index_fd).st_size
        if size == 0:
            os.write(self._index_fd, MARK.pack(self._resolution_ms, 0))
        elif size % MARK.size:  # its last write was cut off
            os.ftruncate(self._index_fd, size // MARK.size * MARK.size)
        self._marked_ms = -self._resolution_ms

    def _mark(self) -> None:
        ms = now_ms()
        if 0 <= ms - self._marked_ms < self._resolution_ms:
            return
        if self._marks >= MARKS_MAX:
            self._thin_out()
        os.write(self._index_fd, MARK.pack(ms, self._start + self._size))
        self._marks, self._marked_ms = self._marks + 1, ms

    def _thin_out(self) -> None:
        """Write the index anew: without what rotation has removed, and if need be at a coarser resolution."""
        path = index_path(self.path)
        oldest = segments(self.path)[0].start
        resolution_ms, marks = read_index(path)
        first = next((at for at, mark in enumerate(marks) if mark[1] > oldest), len(marks))
        marks = marks[max(0, first - 1) :]
        while len(marks) > MARKS_MAX // 2:
            resolution_ms, kept = resolution_ms * 2, marks[:1]
            for mark in marks:
                if not 0 <= mark[0] - kept[-1][0] < resolution_ms:
                    kept.append(mark)
            marks = kept
        with open(path + ".new", "wb") as file:
            file.write(b"".join(MARK.pack(*mark) for mark in [(resolution_ms, 0), *marks]))
        os.rename(path + ".new", path)
        os.close(self._index_fd)
        self._open_index()


@dataclass(slots=True)
class _Actor:
    """An actor's pipe, and its log."""

    fd: int
    writer: LogWriter
    tail: deque[bytes] = field(default_factory=deque)
    tail_size: int = 0
    ended: bool = False

    def take(self, data: bytes) -> None:
        self.writer.write(data)
        self.tail.append(data[-TAIL_BYTES:])
        self.tail_size += len(self.tail[-1])
        while self.tail_size - len(self.tail[0]) >= TAIL_BYTES:
            self.tail_size -= len(self.tail.popleft())

    def last_words(self) -> str:
        return b"".join(self.tail)[-TAIL_BYTES:].decode(errors="replace").strip()


class Scribe:
    """The loop. ``sock`` leads to the keeper."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._actors: dict[str, _Actor] = {}
        self._unsent: deque[bytes] = deque()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._by_fd: dict[int, _Actor] = {}
        self._writers: dict[str, LogWriter] = {}
        self._owing: dict[str, LogWriter] = {}  # of actors that have ended: their logs do not say yet what was lost
        self._told: dict[str, tuple[int, float]] = {}  # how much the keeper knows to be lost of a log, and since when
        sock.setblocking(False)

    def run(self) -> None:
        """Write until the keeper is gone, and then what is left."""
        while self._turn():
            pass
        until_s = time.monotonic() + LAST_S
        self._poll.unregister(self._sock)
        while self._by_fd and time.monotonic() < until_s:
            for fd, _ in self._poll.poll(100):
                self._read(self._by_fd[fd])
        for writer in (*self._writers.values(), *self._owing.values()):
            writer.close()

    def _turn(self) -> bool:
        self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        there = True
        ready = self._poll.poll(AGAIN_S * 1000 if self._told else None)
        self._settle()
        for fd, _ in ready:
            if fd != self._sock.fileno():
                actor = self._by_fd.get(fd)
                if actor is not None:  # else it was finished a moment ago
                    self._read(actor)
                continue
            there = self._hear()
            self._flush()
        return there

    def _hear(self) -> bool:
        """Obey the keeper; False when it is gone. What came before is read first, since a pipe may be named by it."""
        return hear_all(self._sock, 1, self._obey)

    def _obey(self, raw: bytes, fds: list[int]) -> None:
        message = json.loads(raw)
        if message["do"] == "open":
            self._open(message, fds[0])
        elif message["do"] == "finish":
            self._finish(message["id"])

    def _open(self, message: dict[str, Any], fd: int) -> None:
        os.set_blocking(fd, False)
        self._close(message["id"])  # a launch that is restarted has the same id
        path = message["log"]
        writer = self._writers.get(path) or self._owing.pop(path, None)
        if writer is None:
            writer = LogWriter(path, message["bytes"], message["files"])
        self._writers[path] = writer
        self._actors[message["id"]] = self._by_fd[fd] = _Actor(fd, writer)
        self._poll.register(fd, select.POLLIN)

    def _read(self, actor: _Actor) -> bool:
        """Write one portion of what the actor has printed; False if there is none."""
        try:
            data = os.read(actor.fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            actor.take(data)
            self._tell_loss(actor.writer)
            return True
        self._poll.unregister(actor.fd)
        del self._by_fd[actor.fd]
        os.close(actor.fd)
        actor.ended = True
        return False

    def _finish(self, launch_id: str) -> None:
        """Write what is still in the pipe: nobody is alive who could add to it."""
        tail = self._close(launch_id)
        self._unsent.append(json.dumps({"is": "finished", "id": launch_id, "tail": tail}).encode())
        self._flush()

    def _close(self, launch_id: str) -> str:
        """Read the pipe until it is empty, and close it; the launch's last words."""
        actor = self._actors.pop(launch_id, None)
        if actor is None:
            return ""
        for _ in range(PIPE_READS_MAX):
            if actor.ended or not self._read(actor):
                break
        if not actor.ended:
            self._poll.unregister(actor.fd)
            del self._by_fd[actor.fd]
            os.close(actor.fd)
        if not any(other.writer is actor.writer for other in self._actors.values()):
            self._put_away(actor.writer)
        return actor.last_words()

    # --- what was lost -----------------------------------------------------------------------------------------------

    def _put_away(self, writer: LogWriter) -> None:
        """Close a log that nobody prints into any more."""
        writer.close()
        self._writers.pop(writer.path, None)
        if writer.lost:
            self._owing[writer.path] = writer
            if len(self._owing) > OWING_MAX:
                del self._owing[next(iter(self._owing))]
        self._tell_loss(writer, at_once=True)

    def _settle(self) -> None:
        """Say in the logs what was lost, as soon as that can be written."""
        for path in list(self._told):
            writer = self._writers.get(path) or self._owing.get(path)
            if writer is None:  # there were too many
                del self._told[path]
            elif writer.say_what_was_lost():
                if self._owing.pop(path, None) is not None:
                    writer.close()
                self._tell_loss(writer, at_once=True)

    def _tell_loss(self, writer: LogWriter, *, at_once: bool = False) -> None:
        """Let the keeper know how much is lost that the log does not tell: at once where that is new, else at times."""
        lost, path, now_s = writer.lost, writer.path, time.monotonic()
        known, since_s = self._told.get(path, (0, 0.0))
        if lost == known or not (at_once or bool(lost) != bool(known) or now_s >= since_s + AGAIN_S):
            return
        if lost:
            self._told[path] = lost, now_s
        else:
            del self._told[path]
        self._unsent.append(json.dumps({"is": "lost", "log": path, "bytes": lost, "why": writer.why}).encode())
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(OSError):  # a closed socket is noticed by the reading side
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()


def main(argv: list[str] | None = None) -> None:
    """Run the scribe: the argument is the descriptor of its socket."""
    fd = int((argv or sys.argv)[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # it ends when the keeper does, after what is to be written
    Scribe(socket.socket(fileno=fd)).run()


if __name__ == "__main__":
    main()
