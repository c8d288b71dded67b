"""The RDMA endpoint over queue pairs that are only memory: credits, order, large frames, the backlog, the end.

What the verbs themselves do is tested on a real (software) device: tests/rdma.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from spoke.errors import LimitExceeded, MalformedData
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.frames import Incoming, Kind, Oversized
from spoke.transport.rdma.wire import HEAD, SLOTS
from tests.rdma_pairs import Pair, check_every_size, check_wake_up, frame, idle, receive, send

MIB = 1 << 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    fds = len(os.listdir("/proc/self/fd"))
    pair = Pair()
    yield pair
    closers = [threading.Thread(target=end.close) for end in (pair.a, pair.b)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(10)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert pair.device.released == 2
    assert pair.queues[0].not_ready == pair.queues[1].not_ready == 0


def test_frames_of_every_size_arrive_in_order_and_whole(pair: Pair) -> None:
    check_every_size(pair)


def test_a_sleeping_reader_is_woken(pair: Pair) -> None:
    check_wake_up(pair)


def test_a_large_frame_that_begins_to_come_as_its_reader_falls_asleep_wakes_it(pair: Pair) -> None:
    idle(pair.b)
    queue = pair.queues[1].recv_queue
    arm = queue.arm

    def it_comes_and_then_arm() -> None:
        queue.arm = arm
        send(pair.a, 1, bytes(MIB))
        arm()

    queue.arm = it_comes_and_then_arm
    pair.b._ring_readable()
    while queue.arm is not arm:
        assert pair.b.receive() == []
    assert receive(pair.b, 1, 5)[0].call_id == 1


def test_more_frames_than_credits_wait_in_the_backlog_and_keep_their_order(pair: Pair) -> None:
    for number in range(5 * SLOTS):
        send(pair.a, number, bytes(number % 7 * 40_000) if number % 50 == 0 else b"x")
    assert pair.a.backlog_bytes > 0
    got: list[int] = []
    while len(got) < 5 * SLOTS:
        got += [incoming.call_id for incoming in pair.b.receive()]
        pair.a.flush()
    assert got == list(range(5 * SLOTS))
    assert pair.a.backlog_bytes == 0


def test_both_sides_can_send_all_they_may_without_ever_being_stuck(pair: Pair) -> None:
    for number in range(3 * SLOTS):
        send(pair.a, number)
        send(pair.b, number)
    got: dict[str, int] = {"a": 0, "b": 0}
    deadline = time.monotonic() + 10
    while min(got.values()) < 3 * SLOTS:
        assert time.monotonic() < deadline, got
        got["b"] += len(pair.b.receive())
        got["a"] += len(pair.a.receive())
    for end in (pair.a, pair.b):
        assert end.flush()


def test_credits_come_back_while_the_reader_is_paused(pair: Pair) -> None:
    """A paused reader still answers: its flush looks at the queues, and what it finds waits for its reading."""
    for number in range(SLOTS - 1):
        send(pair.a, number)
    for number in range(2 * SLOTS):
        send(pair.b, number)
    got = 0
    deadline = time.monotonic() + 10
    while got < 2 * SLOTS:
        assert time.monotonic() < deadline, got
        got += len(pair.a.receive())
        pair.b.flush()
    assert len(receive(pair.b, SLOTS - 1)) == SLOTS - 1


def test_threads_that_send_large_frames_do_not_mix_them(pair: Pair) -> None:
    def work(seed: int) -> None:
        for number in range(5):
            send(pair.a, seed * 100 + number, bytes([seed]) * (3 * MIB + seed), may_wait=True)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    got = [frame(incoming) for incoming in receive(pair.b, 20, 15, flushing=pair.a)]
    for thread in threads:
        thread.join(10)
    for incoming in got:
        seed = incoming.call_id // 100
        assert len(incoming.buffers[0]) == 3 * MIB + seed
        assert bytes(incoming.buffers[0][:: MIB // 2]) == bytes([seed]) * 7
    for seed in range(1, 5):
        assert [x.call_id % 100 for x in got if x.call_id // 100 == seed] == list(range(5))


def test_buffers_may_be_changed_after_send_even_if_the_peer_does_not_read(pair: Pair) -> None:
    data = bytearray(b"\x01" * (40 * MIB))
    start = time.monotonic()
    pair.a.send(Kind.CALL, 1, b"", [memoryview(data)], may_wait=True, must=True)
    assert 0.5 < time.monotonic() - start < 5  # it waits for a second in which nothing is taken
    assert pair.a.backlog_bytes > 0
    data[:] = b"\x02" * len(data)
    got: list[Incoming] = []
    while not got:
        got = pair.b.receive()
        pair.a.flush()
    assert bytes(set(frame(got[0]).buffers[0][::4096])) == b"\x01"


def test_a_full_backlog_refuses_what_need_not_go(pair: Pair) -> None:
    large = bytes(50 * MIB)
    send(pair.a, 1, large)
    send(pair.a, 2, large)
    with pytest.raises(LimitExceeded):
        pair.a.send(Kind.CALL, 3, b"", [memoryview(large)], may_wait=False, must=False)


def test_received_memory_comes_back_when_its_views_are_collected(pair: Pair) -> None:
    send(pair.a, 1, bytes(2 * MIB))
    got = receive(pair.b, 1)
    part = frame(got[0]).buffers[0][5:9]
    got.clear()
    gc.collect()
    assert pair.device.landing.lent_bytes > 0
    part[0] = 1
    del part
    gc.collect()
    assert pair.device.landing.lent_bytes == 0
    idle(pair.a)  # it hears that all was read
    assert pair.device.staging.lent_bytes == 0


@pytest.mark.parametrize("nbytes", [2000, 3 * MIB])
def test_a_frame_over_the_limit_is_reported_and_costs_nothing(nbytes: int) -> None:
    pair = Pair(limit_bytes=1 << 30)
    pair.b.limit_bytes = 1000
    pair.b._incoming._limit_bytes = 1000
    pair.b._incoming._reader._limit_bytes = 1000
    send(pair.a, 1, bytes(nbytes))
    send(pair.a, 2)
    got = receive(pair.b, 2)
    assert isinstance(got[0], Oversized)
    assert got[0].call_id == 1
    assert frame(got[1]).call_id == 2
    assert pair.device.landing.lent_bytes == 0
    pair.a.shutdown()
    pair.a.close()
    pair.b.close()


def test_what_was_sent_before_the_end_arrives_and_then_the_end(pair: Pair) -> None:
    send(pair.a, 1, bytes(3 * MIB))
    closer = threading.Thread(target=pair.a.close)
    closer.start()
    assert receive(pair.b, 1)[0].call_id == 1
    with pytest.raises(EndpointClosed, match="ended the connection"):
        receive(pair.b, 1)
    closer.join(5)
    assert not closer.is_alive()
    with pytest.raises(EndpointClosed):
        send(pair.a, 2)


def test_the_sockets_end_is_the_peers_end(pair: Pair) -> None:
    idle(pair.b)
    pair.a._sock.shutdown(socket.SHUT_RDWR)
    start = time.monotonic()
    with pytest.raises(EndpointClosed):
        receive(pair.b, 1)
    assert time.monotonic() - start < 1


def test_shutdown_wakes_a_reader_and_a_sender(pair: Pair) -> None:
    idle(pair.a)
    errors: list[BaseException] = []

    def catch(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except EndpointClosed as error:
                errors.append(error)

        return run

    threads = [
        threading.Thread(target=catch(lambda: receive(pair.a, 1))),
        threading.Thread(target=catch(lambda: send(pair.a, 1, bytes(60 * MIB), may_wait=True))),
    ]
    for thread in threads:
        thread.start()
    while not pair.a._sending:
        time.sleep(0.001)
    pair.a.shutdown()
    for thread in threads:
        thread.join(3)
        assert not thread.is_alive()
    assert len(errors) == 2


def test_a_failed_work_request_ends_the_connection(pair: Pair) -> None:
    idle(pair.b)
    pair.queues[1].recv_queue.add(0, status=5)
    with pytest.raises(EndpointClosed, match="status 5"):
        receive(pair.b, 1)
    with pytest.raises(EndpointClosed):
        send(pair.b, 1)


@pytest.mark.parametrize("by", ["send", "flush"])
def test_nonsense_that_a_sender_comes_upon_is_the_connections_end(pair: Pair, by: str) -> None:
    for number in range(2 * SLOTS):  # until the backlog waits for the peer
        send(pair.b, number)
    HEAD.pack_into(pair.queues[0].send_slots[0], 0, 0, 0, 60_000, 0, 0)  # more credits than there are
    pair.queues[0].post_send(0, HEAD.size, True)
    work = pair.b.flush if by == "flush" else lambda: send(pair.b, 1, bytes(MIB), may_wait=True)
    with pytest.raises(EndpointClosed, match="makes no sense"):
        work()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_peer_sends_is_refused_and_never_crashes(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    slot = pair.queues[0].send_slots[0]
    payload = chance.randbytes(chance.choice([0, 5, 20, 60, 300]))
    kind = chance.choice([1, 2, 2, 3, 200])
    HEAD.pack_into(slot, 0, kind, chance.choice([0, 1]), chance.choice([0, 60000]), chance.choice([0, 9]), len(payload))
    slot[HEAD.size : HEAD.size + len(payload)] = payload
    pair.queues[0].post_send(0, HEAD.size + len(payload), True)
    try:
        for _ in range(3):
            pair.b.receive()
    except (MalformedData, EndpointClosed):
        with pytest.raises((EndpointClosed, MalformedData)):
            pair.b.receive()
    assert pair.device.landing.lent_bytes == 0
