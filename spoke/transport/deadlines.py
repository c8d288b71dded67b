"""The time limits of outstanding calls, by the time they end."""

from __future__ import annotations

import heapq
import math
from collections.abc import Container, Sized
from typing import Final, Protocol

_STALE: Final = 1024


class _Outstanding(Sized, Container[int], Protocol):
    """What is outstanding, by id."""


class Deadlines:
    """A heap of time limits; those of calls that were answered are left until their time. Its owner locks it."""

    def __init__(self, outstanding: _Outstanding) -> None:
        self._outstanding = outstanding
        self._heap: list[tuple[float, int]] = []
        self.next = math.inf

    def add(self, deadline: float, call_id: int) -> bool:
        """One more; True if it is the next one to end."""
        if len(self._heap) > _STALE + 2 * len(self._outstanding):
            self._heap = [entry for entry in self._heap if entry[1] in self._outstanding]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (deadline, call_id))
        is_next = deadline < self.next
        self.next = min(self.next, deadline)
        return is_next

    def pop_late(self, now: float) -> list[int]:
        """The outstanding calls whose time is over."""
        late: list[int] = []
        while self._heap and (self._heap[0][0] <= now or self._heap[0][1] not in self._outstanding):
            deadline, call_id = heapq.heappop(self._heap)
            if deadline <= now and call_id in self._outstanding:
                late.append(call_id)
        self.next = self._heap[0][0] if self._heap else math.inf
        return late

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self.next = math.inf
