"""``spoke.AsyncClient``: the same for asyncio. A thin face on the sync client, which does the work in its threads.

Nothing here blocks the event loop: requests are handed to the sender's thread, and what must wait for the server in
the calling thread (opening, the first launch, closing) goes through ``asyncio.to_thread``. Cancelling a task that
awaits a request withdraws the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from types import TracebackType
from typing import Self, TypedDict, Unpack

from spoke.client.aio.awaits import awaits
from spoke.client.aio.gang import AsyncGang
from spoke.client.aio.handle import AsyncActorHandle
from spoke.client.bound import Bound
from spoke.client.logs.lines import LogLine, batches_of, flat_async
from spoke.client.queue import QueueStatus
from spoke.client.status import PoolStatus
from spoke.client.sync.client import CLOSE_TIMEOUT_S, Client
from spoke.client.sync.gang import Gang
from spoke.client.sync.handle import ActorHandle
from spoke.errors import ClientClosed
from spoke.events.model import Slot
from spoke.events.queueing import Reservation
from spoke.protocol.explanation import Explanation


class ClientOptions(TypedDict, total=False):
    """The options of ``Client``, as an editor shows them for ``AsyncClient``."""

    lease_s: float
    retry_s: float
    allocator_timeout_s: float
    outstanding_max: int
    transport: str | None
    key: str | None
    project: str


class AsyncClient(Bound):
    """``Client`` for asyncio: ``async with spoke.AsyncClient(url) as client``. The options are those of ``Client``.

    Making one does nothing yet; ``async with``, or ``await client.open()``, opens the session.

    >>> async with spoke.AsyncClient() as client:  # SPOKE_URL and SPOKE_POOL say where
    ...     gang = await client.gang_allocate(2, 1, spoke.Resources(gpus=1))
    ...     [slot.node_id for slot in gang]
    ['node-0', 'node-1']
    """

    def __init__(self, url: str | None = None, *, pool: str | None = None, **options: Unpack[ClientOptions]) -> None:
        self._make = lambda: Client(url, pool=pool, _direct=False, **options)
        self._client: Client | None = None

    async def open(self) -> Self:
        """Open the session; raises what ``Client(...)`` raises.

        >>> client = spoke.AsyncClient()
        >>> await client.open()
        <AsyncClient c-... of pool 'docs' at redis://127.0.0.1:...>
        >>> await client.close()
        """
        if self._client is None:
            self._client = await asyncio.to_thread(self._make)
        return self

    @property
    def sync(self) -> Client:
        """The sync client that does the work; raises ClientClosed before ``open``.

        >>> client.sync.status().gpus
        8
        """
        if self._client is None:
            raise ClientClosed("this client is not open yet: use `async with client`, or `await client.open()`")
        return self._client

    @awaits(Client.gang_allocate)
    async def gang_allocate(self, gang: Awaitable[Gang]) -> AsyncGang:
        """Reserve places for a gang; see ``Client.gang_allocate``. Cancelling withdraws the request.

        >>> gang = await client.gang_allocate(2, 2, spoke.Resources(gpus=1))
        >>> len(gang), gang.num_nodes
        (4, 2)
        """
        return AsyncGang(await gang)

    @awaits(Client.gang_release)
    async def gang_release(self, released: Awaitable[bool]) -> bool:
        """Give a ticket back; see ``Client.gang_release``.

        >>> await client.gang_release(gang.ticket_id)
        True
        """
        return await released

    def logs(
        self,
        ticket_id: str,
        rank: int | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | datetime | None = None,
    ) -> AsyncIterator[LogLine]:
        """What the actors of a ticket print: ``async for line in client.logs("t-1")``; see ``Client.logs``.

        >>> actors = await gang.launch_command(["sh", "-c", "echo hello from $RANK"])
        >>> sorted([line.text async for line in client.logs(gang.ticket_id, follow=True)])
        ['hello from 0', 'hello from 1']
        """
        return flat_async(batches_of(self.sync.session, ticket_id, rank, follow=follow, tail=tail, since=since))

    @awaits(Client.gang_repair)
    async def gang_repair(self, slot: Awaitable[Slot]) -> Slot:
        """Give a failed member another place; see ``Client.gang_repair``.

        >>> failed = await (await gang.launch_command(["false"]))[1].wait()
        >>> (await client.gang_repair(gang.ticket_id, failed.rank)).global_rank
        1
        """
        return await slot

    @awaits(Client.attach)
    async def attach(self, gang: Awaitable[Gang]) -> AsyncGang:
        """A ticket that another client was granted; see ``Client.attach``.

        >>> (await client.attach(gang.ticket_id)).ticket_id == gang.ticket_id
        True
        """
        return AsyncGang(await gang)

    @awaits(Client.launch_actor, in_thread=True)
    async def launch_actor(self, actor: Awaitable[ActorHandle]) -> AsyncActorHandle:
        """Start an actor at one rank; see ``Client.launch_actor``. Cancelling stops it.

        >>> actor = await client.launch_actor(gang.ticket_id, 0, "Worker", "first")
        >>> await actor.call("echo", "hello")
        'hello'
        """
        return AsyncActorHandle(await actor)

    @awaits(Client.launch_gang, in_thread=True)
    async def launch_gang(self, actors: Awaitable[list[ActorHandle]]) -> list[AsyncActorHandle]:
        """Start an actor at every rank; see ``Client.launch_gang``.

        >>> [actor.id for actor in await client.launch_gang(gang.ticket_id, "Worker")]
        ['Worker-0', 'Worker-1']
        """
        return [AsyncActorHandle(actor) for actor in await actors]

    @awaits(Client.launch_command, in_thread=True)
    async def launch_command(self, actors: Awaitable[list[ActorHandle]]) -> list[AsyncActorHandle]:
        """Run a command at every rank; see ``Client.launch_command``.

        >>> actors = await client.launch_command(gang.ticket_id, ["true"])
        >>> [end.code for end in await gang.wait()]
        [0, 0]
        """
        return [AsyncActorHandle(actor) for actor in await actors]

    @awaits(Client.spawn)
    async def spawn(self, actor: Awaitable[ActorHandle]) -> AsyncActorHandle:
        """Start one actor anywhere; see ``Client.spawn``. Cancelling releases it.

        >>> actor = await client.spawn("Worker", "alone", spoke.Resources(gpus=1))
        >>> await actor.call("add", 1, 2), await actor.release()
        (3, True)
        """
        return AsyncActorHandle(await actor)

    @awaits(Client.stop_actor)
    async def stop_actor(self, told: Awaitable[bool]) -> bool:
        """Ask the actor at a rank to stop; see ``Client.stop_actor``.

        >>> actors = await gang.launch("Worker")
        >>> await client.stop_actor(gang.ticket_id, 1)
        True
        """
        return await told

    async def status(self) -> PoolStatus:
        """The pool's nodes and tickets; see ``Client.status``.

        >>> [(node.node_id, node.gpus) for node in (await client.status()).nodes]
        [('node-0', 4), ('node-1', 4)]
        """
        return await asyncio.to_thread(self.sync.status)

    @awaits(Client.cordon_node)
    async def cordon_node(self, done: Awaitable[bool]) -> bool:
        """Place nothing new on a node; see ``Client.cordon_node``.

        >>> await client.cordon_node("node-1", "its fan rattles"), await client.uncordon_node("node-1")
        (True, True)
        """
        return await done

    @awaits(Client.uncordon_node)
    async def uncordon_node(self, done: Awaitable[bool]) -> bool:
        """Let a node have new slots again; see ``Client.uncordon_node``.

        >>> await client.uncordon_node("node-1")  # nothing kept it from new slots
        False
        """
        return await done

    @awaits(Client.drain_node)
    async def drain_node(self, done: Awaitable[bool]) -> bool:
        """Cordon a node until its tickets have gone; see ``Client.drain_node``.

        >>> await client.drain_node("node-1", deadline=600, reason="new kernel", wait=False)
        True
        >>> await client.uncordon_node("node-1")
        True
        """
        return await done

    @awaits(Client.remove_node)
    async def remove_node(self, done: Awaitable[bool]) -> bool:
        """Take a node out of the pool; see ``Client.remove_node``.

        >>> await client.remove_node("node-7", reason="sold")
        Traceback (most recent call last):
        spoke.errors.UnknownNode: ...
        """
        return await done

    @awaits(Client.mark_gpu)
    async def mark_gpu(self, done: Awaitable[bool]) -> bool:
        """Mark one GPU of a node unhealthy or healthy; see ``Client.mark_gpu``.

        >>> await client.mark_gpu("node-1", 3, healthy=False, reason="smells of smoke")
        True
        >>> await client.mark_gpu("node-1", 3, healthy=True)
        True
        """
        return await done

    @awaits(Client.explain)
    async def explain(self, explanation: Awaitable[Explanation]) -> Explanation:
        """Why a ticket waits, or is where it is; see ``Client.explain``.

        >>> (await client.explain(gang.ticket_id)).state
        'allocated'
        """
        return await explanation

    @awaits(Client.move_ticket)
    async def move_ticket(self, done: Awaitable[bool]) -> bool:
        """Move a waiting ticket in the line; see ``Client.move_ticket``.

        >>> await client.move_ticket(waiting.pending_reason().ticket_id, "head")
        True
        """
        return await done

    async def queue_status(self) -> QueueStatus:
        """The policy, the projects and the reservations; see ``Client.queue_status``.

        >>> (await client.queue_status()).policy.order
        'priority'
        """
        return await asyncio.to_thread(self.sync.queue_status)

    @awaits(Client.set_queue_policy, in_thread=True)
    async def set_queue_policy(self, done: Awaitable[bool]) -> bool:
        """Order the queue by another policy; see ``Client.set_queue_policy``.

        >>> await client.set_queue_policy("fair", half_life=3600)
        True
        """
        return await done

    @awaits(Client.set_quota)
    async def set_quota(self, done: Awaitable[bool]) -> bool:
        """What a project has by right; see ``Client.set_quota``.

        >>> await client.set_quota("vision", gpus=4, weight=3)
        True
        """
        return await done

    @awaits(Client.remove_quota)
    async def remove_quota(self, done: Awaitable[bool]) -> bool:
        """Take a project's quota away; see ``Client.remove_quota``.

        >>> await client.remove_quota("speech")  # it has none
        False
        """
        return await done

    @awaits(Client.set_priority)
    async def set_priority(self, done: Awaitable[bool]) -> bool:
        """Give a ticket another priority; see ``Client.set_priority``.

        >>> await client.set_priority(gang.ticket_id, 5)
        True
        """
        return await done

    @awaits(Client.create_reservation)
    async def create_reservation(self, made: Awaitable[Reservation]) -> Reservation:
        """Keep nodes for a time; see ``Client.create_reservation``.

        >>> (await client.create_reservation(1, 4, duration=600, project="vision", name="demo")).project
        'vision'
        """
        return await made

    @awaits(Client.cancel_reservation)
    async def cancel_reservation(self, done: Awaitable[bool]) -> bool:
        """Give a reservation's nodes back; see ``Client.cancel_reservation``.

        >>> await client.cancel_reservation("r-999")
        Traceback (most recent call last):
        spoke.errors.UnknownReservation: ...
        """
        return await done

    async def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """End the session; see ``Client.close``.

        >>> client = await spoke.AsyncClient().open()
        >>> await client.close()
        """
        if self._client is not None:
            await asyncio.to_thread(self._client.close, timeout)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._client)[1:]}" if self._client is not None else "<AsyncClient, not open>"
