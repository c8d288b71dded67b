"""Who looks on while an allocator decides: meters and traces. Several look on as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from spoke.events import types as e
from spoke.events.state import PoolState


class Watcher(Protocol):
    """What is told of each step, by the allocator's thread; it must be quick, and must not fail."""

    def event(self, event: e.Event, before: PoolState, now_ms: int, event_id: str) -> None:
        """An event is about to change ``before``."""

    def commit_sent(self) -> None:
        """A commit is on its way."""

    def commit_ended(self) -> None:
        """The oldest commit that is under way has ended."""

    def answer(self, state: PoolState, now_ms: int) -> None:
        """A turn is over; the state may be looked at."""

    def begin_term(self) -> None:
        """This allocator leads from now on; what an earlier term had under way is void."""

    def end_term(self) -> None:
        """This allocator leads no more."""


class Watchers:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._all = watchers

    def event(self, event: e.Event, before: PoolState, now_ms: int, event_id: str) -> None:
        """An event is about to change ``before``."""
        for one in self._all:
            one.event(event, before, now_ms, event_id)

    def commit_sent(self) -> None:
        """A commit is on its way."""
        for one in self._all:
            one.commit_sent()

    def commit_ended(self) -> None:
        """The oldest commit that is under way has ended."""
        for one in self._all:
            one.commit_ended()

    def answer(self, state: PoolState, now_ms: int) -> None:
        """A turn is over."""
        for one in self._all:
            one.answer(state, now_ms)

    def begin_term(self) -> None:
        """This allocator leads from now on."""
        for one in self._all:
            one.begin_term()

    def end_term(self) -> None:
        """This allocator leads no more."""
        for one in self._all:
            one.end_term()


def watchers(*some: Watcher | None) -> Watcher | None:
    """Those that there are, as one; None for none, so that an allocator which nobody watches pays nothing."""
    found = [one for one in some if one is not None]
    return found[0] if len(found) == 1 else Watchers(found) if found else None
