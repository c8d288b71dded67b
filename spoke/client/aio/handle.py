"""A handle on one actor, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from spoke.client.aio.awaits import awaits, started_in_thread
from spoke.client.aio.stream import AsyncStream
from spoke.client.known import KnownActor
from spoke.client.sync.handle import ActorHandle
from spoke.client.tracking import ActorExit
from spoke.transport import Transport
from spoke.transport.mailbox import CAPACITY, Mailbox

if TYPE_CHECKING:
    from spoke.client.aio.gang import AsyncGang


class AsyncActorHandle(KnownActor):
    """``ActorHandle`` for asyncio: ``await handle.call("method", ...)``.

    >>> worker = workers[0]
    >>> await worker.call("add", 1, 2)
    3
    """

    def __init__(self, handle: ActorHandle) -> None:
        super().__init__(handle.gang.ticket, handle._actor)
        self.sync = handle

    @property
    def gang(self) -> AsyncGang:
        """The gang that the actor is a member of.

        >>> len(worker.gang)
        2
        """
        from spoke.client.aio.gang import AsyncGang

        return AsyncGang(self.sync.gang)

    def options(self, *, timeout_s: float | None) -> AsyncActorHandle:
        """The same actor with other defaults; see ``ActorHandle.options``.

        >>> await worker.options(timeout_s=5).call("echo", "in time")
        'in time'
        """
        return AsyncActorHandle(self.sync.options(timeout_s=timeout_s))

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method and return its result; see ``ActorHandle.call``. Cancelling gives the call up.

        >>> await worker.call("add", 1, b=2)
        3
        """
        if self.sync.is_connected:
            return await asyncio.wrap_future(self.sync.call(method, *args, **kwargs))
        return await started_in_thread(self.sync.call, method, *args, **kwargs)

    def stream(self, method: str, /, *args: Any, **kwargs: Any) -> AsyncStream:
        """Call a method that yields: ``async for item in handle.stream("method", ...)``; see ``ActorHandle.stream``.

        >>> [item async for item in worker.stream("count", 3)]
        [0, 1, 2]
        """
        return AsyncStream(self.sync, method, args, kwargs)

    async def tell(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """Call a method and wait for nothing; see ``ActorHandle.tell``.

        >>> await worker.tell("echo", "nobody waits for this")
        """
        await asyncio.to_thread(self.sync.tell, method, *args, **kwargs)

    async def mailbox(self, capacity: int = CAPACITY) -> Mailbox:
        """What this actor pushes from now on: ``async for push in mailbox``; see ``ActorHandle.mailbox``.

        >>> with await worker.mailbox() as mailbox:
        ...     await worker.tell("say", "hello")
        ...     (await mailbox.get_async()).value
        'hello'
        """
        return await asyncio.to_thread(self.sync.mailbox, capacity)

    async def transport(self) -> Transport:
        """What carries the calls, and why nothing better does; see ``ActorHandle.transport``.

        >>> (await worker.transport()).name in ("tcp", "shm", "rdma")
        True
        """
        return await asyncio.to_thread(lambda: self.sync.transport)

    @awaits(ActorHandle.stop)
    async def stop(self, told: Awaitable[bool]) -> bool:
        """Ask the actor to stop; see ``ActorHandle.stop``.

        >>> actor = (await gang.launch("Worker"))[1]
        >>> await actor.stop(), (await actor.wait()).ok
        (True, True)
        """
        return await told

    @awaits(ActorHandle.wait)
    async def wait(self, end: Awaitable[ActorExit]) -> ActorExit:
        """Wait for the actor's end; WaitTimeout after ``timeout`` seconds (None: never).

        >>> actor = (await gang.launch_command(["true"]))[0]
        >>> (await actor.wait(timeout=30)).code
        0
        """
        return await end

    @awaits(ActorHandle.release)
    async def release(self, released: Awaitable[bool]) -> bool:
        """Give back the whole gang of this actor.

        >>> await (await client.spawn("Worker", "alone")).release()
        True
        """
        return await released
