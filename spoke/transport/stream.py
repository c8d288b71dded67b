"""A stream as its consumer sees it: an iterator, sync and async, over what a method yields."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from spoke.errors import CallTimeout
from spoke.transport.closing import AsyncClosing
from spoke.transport.frames import Frame
from spoke.transport.future import StreamFuture
from spoke.transport.values import unpack


class Stream(AsyncClosing, Iterator[Any], AsyncIterator[Any]):
    """What a method yields, item by item, as it comes.

    The actor runs ahead by a bounded number of items and bytes, and then waits until some are taken. An error of the
    method is raised after the items before it. Leaving early, by ``close``, by the end of a ``with`` block, or by
    letting go of the stream, stops the method: its ``finally`` runs. ``timeout_s`` limits the wait for each item:
    CallTimeout, and the stream is closed.

    >>> for item in worker.stream("count", 2):
    ...     item
    0
    1
    """

    def __init__(self, future: StreamFuture, timeout_s: float | None = None) -> None:
        self._future = future
        self._timeout_s = timeout_s
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        item = self._future.take()
        if item is None:
            if not self._future.wait(self._timeout_s):
                raise self._too_late()
            item = self._future.take()
        return self._end() if item is None else self._value(item)

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        item = self._future.take()
        if item is None:
            if not await self._future.wait_async(self._timeout_s):
                raise self._too_late()
            item = self._future.take()
        if item is not None:
            return self._value(item)
        try:
            return self._end()
        except StopIteration:
            raise StopAsyncIteration from None

    def _value(self, item: Frame) -> Any:
        try:
            return unpack(item.header, item.buffers)
        except BaseException:
            self.close()
            raise

    def _end(self) -> Any:
        if self._ended or self._future.cancelled():  # closed meanwhile, by another thread
            raise StopIteration
        self._ended = True
        raise StopIteration(self._future.result(0))

    def _too_late(self) -> CallTimeout:
        self.close()
        return CallTimeout(
            f"{self._future.method} gave no item for {self._timeout_s:g} s; the stream was closed. Where that is not "
            f"too long, give more time by options(timeout_s=...)"
        )

    def close(self) -> None:
        """Stop the method, unless it has ended, and forget what has come. Does not wait for it.

        >>> stream = worker.stream("count", 1_000_000)
        >>> next(stream)
        0
        >>> stream.close()
        """
        self._ended = True
        self._future.cancel()
        self._future.drop()

    async def aclose(self) -> None:
        """The same for asyncio.

        >>> stream = worker.stream("count", 1_000_000)
        >>> await anext(stream)
        0
        >>> await stream.aclose()
        """
        self.close()

    def __del__(self) -> None:
        future = getattr(self, "_future", None)
        if future is not None and not future.done():
            future.abandon()
