"""Two endpoints over real queue pairs of the software device, in one process."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spoke.transport.endpoint import EndpointClosed
from spoke.transport.frames import Kind
from spoke.transport.rdma import device
from spoke.transport.rdma.ports import Choice, choose, ports
from spoke.transport.rdma.verbs import VerbsMissing
from spoke.transport.rdma.wire import SLOTS
from tests.rdma_pairs import Pair, check_every_size, check_wake_up, frame, receive, send

COUNTERS = Path("/sys/class/infiniband/rxe0/ports/1/hw_counters")
MIB = 1 << 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends, closed in the end: no descriptor and no opened device may be left, no receiver was ever not ready."""
    fds = len(os.listdir("/proc/self/fd"))
    first, second = device.acquire(), device.acquire()
    assert first is second
    pair = Pair(real=first)
    yield pair
    closers = [threading.Thread(target=end.close) for end in (pair.a, pair.b)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(10)
        assert not closer.is_alive()
    assert not device._open
    assert len(os.listdir("/proc/self/fd")) == fds
    for name in ("rcvd_rnr_err", "send_rnr_err"):
        assert int((COUNTERS / name).read_text()) == 0, name


def test_the_device_is_found_and_configured() -> None:
    choice = choose(ports(), {})
    assert isinstance(choice, Choice)
    assert (choice.port.device, choice.gid.kind, str(choice.gid.gid.ipv4_mapped)) == ("rxe0", "RoCE v2", "192.0.2.1")
    assert isinstance(choose(ports(), {"SPOKE_RDMA_DEVICE": "mlx5_0"}), str)
    with pytest.raises(VerbsMissing):
        device.acquire(Choice(type(choice.port)("none", 1, "ACTIVE", "Ethernet", 1, 0, "", ()), choice.gid))


def test_frames_of_every_size_arrive_in_order_and_whole(pair: Pair) -> None:
    check_every_size(pair)


def test_a_sleeping_reader_is_woken_by_the_completion_channel(pair: Pair) -> None:
    check_wake_up(pair)


def test_both_sides_send_more_than_they_have_credits_for(pair: Pair) -> None:
    for number in range(3 * SLOTS):
        send(pair.a, number)
        send(pair.b, number)
    got: dict[str, list[int]] = {"a": [], "b": []}
    deadline = time.monotonic() + 20
    while min(map(len, got.values())) < 3 * SLOTS:
        assert time.monotonic() < deadline
        got["b"] += [incoming.call_id for incoming in pair.b.receive()]
        got["a"] += [incoming.call_id for incoming in pair.a.receive()]
    assert got["a"] == got["b"] == list(range(3 * SLOTS))


def test_a_large_frame_waits_for_a_reader_and_is_read_in_place(pair: Pair) -> None:
    data = bytearray(os.urandom(20 * MIB))
    pair.a.send(Kind.CALL, 1, b"", [memoryview(data)], may_wait=True, must=True)  # nobody reads for a second
    assert pair.a.backlog_bytes > 0
    kept = bytes(data)
    data[:] = bytes(len(data))
    [got] = receive(pair.b, 1, 30, flushing=pair.a)
    view = frame(got).buffers[0]
    assert view == kept
    del got
    assert pair.device.landing.lent_bytes >= 20 * MIB
    del view
    gc.collect()
    assert pair.device.landing.lent_bytes == 0


def test_closing_in_the_middle_of_a_transfer(pair: Pair) -> None:
    send(pair.a, 1, bytes(8 * MIB))
    pair.b.receive()  # begins to read
    start = time.monotonic()
    pair.b.close()
    assert time.monotonic() - start < 3
    with pytest.raises(EndpointClosed):
        receive(pair.a, 1)
