"""The desk at which readers of output ask: who waits, until when, and how much may go out. Pure.

Every reader has one place: what it asks anew replaces what it asked before. What goes out is bounded by a bucket of
bytes that fills at a steady rate; while it is empty, readers wait, oldest first, and none is turned away for it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from spoke.protocol.logs import WAIT_MS_MAX, Asked

READERS_MAX = 256
RATE_BYTES_S = 64 << 20
BURST_BYTES = 8 << 20
LOOK_EVERY_S = 0.025
"""How often files are looked at for which somebody waits: the latency of following, against a few stat(2) calls."""


@dataclass(slots=True)
class Place:
    """One reader's ask. It is answered at ``until_s`` at the latest, news or not."""

    asked: Asked
    until_s: float
    looked: bool = False


class Desk:
    """The asks that are not answered yet. ``now_s`` is on any clock that never goes back."""

    def __init__(self, readers_max: int = READERS_MAX, rate: float = RATE_BYTES_S, burst: float = BURST_BYTES) -> None:
        self._readers_max, self._rate, self._burst = readers_max, rate, burst
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._budget, self._at_s = burst, 0.0

    def __len__(self) -> int:
        return len(self._places)

    def take(self, asked: Asked, now_s: float) -> bool:
        """A reader asks; False if there is no place for one more."""
        if asked.reader not in self._places and len(self._places) >= self._readers_max:
            return False
        wait_s = min(max(asked.ask.wait_ms, 0), WAIT_MS_MAX) / 1000
        self._places.pop(asked.reader, None)
        self._places[asked.reader] = Place(asked, now_s + wait_s)
        return True

    def due(self, now_s: float) -> list[Place]:
        """The places to look after now, in the order of their asking; none while the bucket is empty."""
        self._fill(now_s)
        return list(self._places.values()) if self._budget > 0 else []

    def may_answer(self, place: Place, now_s: float, *, news: bool) -> bool:
        """Whether to answer now; without news only when its time is over."""
        place.looked = True
        return (news and self._budget > 0) or now_s >= place.until_s

    def answered(self, place: Place, size: int) -> None:
        """The place is free again; its answer had so many bytes."""
        self._budget -= size
        if self._places.get(place.asked.reader) is place:
            del self._places[place.asked.reader]

    def wait_s(self, now_s: float) -> float | None:
        """How long there is nothing to do, unless somebody asks; None: until then."""
        if not self._places:
            return None
        if self._budget <= 0:
            return max(LOOK_EVERY_S, -self._budget / self._rate)
        if any(not place.looked for place in self._places.values()):
            return 0.0
        next_s = min(place.until_s for place in self._places.values())
        return max(0.0, min(LOOK_EVERY_S, next_s - now_s))

    def _fill(self, now_s: float) -> None:
        self._budget = min(self._burst, self._budget + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
