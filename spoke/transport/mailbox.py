"""A mailbox: what actors push to this client, in order for each actor, bounded."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from spoke.errors import ActorUnreachable, ClientClosed, WaitTimeout
from spoke.transport.bell import Bell
from spoke.transport.call import Connection
from spoke.transport.closing import AsyncClosing
from spoke.transport.credit import Window
from spoke.transport.frames import Frame
from spoke.transport.future import StreamFuture
from spoke.transport.values import unpack

CAPACITY: Final = 1024
_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Push:
    """What an actor pushed, and the actor's rank."""

    rank: int
    value: Any


class Mailbox(AsyncClosing, Iterator[Push], AsyncIterator[Push]):
    """What actors push from now on, until it is closed.

    For each actor there is room for ``capacity`` messages (and 64 MiB) that were not taken; what is pushed beyond is
    lost, and counted in ``lost``. Messages of one actor come in the order in which it pushed them. When an actor ends
    the others go on; when none is left, ``get`` and the iteration raise ActorUnreachable after the last message.

    >>> with worker.mailbox() as mailbox:
    ...     worker.tell("say", "hello")
    ...     for push in mailbox:
    ...         push.rank, push.value
    ...         break
    (0, 'hello')
    """

    def __init__(self, connections: Mapping[int, Connection], capacity: int = CAPACITY) -> None:
        self._bell = Bell()
        self._lost: dict[int, int] = {}
        self._closed = False
        window = Window(capacity, _BYTES)
        self._sources: dict[int, StreamFuture] = {}
        self._turn: deque[int] = deque()
        for rank, connection in connections.items():
            self._sources[rank] = connection.open_mailbox(window, self._bell)
            self._turn.append(rank)

    @property
    def lost(self) -> int:
        """How many messages did not fit, as far as the messages that came later have told.

        >>> with worker.mailbox() as mailbox:
        ...     mailbox.lost
        0
        """
        return sum(self._lost.values())

    def get(self, timeout: float | None = None) -> Push:
        """The next message. Raises WaitTimeout after ``timeout`` seconds (None: never), ActorUnreachable at the end.

        >>> with worker.mailbox() as mailbox:
        ...     mailbox.get(timeout=0.1)
        Traceback (most recent call last):
        spoke.errors.WaitTimeout: ...
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            found = self._take()
            if found is not None:
                return found
            self._bell.wait(self._ready, self._left_s(timeout, deadline))

    async def get_async(self, timeout: float | None = None) -> Push:
        """The same for asyncio.

        >>> with worker.mailbox() as mailbox:
        ...     worker.tell("say", "hello")
        ...     (await mailbox.get_async()).value
        'hello'
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            found = self._take()
            if found is not None:
                return found
            await self._bell.wait_async(self._ready, self._left_s(timeout, deadline))

    def _left_s(self, timeout: float | None, deadline: float) -> float | None:
        """How long to wait on; others may have taken what one was woken for. Raises WaitTimeout at the end."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise WaitTimeout(f"nothing was pushed to the mailbox within {timeout} s")
        return None if left_s == math.inf else left_s

    def _ready(self) -> bool:
        return self._closed or any(s.has_items for s in self._sources.values()) or not self._live()

    def _live(self) -> bool:
        return any(not source.done() for source in self._sources.values())

    def _take(self) -> Push | None:
        if self._closed:
            raise ClientClosed("the mailbox was closed")
        live = self._live()  # first: an item may come before the end, and is taken before it
        for _ in range(len(self._turn)):
            rank = self._turn[0]
            self._turn.rotate(-1)
            item = self._sources[rank].take()
            if item is not None:
                return self._opened(rank, item)
        if not live:
            raise ActorUnreachable("the actors that could push to this mailbox have all ended, or cannot be reached")
        return None

    def _opened(self, rank: int, item: Frame) -> Push:
        lost, value = unpack(item.header, item.buffers)
        self._lost[rank] = lost
        return Push(rank, value)

    def close(self) -> None:
        """Let nobody push any more, and forget what has come.

        >>> mailbox = worker.mailbox(capacity=16)
        >>> mailbox.close()
        """
        self._closed = True
        for source in self._sources.values():
            source.cancel()
            source.drop()
        self._bell.ring()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Push:
        return self.get()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Push:
        return await self.get_async()

    def __del__(self) -> None:
        for source in getattr(self, "_sources", {}).values():
            if not source.done():
                source.abandon()
