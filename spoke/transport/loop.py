"""One asyncio event loop in a thread of its own, for the async methods of an actor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class LoopThread:
    """One asyncio event loop in a thread of its own."""

    def __init__(self) -> None:
        import asyncio

        self._asyncio = asyncio
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="spoke-async-calls", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, None]) -> Callable[[], None]:
        """Start a coroutine, in the order of submission; returns what cancels it, from any thread."""
        held: list[asyncio.Task[None]] = []

        def start() -> None:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            held.append(task)

        def cancel() -> None:
            self._soon(lambda: held[0].cancel() if held else None)

        if not self._soon(start):
            work.close()
        return cancel

    def _soon(self, function: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def close(self, timeout_s: float) -> None:
        """Cancel what runs, give it half the time to end, and stop."""
        asyncio = self._asyncio

        async def end() -> None:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=timeout_s / 2)
            await self._loop.shutdown_asyncgens()
            self._loop.stop()

        ending: list[Any] = []  # a task that nobody holds may be collected before it has run
        self._soon(lambda: ending.append(self._loop.create_task(end())))
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
