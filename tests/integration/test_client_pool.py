"""The client against the real allocator, with an agent that needs no processes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.errors import (
    ActorError,
    ActorStartFailed,
    ActorUnreachable,
    AllocationCancelled,
    AllocationError,
    AllocationTimeout,
    AlreadyLaunched,
    CallTimeout,
    InvalidRequest,
    RankOutOfRange,
    TicketEnded,
    UnknownTicket,
)
from tests.fakes import FakeAgent, eventually, real_allocator

T_S = 20
GPU = spoke.Resources(gpus=1)


@pytest.fixture
def agent(shared_server: EmbeddedServer, pool: str) -> Iterator[FakeAgent]:
    with real_allocator(shared_server.url, pool), FakeAgent(shared_server.url, pool, gpus=4) as agent:
        yield agent


@pytest.fixture
def client(shared_server: EmbeddedServer, pool: str, agent: FakeAgent) -> Iterator[spoke.Client]:
    with spoke.Client(shared_server.url, pool=pool) as client:
        yield client


@pytest.fixture
def other(shared_server: EmbeddedServer, pool: str, agent: FakeAgent) -> Iterator[spoke.Client]:
    with spoke.Client(shared_server.url, pool=pool) as client:
        yield client


def free(client: spoke.Client) -> int:
    return client.status().gpus_free


# --- gangs -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_design_works(client: spoke.Client) -> None:
    gang = client.gang_allocate(num_nodes=1, actors_per_node=4, resources=GPU, strict_pack=True).result(T_S)
    master = gang.slots[0].host
    actors = [
        client.launch_actor(
            gang.ticket_id, rank, "ModelRunner", f"worker_{rank}", {"rank": rank, "master": master}
        ).result(T_S)
        for rank in range(len(gang))
    ]
    assert actors[2].call("told").result(T_S) == {"rank": 2, "master": master}
    assert [slot.gpu_ids for slot in gang] == [(0,), (1,), (2,), (3,)]
    assert gang.slots[1].gpu_uuids == ("n1-gpu-1",)
    assert (gang.master_addr, gang.master_port > 0) == ("127.0.0.1", True)


def test_a_gang_waits_in_line_until_it_fits(client: spoke.Client) -> None:
    first = client.gang_allocate(1, 3, GPU).result(T_S)
    second = client.gang_allocate(1, 2, GPU)
    with pytest.raises(TimeoutError):
        second.result(0.3)
    assert first.release().result(T_S) is True
    assert second.result(T_S)


def test_a_gang_that_does_not_fit_in_time_is_told_why(client: spoke.Client) -> None:
    with pytest.raises(AllocationTimeout, match="GPU"):
        client.gang_allocate(1, 5, GPU, timeout=0.2).result(T_S)
    with pytest.raises(AllocationError, match="did not wait"):
        client.gang_allocate(1, 5, GPU, timeout=0).result(T_S)


def test_cancelling_a_gang_in_line_takes_it_out(client: spoke.Client) -> None:
    future = client.gang_allocate(1, 5, GPU)
    eventually(lambda: client.status().tickets)
    assert future.cancel()
    eventually(lambda: not client.status().tickets)


def test_a_gang_in_line_that_someone_else_releases_is_cancelled(client: spoke.Client, other: spoke.Client) -> None:
    future = client.gang_allocate(1, 5, GPU)
    (ticket,) = eventually(lambda: other.status().tickets)
    assert other.gang_release(ticket.ticket_id).result(T_S)
    with pytest.raises(AllocationCancelled):
        future.result(T_S)


def test_releasing_is_idempotent_and_knows_what_never_was(client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 1, GPU).result(T_S)
    assert [gang.release().result(T_S) for _ in range(2)] == [True, False]
    with pytest.raises(UnknownTicket, match="spoke tickets"):
        client.gang_release("t-999999").result(T_S)
    with pytest.raises(UnknownTicket):
        client.launch_actor("t-999999", 0, "T", "a").result(T_S)
    with pytest.raises(TicketEnded):
        client.attach(gang.ticket_id).result(T_S)


def test_leaving_the_block_releases_what_is_not_detached(
    shared_server: EmbeddedServer, pool: str, agent: FakeAgent, other: spoke.Client
) -> None:
    with spoke.Client(shared_server.url, pool=pool) as client:
        gang = client.gang_allocate(1, 1, GPU).result(T_S)
        kept = client.gang_allocate(1, 1, GPU, detached=True).result(T_S)
        gang.launch("T").result(T_S)
    eventually(lambda: free(other) == 3)
    assert other.gang_release(kept.ticket_id).result(T_S) is True
    eventually(lambda: free(other) == 4)


def test_the_status_names_allocator_nodes_and_tickets(client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 2, GPU, name="training").result(T_S)
    (ticket,) = eventually(lambda: client.status().tickets)
    status = client.status()
    assert (ticket.ticket_id, ticket.name, ticket.state, ticket.nodes) == (
        gang.ticket_id,
        "training",
        "allocated",
        ("n1",),
    )
    assert (status.gpus, status.gpus_free, status.nodes[0].gpus_free) == (4, 2, (2, 3))
    assert status.allocator


# --- actors ------------------------------------------------------------------------------------------------------


def test_calls_carry_arrays_and_bring_back_exceptions(client: spoke.Client) -> None:
    (handle,) = client.gang_allocate(1, 1, GPU).result(T_S).launch("T").result(T_S)
    array = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(handle.call("echo", array).result(T_S), array)
    with pytest.raises(ActorError, match="as asked") as caught:
        handle.call("fail").result(T_S)
    assert caught.value.remote_type == "ValueError"
    with pytest.raises(CallTimeout):
        handle.options(timeout_s=0.1).call("sleep", 5).result(T_S)
    for wrong in (0, -1, True, "5", 10**400, float("nan")):
        with pytest.raises(InvalidRequest, match="timeout_s"):
            handle.options(timeout_s=wrong)  # type: ignore[arg-type]
    assert [future.result(T_S) for future in [handle.call("echo", i) for i in range(100)]] == list(range(100))


def test_a_rank_is_launched_once_and_again_after_its_end(client: spoke.Client, agent: FakeAgent) -> None:
    gang = client.gang_allocate(1, 2, GPU).result(T_S)
    first = client.launch_actor(gang.ticket_id, 0, "T", "a").result(T_S)
    with pytest.raises(AlreadyLaunched, match="stop it first"):
        client.launch_actor(gang.ticket_id, 0, "T", "b").result(T_S)
    with pytest.raises(RankOutOfRange):
        client.launch_actor(gang.ticket_id, 2, "T", "b").result(T_S)
    assert client.stop_actor(gang.ticket_id, 0).result(T_S) is True
    assert first.wait(T_S).result().expected
    assert client.stop_actor(gang.ticket_id, 0).result(T_S) is False
    with pytest.raises(ActorUnreachable, match="has ended"):
        first.call("echo", 1).result(T_S)
    second = client.launch_actor(gang.ticket_id, 0, "T", "b").result(T_S)
    assert second.exit is None
    assert first.exit is not None
    assert second.call("echo", 1).result(T_S) == 1


def test_an_actor_that_does_not_start_says_why(client: spoke.Client, agent: FakeAgent) -> None:
    agent.refuse = lambda order: "no such type: Nope" if order.rank == 1 else ""
    gang = client.gang_allocate(1, 2, GPU).result(T_S)
    with pytest.raises(ActorStartFailed, match="no such type: Nope"):
        gang.launch("Nope").result(T_S)
    assert gang.exits[1].phase == "start_failed"


def test_an_actors_death_is_told_to_those_who_call_it_and_who_wait(client: spoke.Client, agent: FakeAgent) -> None:
    gang = client.gang_allocate(1, 2, GPU).result(T_S)
    handles = gang.launch("T").result(T_S)
    waiting, call = gang.wait(), handles[1].call("sleep", 30)
    agent.end(1, -1, 9)
    with pytest.raises(ActorUnreachable):
        call.result(T_S)
    end = handles[1].wait(T_S).result()
    assert (end.signal, end.ok, waiting.done()) == (9, False, False)
    agent.end(0)
    assert [end.ok for end in waiting.result(T_S)] == [True, False]


def test_a_gang_that_releases_on_failure_ends_as_a_whole(client: spoke.Client, agent: FakeAgent) -> None:
    gang = client.gang_allocate(1, 2, GPU, on_failure="release").result(T_S)
    gang.launch("T").result(T_S)
    waiting = gang.wait()
    agent.end(0, 3)
    ends = waiting.result(T_S)
    assert [(end.code, end.expected) for end in ends] == [(3, False), (-1, True)]
    eventually(lambda: gang.released)
    assert gang.releasing
    eventually(lambda: free(client) == 4)


def test_another_client_attaches_calls_and_is_told(client: spoke.Client, other: spoke.Client, agent: FakeAgent) -> None:
    gang = client.gang_allocate(1, 2, GPU).result(T_S)
    gang.launch("T", lambda slot: {"rank": slot.global_rank}).result(T_S)
    attached = other.attach(gang.ticket_id).result(T_S)
    assert [slot.gpu_uuids for slot in attached] == [slot.gpu_uuids for slot in gang]
    assert attached.actors[1].call("told").result(T_S) == {"rank": 1}
    waiting = attached.wait(ranks=[1])
    agent.end(1, 7)
    assert waiting.result(T_S)[0].code == 7
    handle = other.launch_actor(gang.ticket_id, 1, "T", "again").result(T_S)
    assert handle.call("rank").result(T_S) == 1
    del attached, handle, waiting
    eventually(lambda: free(client) == 2)  # it is not the other's to drop
    gang.release().result(T_S)


def test_a_client_may_launch_into_a_ticket_it_has_never_seen(
    client: spoke.Client, other: spoke.Client, agent: FakeAgent
) -> None:
    gang = client.gang_allocate(1, 1, GPU, detached=True).result(T_S)
    handle = other.launch_actor(gang.ticket_id, 0, "T", "a").result(T_S)
    assert handle.call("rank").result(T_S) == 0
    assert other.gang_release(gang.ticket_id).result(T_S) is True
    eventually(lambda: gang.released)
    with pytest.raises(TicketEnded):
        gang.launch("T").result(T_S)


# --- spawn -------------------------------------------------------------------------------------------------------


def test_spawn_is_a_gang_of_one_that_lives_with_its_handle(client: spoke.Client) -> None:
    handle = client.spawn("T", "solo", spoke.Resources(gpus=2), {"x": 1}).result(T_S)
    assert handle.call("told").result(T_S) == {"x": 1}
    eventually(lambda: free(client) == 2)
    del handle
    eventually(lambda: free(client) == 4)


def test_a_call_keeps_the_actor_that_nobody_else_refers_to(client: spoke.Client) -> None:
    assert client.spawn("T", "solo", GPU).result(T_S).call("sleep", 0.3).result(T_S) == 0.3
    eventually(lambda: free(client) == 4)


def test_a_spawn_that_does_not_start_leaves_no_ticket(client: spoke.Client, agent: FakeAgent) -> None:
    agent.refuse = lambda order: "import error"
    with pytest.raises(ActorStartFailed, match="import error"):
        client.spawn("T", "solo", GPU).result(T_S)
    eventually(lambda: not client.status().tickets)


def test_a_spawn_goes_only_to_the_models_it_allows(client: spoke.Client) -> None:
    with pytest.raises(spoke.errors.SpokeError, match="even with everything free"):
        client.spawn("T", "solo", GPU, gpu_models=("no such model",), timeout=0).result(T_S)


def test_a_cancelled_spawn_leaves_no_ticket(client: spoke.Client) -> None:
    for timeout in (0.0, 0.005, 0.02):
        future = client.spawn("T", "solo", GPU)
        time.sleep(timeout)
        future.cancel()
        del future
        eventually(lambda: not client.status().tickets)


def test_spawn_refuses_nonsense_at_once(client: spoke.Client) -> None:
    with pytest.raises(InvalidRequest):
        client.spawn("T", "not a name", GPU)
    with pytest.raises(InvalidRequest):
        client.spawn("T", "a", GPU, timeout=-1)


# --- the allocator goes and comes --------------------------------------------------------------------------------


def test_an_allocator_that_is_replaced_under_load_answers_everything_once(
    shared_server: EmbeddedServer, pool: str
) -> None:
    with spoke.Client(shared_server.url, pool=pool) as client:
        futures = []
        with real_allocator(shared_server.url, pool), FakeAgent(shared_server.url, pool, gpus=256):
            futures += [client.gang_allocate(1, 1, GPU) for _ in range(100)]
            futures[0].result(T_S)
        futures += [client.gang_allocate(1, 1, GPU) for _ in range(50)]
        with real_allocator(shared_server.url, pool):
            gangs = [future.result(T_S) for future in futures]
            places = {(slot.node_id, slot.gpu_ids) for gang in gangs for slot in gang}
            assert len(places) == 150
            assert all(future.result(T_S) for future in [gang.release() for gang in gangs])
            eventually(lambda: free(client) == 256)
