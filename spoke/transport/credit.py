"""Credit: how far the sender of a stream may run ahead of its consumer, in items and in bytes.

Both ends count the same frames. The sender notes what it sent; the consumer says now and then how many items it has
consumed, at the latest when a quarter of the window is used up. So a slow consumer stops the sender, a fast one never
waits, and one item larger than the whole window still goes, alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from spoke.errors import MalformedData

ITEMS_MAX: Final = 1 << 16
BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be sent and not consumed."""

    items: int = 64
    nbytes: int = 8 << 20

    def as_data(self) -> list[int]:
        """As it crosses."""
        return [self.items, self.nbytes]


def read_window(data: Any) -> Window:
    """The window that the peer asks for, within our limits; MalformedData if it is none."""
    if type(data) is not list or [type(part) for part in data] != [int, int] or min(data) < 1:
        raise MalformedData("a stream's window must be two numbers above 0")
    return Window(min(data[0], ITEMS_MAX), min(data[1], BYTES_MAX))


class SenderCredit:
    """The sender's side. Not locked: its owner does that."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._sizes: deque[int] = deque()
        self._nbytes = 0

    @property
    def has_room(self) -> bool:
        """Whether one more item may be sent."""
        return len(self._sizes) < self._window.items and self._nbytes < self._window.nbytes

    def sent(self, nbytes: int) -> None:
        """One more item is on its way."""
        self._sizes.append(nbytes)
        self._nbytes += nbytes

    def consumed(self, items: int) -> None:
        """The peer has consumed the oldest ``items``; more than were sent count for nothing."""
        for _ in range(min(items, len(self._sizes))):
            self._nbytes -= self._sizes.popleft()


class ConsumerCredit:
    """The consumer's side. Not locked either."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._items = 0
        self._nbytes = 0

    def consumed(self, nbytes: int) -> int:
        """One more item is consumed; how many to tell the sender now, mostly 0."""
        self._items += 1
        self._nbytes += nbytes
        if 4 * self._items < self._window.items and 4 * self._nbytes < self._window.nbytes:
            return 0
        told, self._items, self._nbytes = self._items, 0, 0
        return told
