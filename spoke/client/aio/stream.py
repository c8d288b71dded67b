"""What a method of an actor yields, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from spoke.client.sync.handle import ActorHandle
from spoke.transport import Stream


class AsyncStream(AsyncIterator[Any]):
    """``Stream`` for asyncio. It begins with the first item that is asked for; raises what ``stream`` raises then."""

    def __init__(self, handle: ActorHandle, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._handle = handle
        self._call = (method, args, kwargs)
        self._stream: Stream | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        stream = self._stream
        if stream is None:
            stream = self._begin() if self._handle.is_connected else await asyncio.to_thread(self._begin)
            self._stream = stream
        return await anext(stream)

    def _begin(self) -> Stream:
        method, args, kwargs = self._call
        return self._handle.stream(method, *args, **kwargs)

    async def aclose(self) -> None:
        """Stop the method, unless it has ended; see ``Stream.close``."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
