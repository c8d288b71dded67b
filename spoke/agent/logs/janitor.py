"""The janitor: removes the output of tickets that ended longer ago than it is kept, and the oldest where room is short.

A directory's age counts from when its ticket was last seen to live: while it does, the directory is touched at every
round. What a scribe of this machine still writes is locked and left alone; and nothing is removed but files that have
the names of logs, should the log directory be one in which others keep their things.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from spoke.agent.conversation import Conversation, Outage
from spoke.agent.logs.access import NAME
from spoke.agent.logs.room import Room
from spoke.agent.watcher import LogWatcher
from spoke.protocol.keys import Keys

log = logging.getLogger("spoke.agent")

EVERY_S_MAX = 60.0
SURE_S = 60.0
"""A ticket without a view counts as ended when its output is so old: views of new ones are written a moment late."""
BATCH_MAX = 500
_OURS = re.compile(r"\d{1,10}-.+\.(log(\.\d+)?|idx(\.new)?)\Z")


class Cupboard:
    """The tickets' directories below a log directory."""

    def __init__(self, log_dir: Path, keep_s: float) -> None:
        self._log_dir, self._keep_s = log_dir, keep_s
        self._ended: set[str] = set()

    def unsure(self) -> list[str]:
        """The tickets that have output here, and of which it is not known that they have ended."""
        found = self._names()
        self._ended.intersection_update(found)
        return [name for name in found if name not in self._ended]

    def live(self, ticket_id: str) -> None:
        """The ticket lives: its time has not begun."""
        directory = self._log_dir / ticket_id
        if any(_ours(directory)):
            with contextlib.suppress(FileNotFoundError):
                os.utime(directory)

    def ended(self, ticket_id: str) -> None:
        """The ticket has ended."""
        self._ended.add(ticket_id)

    def clear(self, now_s: float) -> list[str]:
        """Remove what is out of time (``now_s`` in seconds since 1970); the tickets whose output it was."""
        old = (name for name in sorted(self._ended) if now_s - self._newest_s(self._log_dir / name) >= self._keep_s)
        return [ticket_id for ticket_id in old if self._remove(self._log_dir / ticket_id)]

    def shrink(self, bytes_max: int | None, now_s: float) -> tuple[list[str], int]:
        """Remove the output of ended tickets, the oldest first, until all that is left has no more than so many bytes.

        The tickets whose output it was, and how many bytes are left. Of live tickets nothing is removed.
        """
        sizes = {name: _size(self._log_dir / name) for name in self._names()}
        left, removed = sum(sizes.values()), list[str]()
        if bytes_max is None or left <= bytes_max:
            return removed, left
        ages = sorted((self._newest_s(self._log_dir / name), name) for name in self._ended)
        for newest_s, name in ages:
            if left <= bytes_max or now_s - newest_s < SURE_S:
                break
            if self._remove(self._log_dir / name):
                removed.append(name)
                left -= sizes.get(name, 0)
        return removed, left

    def newest_s(self, ticket_id: str) -> float:
        """When the ticket's output was last written, or the ticket seen to live, in seconds since 1970."""
        return self._newest_s(self._log_dir / ticket_id)

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._log_dir) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return []

    @staticmethod
    def _newest_s(directory: Path) -> float:
        try:
            return max(path.lstat().st_mtime for path in [directory, *_ours(directory)])
        except OSError:  # somebody else clears up here, too
            return math.inf

    def _remove(self, directory: Path) -> bool:
        files = _ours(directory)
        if not files:
            return False
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # somebody else clears up here, too
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in files:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("the output in %s cannot be removed, though it is to go: %s", directory, error)
            self._ended.discard(directory.name)
            return False
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):  # there are other things in it
            directory.rmdir()
        return True


def _ours(directory: Path) -> list[Path]:
    """The files of a directory that have the names of logs."""
    try:
        return [directory / name for name in os.listdir(directory) if name == NAME or _OURS.match(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(directory: Path) -> int:
    """The bytes of a ticket's output."""
    total = 0
    for path in _ours(directory):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


class Janitor(Conversation):
    """The thread that clears up; it asks the tickets' views whether they have ended."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        outage: Outage,
        log_dir: Path,
        keep_s: float,
        room: Room,
        watcher: LogWatcher | None = None,
    ) -> None:
        super().__init__("janitor", url, keys, outage, timeout_s=5.0)
        self._keys, self._cupboard = keys, Cupboard(log_dir, keep_s)
        self._log_dir, self._room, self._watcher = log_dir, room, watcher
        self._over = False
        self._every_s = min(EVERY_S_MAX, max(0.2, keep_s / 10))

    def _turn(self) -> bool:
        if self._stopped.wait(self._every_s):
            return False
        tickets = self._cupboard.unsure()
        for at in range(0, len(tickets), BATCH_MAX):
            self._ask(tickets[at : at + BATCH_MAX])
        removed = self._cupboard.clear(time.time())
        if removed:
            log.info("removed the output of %d tickets whose time was over: %s", len(removed), ", ".join(removed[:10]))
        self._shrink()
        return bool(tickets)

    def _shrink(self) -> None:
        bytes_max = self._room.bytes_of(self._log_dir)
        removed, left = self._cupboard.shrink(bytes_max, time.time())
        if removed:
            names = ", ".join(removed[:10])
            log.warning("removed the output of %d ended tickets early, for room: %s", len(removed), names)
        over = bytes_max is not None and left > bytes_max
        if over and not self._over:
            log.warning("the output of live tickets in %s has more than %d bytes: %d", self._log_dir, bytes_max, left)
        self._over = over
        if self._watcher is not None:
            self._watcher.stored(left)

    def _ask(self, tickets: list[str]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for ticket_id in tickets:
            pipeline.hget(self._keys.ticket(ticket_id), "state")
        states: list[Any] = pipeline.execute()
        for ticket_id, state in zip(tickets, states, strict=True):
            if state == b"ended" or (state is None and time.time() - self._cupboard.newest_s(ticket_id) >= SURE_S):
                self._cupboard.ended(ticket_id)
            elif state is not None:
                self._cupboard.live(ticket_id)
