"""``spoke.AsyncClient``: the same for asyncio. A thin face on the sync client, which does the work in its threads.

Nothing here blocks the event loop: requests are handed to the sender's thread, and what must wait for the server in
the calling thread (opening, the first launch, closing) goes through ``asyncio.to_thread``. Cancelling a task that
awaits a request withdraws the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

from spoke.client.gang import RELEASE_TIMEOUT_S, Args, Care, Commands, Env, Gang, Ids, Types
from spoke.client.handle import ActorHandle
from spoke.client.lines import LogLine
from spoke.client.operate import AsyncOperations
from spoke.client.status import PoolStatus
from spoke.client.sync import CLOSE_TIMEOUT_S, Client
from spoke.client.tracking import ActorExit
from spoke.errors import ClientClosed
from spoke.events.model import OnFailure, Resources, Slot
from spoke.events.rules import Group, Labels, Strategy
from spoke.events.supervision import Supervision
from spoke.protocol.launch import Torchrun
from spoke.protocol.notice import Notice
from spoke.transport import Stream, Transport
from spoke.transport.mailbox import CAPACITY, Mailbox

T = TypeVar("T")
_NO_NEED = Resources()


class AsyncActorHandle:
    """``ActorHandle`` for asyncio: ``await handle.call("method", ...)``.

    >>> worker = workers[0]
    >>> await worker.call("add", 1, 2)
    3
    """

    def __init__(self, handle: ActorHandle) -> None:
        self.sync = handle

    @property
    def gang(self) -> AsyncGang:
        """The gang that the actor is a member of.

        >>> len(worker.gang)
        2
        """
        return AsyncGang(self.sync.gang)

    @property
    def id(self) -> str:
        """The actor's id, as it was launched.

        >>> [worker.id for worker in workers]
        ['Worker-0', 'Worker-1']
        """
        return self.sync.id

    @property
    def rank(self) -> int:
        """The global rank.

        >>> [worker.rank for worker in workers]
        [0, 1]
        """
        return self.sync.rank

    @property
    def slot(self) -> Slot:
        """The place: node, host, ranks, GPUs.

        >>> worker.slot.node_id
        'node-0'
        """
        return self.sync.slot

    @property
    def node_id(self) -> str:
        """The node that the actor runs on.

        >>> worker.node_id
        'node-0'
        """
        return self.sync.node_id

    @property
    def pid(self) -> int:
        """The process id on its node.

        >>> worker.pid > 1
        True
        """
        return self.sync.pid

    @property
    def address(self) -> str:
        """Where it takes calls; empty for a command.

        >>> worker.address
        '...127.0.0.1...'
        """
        return self.sync.address

    @property
    def phase(self) -> str:
        """What is known of it; see ``ActorHandle.phase``.

        >>> worker.phase
        'running'
        """
        return self.sync.phase

    @property
    def restarts(self) -> int:
        """How often it was started again, as far as this client knows.

        >>> worker.restarts
        0
        """
        return self.sync.restarts

    @property
    def exit(self) -> ActorExit | None:
        """How it ended; None while it runs, as far as this client knows.

        >>> worker.exit is None
        True
        """
        return self.sync.exit

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
        return await _await_late(self.sync.call, method, *args, **kwargs)

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

    async def stop(self) -> bool:
        """Ask the actor to stop; see ``ActorHandle.stop``.

        >>> actor = (await gang.launch("Worker"))[1]
        >>> await actor.stop(), (await actor.wait()).ok
        (True, True)
        """
        return await asyncio.wrap_future(self.sync.stop())

    async def wait(self, timeout: float | None = None) -> ActorExit:
        """Wait for the actor's end; WaitTimeout after ``timeout`` seconds (None: never).

        >>> actor = (await gang.launch_command(["true"]))[0]
        >>> (await actor.wait(timeout=30)).code
        0
        """
        return await asyncio.wrap_future(self.sync.wait(timeout))

    async def release(self) -> bool:
        """Give back the whole gang of this actor.

        >>> await (await client.spawn("Worker", "alone")).release()
        True
        """
        return await asyncio.wrap_future(self.sync.release())

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync)[1:]}"


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


class AsyncGang:
    """``Gang`` for asyncio; ``async with gang`` releases it at the end of the block.

    >>> async with await client.gang_allocate(2, 1, spoke.Resources(gpus=1)) as gang:
    ...     len(gang)
    2
    """

    def __init__(self, gang: Gang) -> None:
        self.sync = gang

    @property
    def ticket_id(self) -> str:
        """The ticket.

        >>> gang.ticket_id
        't-...'
        """
        return self.sync.ticket_id

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The places, by rank.

        >>> [(slot.global_rank, slot.node_id, len(slot.gpu_ids)) for slot in gang.slots]
        [(0, 'node-0', 1), (1, 'node-1', 1)]
        """
        return self.sync.slots

    @property
    def master_addr(self) -> str:
        """The address of rank 0's node, for rendezvous.

        >>> gang.master_addr
        '127.0.0.1'
        """
        return self.sync.master_addr

    @property
    def master_port(self) -> int:
        """A port on rank 0's node that its agent keeps free for this gang.

        >>> gang.master_port > 1024
        True
        """
        return self.sync.master_port

    @property
    def num_nodes(self) -> int:
        """How many nodes it got; see ``Gang.num_nodes``.

        >>> gang.num_nodes
        2
        """
        return self.sync.num_nodes

    def ranks(self, group: str) -> range:
        """The ranks of a group of a mixed gang; see ``Gang.ranks``.

        >>> groups = [spoke.Group("controller"), spoke.Group("worker", num_nodes=2, resources=spoke.Resources(gpus=1))]
        >>> (await client.gang_allocate(groups=groups)).ranks("worker")
        range(1, 3)
        """
        return self.sync.ranks(group)

    @property
    def releasing(self) -> str:
        """Why the gang is being given back; empty while it is not.

        >>> gang.releasing
        ''
        """
        return self.sync.releasing

    @property
    def released(self) -> bool:
        """Whether nothing is left of it.

        >>> gang.released, await gang.release(), gang.released
        (False, True, True)
        """
        return self.sync.released

    @property
    def actors(self) -> list[AsyncActorHandle]:
        """Handles on the actors that are known to run, by rank.

        >>> actors = await gang.launch("Worker")
        >>> [actor.id for actor in gang.actors]
        ['Worker-0', 'Worker-1']
        """
        return [AsyncActorHandle(handle) for handle in self.sync.actors]

    @property
    def exits(self) -> dict[int, ActorExit]:
        """How the actors ended that have ended so far, by rank.

        >>> actors = await gang.launch_command(["false"])
        >>> ends = await gang.wait()
        >>> {rank: end.code for rank, end in gang.exits.items()}
        {0: 1, 1: 1}
        """
        return self.sync.exits

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The last notices that came; see ``Gang.notices``.

        >>> gang.notices
        ()
        """
        return self.sync.notices

    def on_notice(self, tell: Callable[[Notice], object]) -> None:
        """Call ``tell`` with each notice from now on, in a thread of the client; see ``Gang.on_notice``.

        >>> gang.on_notice(lambda notice: print(notice.kind, notice.reason))
        """
        self.sync.on_notice(tell)

    async def launch(
        self,
        type: Types,
        args: Args = None,
        *,
        ids: Ids = None,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
    ) -> list[AsyncActorHandle]:
        """Start one actor of a registered type at every rank; see ``Client.launch_gang``.

        >>> [actor.id for actor in await gang.launch("Worker", {"lr": 0.1}, ids=["left", "right"])]
        ['left', 'right']
        """
        launch = self.sync.launch
        return _wrap_all(await _await_late(launch, type, args, ids=ids, env=env, cwd=cwd, supervision=supervision))

    async def launch_command(
        self,
        argv: Commands,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        torchrun: Torchrun | None = None,
    ) -> list[AsyncActorHandle]:
        """Run a command at every rank; see ``Client.launch_command``.

        >>> actors = await gang.launch_command(["sh", "-c", "exit $RANK"])
        >>> [end.code for end in await gang.wait()]
        [0, 1]
        """
        launch = self.sync.launch_command
        options = {"env": env, "cwd": cwd, "supervision": supervision, "torchrun": torchrun}
        return _wrap_all(await _await_late(launch, argv, **options))

    async def wait(self, timeout: float | None = None, *, ranks: Sequence[int] | None = None) -> list[ActorExit]:
        """Wait for the ends of the actors; see ``Gang.wait``.

        >>> actors = await gang.launch_command(["true"])
        >>> all(end.ok for end in await gang.wait(timeout=30))
        True
        """
        return await asyncio.wrap_future(self.sync.wait(timeout, ranks=ranks))

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
        return self.sync.client.logs_async(self.ticket_id, rank, follow=follow, tail=tail, since=since)

    async def repair(self, rank: int, *, elsewhere: bool = False) -> Slot:
        """Give the failed member at a rank another place; see ``Client.gang_repair``.

        >>> failed = await (await gang.launch_command(["false"]))[1].wait()
        >>> (await gang.repair(failed.rank)).node_id
        'node-1'
        """
        return await asyncio.wrap_future(self.sync.repair(rank, elsewhere=elsewhere))

    async def release(self) -> bool:
        """Give everything back; see ``Client.gang_release``.

        >>> await gang.release()
        True
        """
        return await asyncio.wrap_future(self.sync.release())

    def __len__(self) -> int:
        return len(self.sync)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.sync)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.released and self.sync.client.is_open:
            await asyncio.wait_for(self.release(), RELEASE_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync)[1:]}"

    def _repr_html_(self) -> str:
        return self.sync._repr_html_()


class ClientOptions(TypedDict, total=False):
    """The options of ``Client``, as an editor shows them for ``AsyncClient``."""

    lease_s: float
    retry_s: float
    allocator_timeout_s: float
    outstanding_max: int
    transport: str | None
    key: str | None
    project: str


class AsyncClient(AsyncOperations):
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

    async def gang_allocate(
        self,
        num_nodes: int = 1,
        actors_per_node: int = 1,
        resources: Resources = _NO_NEED,
        strict_pack: bool | None = None,
        *,
        timeout: float | None = 300.0,
        detached: bool = False,
        preferred_node: str | None = None,
        gpu_ids: Sequence[int] | None = None,
        gpu_models: Sequence[str] = (),
        on_failure: OnFailure = "report",
        grace_s: float = 5.0,
        name: str = "",
        strategy: Strategy | None = None,
        where: Labels | None = None,
        where_not: Labels | None = None,
        min_gpu_memory: int | str = 0,
        near: str | None = None,
        exclusive: bool = False,
        same: str | None = None,
        prefer_same: str | None = None,
        min_nodes: int | None = None,
        groups: Sequence[Group] = (),
        priority: int = 0,
        project: str = "",
        expected_duration: float | None = None,
        max_duration: float | None = None,
        preemptible: bool = False,
        reservation: str = "",
    ) -> AsyncGang:
        """Reserve places for a gang; see ``Client.gang_allocate``. Cancelling withdraws the request.

        >>> gang = await client.gang_allocate(2, 2, spoke.Resources(gpus=1))
        >>> len(gang), gang.num_nodes
        (4, 2)
        """
        future = self.sync.gang_allocate(
            num_nodes,
            actors_per_node,
            resources,
            strict_pack,
            strategy=strategy,
            where=where,
            where_not=where_not,
            min_gpu_memory=min_gpu_memory,
            near=near,
            exclusive=exclusive,
            same=same,
            prefer_same=prefer_same,
            min_nodes=min_nodes,
            groups=groups,
            timeout=timeout,
            detached=detached,
            preferred_node=preferred_node,
            gpu_ids=gpu_ids,
            gpu_models=gpu_models,
            on_failure=on_failure,
            grace_s=grace_s,
            name=name,
            priority=priority,
            project=project,
            expected_duration=expected_duration,
            max_duration=max_duration,
            preemptible=preemptible,
            reservation=reservation,
        )
        return AsyncGang(await asyncio.wrap_future(future))

    async def gang_release(self, ticket_id: str, *, timeout: float | None = None) -> bool:
        """Give a ticket back; see ``Client.gang_release``.

        >>> await client.gang_release(gang.ticket_id)
        True
        """
        return await asyncio.wrap_future(self.sync.gang_release(ticket_id, timeout=timeout))

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
        return self.sync.logs_async(ticket_id, rank, follow=follow, tail=tail, since=since)

    async def gang_repair(self, ticket_id: str, rank: int, *, elsewhere: bool = False) -> Slot:
        """Give a failed member another place; see ``Client.gang_repair``.

        >>> failed = await (await gang.launch_command(["false"]))[1].wait()
        >>> (await client.gang_repair(gang.ticket_id, failed.rank)).global_rank
        1
        """
        return await asyncio.wrap_future(self.sync.gang_repair(ticket_id, rank, elsewhere=elsewhere))

    async def attach(self, ticket_id: str) -> AsyncGang:
        """A ticket that another client was granted; see ``Client.attach``.

        >>> (await client.attach(gang.ticket_id)).ticket_id == gang.ticket_id
        True
        """
        return AsyncGang(await asyncio.wrap_future(self.sync.attach(ticket_id)))

    async def launch_actor(
        self,
        ticket_id: str,
        global_rank: int,
        type: str,
        id: str,
        args: Mapping[str, Any] | None = None,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Supervision | None = None,
        timeout: float | None = None,
    ) -> AsyncActorHandle:
        """Start an actor at one rank; see ``Client.launch_actor``. Cancelling stops it.

        >>> actor = await client.launch_actor(gang.ticket_id, 0, "Worker", "first")
        >>> await actor.call("echo", "hello")
        'hello'
        """
        launch = self.sync.launch_actor
        options = {"env": env, "cwd": cwd, "supervision": supervision, "timeout": timeout}
        return AsyncActorHandle(await _await_late(launch, ticket_id, global_rank, type, id, args, **options))

    async def launch_gang(
        self,
        ticket_id: str,
        type: Types,
        args: Args = None,
        *,
        ids: Ids = None,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        timeout: float | None = None,
    ) -> list[AsyncActorHandle]:
        """Start an actor at every rank; see ``Client.launch_gang``.

        >>> [actor.id for actor in await client.launch_gang(gang.ticket_id, "Worker")]
        ['Worker-0', 'Worker-1']
        """
        launch = self.sync.launch_gang
        options = {"ids": ids, "env": env, "cwd": cwd, "supervision": supervision, "timeout": timeout}
        return _wrap_all(await _await_late(launch, ticket_id, type, args, **options))

    async def launch_command(
        self,
        ticket_id: str,
        argv: Commands,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        torchrun: Torchrun | None = None,
        timeout: float | None = None,
    ) -> list[AsyncActorHandle]:
        """Run a command at every rank; see ``Client.launch_command``.

        >>> actors = await client.launch_command(gang.ticket_id, ["true"])
        >>> [end.code for end in await gang.wait()]
        [0, 0]
        """
        launch = self.sync.launch_command
        options = {"env": env, "cwd": cwd, "supervision": supervision, "torchrun": torchrun, "timeout": timeout}
        return _wrap_all(await _await_late(launch, ticket_id, argv, **options))

    async def spawn(
        self,
        type: str,
        id: str,
        resources: Resources = _NO_NEED,
        args: Mapping[str, Any] | None = None,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Supervision | None = None,
        timeout: float | None = 300.0,
        detached: bool = False,
        preferred_node: str | None = None,
        gpu_ids: Sequence[int] | None = None,
        gpu_models: Sequence[str] = (),
        grace_s: float = 5.0,
        name: str = "",
    ) -> AsyncActorHandle:
        """Start one actor anywhere; see ``Client.spawn``. Cancelling releases it.

        >>> actor = await client.spawn("Worker", "alone", spoke.Resources(gpus=1))
        >>> await actor.call("add", 1, 2), await actor.release()
        (3, True)
        """
        future = self.sync.spawn(
            type,
            id,
            resources,
            args,
            env=env,
            cwd=cwd,
            supervision=supervision,
            timeout=timeout,
            detached=detached,
            preferred_node=preferred_node,
            gpu_ids=gpu_ids,
            gpu_models=gpu_models,
            grace_s=grace_s,
            name=name,
        )
        return AsyncActorHandle(await asyncio.wrap_future(future))

    async def stop_actor(self, ticket_id: str, rank: int) -> bool:
        """Ask the actor at a rank to stop; see ``Client.stop_actor``.

        >>> actors = await gang.launch("Worker")
        >>> await client.stop_actor(gang.ticket_id, 1)
        True
        """
        return await asyncio.wrap_future(self.sync.stop_actor(ticket_id, rank))

    async def status(self) -> PoolStatus:
        """The pool's nodes and tickets; see ``Client.status``.

        >>> [(node.node_id, node.gpus) for node in (await client.status()).nodes]
        [('node-0', 4), ('node-1', 4)]
        """
        return await asyncio.to_thread(self.sync.status)

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


async def _await_late(start: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Await what ``start`` returns, a future, when ``start`` itself may wait for the server."""
    starting = asyncio.ensure_future(asyncio.to_thread(start, *args, **kwargs))
    try:
        future: Future[Any] = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be stopped; what it starts is withdrawn as soon as it is there.
        starting.add_done_callback(lambda task: None if _failed(task) else task.result().cancel())
        raise
    return await asyncio.wrap_future(future)


def _failed(task: asyncio.Future[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


def _wrap_all(handles: list[ActorHandle]) -> list[AsyncActorHandle]:
    return [AsyncActorHandle(handle) for handle in handles]
