"""The client against an allocator that answers as the test wants, on a real server."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.errors import (
    ClientClosed,
    InvalidRequest,
    LeaseLost,
    LimitExceeded,
    NoAllocator,
    NotSerializable,
    WaitTimeout,
)
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.requests import Envelope
from tests.fakes import FakeAllocator, Reply, eventually, granted

T_S = 20


@pytest.fixture
def allocator(shared_server: EmbeddedServer, pool: str) -> Iterator[FakeAllocator]:
    with FakeAllocator(shared_server.url, pool) as fake:
        yield fake


@pytest.fixture
def client(shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator) -> Iterator[spoke.Client]:
    with spoke.Client(shared_server.url, pool=pool) as client:
        yield client


def silent(asked: Envelope) -> list[Reply]:
    return []


def own_threads(client_id: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if client_id in thread.name]


# --- asking ------------------------------------------------------------------------------------------------------


def test_a_gang_is_allocated_launched_and_released(client: spoke.Client, allocator: FakeAllocator) -> None:
    gang = client.gang_allocate(2, 2, spoke.Resources(gpus=1)).result(T_S)
    assert [slot.global_rank for slot in gang] == [0, 1, 2, 3]
    assert (len(gang), gang.slots[3].node_id, gang.slots[3].local_rank) == (4, "n1", 1)
    handles = gang.launch("T", {"x": 1}).result(T_S)
    assert [handle.rank for handle in handles] == [0, 1, 2, 3]
    assert client.gang_release(gang.ticket_id).result(T_S) is True
    assert client.gang_release(gang.ticket_id).result(T_S) is False
    assert gang.released


def test_a_thousand_requests_wait_at_once_and_all_are_answered(client: spoke.Client, allocator: FakeAllocator) -> None:
    allocator.muted.set()
    futures = [client.gang_allocate(1, 1, name=f"g{i}") for i in range(1_000)]
    assert not any(future.done() for future in futures)
    allocator.muted.clear()
    gangs = [future.result(T_S) for future in futures]
    assert [gang.ticket.spec.name for gang in gangs] == [f"g{i}" for i in range(1_000)]


def test_requests_of_many_threads_reach_the_stream_in_the_order_of_their_numbers(
    client: spoke.Client, allocator: FakeAllocator
) -> None:
    def work() -> None:
        for _ in range(100):
            client.gang_release(client.gang_allocate(1, 1).result(T_S).ticket_id).result(T_S)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    seqs = [asked.seq for asked in allocator.seen]
    assert seqs == sorted(seqs)
    assert len(allocator.requests(r.AllocateGang)) == 800
    assert allocator.tickets == {}


def test_a_callback_may_use_the_client(client: spoke.Client) -> None:
    done = threading.Event()
    future = client.gang_allocate(1, 1)
    future.add_done_callback(
        lambda found: client.gang_release(found.result().ticket_id).add_done_callback(lambda _: done.set())
    )
    assert done.wait(T_S)


def test_the_limit_on_outstanding_requests_is_told(shared_server: EmbeddedServer, pool: str) -> None:
    with spoke.Client(shared_server.url, pool=pool, outstanding_max=3) as client:
        futures = [client.gang_allocate(1, 1) for _ in range(4)]
        with pytest.raises(LimitExceeded):
            futures[3].result(T_S)


def test_the_status_of_an_empty_pool_is_empty(client: spoke.Client, pool: str) -> None:
    status = client.status()
    assert (status.pool, status.allocator, status.nodes, status.tickets) == (pool, "", (), ())


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ((0, 1), {}),
        ((1, -1), {}),
        ((1, 10**9), {}),
        ((10**5, 10**5), {}),
        ((1.5, 1), {}),
        ((1, 1), {"timeout": -1}),
        ((1, 1), {"timeout": float("nan")}),
        ((1, 1), {"timeout": "soon"}),
        ((1, 1), {"name": "a\x00b"}),
        ((1, 1), {"name": "x" * 10_000_000}),
        ((1, 1), {"preferred_node": "no such/node"}),
        ((1, 1), {"gpu_ids": [1, 1]}),
        ((1, 1), {"on_failure": "explode"}),
        ((1, 1), {"grace_s": -1}),
    ],
)
def test_nonsense_is_refused_before_it_is_sent(
    client: spoke.Client, allocator: FakeAllocator, counts: tuple[int, int], options: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequest):
        client.gang_allocate(*counts, **options)  # type: ignore[arg-type]
    assert allocator.requests(r.AllocateGang) == []


def test_ticket_ids_and_arguments_are_checked(client: spoke.Client) -> None:
    for ticket_id in ("", "a\nb", "t" * 10_000_000, None, 7):
        with pytest.raises(InvalidRequest):
            client.gang_release(ticket_id)  # type: ignore[arg-type]
    gang = client.gang_allocate(1, 1).result(T_S)
    with pytest.raises(NotSerializable, match="x"):
        client.launch_actor(gang.ticket_id, 0, "T", "a", {"x": object()})
    with pytest.raises(InvalidRequest):
        client.launch_actor(gang.ticket_id, 0, "T", "a b")
    with pytest.raises(spoke.RankOutOfRange):
        client.launch_actor(gang.ticket_id, 1, "T", "a").result(T_S)
    with pytest.raises(InvalidRequest, match="launch before you wait"):
        gang.wait()


def test_a_pool_must_have_a_usable_name(shared_server: EmbeddedServer) -> None:
    with pytest.raises(InvalidRequest, match="pool"):
        spoke.Client(shared_server.url, pool="a b")


# --- nobody answers ----------------------------------------------------------------------------------------------


def test_without_an_allocator_futures_fail_within_a_bounded_time(shared_server: EmbeddedServer, pool: str) -> None:
    with spoke.Client(shared_server.url, pool=pool, allocator_timeout_s=0.3) as client:
        begun = time.monotonic()
        with pytest.raises(NoAllocator, match=f"start one: spoke allocator --url redis://.* --pool {pool}"):
            client.gang_allocate(1, 1).result(T_S)
        assert time.monotonic() - begun < 5
    assert time.monotonic() - begun < 10


def test_what_an_allocator_grants_after_its_client_gave_up_is_given_back(
    shared_server: EmbeddedServer, pool: str
) -> None:
    with spoke.Client(shared_server.url, pool=pool, allocator_timeout_s=0.3) as client:
        with pytest.raises(NoAllocator):
            client.gang_allocate(1, 1, detached=True).result(T_S)
        with FakeAllocator(shared_server.url, pool) as allocator:
            eventually(lambda: allocator.requests(r.ReleaseGang))
            eventually(lambda: not allocator.tickets)
            assert client.gang_allocate(1, 1).result(T_S)


def test_a_gang_in_line_waits_longer_than_a_missing_allocator_would_be_noticed(
    shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator
) -> None:
    def queue(asked: Envelope) -> list[Reply]:
        return [(0, p.Queued(asked.seq, "t-1", "full"))]

    allocator.scripts[r.AllocateGang] = queue
    allocator.scripts[r.ExplainGang] = lambda asked: []
    with spoke.Client(shared_server.url, pool=pool, allocator_timeout_s=0.2) as client:
        future = client.gang_allocate(1, 1)
        with pytest.raises(TimeoutError):
            future.result(1.5)
        assert not future.done()
        (asked,) = [asked for asked in allocator.seen if isinstance(asked.request, r.AllocateGang)]
        allocator.tell(client.client_id, asked.seq, granted("t-1", asked.request.spec))
        assert future.result(T_S).ticket_id == "t-1"


# --- cancelling and time limits ----------------------------------------------------------------------------------


def test_cancelling_an_allocation_withdraws_it(client: spoke.Client, allocator: FakeAllocator) -> None:
    allocator.scripts[r.AllocateGang] = silent
    future = client.gang_allocate(1, 1)
    assert future.cancel()
    assert future.cancel()
    assert wait([future], 1).done == {future}
    eventually(lambda: allocator.requests(r.CancelGang))


def test_a_gang_granted_while_it_is_cancelled_is_given_back(client: spoke.Client, allocator: FakeAllocator) -> None:
    held = threading.Event()

    def grant_late(asked: Envelope) -> list[Reply]:
        held.wait(T_S)
        ticket_id = allocator.new_ticket()
        allocator.tickets[ticket_id] = asked
        return [(asked.seq, granted(ticket_id, asked.request.spec))]  # type: ignore[attr-defined]

    allocator.scripts[r.AllocateGang] = grant_late
    future = client.gang_allocate(1, 1, detached=True)
    assert future.cancel()
    held.set()
    eventually(lambda: allocator.requests(r.ReleaseGang))
    eventually(lambda: not allocator.tickets)


def test_cancelling_a_launch_stops_the_actor(client: spoke.Client, allocator: FakeAllocator) -> None:
    gang = client.gang_allocate(1, 2).result(T_S)
    allocator.scripts[r.LaunchActors] = silent
    assert gang.launch("T").cancel()
    eventually(lambda: len(allocator.requests(r.StopActor)) == 2)


def test_every_wait_has_a_time_limit(client: spoke.Client, allocator: FakeAllocator) -> None:
    gang = client.gang_allocate(1, 1).result(T_S)
    (handle,) = gang.launch("T").result(T_S)
    allocator.scripts |= {r.LaunchActors: silent, r.ReleaseGang: silent}
    futures = [
        gang.wait(0.05),
        handle.wait(0.05),
        client.launch_actor(gang.ticket_id, 0, "T", "a", timeout=0.05),
        gang.launch("T", timeout=0.05),
        gang.launch_command(["true"], timeout=0.05),
        client.gang_release(gang.ticket_id, timeout=0.05),
        client.gang_release(gang.ticket_id, timeout=0.05),
    ]
    for future in futures:
        with pytest.raises(WaitTimeout, match=r"0\.05 s"):
            future.result(T_S)


def test_an_exit_ends_the_waits_for_it(client: spoke.Client, allocator: FakeAllocator) -> None:
    gang = client.gang_allocate(1, 2).result(T_S)
    handles = gang.launch("T").result(T_S)
    both, first = gang.wait(), handles[0].wait()
    for rank in (0, 1):
        info = p.ActorInfo(rank, f"T-{rank}", "n0", handles[rank]._actor.launch_id, "exited", code=rank)
        allocator.tell(client.client_id, 0, p.ActorEnded(gang.ticket_id, info, False))
    assert first.result(T_S).ok
    assert [(end.code, end.ok) for end in both.result(T_S)] == [(0, True), (1, False)]
    assert gang.exits[1].code == 1
    assert gang.actors == []


def test_a_command_has_no_methods(client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 1).result(T_S)
    (handle,) = gang.launch_command(["sleep", "60"]).result(T_S)
    with pytest.raises(InvalidRequest, match="is a command"):
        handle.call("generate")


# --- giving back -------------------------------------------------------------------------------------------------


def test_a_gang_is_released_when_the_last_reference_to_it_and_its_handles_goes(
    client: spoke.Client, allocator: FakeAllocator
) -> None:
    gang = client.gang_allocate(1, 1).result(T_S)
    handles = gang.launch("T").result(T_S)
    del gang
    client.gang_allocate(1, 1, detached=True).result(T_S)  # a round trip later ...
    assert allocator.requests(r.ReleaseGang) == []  # ... the handle still keeps the ticket
    del handles
    eventually(lambda: allocator.requests(r.ReleaseGang))
    assert len(allocator.tickets) == 1  # the detached one


def test_a_released_gang_is_not_released_again_when_it_is_dropped(
    client: spoke.Client, allocator: FakeAllocator
) -> None:
    gang = client.gang_allocate(1, 1).result(T_S)
    gang.release().result(T_S)
    del gang
    client.gang_allocate(1, 1).result(T_S)
    assert len(allocator.requests(r.ReleaseGang)) <= 2  # the first gang's, perhaps the dropped second one's
    assert [request.ticket_id for request in allocator.requests(r.ReleaseGang)].count("t-1") == 1


def test_a_dropped_gang_explains_itself_to_who_still_uses_its_ticket(client: spoke.Client) -> None:
    ticket_id = client.gang_allocate(1, 1).result(T_S).ticket_id
    with pytest.raises(spoke.TicketError):
        client.launch_actor(ticket_id, 0, "T", "a").result(T_S)


def test_a_with_block_releases_its_gang(client: spoke.Client, allocator: FakeAllocator) -> None:
    with client.gang_allocate(1, 1, detached=True).result(T_S) as gang:
        assert gang.ticket_id in allocator.tickets
    assert allocator.tickets == {}


def test_closing_says_goodbye_fails_what_waits_and_ends_the_threads(
    shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator
) -> None:
    client = spoke.Client(shared_server.url, pool=pool)
    gang = client.gang_allocate(1, 1).result(T_S)
    (handle,) = gang.launch("T").result(T_S)
    allocator.scripts[r.AllocateGang] = silent
    futures = [client.gang_allocate(1, 1), gang.wait()]
    begun = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - begun < 3
    assert allocator.kinds()[-1] == "client.close"
    assert own_threads(client.client_id) == []
    for future in futures:
        with pytest.raises(ClientClosed):
            future.result(T_S)
    with pytest.raises(ClientClosed):
        client.gang_allocate(1, 1).result(T_S)
    with pytest.raises(ClientClosed):
        client.status()
    with pytest.raises(ClientClosed):
        handle.call("echo", 1).result(T_S)
    assert not client.is_open


@pytest.mark.parametrize(
    "options",
    [
        {"outstanding_max": 0},
        {"outstanding_max": "many"},
        {"key": 5},
        {"project": None},
        {"url": 5},
        {"url": b"redis://h"},
    ],
    ids=str,
)
def test_a_clients_options_of_the_wrong_type_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(options)) if "url" not in options else "URL"):
        spoke.Client(**options)


def test_arguments_of_the_wrong_type_are_refused(client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 1).result(T_S)
    wrong: Any = "x"
    for words, ask in (
        ("ids must be a list", lambda: gang.launch("T", ids=5)),  # type: ignore[arg-type]
        ("ids must be a list", lambda: gang.launch("T", ids=wrong)),
        ("env must be a dict", lambda: gang.launch("T", env=wrong)),
        ("notice must be seconds", lambda: client.set_queue_policy(notice=wrong)),
        ("start must be seconds", lambda: client.create_reservation(1, 1, 60, start=wrong)),
        ("timeout must be from 0", lambda: client.close(wrong)),
        ("timeout must be from 0", lambda: client.close(-1)),
    ):
        with pytest.raises(InvalidRequest, match=words):
            ask()
    assert client.is_open


def test_what_belongs_to_this_process_says_so_when_it_is_pickled(client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 1).result(T_S)
    (handle,) = gang.launch("T").result(T_S)
    for mine in (client, gang, handle, spoke.AsyncClient()):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(spoke.NotSerializable, match="open a client there"):
                copied(mine)
    assert pickle.loads(pickle.dumps(gang.slots)) == gang.slots


def test_closing_is_bounded_when_nobody_answers(
    shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator
) -> None:
    client = spoke.Client(shared_server.url, pool=pool)
    client.gang_allocate(1, 1).result(T_S)
    allocator.muted.set()
    begun = time.monotonic()
    client.close(timeout=0.5)
    assert time.monotonic() - begun < 5
    assert own_threads(client.client_id) == []


def test_a_client_that_is_dropped_closes_itself(
    shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator
) -> None:
    client = spoke.Client(shared_server.url, pool=pool)
    client.gang_allocate(1, 1).result(T_S)
    client_id = client.client_id
    del client
    gc.collect()
    eventually(lambda: "client.close" in allocator.kinds())
    eventually(lambda: not own_threads(client_id))


# --- the lease ---------------------------------------------------------------------------------------------------


def test_the_lease_is_renewed_as_long_as_the_client_lives(
    shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator
) -> None:
    with spoke.Client(shared_server.url, pool=pool, lease_s=0.6) as client:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            client.gang_release(client.gang_allocate(1, 1).result(T_S).ticket_id).result(T_S)
        assert client.is_open


@pytest.mark.parametrize("how", ["run out", "told"])
def test_a_lost_lease_fails_everything_and_says_what_to_do(
    shared_server: EmbeddedServer, pool: str, allocator: FakeAllocator, how: str
) -> None:
    with spoke.Client(shared_server.url, pool=pool, lease_s=0.6) as client:
        gang = client.gang_allocate(1, 1).result(T_S)
        allocator.scripts[r.AllocateGang] = silent
        waiting = client.gang_allocate(1, 1)
        if how == "told":
            allocator.tell(client.client_id, 0, p.SessionLost("no sign of life for 0.6 s"))
        else:
            allocator.drop_lease(client.client_id)
        with pytest.raises(LeaseLost, match="open a new client"):
            waiting.result(T_S)
        with pytest.raises(LeaseLost):
            gang.release().result(T_S)
        assert gang.releasing


def test_a_reply_that_cannot_be_read_fails_its_request(client: spoke.Client, allocator: FakeAllocator) -> None:
    allocator.scripts[r.AllocateGang] = silent
    future = client.gang_allocate(1, 1)
    asked = eventually(lambda: allocator.requests(r.AllocateGang))
    assert asked
    seq = allocator.seen[-1].seq
    key = allocator.keys.reply(client.client_id)
    allocator._redis.xadd(key, {0: b"granted {", "what": b"granted {}"})
    allocator._redis.xadd(key, {seq: b"granted {"})
    with pytest.raises(spoke.SpokeError, match="same release"):
        future.result(T_S)
