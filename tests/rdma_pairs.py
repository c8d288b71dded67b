"""Two RDMA endpoints in one process, and what their tests do with them."""

from __future__ import annotations

import ctypes
import os
import random
import select
import socket
import threading
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

from spoke.transport.frames import Frame, Incoming, Kind
from spoke.transport.rdma.endpoint import RdmaEndpoint
from spoke.transport.rdma.pool import Pool
from spoke.transport.rdma.queue import ONE_SIDED, QueuePair
from spoke.transport.rdma.registered import UsersMemory
from spoke.transport.rdma.wire import CHUNK_BYTES, PAYLOAD_BYTES_MAX, SLOT_BYTES, SLOTS, check_peer


class FakeCompletions:
    """A completion queue and its channel: armed, the next completion makes the descriptor readable."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.armed = False
        self._notify = False
        self._found: deque[Any] = deque()

    def add(self, wr_id: int, status: int = 0) -> None:
        self._found.append(SimpleNamespace(wr_id=wr_id, status=status))
        if self._notify:
            self._notify = False
            os.eventfd_write(self.fd, 1)

    def poll(self) -> list[Any]:
        return [self._found.popleft() for _ in range(min(len(self._found), 32))]

    def arm(self) -> bool:
        was_readable = self.armed and self.disarm()
        if not self.armed:
            self.armed = self._notify = True
        return was_readable

    def disarm(self) -> bool:
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return False
        self.armed = False
        return True


class FakeQueue:
    """One side; what it sends is in the peer's next posted slot at once. Not ready is an error, as it must never be.

    A one-sided transfer is done when ``work`` is called, as by a card; or, ``in_software``, at once.
    """

    def __init__(self) -> None:
        self.in_software = False
        self._under_way: deque[tuple[int, int, int, int]] = deque()
        self.send_queue, self.recv_queue = FakeCompletions(), FakeCompletions()
        self.send_slots = [memoryview(bytearray(SLOT_BYTES)) for _ in range(SLOTS)]
        self.recv_slots = [memoryview(bytearray(SLOT_BYTES)) for _ in range(SLOTS)]
        self.posted = deque(range(SLOTS))
        self.peer: FakeQueue | None = None
        self.held: deque[tuple[int, bytes, bool]] | None = None
        self.closed = False
        self.not_ready = 0

    def post_send(self, slot: int, nbytes: int, signaled: bool) -> None:
        assert not self.closed
        assert self.peer is not None
        if not self.peer.posted:
            self.not_ready += 1
            raise AssertionError("the receiver was not ready")
        into = self.peer.posted.popleft()
        self.peer.recv_slots[into][:nbytes] = self.send_slots[slot][:nbytes]
        self.peer.recv_queue.add(into)
        if signaled:
            self.send_queue.add(slot)

    def post_recv(self, slot: int) -> None:
        assert not self.closed
        self.posted.append(slot)

    def post_read(self, wr_id: int, address: int, lkey: int, nbytes: int, remote: int, rkey: int) -> None:
        self._post(wr_id, address, remote, nbytes)

    def post_write(self, wr_id: int, address: int, lkey: int, nbytes: int, remote: int, rkey: int) -> None:
        self._post(wr_id, remote, address, nbytes)

    def _post(self, *copy: int) -> None:
        self._under_way.append(copy)  # type: ignore[arg-type]
        if self.in_software or copy[0] < ONE_SIDED:
            self.work()

    def work(self) -> None:
        while self._under_way:
            wr_id, into, source, nbytes = self._under_way.popleft()
            ctypes.memmove(into, source, nbytes)
            self.send_queue.add(wr_id)

    def close(self) -> None:
        self.closed = True
        os.close(self.send_queue.fd)
        os.close(self.recv_queue.fd)


ENUMS = SimpleNamespace(IBV_ACCESS_LOCAL_WRITE=1, IBV_ACCESS_REMOTE_WRITE=2, IBV_ACCESS_REMOTE_READ=4)


class Device:
    def __init__(self) -> None:
        region = lambda address, nbytes: SimpleNamespace(lkey=1, rkey=2, close=lambda: None)  # noqa: E731
        self.staging, self.landing = Pool(region), Pool(region)
        self.registered: list[tuple[int, int, int]] = []
        self.deregistered = 0
        self.users_memory = UsersMemory(self._register, ENUMS, safe=True)
        self.verbs = SimpleNamespace(PyverbsError=OSError)
        self.released = 0

    def _register(self, address: int, nbytes: int, access: int) -> Any:
        self.registered.append((address, nbytes, access))
        return SimpleNamespace(lkey=1, rkey=2, close=self._deregister)

    def _deregister(self) -> None:
        self.deregistered += 1

    def release(self) -> None:
        self.released += 1


class Pair:
    """Two endpoints of one process: over queue pairs in memory, or over real ones of a device."""

    def __init__(self, limit_bytes: int = 1 << 30, real: Any = None) -> None:
        self.device: Any = real or Device()
        queues: Any
        if real is None:
            queues = FakeQueue(), FakeQueue()
            queues[0].peer, queues[1].peer = queues[1], queues[0]
        else:
            queues = QueuePair(real), QueuePair(real)
            queues[0].connect(check_peer(queues[1].describe()))
            queues[1].connect(check_peer(queues[0].describe()))
        socks = socket.socketpair()
        self.a, self.b = (
            RdmaEndpoint(self.device, queue, sock, name, limit_bytes)
            for queue, sock, name in zip(queues, socks, ("b", "a"), strict=True)
        )
        self.a.wants_flush = self.b.wants_flush = lambda: None
        self.queues = queues


def send(end: RdmaEndpoint, number: int, *buffers: bytes, may_wait: bool = False, header: bytes = b"h") -> None:
    end.send(Kind.CALL, number, header, [memoryview(part) for part in buffers], may_wait=may_wait, must=True)


def receive(end: RdmaEndpoint, count: int, limit_s: float = 10, flushing: RdmaEndpoint | None = None) -> list[Incoming]:
    """Wait at the descriptor as a user does, until so many frames have come; the peer flushes meanwhile."""
    poll = select.poll()
    poll.register(end.readable_fd(), select.POLLIN)
    found: list[Incoming] = []
    deadline = time.monotonic() + limit_s
    work = getattr(end._queue, "work", lambda: None)  # a real one needs no help
    while len(found) < count:
        work()
        assert time.monotonic() < deadline, f"{len(found)} of {count} came"
        if poll.poll(10):
            found += end.receive()
        if flushing is not None:
            flushing.flush()
    return found


def frame(incoming: Incoming) -> Frame:
    assert isinstance(incoming, Frame)
    return incoming


def idle(end: RdmaEndpoint) -> None:
    """Receive until the descriptor is quiet: it must become so."""
    poll = select.poll()
    poll.register(end.readable_fd(), select.POLLIN)
    for _ in range(20):
        if not poll.poll(0):
            return
        assert end.receive() == []
    raise AssertionError("the descriptor stays readable with nothing to receive")


def check_every_size(pair: Pair) -> None:
    """Frames of every size arrive in order and whole."""
    sizes = [0, 1, PAYLOAD_BYTES_MAX - 29, PAYLOAD_BYTES_MAX - 28, 70_000, CHUNK_BYTES, CHUNK_BYTES + 1, (5 << 20) + 3]
    for number, nbytes in enumerate(sizes):
        data = random.Random(number).randbytes(nbytes)
        send(pair.a, number, data, b"second", header=b"x" * number)
        got = frame(receive(pair.b, 1)[0])
        assert (got.call_id, got.header) == (number, b"x" * number)
        assert [bytes(buffer) for buffer in got.buffers] == [data, b"second"]
    idle(pair.b)
    idle(pair.a)


def check_wake_up(pair: Pair) -> None:
    """A reader that sleeps is woken by what comes."""
    idle(pair.b)
    timer = threading.Timer(0.1, send, (pair.a, 7))
    timer.start()
    assert receive(pair.b, 1)[0].call_id == 7
    timer.join()
