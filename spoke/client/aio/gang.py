"""A gang, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from types import TracebackType
from typing import Self

from spoke.client.aio.awaits import awaits
from spoke.client.aio.handle import AsyncActorHandle
from spoke.client.known import KnownGang
from spoke.client.logs.lines import LogLine, batches_of, flat_async
from spoke.client.sync.gang import RELEASE_TIMEOUT_S, Gang
from spoke.client.sync.handle import ActorHandle
from spoke.client.tracking import ActorExit
from spoke.events.model import Slot
from spoke.transport.mailbox import CAPACITY, Mailbox


class AsyncGang(KnownGang):
    """``Gang`` for asyncio; ``async with gang`` releases it at the end of the block.

    >>> async with await client.gang_allocate(2, 1, spoke.Resources(gpus=1)) as gang:
    ...     len(gang)
    2
    """

    def __init__(self, gang: Gang) -> None:
        super().__init__(gang.ticket)
        self.sync = gang

    @property
    def actors(self) -> list[AsyncActorHandle]:
        """Handles on the actors that are known to run, by rank.

        >>> actors = await gang.launch("Worker")
        >>> [actor.id for actor in gang.actors]
        ['Worker-0', 'Worker-1']
        """
        return [AsyncActorHandle(handle) for handle in self.sync.actors]

    @awaits(Gang.launch, in_thread=True)
    async def launch(self, actors: Awaitable[list[ActorHandle]]) -> list[AsyncActorHandle]:
        """Start one actor of a registered type at every rank; see ``Client.launch_gang``.

        >>> [actor.id for actor in await gang.launch("Worker", {"lr": 0.1}, ids=["left", "right"])]
        ['left', 'right']
        """
        return [AsyncActorHandle(actor) for actor in await actors]

    @awaits(Gang.launch_command, in_thread=True)
    async def launch_command(self, actors: Awaitable[list[ActorHandle]]) -> list[AsyncActorHandle]:
        """Run a command at every rank; see ``Client.launch_command``.

        >>> actors = await gang.launch_command(["sh", "-c", "exit $RANK"])
        >>> [end.code for end in await gang.wait()]
        [0, 1]
        """
        return [AsyncActorHandle(actor) for actor in await actors]

    @awaits(Gang.wait)
    async def wait(self, ends: Awaitable[list[ActorExit]]) -> list[ActorExit]:
        """Wait for the ends of the actors; see ``Gang.wait``.

        >>> actors = await gang.launch_command(["true"])
        >>> all(end.ok for end in await gang.wait(timeout=30))
        True
        """
        return await ends

    async def mailbox(self, capacity: int = CAPACITY) -> Mailbox:
        """What the gang's actors push from now on: ``async for push in mailbox``; see ``Gang.mailbox``.

        >>> async with await worker.gang.mailbox() as mailbox:
        ...     await worker.call("say", "hello")
        ...     await mailbox.get_async()
        1
        Push(rank=0, value='hello')
        """
        return await asyncio.to_thread(self.sync.mailbox, capacity)

    def logs(
        self,
        rank: int | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | datetime | None = None,
    ) -> AsyncIterator[LogLine]:
        """What its actors print: ``async for line in gang.logs()``; see ``Client.logs``.

        >>> actors = await gang.launch_command(["sh", "-c", "echo hello from $RANK"])
        >>> sorted([line.text async for line in gang.logs(follow=True)])
        ['hello from 0', 'hello from 1']
        """
        return flat_async(
            batches_of(self.sync.client.session, self.ticket_id, rank, follow=follow, tail=tail, since=since)
        )

    @awaits(Gang.repair)
    async def repair(self, slot: Awaitable[Slot]) -> Slot:
        """Give the failed member at a rank another place; see ``Client.gang_repair``.

        >>> failed = await (await gang.launch_command(["false"]))[1].wait()
        >>> (await gang.repair(failed.rank)).node_id
        'node-1'
        """
        return await slot

    @awaits(Gang.release)
    async def release(self, released: Awaitable[bool]) -> bool:
        """Give everything back; see ``Client.gang_release``.

        >>> await gang.release()
        True
        """
        return await released

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.released and self.sync.client.is_open:
            await asyncio.wait_for(self.release(), RELEASE_TIMEOUT_S)
