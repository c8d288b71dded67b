"""Members of a gang reach each other by rank, on real agents, with the real allocator."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at


@pytest.fixture
def client(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[spoke.Client]:
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        for node in ("n0", "n1"):
            agents.start_agent(node, gpus=4, imports=[str(Path(__file__).with_name("peer_actors.py"))])
        with spoke.Client(shared_server.url, pool=pool) as client:
            yield client


def gang_of(client: spoke.Client, nodes: int = 2, each: int = 2) -> spoke.Gang:
    return client.gang_allocate(nodes, each, spoke.Resources(gpus=1), timeout=30).result(40)


def test_a_gang_talks_among_itself(client: spoke.Client) -> None:
    actors = gang_of(client).launch("Member").result(40)
    # Calls, streams, messages.
    asked = [actor.call("ask", rank) for actor in actors for rank in range(4)]
    assert [future.result(40) for future in asked] == [0, 1, 2, 3] * 4
    assert actors[0].call("sum_of", 3, 1000).result(20) == 499_500
    sums = [actor.call("all_reduce", np.full(100_000, 10.0**rank)) for rank, actor in enumerate(actors)]
    assert all((future.result(40) == 1111.0).all() for future in sums)
    pair = [actors[1].call("exchange", 2), actors[2].call("exchange", 1)]
    assert [future.result(20) for future in pair] == ["from 2", "from 1"]
    assert "rank 0 sent nothing with tag 99" in actors[3].call("recv_nothing").result(20)
    with pytest.raises(spoke.ActorError, match="the gang has ranks 0 to 3"):
        actors[0].call("ask", 4).result(20)
    # Memory: actor to actor, actor to client, client to actor.
    handle = actors[1].call("share", 100_000).result(20)
    assert actors[3].call("read", handle).result(20) == 100_000
    here = np.empty(100_000, "u1")
    handle.read_into(here).result(20)
    assert (here == 1).all()
    with spoke.Buffer(np.full(1000, 3, "u1"), actors[0].gang) as buffer:
        assert actors[2].call("read", buffer.handle).result(20) == 3000
    # Mailboxes.
    with actors[0].gang.mailbox() as mailbox:
        eventually(lambda: actors[2].call("announce", "hello").result(10) == 1)
        first = mailbox.get(10)
        assert (first.rank, first.value) == (2, "hello")
        assert actors[0].call("announce", "for you", to_caller=True).result(10) == 1
        assert mailbox.get(10).value == "for you"


def test_a_rank_that_is_launched_later_and_again_is_found(client: spoke.Client) -> None:
    gang = gang_of(client)
    first = client.launch_actor(gang.ticket_id, 0, "Member", "a").result(40)
    waiting = first.call("ask", 1)
    second = client.launch_actor(gang.ticket_id, 1, "Member", "b").result(40)
    assert waiting.result(40) == 1
    os.kill(second.pid, signal.SIGKILL)
    assert second.wait(20).result(30).signal == signal.SIGKILL
    with pytest.raises(spoke.ActorError, match="has ended"):
        first.call("ask", 1).result(40)
    client.launch_actor(gang.ticket_id, 1, "Member", "c").result(40)
    assert first.call("ask", 1).result(40) == 1


def test_the_error_of_a_call_to_a_dead_peer_says_which_rank_it_was_and_where(client: spoke.Client) -> None:
    caller, dies = gang_of(client, 2, 1).launch("Member").result(40)
    waiting = caller.call("wait_for", 1)
    eventually(lambda: dies.call("waits").result(10))
    place = dies.address.removeprefix("tcp://")
    os.kill(dies.pid, signal.SIGKILL)
    assert waiting.result(40).startswith(f"recv_forever on rank 1 on {dies.node_id} ({place}) got no answer")
    assert dies.wait(20).result(30).signal == signal.SIGKILL
    ended = f"rank 1 of ticket {dies.gang.ticket_id}, on {dies.node_id}, has ended (exited)"
    assert caller.call("wait_for", 1).result(40) == ended


def test_peers_outlive_the_client_that_launched_them(shared_server: EmbeddedServer, client: spoke.Client) -> None:
    with spoke.Client(shared_server.url, pool=client.pool) as other:
        gang = other.gang_allocate(1, 2, detached=True, timeout=30).result(40)
        gang.launch("Member").result(40)
    attached = client.attach(gang.ticket_id).result(20)
    with attached:
        assert attached.actors[0].call("ask", 1).result(40) == 1


def test_a_handle_says_what_carries_its_calls_and_why_nothing_better(
    client: spoke.Client, shared_server: EmbeddedServer, pool: str
) -> None:
    (best,) = gang_of(client, 1, 1).launch("Member").result(40)
    assert best.transport.name == "shm"
    assert str(best.transport) == "shm"
    with spoke.Client(shared_server.url, pool=pool, transport="tcp") as told:
        (actor,) = gang_of(told, 1, 1).launch("Member").result(40)
        assert actor.transport.name == "tcp"
        assert actor.transport.why_not["shm"] == "transport=tcp was asked for"
        assert "not shm: transport=tcp was asked for" in str(actor.transport)
        assert actor.call("rank").result(20) == 0


def test_plain_methods_of_a_serial_actor_run_one_at_a_time_in_order(client: spoke.Client) -> None:
    (actor,) = gang_of(client, 1, 1).launch("Serial").result(40)
    for number in range(100):
        actor.tell("note", number)
    assert actor.call("noted").result(20) == list(range(100))


def test_streams_tells_and_mailboxes_for_asyncio(shared_server: EmbeddedServer, client: spoke.Client) -> None:
    async def main() -> None:
        async with (
            spoke.AsyncClient(shared_server.url, pool=client.pool) as other,
            await other.gang_allocate(1, 2, timeout=30) as gang,
        ):
            actors = await gang.launch("Member")
            assert [n async for n in actors[0].stream("count", 100)] == list(range(100))
            async with actors[1].stream("count", 10**9) as stream:
                assert await anext(stream) == 0
            async with await gang.mailbox() as mailbox:
                await actors[1].tell("announce", "later")
                assert (await asyncio.wait_for(anext(mailbox), 20)).value == "later"
            with spoke.Buffer(10, gang) as buffer:
                assert await actors[0].call("read", buffer.handle) == 0

    asyncio.run(asyncio.wait_for(main(), 60))
