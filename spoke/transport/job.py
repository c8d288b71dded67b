"""What a server keeps of its callers and of what they have asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from spoke.transport.credit import SenderCredit
from spoke.transport.endpoint import Endpoint
from spoke.transport.frames import Kind

CALLER: ContextVar[Caller | None] = ContextVar("spoke_caller", default=None)
"""Who called the method that runs here."""


@dataclass(slots=True, eq=False)
class Job:
    """One call that has come and is not answered."""

    caller: Caller
    call_id: int
    kind: Kind
    name: str
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    nbytes: int
    cancelled: bool = field(default=False, init=False)
    task_canceller: Callable[[], None] | None = field(default=None, init=False)

    def cancel(self) -> None:
        """Nobody waits any more: do not start, or, if it is async, stop."""
        self.cancelled = True
        if self.task_canceller is not None:
            self.task_canceller()

    def granted(self, items: int) -> None:
        """Under the server's lock: the caller has consumed so many items."""


@dataclass(slots=True, eq=False)
class StreamJob(Job):
    """A call whose results go out one by one. While it has no credit it waits *parked*, and holds no thread.

    ``resume``, set by the server, puts it back among the jobs to execute; ``wake`` wakes its task.
    """

    credit: SenderCredit
    resume: Callable[[Job], None]
    iterator: Iterator[Any] | None = field(default=None, init=False)
    parked: bool = field(default=False, init=False)
    wake: Callable[[], None] | None = field(default=None, init=False)

    def cancel(self) -> None:
        """Nobody reads on: whoever has the iterator closes it."""
        Job.cancel(self)
        self._unpark()

    def granted(self, items: int) -> None:
        """Under the server's lock: go on, if it waited for that."""
        self.credit.consumed(items)
        if self.credit.has_room:
            self._unpark()
            if self.wake is not None:
                self.wake()

    def _unpark(self) -> None:
        if self.parked:
            self.parked = False
            self.resume(self)


@dataclass(slots=True, eq=False)
class Caller:
    """One connected caller. Changed under the server's lock. ``identity`` is what it said of itself."""

    endpoint: Endpoint
    fd: int = field(init=False)
    flush_fd: int = field(init=False)
    jobs: dict[int, Job] = field(default_factory=dict)
    held_bytes: int = 0
    paused: bool = False
    gone: bool = False
    identity: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fd = self.endpoint.readable_fd()
        self.flush_fd = self.endpoint.flush_fd()
