"""A bell: wakes whoever waits for a condition to become true, threads and tasks alike."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Bell:
    """Rung after every change of what others wait for."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def ring(self) -> None:
        """Something has changed."""
        with self._condition:
            self._condition.notify_all()
            tasks, self._tasks = self._tasks, []
        for loop, waker in tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_wake, waker)

    def wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until it is ready; False when that took longer than ``timeout_s`` seconds (None: no limit)."""
        with self._condition:
            return self._condition.wait_for(ready, timeout_s)

    async def wait_async(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        """The same for asyncio."""
        import asyncio

        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not ready():
            waker: asyncio.Future[None] = loop.create_future()
            with self._condition:
                if ready():
                    return True
                self._tasks.append((loop, waker))
            left_s = None if deadline is None else deadline - time.monotonic()
            try:
                await asyncio.wait_for(waker, left_s)
            except TimeoutError:
                return ready()
            finally:
                with self._condition, contextlib.suppress(ValueError):
                    self._tasks.remove((loop, waker))
        return True


def _wake(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)
