"""What every endpoint must do, over each transport: whole frames in order, and an end in bounded time.

``SPOKE_TEST_CARRIERS=rdma`` runs the same over another one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spoke.errors import LimitExceeded, MalformedData
from spoke.transport.carrier import Wire
from spoke.transport.choice import Choice
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import FRAME_BYTES_MAX, STAGE_BYTES, Frame, Kind
from spoke.transport.shm import BLOCK_BYTES_MIN, PIECE_BYTES, ShmEndpoint
from spoke.transport.shm_memory import RING_BYTES, Region, create_memory
from spoke.transport.values import pack_apart, unpack

CARRIERS = os.environ.get("SPOKE_TEST_CARRIERS", "shm,tcp").split(",")
MIB = 1 << 20
BOUND_S = 4.0
"""More than the second for which a peer that stands still is waited for."""
EDGES = [0, 1, *(edge + step for edge in (BLOCK_BYTES_MIN, STAGE_BYTES, PIECE_BYTES) for step in (-21, -1, 0, 1))]
sizes = st.sampled_from([*EDGES, RING_BYTES // 4, RING_BYTES + 1]) | st.integers(0, 100_000)


class Pair:
    """Two ends of one connection, and the sockets beneath them."""

    def __init__(self, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.our_socket = socket.create_connection(listener.getsockname())
            self.their_socket, _ = listener.accept()
        carrier = Choice(name).carrier(name)
        offer = carrier.offer(Wire(self.our_socket, "theirs", FRAME_BYTES_MAX))
        acceptance = carrier.accept(offer.params, Wire(self.their_socket, "ours", FRAME_BYTES_MAX))
        self.ours = offer.complete(acceptance.answer, time.monotonic() + 10)
        self.theirs = acceptance.endpoint()
        offer.close()
        acceptance.close()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=CARRIERS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Pair]]:
    """Makes pairs over one transport; afterwards no descriptor, thread or mapping is left."""
    pairs: list[Pair] = []

    def make() -> Pair:
        pairs.append(Pair(request.param))
        return pairs[-1]

    make().close()  # what a transport opens once and keeps
    before = count_left()
    yield make
    started = time.monotonic()
    for pair in pairs:
        pair.close()
    assert time.monotonic() - started < BOUND_S
    pairs.clear()
    gc.collect()
    assert count_left() <= before


def count_left() -> tuple[int, int, int]:
    with open("/proc/self/maps") as maps:
        mapped = maps.read().count("memfd:spoke")
    return len(os.listdir("/proc/self/fd")), threading.active_count(), mapped


def send(endpoint: Endpoint, call_id: int, header: bytes, *buffers: Any, may_wait: bool = False) -> None:
    views = [memoryview(buffer) for buffer in buffers]
    endpoint.send(Kind.CALL, call_id, header, views, may_wait=may_wait, must=True)


steps = st.tuples(st.sampled_from(["ours", "theirs"]), sizes, st.lists(sizes, max_size=3), st.booleans())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=12))
def test_frames_cross_whole_and_in_order_in_both_directions_at_once(
    make: Callable[[], Pair], plan: list[tuple[str, int, list[int], bool]]
) -> None:
    pair = make()
    sent: dict[str, list[Any]] = {"ours": [], "theirs": []}
    got: dict[str, list[Any]] = {"ours": [], "theirs": []}

    def read() -> None:
        for name, endpoint in (("ours", pair.theirs), ("theirs", pair.ours)):
            for frame in endpoint.receive():
                assert isinstance(frame, Frame)
                got[name].append((frame.call_id, frame.header, [bytes(buffer) for buffer in frame.buffers]))
        pair.ours.flush()
        pair.theirs.flush()

    for number, (side, header_bytes, lengths, then_read) in enumerate(plan):
        header = bytes([number]) * header_bytes
        buffers = [bytes([number, index]) * (length // 2) for index, length in enumerate(lengths)]
        send(getattr(pair, side), number, header, *buffers)
        sent[side].append((number, header, buffers))
        if then_read:
            read()
    deadline = time.monotonic() + 30
    while got != sent and time.monotonic() < deadline:
        read()
    assert got == sent
    pair.close()


def test_a_frame_of_256_MiB_crosses_whole(make: Callable[[], Pair]) -> None:
    pair = make()
    block = os.urandom(MIB)
    data = memoryview(bytearray(256 * MIB))
    for start in range(0, len(data), MIB):
        data[start : start + MIB] = block
    sender = threading.Thread(target=send, args=(pair.ours, 1, b"h", data), kwargs={"may_wait": True})
    sender.start()
    got: list[Any] = []
    deadline = time.monotonic() + 60
    while not got and time.monotonic() < deadline:
        got += pair.theirs.receive()
        pair.ours.flush()
    sender.join(10)
    (frame,) = got
    assert len(frame.buffers[0]) == 256 * MIB
    assert all(frame.buffers[0][start : start + MIB] == block for start in range(0, 256 * MIB, MIB))


class OffersDlpack:
    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()  # type: ignore[no-any-return]


def test_what_is_sent_is_not_copied_before_and_what_arrives_is_a_view(make: Callable[[], Pair]) -> None:
    torch = pytest.importorskip("torch")
    arrays = [np.full(MIB, number, "u1") for number in range(4)]
    sent = [arrays[0], torch.from_numpy(arrays[1]), memoryview(arrays[2]), OffersDlpack(arrays[3])]
    pair = make()
    header, buffers = pack_apart(sent)
    for array, buffer in zip(arrays, buffers, strict=True):
        assert np.shares_memory(array, np.frombuffer(buffer, "u1"))
    send(pair.ours, 1, header, *buffers)
    got: list[Any] = []
    deadline = time.monotonic() + 30
    while not got and time.monotonic() < deadline:
        got += pair.theirs.receive()
        pair.ours.flush()
    (frame,) = got
    found = unpack(frame.header, frame.buffers)
    assert [type(value) for value in found] == [np.ndarray, torch.Tensor, memoryview, np.ndarray]
    for number, (value, buffer) in enumerate(zip(found, frame.buffers, strict=True)):
        seen = np.asarray(value)
        assert (seen == number).all()
        assert np.shares_memory(seen, np.frombuffer(buffer, "u1"))
        value[0] = 77
        assert buffer[0] == 77
    del found, value, seen, buffer, frame, got


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_peer_that_has_shut_its_sending_side_has_ended(make: Callable[[], Pair], how: int) -> None:
    pair = make()
    send(pair.theirs, 1, b"last words")
    pair.their_socket.shutdown(how)
    got: list[Any] = []
    deadline = time.monotonic() + BOUND_S

    def read() -> None:
        while time.monotonic() < deadline:
            got.extend(pair.ours.receive())

    with pytest.raises(EndpointClosed, match="theirs"):
        read()
    assert [frame.header for frame in got] == [b"last words"]


def test_a_peer_that_reads_no_more_holds_nobody_up(make: Callable[[], Pair]) -> None:
    """It has shut its receiving side, and lives: what cannot go waits, up to a bound, and nothing hangs."""
    pair = make()
    pair.their_socket.shutdown(socket.SHUT_RD)
    large, started = bytes(24 * MIB), time.monotonic()
    with contextlib.suppress(LimitExceeded, EndpointClosed):
        for number in range(2):
            pair.ours.send(Kind.CALL, number, b"", [memoryview(large)], may_wait=True, must=False)
    assert time.monotonic() - started < 2 * BOUND_S
    started = time.monotonic()
    pair.close()
    assert time.monotonic() - started < BOUND_S


def test_closing_lets_a_thread_go_that_sends_to_a_peer_that_stands_still(make: Callable[[], Pair]) -> None:
    pair = make()
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(100):
                send(pair.ours, number, bytes(60_000), *[bytes(10_000)] * 900, may_wait=True)
        except (EndpointClosed, LimitExceeded) as error:
            outcome.append(error)

    sender = threading.Thread(target=work)
    sender.start()
    deadline = time.monotonic() + 10
    while not pair.ours.backlog_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    pair.ours.close()
    sender.join(BOUND_S)
    assert not sender.is_alive()
    assert time.monotonic() - started < BOUND_S
    assert isinstance(outcome[0], EndpointClosed)


# What only shared memory has to fear: the peer has the same open files.


@pytest.fixture
def shm() -> Iterator[tuple[ShmEndpoint, ShmEndpoint]]:
    before = count_left()
    pair = Pair("shm")
    assert isinstance(pair.ours, ShmEndpoint)
    assert isinstance(pair.theirs, ShmEndpoint)
    yield pair.ours, pair.theirs
    started = time.monotonic()
    pair.close()
    assert time.monotonic() - started < BOUND_S
    assert count_left() <= before


def make_blocking(endpoint: ShmEndpoint) -> None:
    bells = endpoint._bells
    for fd in (bells.data_out, bells.credit_in, bells.data_in, bells.credit_out):
        os.set_blocking(fd, True)


def test_a_peer_that_makes_the_eventfds_blocking_stops_no_reader(shm: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    ours, theirs = shm
    make_blocking(theirs)
    read: list[Any] = []
    reader = threading.Thread(target=lambda: read.append(ours.receive()), daemon=True)
    reader.start()
    reader.join(BOUND_S)
    assert read == [[]]
    send(ours, 1, b"", bytes(MIB))  # looks for credit, of which there is none
    send(theirs, 2, b"still here")
    assert [frame.call_id for frame in ours.receive()] == [2]


@pytest.mark.parametrize("what", ["data_out", "credit_out"])
def test_a_peer_that_fills_a_counter_keeps_no_thread_beyond_the_end(
    shm: tuple[ShmEndpoint, ShmEndpoint], what: str
) -> None:
    ours, theirs = shm
    make_blocking(theirs)
    os.eventfd_write(getattr(ours._bells, what), (1 << 64) - 2)
    for number in range(6):
        send(theirs, number, bytes(60_000))

    def use() -> None:
        with contextlib.suppress(EndpointClosed, MalformedData):
            send(ours, 1, b"x") if what == "data_out" else ours.receive()

    stuck = threading.Thread(target=use, daemon=True)
    stuck.start()
    stuck.join(0.3)
    assert stuck.is_alive()
    started = time.monotonic()
    ours.close()
    stuck.join(BOUND_S)
    assert not stuck.is_alive()
    assert time.monotonic() - started < BOUND_S


def test_nobody_can_cut_or_grow_the_memory(shm: tuple[ShmEndpoint, ShmEndpoint]) -> None:
    fd = create_memory()
    try:
        for nbytes in (0, 1, 1 << 40):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, nbytes)
        Region(fd).close()
    finally:
        os.close(fd)
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(unsealed, len(shm[0]._region.area))
        with pytest.raises(MalformedData, match="seals"):
            Region(unsealed)
    finally:
        os.close(unsealed)
