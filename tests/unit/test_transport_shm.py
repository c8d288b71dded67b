"""Shared memory: blocks never overlap and never leak, and no bytes of a broken peer do more than end the connection."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.errors import MalformedData
from spoke.transport.carrier import Unavailable, Wire
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import Frame, Kind, Oversized
from spoke.transport.shm import BLOCK_BYTES_MIN, PIECE_BYTES, ShmEndpoint
from spoke.transport.shm_carrier import ShmCarrier
from spoke.transport.shm_memory import ARENA_BYTES, PAGE, RING_BYTES, Arena
from spoke.transport.shm_reader import HEAD, PLACE, STREAMED, RecordReader

LIMIT = 64 << 20
MIB = 1 << 20
EDGES = [0, 1, BLOCK_BYTES_MIN - 1, BLOCK_BYTES_MIN, BLOCK_BYTES_MIN + 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1]

sizes = st.sampled_from([*EDGES, RING_BYTES // 4, RING_BYTES // 2 + 3]) | st.integers(0, 100_000)


def pair() -> tuple[ShmEndpoint, ShmEndpoint]:
    """The client's and the server's endpoint."""
    ours, theirs = socket.socketpair()
    carrier = ShmCarrier()
    offer = carrier.offer(Wire(ours, "server", LIMIT))
    acceptance = carrier.accept(offer.params, Wire(theirs, "client", LIMIT))
    client = offer.complete(acceptance.answer, 0.0)
    server = acceptance.endpoint()
    offer.close()
    acceptance.close()
    assert isinstance(client, ShmEndpoint)
    assert isinstance(server, ShmEndpoint)
    return client, server


@pytest.fixture
def ends() -> Iterator[tuple[ShmEndpoint, ShmEndpoint]]:
    before = len(os.listdir("/proc/self/fd"))
    client, server = pair()
    yield client, server
    client.close()
    server.close()
    assert len(os.listdir("/proc/self/fd")) == before


def send(endpoint: Endpoint, call_id: int, header: bytes, *buffers: bytes) -> None:
    endpoint.send(Kind.CALL, call_id, header, [memoryview(b) for b in buffers], may_wait=False, must=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sizes, st.lists(sizes, max_size=4)), max_size=8), st.randoms())
def test_frames_arrive_whole_and_in_order(frames: list[tuple[int, list[int]]], random: object) -> None:
    gc.freeze()  # so that the collection below looks at this example's objects only, and not at all that the suite made
    client, server = pair()
    got: list[Frame] = []
    sent = []
    for number, (header_bytes, lengths) in enumerate(frames):
        header = bytes([number]) * header_bytes
        buffers = [bytes([number, index]) * (length // 2) for index, length in enumerate(lengths)]
        sent.append((number, header, buffers))
        send(client, number, header, *buffers)
    while len(got) < len(frames):
        got += server.receive()  # type: ignore[arg-type]
        client.flush()
    assert [(f.call_id, f.header, [bytes(b) for b in f.buffers]) for f in got] == sent
    del got
    gc.collect()
    gc.unfreeze()
    with client._memory:
        client._collect()
    assert len(client._arena) == 0  # every block came back
    client.close()
    server.close()


def test_a_received_block_is_written_once_and_stays_as_long_as_its_views(
    ends: tuple[ShmEndpoint, ShmEndpoint],
) -> None:
    client, server = ends
    send(client, 1, b"", b"a" * MIB)
    (frame,) = server.receive()
    assert isinstance(frame, Frame)
    part = frame.buffers[0][5:10]
    del frame
    for number in range(2, 6):
        send(client, number, b"", b"b" * MIB)
        del server.receive()[:]
    assert bytes(part) == b"aaaaa"
    assert len(client._arena) <= 2
    server.close()
    client.close()
    assert bytes(part) == b"aaaaa"


def test_a_block_that_came_back_is_used_again_instead_of_a_cold_one(ends: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    client, server = ends
    for number in range(5):
        send(client, number, b"", b"b" * (2 * MIB))
        del server.receive()[:]
    assert client._arena._touched == 2 * MIB


def test_more_than_the_limit_is_skipped(ends: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    client, server = ends
    server._inbox._reader._limit_bytes = 1000
    send(client, 1, b"h" * 100_000, b"x" * MIB, b"y" * 10)
    send(client, 2, b"after")
    first, second = server.receive()
    assert isinstance(first, Oversized)
    assert isinstance(second, Frame)
    assert second.header == b"after"
    with client._memory:
        client._collect()
    assert len(client._arena) == 0


def test_a_peer_that_does_not_read_fills_the_backlog_and_gets_it_later(ends: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    client, server = ends
    count = 40
    for number in range(count):
        send(client, number, bytes(60_000))
    assert client.backlog_bytes > 0
    got: list[object] = []
    while len(got) < count:
        got += server.receive()
        client.flush()
    assert client.backlog_bytes == 0
    assert [frame.call_id for frame in got] == list(range(count))  # type: ignore[attr-defined]


def test_what_was_said_before_the_end_still_arrives(ends: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    client, server = ends
    send(client, 1, b"last words")
    client.close()
    assert len(server.receive()) == 1
    with pytest.raises(EndpointClosed, match="ended the connection"):
        server.receive()


def test_another_machine_is_refused() -> None:
    a, b = socket.socketpair()
    with a, b:
        offer = ShmCarrier().offer(Wire(a, "peer", LIMIT))
        with pytest.raises(Unavailable, match="another machine"):
            ShmCarrier().accept({**offer.params, "boot_id": "other"}, Wire(b, "peer", LIMIT))
        with pytest.raises(Unavailable, match="network namespace"):
            ShmCarrier().accept({**offer.params, "name": b"\0nobody"}, Wire(b, "peer", LIMIT))
        with pytest.raises(Unavailable, match="did not arrive"):
            offer.complete({"token": bytes(32)}, 0.0)
        offer.close()


# A broken peer.


def reader(limit: int = 10_000) -> RecordReader:
    return RecordReader(limit, lambda offset, nbytes: memoryview(bytearray(min(nbytes, 64))), lambda offset: None)


@given(st.binary(max_size=300))
def test_any_record_is_refused_or_read(data: bytes) -> None:
    for body in (data, HEAD.pack(HEAD.size + len(data), 1, 0, 0, 1, len(data)) + data):
        with contextlib.suppress(MalformedData):
            reader().read(body)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_no_place_outside_of_the_arena_is_looked_at(nbytes: int, place: int) -> None:
    seen = []

    def borrow(offset: int, count: int) -> memoryview:
        seen.append((offset, count))
        return memoryview(b"")

    record = HEAD.pack(HEAD.size + PLACE.size, 1, 0, 1, 1, 0) + PLACE.pack(nbytes, place)
    try:
        RecordReader(1 << 62, borrow, lambda offset: None).read(record) if place != STREAMED else None
    except MalformedData:
        return
    for offset, count in seen:
        assert 0 <= offset <= offset + count <= ARENA_BYTES


@pytest.mark.parametrize("count", [RING_BYTES + 1, 1 << 40, (1 << 64) - 2])
def test_a_peer_that_claims_to_have_written_too_much_is_refused(
    ends: tuple[ShmEndpoint, ShmEndpoint], count: int
) -> None:
    client, server = ends
    os.eventfd_write(client._bells.data_out, count)
    with pytest.raises(MalformedData, match="more than its ring holds"):
        server.receive()


@pytest.mark.parametrize("credit", [RING_BYTES + 1, 1 << 32, (1 << 64) - 2])
def test_a_peer_that_gives_credit_it_had_not_is_refused(ends: tuple[ShmEndpoint, ShmEndpoint], credit: int) -> None:
    client, server = ends
    os.eventfd_write(server._bells.credit_out, credit)
    for _ in range(RING_BYTES // 60_000):
        send(client, 1, bytes(60_000))
    with pytest.raises(EndpointClosed, match="read or gave back more"):
        send(client, 1, bytes(60_000))


def test_bytes_beside_the_memory_are_refused(ends: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    client, server = ends
    client._sock.send(b"x")
    with pytest.raises(MalformedData, match="beside"):
        server.receive()


# The arena.


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40 * PAGE)), max_size=60))
def test_blocks_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    arena = Arena(200 * PAGE)
    live: dict[int, int] = {}
    for taking, nbytes in steps:
        if taking or not live:
            offset = arena.take(nbytes)
            if offset is not None:
                assert offset % PAGE == 0
                assert offset + nbytes <= 200 * PAGE
                assert all(offset + nbytes <= o or o + n <= offset for o, n in live.items())
                live[offset] = nbytes
        else:
            offset = sorted(live)[nbytes % len(live)]
            del live[offset]
            arena.give_back(offset)
    for offset in live:
        arena.give_back(offset)
    assert arena.take(200 * PAGE) == 0  # one piece again
    with pytest.raises(MalformedData):
        arena.give_back(PAGE)
