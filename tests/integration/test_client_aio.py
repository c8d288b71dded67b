"""``AsyncClient``: the same surface, awaitable, and never in the way of the event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer, free_port
from spoke.client.aio.gang import AsyncGang
from spoke.client.aio.handle import AsyncActorHandle
from spoke.client.sync.gang import Gang
from spoke.client.sync.handle import ActorHandle
from spoke.errors import AllocationTimeout, ClientClosed, InvalidRequest, ServerUnreachable, WaitTimeout
from spoke.protocol import requests as r
from tests.fakes import FakeAgent, FakeAllocator, eventually, real_allocator

T_S = 30
GPU = spoke.Resources(gpus=1)


@pytest.fixture
def agent(shared_server: EmbeddedServer, pool: str) -> Iterator[FakeAgent]:
    with real_allocator(shared_server.url, pool), FakeAgent(shared_server.url, pool, gpus=4) as agent:
        yield agent


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, T_S))


def test_a_gang_from_allocation_to_release(shared_server: EmbeddedServer, pool: str, agent: FakeAgent) -> None:
    async def work() -> None:
        async with spoke.AsyncClient(shared_server.url, pool=pool) as client:
            async with await client.gang_allocate(1, 4, GPU) as gang:
                handles = await gang.launch("T", lambda slot: {"rank": slot.global_rank})
                told = await asyncio.gather(*(handle.call("told") for handle in handles))
                assert told == [{"rank": rank} for rank in range(4)]
                with pytest.raises(spoke.ActorError, match="as asked"):
                    await handles[0].call("fail")
                agent.end(0, 3)
                assert (await handles[0].wait(5)).code == 3
                assert await handles[1].stop() is True
                assert (await client.status()).gpus_free == 0
            assert gang.released
            handle = await client.spawn("T", "solo", GPU)
            assert await handle.call("echo", 1) == 1
            assert await handle.release() is True
            with pytest.raises(AllocationTimeout):
                await client.gang_allocate(1, 9, GPU, timeout=0.1)

    run(work())


def test_many_tasks_wait_at_once(shared_server: EmbeddedServer, pool: str) -> None:
    async def one(client: spoke.AsyncClient) -> bool:
        gang = await client.gang_allocate(1, 1)
        return await gang.release()

    async def work() -> None:
        async with spoke.AsyncClient(shared_server.url, pool=pool) as client:
            assert await asyncio.gather(*(one(client) for _ in range(500))) == [True] * 500

    with FakeAllocator(shared_server.url, pool) as allocator:
        run(work())
        assert allocator.tickets == {}


def test_cancelling_the_task_withdraws_the_request(shared_server: EmbeddedServer, pool: str) -> None:
    async def work() -> None:
        async with spoke.AsyncClient(shared_server.url, pool=pool) as client:
            task = asyncio.create_task(client.gang_allocate(1, 1))
            await asyncio.to_thread(eventually, lambda: allocator.requests(r.AllocateGang))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(eventually, lambda: allocator.requests(r.CancelGang))
            allocator.scripts.clear()
            gang = await client.gang_allocate(1, 2)
            allocator.scripts[r.LaunchActors] = lambda asked: []
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(gang.launch("T"), 0.3)
            await asyncio.to_thread(eventually, lambda: len(allocator.requests(r.StopActor)) == 2)

    with FakeAllocator(shared_server.url, pool) as allocator:
        allocator.scripts[r.AllocateGang] = lambda asked: []
        run(work())


def test_a_server_that_hangs_does_not_hang_the_loop(server: EmbeddedServer, pool: str) -> None:
    async def work() -> None:
        async with spoke.AsyncClient(server.url, pool=pool) as client:
            gang = await client.gang_allocate(1, 1)
            await gang.launch("T")
            server.pause()
            try:
                tasks = [asyncio.create_task(client.gang_allocate(1, 1)), asyncio.create_task(gang.launch("T"))]
                longest, last = 0.0, time.monotonic()
                for _ in range(50):
                    await asyncio.sleep(0.01)
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
                assert longest < 0.5
                with pytest.raises(WaitTimeout):
                    await gang.wait(0.1)
            finally:
                server.resume()
            await asyncio.gather(*tasks)

    with FakeAllocator(server.url, pool):
        run(work())


def test_errors_come_where_they_are_awaited() -> None:
    async def work() -> None:
        with pytest.raises(ServerUnreachable):
            async with spoke.AsyncClient(f"redis://127.0.0.1:{free_port()}"):
                pass
        client = spoke.AsyncClient("redis://127.0.0.1:1")
        with pytest.raises(ClientClosed, match="not open yet"):
            await client.gang_allocate(1, 1)
        with pytest.raises(InvalidRequest):
            await spoke.AsyncClient("http://x").open()
        await client.close()

    run(work())


@pytest.mark.parametrize(
    ("sync", "aio"), [(spoke.Client, spoke.AsyncClient), (Gang, AsyncGang), (ActorHandle, AsyncActorHandle)]
)
def test_both_clients_have_the_same_surface(sync: type, aio: type) -> None:
    inner = {"wait_for_rank", "is_connected", "url", "pool", "client_id", "is_open", "memory_home"}
    names = {name for name, _ in inspect.getmembers(sync) if not name.startswith("_")} - inner
    assert names <= {name for name, _ in inspect.getmembers(aio)}
    for name in names:
        method = getattr(sync, name)
        if inspect.isfunction(method):
            ours = list(inspect.signature(getattr(aio, name)).parameters.values())
            theirs = list(inspect.signature(method).parameters.values())
            assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], name
