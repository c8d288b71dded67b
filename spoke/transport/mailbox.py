"""A mailbox: what actors push to this client, in order for each actor, bounded."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from spoke.errors import ActorUnreachable, ClientClosed, WaitTimeout
from spoke.transport.bell import Bell
from spoke.transport.call import Connection
from spoke.transport.closing import AsyncClosing
from spoke.transport.credit import Window
from spoke.transport.future import StreamFuture
from spoke.transport.values import unpack

CAPACITY: Final = 1024
_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Push:
    """What an actor pushed, and the actor's rank."""

    rank: int
    value: Any


class Keeper(Protocol):
    """Who knows whether actors push again when their pushes have ended, and sees to it. None of it may wait."""

    def may_return(self, rank: int) -> bool:
        """Whether an actor whose pushes have ended may push again."""

    def ended(self, rank: int) -> None:
        """The pushes of a rank have ended."""

    def closed(self) -> None:
        """Nobody wants pushes any more."""


class _Source:
    """What one actor pushes: in order, also where it was started again, and its new process pushes already."""

    def __init__(self, stream: StreamFuture) -> None:
        self._streams = deque((stream,))
        self._lock = threading.Lock()
        self._lost_before = self._lost = 0

    @property
    def has_items(self) -> bool:
        return any(stream.has_items for stream in tuple(self._streams))

    @property
    def lost(self) -> int:
        return self._lost_before + self._lost

    def done(self) -> bool:
        return self._streams[-1].done()

    def follow(self, stream: StreamFuture) -> None:
        """Go on with what a new process pushes. Of those before, only the last one's messages are kept."""
        with self._lock:
            while len(self._streams) > 1:
                self._leave(self._streams[0].drop())
            self._streams.append(stream)

    def take(self) -> Any:
        """The next value, in a tuple; None if there is none."""
        while True:
            stream = self._streams[0]
            item = stream.take()
            if item is not None:
                self._lost, value = unpack(item.header, item.buffers)
                return (value,)
            with self._lock:
                if len(self._streams) == 1 and self._streams[0] is stream:
                    return None
                if self._streams[0] is stream and not stream.has_items:
                    self._leave(0)

    def _leave(self, dropped: int) -> None:
        self._lost_before += self._lost + dropped
        self._lost = 0
        self._streams.popleft()

    def end(self) -> None:
        for stream in self._streams:
            stream.cancel()
            stream.drop()

    def abandon(self) -> None:
        for stream in self._streams:
            if not stream.done():
                stream.abandon()


class Mailbox(AsyncClosing, Iterator[Push], AsyncIterator[Push]):
    """What actors push from now on, until it is closed.

    For each actor there is room for ``capacity`` messages (and 64 MiB) that were not taken; what is pushed beyond is
    lost, and counted in ``lost``. Messages of one actor come in the order in which it pushed them. When an actor ends
    the others go on. One that is started again pushes into it again as soon as it has been reached; what it pushed
    before that is lost, and not counted. When no actor is left, and none is started again, ``get`` and the iteration
    raise ActorUnreachable after the last message.

    >>> with worker.mailbox() as mailbox:
    ...     worker.tell("say", "hello")
    ...     for push in mailbox:
    ...         push.rank, push.value
    ...         break
    (0, 'hello')
    """

    def __init__(
        self, connections: Mapping[int, Connection], capacity: int = CAPACITY, keeper: Keeper | None = None
    ) -> None:
        self._bell = Bell()
        self._closed = False
        self._closing = threading.Lock()
        self._window = Window(capacity, _BYTES)
        self._keeper = keeper
        self._sources: dict[int, _Source] = {}
        self._turn: deque[int] = deque()
        for rank, connection in connections.items():
            stream = connection.open_mailbox(self._window, self._bell)
            self._sources[rank] = _Source(stream)
            self._turn.append(rank)
            self._watch(rank, stream)

    def _renew(self, rank: int, connection: Connection) -> None:
        """Take what the actor at a rank pushes over another connection, after what has come before."""
        stream = connection.open_mailbox(self._window, self._bell)
        with self._closing:
            if not self._closed:
                self._sources[rank].follow(stream)
                self._watch(rank, stream)
                return
        stream.cancel()

    def _look_again(self) -> None:
        """Whether an actor may return is another matter now."""
        self._bell.ring()

    def _watch(self, rank: int, stream: StreamFuture) -> None:
        keeper = self._keeper
        if keeper is not None:
            stream.add_done_callback(lambda done: keeper.ended(rank))

    @property
    def lost(self) -> int:
        """How many messages did not fit, as far as the messages that came later have told.

        >>> with worker.mailbox() as mailbox:
        ...     mailbox.lost
        0
        """
        return sum(source.lost for source in self._sources.values())

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
        keeper = self._keeper
        return any(
            not source.done() or (keeper is not None and keeper.may_return(rank))
            for rank, source in self._sources.items()
        )

    def _take(self) -> Push | None:
        if self._closed:
            raise ClientClosed("the mailbox was closed")
        live = self._live()  # first: an item may come before the end, and is taken before it
        for _ in range(len(self._turn)):
            rank = self._turn[0]
            self._turn.rotate(-1)
            taken = self._sources[rank].take()
            if taken is not None:
                return Push(rank, *taken)
        if not live:
            raise ActorUnreachable("the actors that could push to this mailbox have all ended, or cannot be reached")
        return None

    def close(self) -> None:
        """Let nobody push any more, and forget what has come.

        >>> mailbox = worker.mailbox(capacity=16)
        >>> mailbox.close()
        """
        with self._closing:
            self._closed = True
        for source in self._sources.values():
            source.end()
        if self._keeper is not None:
            self._keeper.closed()
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
            source.abandon()
