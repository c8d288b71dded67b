"""The waiting tickets in the orders in which they are looked at, and what time will bring to tickets.

Both follow from the tickets: rebuilt from a snapshot, they are the same. They are kept beside them so that a queue of
ten thousand costs no more at each step than one of ten.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

Key = tuple[int, int, int, str]
"""Lane (0: moved to the head, 1: the others), minus the priority (0 in order of arrival), place, ticket id."""

WALK_FIRST = 16
"""Who walks through a queue rarely goes far: so many are copied for a start."""


class Waiting:
    """Sorted lists of the waiting tickets: of all, and of each project; by arrival, and by priority.

    Tickets that are set aside are in no list: the pool as registered cannot hold them.
    """

    __slots__ = ("_keys", "_lists", "aside", "first", "last")

    def __init__(self) -> None:
        self._lists: dict[tuple[str, bool], list[Key]] = {}
        self._keys: dict[str, tuple[str, Key, Key]] = {}
        self.aside: dict[str, str] = {}
        """Ticket id -> why the pool as registered cannot hold it."""
        self.first = self.last = 0

    def add(self, ticket_id: str, project: str, priority: int, at_head: bool) -> None:
        """Enter a ticket: behind the others, or before them all."""
        if at_head:
            self.first -= 1
            lane, place = 0, self.first
        else:
            self.last += 1
            lane, place = 1, self.last
        keys = (project, (lane, 0, place, ticket_id), (lane, -priority, place, ticket_id))
        self._keys[ticket_id] = keys
        self._list(keys)

    def remove(self, ticket_id: str) -> None:
        """Take a ticket out; nothing happens if it is not in."""
        keys = self._keys.pop(ticket_id, None)
        if keys is not None and self.aside.pop(ticket_id, None) is None:
            self._unlist(keys)

    def reprioritize(self, ticket_id: str, priority: int) -> None:
        """Give a ticket another priority; it keeps its place by arrival."""
        project, arrival, (lane, _, place, _) = self._keys[ticket_id]
        aside = self.aside.pop(ticket_id, None) is not None
        if not aside:
            self._unlist(self._keys[ticket_id])
        self._keys[ticket_id] = (project, arrival, (lane, -priority, place, ticket_id))
        self._list(self._keys[ticket_id])

    def set_aside(self, ticket_id: str, reason: str) -> None:
        """Leave a ticket out until the pool changes."""
        if ticket_id not in self.aside:
            self.aside[ticket_id] = reason
            self._unlist(self._keys[ticket_id])

    def recall(self) -> None:
        """The pool has changed: look at all of them again."""
        for ticket_id in self.aside:
            self._list(self._keys[ticket_id])
        self.aside.clear()

    def ordered(self, project: str = "", *, by_priority: bool) -> list[Key]:
        """The tickets of a project (empty: of all) in their order. Not to be changed."""
        return self._lists.get((project, by_priority), [])

    def walk(self, project: str = "", *, by_priority: bool) -> Iterator[Key]:
        """The same tickets one after the other; those that were given may be taken out meanwhile."""
        size, last = WALK_FIRST, None
        while True:
            ordered = self._lists.get((project, by_priority), [])
            begin = 0 if last is None else bisect_right(ordered, last)
            some = ordered[begin : begin + size]
            if not some:
                return
            yield from some
            size, last = 2 * size, some[-1]

    def projects(self) -> Iterable[str]:
        """The projects that have waiting tickets."""
        return [project for project, by_priority in self._lists if project and by_priority]

    def key(self, ticket_id: str) -> Key:
        """The ticket's key by priority."""
        return self._keys[ticket_id][2]

    def __len__(self) -> int:
        return len(self._keys) - len(self.aside)

    def _list(self, keys: tuple[str, Key, Key]) -> None:
        project, arrival, priority = keys
        for scope in ("", project):
            insort(self._lists.setdefault((scope, False), []), arrival)
            insort(self._lists.setdefault((scope, True), []), priority)

    def _unlist(self, keys: tuple[str, Key, Key]) -> None:
        project, arrival, priority = keys
        for scope in ("", project):
            for name, key in (((scope, False), arrival), ((scope, True), priority)):
                found = self._lists[name]
                del found[bisect_left(found, key)]
                if not found:
                    del self._lists[name]


class Alarms:
    """When something must be done about a ticket because of the time alone (server time), the earliest first."""

    __slots__ = ("_at", "_sorted")

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._sorted: list[tuple[int, str]] = []

    def set(self, ticket_id: str, at_ms: int) -> None:
        """Set a ticket's alarm; 0: it has none."""
        old = self._at.get(ticket_id, 0)
        if old == at_ms:
            return
        if old:
            del self._sorted[bisect_left(self._sorted, (old, ticket_id))]
            del self._at[ticket_id]
        if at_ms:
            insort(self._sorted, (at_ms, ticket_id))
            self._at[ticket_id] = at_ms

    def due(self, now_ms: int) -> str:
        """The ticket whose alarm is the earliest that has come; empty if none has."""
        return self._sorted[0][1] if self._sorted and self._sorted[0][0] <= now_ms else ""

    @property
    def next_ms(self) -> int | None:
        """When the next comes; None if there is none."""
        return self._sorted[0][0] if self._sorted else None
