"""The janitor: removes the output of tickets that ended longer ago than it is kept.

A directory's age counts from when its ticket was last seen to live: while it does, the directory is touched at every
round. What a scribe of this machine still writes is locked and left alone; and nothing is removed but files that have
the names of logs, should the log directory be one in which others keep their things.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from spoke.agent.logs.access import NAME
from spoke.agent.wire import Conversation, Outage
from spoke.protocol.keys import Keys

log = logging.getLogger("spoke.agent")

EVERY_S_MAX = 60.0
BATCH_MAX = 500
_OURS = re.compile(r"\d{1,10}-.+\.(log(\.\d+)?|idx(\.new)?)\Z")


class Cupboard:
    """The tickets' directories below a log directory."""

    def __init__(self, log_dir: Path, keep_s: float) -> None:
        self._log_dir, self._keep_s = log_dir, keep_s
        self._ended: set[str] = set()

    def unsure(self) -> list[str]:
        """The tickets that have output here, and of which it is not known that they have ended."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._log_dir) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
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
        return [ticket_id for ticket_id in sorted(self._ended) if self._clear(self._log_dir / ticket_id, now_s)]

    def _clear(self, directory: Path, now_s: float) -> bool:
        files = list(_ours(directory))
        try:
            newest_s = max(path.lstat().st_mtime for path in [directory, *files])
            if not files or now_s - newest_s < self._keep_s:
                return False
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
            log.warning("the output in %s cannot be removed, though its time is over: %s", directory, error)
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


class Janitor(Conversation):
    """The thread that clears up; it asks the tickets' views whether they have ended."""

    def __init__(self, url: str, keys: Keys, outage: Outage, log_dir: Path, keep_s: float) -> None:
        super().__init__("janitor", url, keys, outage, timeout_s=5.0)
        self._keys, self._cupboard = keys, Cupboard(log_dir, keep_s)
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
        return bool(tickets)

    def _ask(self, tickets: list[str]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for ticket_id in tickets:
            pipeline.hget(self._keys.ticket(ticket_id), "state")
        states: list[Any] = pipeline.execute()
        for ticket_id, state in zip(tickets, states, strict=True):
            if state in (None, b"ended"):
                self._cupboard.ended(ticket_id)
            else:
                self._cupboard.live(ticket_id)
