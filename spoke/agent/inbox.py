"""What other members of the gang have sent to this actor, and who waits for it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final

from spoke.errors import ActorUnreachable, WaitTimeout

BYTES_MAX: Final = 64 << 20
MESSAGES_MAX: Final = 10_000

_From = tuple[int, int]  # rank and tag


class Expected(Future[Any]):
    """The future of one message. Waiting, by ``result`` or ``await``, ends at its time limit."""

    def __init__(self, source: _From, timeout_s: float | None) -> None:
        super().__init__()
        self._source = source
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def result(self, timeout: float | None = None) -> Any:
        """The message; raises WaitTimeout when its time is over, TimeoutError after ``timeout`` seconds."""
        own_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if own_s is None or (timeout is not None and timeout < own_s):
            return super().result(timeout)
        try:
            return super().result(own_s)
        except TimeoutError:
            self._expire()
            return super().result(0)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        import asyncio

        own_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        waiting = asyncio.wrap_future(self)
        done, _ = await asyncio.wait([waiting], timeout=own_s)
        if not done:
            self._expire()
        return await waiting

    def _expire(self) -> None:
        rank, tag = self._source
        text = f"rank {rank} sent nothing with tag {tag} within {self._timeout_s} s"
        try:
            self.set_exception(WaitTimeout(text))
        except InvalidStateError:
            return

    def give(self, value: Any) -> bool:
        """Fulfil it; False if nobody waits any more."""
        try:
            self.set_result(value)
        except InvalidStateError:
            return False
        return True


class Inbox:
    """Messages by sender and tag, each pair in the order of sending.

    A sender is told that its message was taken at once while at most 64 MiB and 10,000 messages of it wait here, and
    beyond that only when the message is received: that is what holds back a sender who waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: defaultdict[_From, deque[tuple[Any, int, Callable[[], None] | None]]] = defaultdict(deque)
        self._waiting: defaultdict[_From, deque[Expected]] = defaultdict(deque)
        self._held: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])  # messages and bytes that wait, by rank
        self._closed = False

    def put(self, rank: int, tag: int, value: Any, nbytes: int, accept: Callable[[], None]) -> None:
        """A message has come; ``accept`` tells its sender that it was taken."""
        source = (rank, tag)
        while True:
            with self._lock:
                waiting = self._waiting.get(source)
                future = waiting.popleft() if waiting else None
                if future is None:
                    held = self._held[rank]
                    full = held[0] >= MESSAGES_MAX or held[1] + nbytes > BYTES_MAX
                    held[0] += 1
                    held[1] += nbytes
                    self._messages[source].append((value, nbytes, accept if full else None))
                    if full:
                        return
            # Not under the lock: a callback of the future may ask for the next message.
            if future is None or future.give(value):
                accept()
                return

    def expect(self, rank: int, tag: int, timeout_s: float | None) -> Expected:
        """The future of the next message of this sender with this tag."""
        future = Expected((rank, tag), timeout_s)
        accept = None
        with self._lock:
            messages = self._messages.get((rank, tag))
            if messages:
                value, nbytes, accept = messages.popleft()
                held = self._held[rank]
                held[0] -= 1
                held[1] -= nbytes
                future.give(value)
            elif self._closed:
                future.set_exception(_ending())
            else:
                waiting = self._waiting[(rank, tag)]
                while waiting and waiting[0].done():  # their time was over
                    waiting.popleft()
                waiting.append(future)
        if accept is not None:
            accept()
        return future

    def close(self) -> None:
        """Nothing comes any more: who waits gets an error."""
        with self._lock:
            self._closed = True
            waiting = [future for queue in self._waiting.values() for future in queue]
            self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(_ending())


def _ending() -> ActorUnreachable:
    return ActorUnreachable("nothing can be received any more: this actor is ending")
