"""When sessions end without being told: at the exit of the interpreter, and in a forked child.

At exit every open session is closed, while its threads still run: ``atexit`` comes before the interpreter stops
daemon threads. In a forked child a session is marked, and nothing else: its sockets and locks belong to the parent,
which goes on to renew its lease; the child must neither use nor release anything of it.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

EXIT_TIMEOUT_S = 5.0


class Ending(Protocol):
    """What can be closed at exit and marked in a child."""

    forked: bool

    def close(self, timeout_s: float) -> None:
        """End it within a bounded time."""


_sessions: weakref.WeakSet[Ending] = weakref.WeakSet()


def watch(session: Ending) -> None:
    """Close the session at the interpreter's exit, and mark it in forked children."""
    _sessions.add(session)


def unwatch(session: Ending) -> None:
    """The session has ended."""
    _sessions.discard(session)


def _at_exit() -> None:
    for session in list(_sessions):
        if not session.forked:
            session.close(EXIT_TIMEOUT_S)


def _in_child() -> None:
    for session in list(_sessions):
        session.forked = True


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
