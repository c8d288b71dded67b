"""A short, adaptive spin: look again and again for a moment before going to sleep.

Going to sleep and being woken costs more than a small call does. Looking on for a moment pays only where the answer
comes within that moment, which it does not when the method is slow, the machine is busy, or both processes share one
processor. So each spin in vain doubles the number of waits that go by without one, and one that pays starts anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

SPIN_S: Final = 250e-6
_VAIN_MAX: Final = 8

Events = list[tuple[int, int]]


class Spin:
    """One waiter's memory of whether spinning pays. Not locked: one thread at a time waits."""

    def __init__(self) -> None:
        # On one processor, whoever is waited for cannot run meanwhile.
        self._vain = 0 if len(os.sched_getaffinity(0)) > 1 else _VAIN_MAX
        self._skip = (1 << self._vain) - 1

    def wait(self, poll: Callable[[float | None], Events], timeout: float | None) -> Events:
        """What ``poll(timeout)`` finds; it is asked with a timeout of 0 first, for a moment, where that pays."""
        if self._skip:
            self._skip -= 1
            return poll(timeout)
        until = time.monotonic() + SPIN_S
        while True:
            ready = poll(0)
            if ready:
                self._vain = 0
                return ready
            if time.monotonic() > until:
                break
        self._vain = min(self._vain + 1, _VAIN_MAX)
        self._skip = (1 << self._vain) - 1
        return poll(timeout)
