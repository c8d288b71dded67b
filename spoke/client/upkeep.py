"""One thread for what must happen later or elsewhere: time limits, and work that a finalizer or a callback leaves.

Its inbox is a ``SimpleQueue``, because a finalizer runs wherever the garbage collector happens to strike, also in the
middle of a ``put``: it must never take a lock that its own thread may hold.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

log = logging.getLogger("spoke.client")
_IDLE_S = 30.0
_STALE_MIN = 1024


class Timer:
    """Something to do at a moment, unless it is cancelled before."""

    __slots__ = ("cancelled", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Callable[[], None] | None = work
        self.cancelled = False

    def cancel(self) -> None:
        """Forget it."""
        self.cancelled = True
        self.work = None


class Upkeep:
    """Runs work in the order it comes, and timers when they are due."""

    def __init__(self, name: str) -> None:
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._stale_at = _STALE_MIN
        self.thread = threading.Thread(target=self._run, name=f"{name}-upkeep", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """End the thread once it has done what stands before; what comes later is not done."""
        self._inbox.put(None)

    def soon(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the thread. Safe anywhere, also in finalizers."""
        self._inbox.put(work)

    def later(self, delay_s: float, work: Callable[[], None]) -> Timer:
        """Do ``work`` after a delay, unless the timer is cancelled before."""
        timer = Timer(work)
        when = time.monotonic() + delay_s
        self._inbox.put(lambda: heapq.heappush(self._timers, (when, next(self._count), timer)))
        return timer

    def _run(self) -> None:
        while True:
            patience = min(_IDLE_S, self._timers[0][0] - time.monotonic()) if self._timers else _IDLE_S
            try:
                work = self._inbox.get(timeout=max(0.0, patience))
            except Empty:
                pass
            else:
                if work is None:
                    return
                self._do(work)
                del work  # it may hold the last reference to a gang
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._do(heapq.heappop(self._timers)[2].work)
            self._forget_cancelled()

    def _forget_cancelled(self) -> None:
        if len(self._timers) > self._stale_at:
            self._timers = [entry for entry in self._timers if not entry[2].cancelled]
            heapq.heapify(self._timers)
            self._stale_at = max(_STALE_MIN, 2 * len(self._timers))

    @staticmethod
    def _do(work: Callable[[], None] | None) -> None:
        try:
            if work is not None:
                work()
        except Exception:  # one piece of work must not end the thread that all depend on
            log.exception("the client's upkeep failed at %r", work)
