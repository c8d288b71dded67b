"""The futures of calls and of streams. Waiting for one reads the connection; all of them can be awaited, too."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, ClassVar

from spoke.transport.bell import Bell
from spoke.transport.credit import ConsumerCredit, Window
from spoke.transport.frames import Frame

if TYPE_CHECKING:
    from spoke.transport.channel import Channel


class CallFuture(Future[Any]):
    """The future of one call. Waiting for it reads the connection; cancelling it tells the actor."""

    reaches_memory: ClassVar[bool] = False
    """Whether the card may read or write the user's memory until the endpoint is closed."""
    _told = False

    def __init__(self, connection: Channel, method: str, deadline: float) -> None:
        super().__init__()
        self._connection = connection
        self.method = method
        self.deadline = deadline
        self.call_id = 0

    ready = Future.done
    """Whether there is something to take."""

    def succeed(self, value: Any) -> None:
        """Its connection says: this is the result. It may have been cancelled just now."""
        with contextlib.suppress(InvalidStateError):
            self.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Its connection says: it failed. It may have been cancelled just now."""
        with contextlib.suppress(InvalidStateError):
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        """The method's result; raises what the call failed with, or TimeoutError after ``timeout`` seconds.

        Ctrl-C raises KeyboardInterrupt at once and gives the call up, as ``cancel`` does.
        """
        try:
            return super().result(self.read(timeout))
        except KeyboardInterrupt:
            self.cancel()
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call failed with, or None; raises TimeoutError after ``timeout`` seconds."""
        return super().exception(self.read(timeout))

    def read(self, timeout: float | None) -> float | None:
        """Read the connection until it is done, or somebody else reads; how much of the timeout is left."""
        return self._connection.read_for(self, timeout)

    def cancel(self) -> bool:
        """Give the call up: an async method is cancelled, a waiting one never starts, a running one is ignored."""
        if not super().cancel():
            return False
        with self._condition:
            if self._told:  # by another thread that cancels
                return True
            self._told = True
            self.set_running_or_notify_cancel()  # wakes who waits for many futures
        self._given_up()
        return True

    def _given_up(self) -> None:
        self._connection.forget(self)

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        self._check_process()
        return asyncio.wrap_future(self).__await__()

    def _check_process(self) -> None:
        self._connection.check_process(self)


class StreamFuture(CallFuture):
    """What has come of a stream and is not taken yet; it is done when the stream has ended."""

    def __init__(self, connection: Channel, method: str, window: Window, bell: Bell | None = None) -> None:
        super().__init__(connection, method, math.inf)
        self._items: deque[Frame] = deque()
        self._credit = ConsumerCredit(window)
        self._bell = bell or Bell()
        self.add_done_callback(lambda _: self._bell.ring())

    def ready(self) -> bool:
        """Whether an item is here, or the end."""
        return bool(self._items) or self.done()

    @property
    def has_items(self) -> bool:
        """Whether an item is here."""
        return bool(self._items)

    def add(self, item: Frame) -> None:
        """One more item has come."""
        self._items.append(item)
        self._bell.ring()

    def take(self) -> Frame | None:
        """The next item, if one is here; tells the sender when it may send more."""
        try:
            item = self._items.popleft()
        except IndexError:
            return None
        told = self._credit.consumed(item.nbytes)
        if told and not self.done():
            self._connection.send_credit(self.call_id, told)
        return item

    def drop(self) -> int:
        """Nobody takes any more: forget what has come; how many items that were."""
        count = len(self._items)
        self._items.clear()
        return count

    def abandon(self) -> None:
        """Nobody holds the stream any more. Called by the garbage collector, anywhere: the own thread cancels it."""
        self._connection.abandon(self)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until an item is here, or the end; False when that took too long."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.ready():
            left_s = self._connection.read_for(self, None if deadline is None else deadline - time.monotonic())
            if not self._bell.wait(self.ready, left_s):
                return False
        return True

    async def wait_async(self, timeout_s: float | None) -> bool:
        """The same for asyncio."""
        self._check_process()
        return await self._bell.wait_async(self.ready, timeout_s)
