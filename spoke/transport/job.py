"""What a server keeps of its callers and their calls, the table of what may be called, and the event loop's thread."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from spoke.errors import ActorError
from spoke.transport.endpoint import Endpoint

if TYPE_CHECKING:
    import asyncio

_NAMES_SHOWN: Final = 20


@dataclass(slots=True, eq=False)
class Job:
    """One call that has come and is not answered."""

    caller: Caller
    call_id: int
    name: str
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    nbytes: int
    cancelled: bool = False
    task_canceller: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Nobody waits any more: do not start, or, if it is async, stop."""
        self.cancelled = True
        if self.task_canceller is not None:
            self.task_canceller()


@dataclass(slots=True, eq=False)
class Caller:
    """One connected caller. Changed under the server's lock."""

    endpoint: Endpoint
    fd: int = field(init=False)
    flush_fd: int = field(init=False)
    jobs: dict[int, Job] = field(default_factory=dict)
    held_bytes: int = 0
    paused: bool = False
    gone: bool = False

    def __post_init__(self) -> None:
        self.fd = self.endpoint.readable_fd()
        self.flush_fd = self.endpoint.flush_fd()


class Methods:
    """What of a target may be called from outside: public methods that are not its base class's own."""

    def __init__(self, target: object) -> None:
        self._target = target
        self._reserved = frozenset(getattr(target, "_reserved", ()))
        self._found: dict[str, tuple[Callable[..., Any], bool]] = {}

    def full_name(self, name: str) -> str:
        """The name for messages."""
        return f"{type(self._target).__name__}.{name}"

    def find(self, name: str) -> tuple[Callable[..., Any], bool]:
        """The bound method and whether it is async; ActorError for what may not be called."""
        known = self._found.get(name)
        if known is not None:
            return known
        if not self._callable(name):
            names = [other for other in dir(self._target) if self._callable(other)]
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            offered = ", ".join(names[:_NAMES_SHOWN]) or "no methods"
            error = ActorError(f"{self.full_name(name)[:200]!r} cannot be called; the actor offers {offered}{more}")
            error.remote_type = "AttributeError"
            raise error
        function = getattr(self._target, name)
        self._found[name] = (function, inspect.iscoroutinefunction(function))
        return self._found[name]

    def _callable(self, name: str) -> bool:
        if name.startswith("_") or name in self._reserved:
            return False
        # Statically: asking whether something may be called must not run a property.
        found = inspect.getattr_static(self._target, name, None)
        return not isinstance(found, type) and (callable(found) or isinstance(found, staticmethod | classmethod))


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
