"""Connections in a forked child: they are the parent's, which goes on to use them, so the child must not touch them.

What a child read from one would be missing in the parent, and what it sent or shut down would end the parent's calls.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

FORKED: Final = (
    "this connection belongs to the process that forked this one: open a client of its own here (spoke.Client(...))"
)


class Inherited(Protocol):
    """What a forked child has of its parent's."""

    def leave_to_parent(self) -> None:
        """Called in the child, which has one thread then: touch nothing of it from now on."""


_open: weakref.WeakSet[Inherited] = weakref.WeakSet()


def watch(connection: Inherited) -> None:
    """Tell the connection when it finds itself in a forked child."""
    _open.add(connection)


def _in_child() -> None:
    for connection in list(_open):
        connection.leave_to_parent()


os.register_at_fork(after_in_child=_in_child)
