"""Buffers in shared memory: handing over, copying, and the end of it, in one process."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spoke.errors import MalformedData
from spoke.transport.direct import Copy, Gone, Unavailable
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.regions import MemoryTable, Region
from spoke.transport.shm_buffer import SharedMemory, ShmReach, lend


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds


def opened(shared: SharedMemory | None, is_alive: Any = lambda: None) -> Any:
    reach = ShmReach(is_alive)
    try:
        memory: Any = SimpleNamespace(shared=shared)
        return reach.opened(lend(memory, reach.params))
    finally:
        reach.close()


def test_both_sides_see_one_memory() -> None:
    shared = SharedMemory(10_000, writable=True)
    remote = opened(shared)
    assert len(shared.view) == 10_000
    assert remote.begin(Copy(None, memoryview(b"hello"), 9_995, True), 1)
    assert bytes(shared.view[9_995:]) == b"hello"
    target = bytearray(3)
    assert remote.begin(Copy(target, memoryview(target), 9_996, False), 1)
    assert target == b"ell"
    shared.close()


def test_what_may_only_be_read_cannot_be_written() -> None:
    shared = SharedMemory(10, writable=False)
    shared.view[:] = b"0123456789"
    remote = opened(shared)
    with pytest.raises(Unavailable):
        remote.begin(Copy(None, memoryview(b"x"), 0, True), 1)
    with open(f"/proc/self/fd/{remote._fd}", "r+b", buffering=0) as again, pytest.raises(PermissionError):
        again.write(b"x")  # nor by opening it once more
    shared.view[0] = ord("x")  # its owner may
    target = bytearray(2)
    remote.begin(Copy(target, memoryview(target), 0, False), 1)
    assert target == b"x1"
    shared.close()


def test_nobody_copies_once_it_is_closed() -> None:
    shared = SharedMemory(10, writable=True)
    remote, memory = opened(shared), shared.view
    shared.close()
    shared.close()
    for _ in range(2):
        with pytest.raises(Gone):
            remote.begin(Copy(None, memoryview(b"x"), 0, True), 1)
    with pytest.raises(Unavailable, match="closed"):
        opened(shared)
    del shared
    gc.collect()
    with pytest.raises(Gone):
        remote.begin(Copy(None, memoryview(b"x"), 0, True), 1)
    assert bytes(memory) == bytes(10)


def test_nobody_copies_once_its_owner_has_let_go_of_it() -> None:
    table = MemoryTable(cast(Any, None))  # has not begun to close it
    shared = SharedMemory(10, writable=True)
    remote = opened(shared)
    table.forget(table.register(Region(shared.view, True, shared)))
    with pytest.raises(Gone):
        remote.begin(Copy(None, memoryview(b"x"), 0, True), 1)
    table.close(1.0)


def test_closing_waits_for_a_copy_but_not_for_ever() -> None:
    shared = SharedMemory(10, writable=True)
    remote = opened(shared)
    with remote._held():
        closing = threading.Thread(target=shared.close)
        started = time.monotonic()
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        closing.join(10)
        assert not closing.is_alive()
        assert time.monotonic() - started < 8
    with pytest.raises(Gone):
        remote.begin(Copy(None, memoryview(b"x"), 0, True), 1)


def test_nothing_is_copied_from_or_to_a_process_that_is_gone() -> None:
    alive = [True]

    def is_alive() -> None:
        if not alive[0]:
            raise EndpointClosed("it ended")

    shared = SharedMemory(10, writable=True)
    remote = opened(shared, is_alive)
    alive[0] = False
    with pytest.raises(EndpointClosed):
        remote.begin(Copy(None, memoryview(b"x"), 0, True), 1)
    shared.close()


def test_broken_and_strange_peers() -> None:
    shared = SharedMemory(10, writable=True)
    memory: Any = SimpleNamespace(shared=shared)
    good = {"name": b"\0spoke-nobody", "token": bytes(32)}
    for bad in ({"name": b"/tmp/file"}, {"name": 5}, {"name": b"\0" * 200}, {"token": b"short"}, {"token": None}):
        with pytest.raises(MalformedData):
            lend(memory, {**good, **bad})
    with pytest.raises(Unavailable, match="handed over"):
        lend(memory, good)
    with pytest.raises(Unavailable, match="number of bytes"):
        opened(None)
    reach = ShmReach(lambda: None)
    with pytest.raises(MalformedData):
        reach.opened({})
    with pytest.raises(Unavailable, match="did not arrive"):
        reach.opened({"shared": True})
    shared.hand_over(reach.params["name"], bytes(32))  # from a stranger, who does not know the token
    with pytest.raises(Unavailable, match="did not arrive"):
        reach.opened({"shared": True})
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 1 << 20)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(reach.params["name"])
        socket.send_fds(sock, [reach.params["token"]], [fd])
    with pytest.raises((MalformedData, Unavailable)):
        reach.opened({"shared": True})
    os.close(fd)
    reach.close()
    shared.close()


def test_it_is_sealed() -> None:
    shared = SharedMemory(10, writable=True)
    assert fcntl.fcntl(shared._fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    shared.close()
