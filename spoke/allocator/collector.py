"""Keeps Python's cyclic garbage collector from interrupting decisions.

A full collection looks at every object that there is: in a pool of 10,000 nodes that takes a tenth of a second, and it
begins whenever enough has been allocated, as a rule within a decision. Decisions leave no cycles behind, so nearly
everything is freed at once without the collector. Here full collections are put off until nobody asks for anything,
and what was found alive is frozen: later ones look only at what came since. Once in a while, and at the beginning of a
term, all is looked at again, so that memory stays bounded whatever becomes of cycles.

The settings are those of the whole process, so this is for an allocator that has one of its own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

YOUNG = 10_000
"""After so many more containers were made than freed, the young ones are looked at: some milliseconds at most."""
MIDDLE = 10
NEVER = 1 << 30
BUSY_ROUNDS_MAX = 10
"""So many times ``YOUNG * MIDDLE`` objects may be made before a collection does not wait for a rest any more."""
WHOLE_EVERY_S = 3_600.0


class Collector:
    """The collector of a process that decides. ``begin`` and ``end`` a term; ``rest`` and ``work`` in each turn."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before = gc.get_threshold()
        self._whole_at_s = 0.0

    def begin(self) -> None:
        """Put full collections off from now on. What is there is looked at, and frozen."""
        gc.set_threshold(YOUNG, MIDDLE, NEVER)
        self._collect_all()

    def end(self) -> None:
        """Leave the collector as it was."""
        gc.set_threshold(*self._before)
        gc.unfreeze()

    def rest(self) -> None:
        """Nobody asks for anything: collect, if much was made since the last time."""
        if self._clock() >= self._whole_at_s:
            self._collect_all()
        elif gc.get_count()[2]:
            self._collect()

    def work(self) -> None:
        """There is much to do: collect only if it cannot wait."""
        if gc.get_count()[2] >= BUSY_ROUNDS_MAX:
            self._collect()

    def _collect_all(self) -> None:
        gc.unfreeze()
        self._collect()
        self._whole_at_s = self._clock() + WHOLE_EVERY_S

    def _collect(self) -> None:
        gc.collect()
        gc.freeze()
