"""Who looks on while an agent works: meters and traces, by what its state machine tells its shell to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from spoke.agent import instructions as i


class Watcher(Protocol):
    """What is told of each step, by the agent's thread; it must be quick, and must not fail."""

    def watch(self, step: i.Instruction) -> None:
        """The state machine has said this."""

    def spawned(self, launch_id: str) -> None:
        """What a launch needs is prepared, and its process is started now."""


class LogWatcher(Protocol):
    """What is told of the output of actors that is kept and read here, by the threads that serve it."""

    def answered(self, size: int) -> None:
        """A reader's ask was answered, with so many bytes of output."""

    def refused(self, code: str) -> None:
        """A reader's ask was refused, or could not be served: the error's code says why."""

    def stored(self, size: int) -> None:
        """All output that is kept here has so many bytes."""


class Watchers:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._all = watchers

    def watch(self, step: i.Instruction) -> None:
        """The state machine has said this."""
        for one in self._all:
            one.watch(step)

    def spawned(self, launch_id: str) -> None:
        """A launch's process is started now."""
        for one in self._all:
            one.spawned(launch_id)


def watchers(*some: Watcher | None) -> Watcher | None:
    """Those that there are, as one; None for none."""
    found = [one for one in some if one is not None]
    return found[0] if len(found) == 1 else Watchers(found) if found else None
