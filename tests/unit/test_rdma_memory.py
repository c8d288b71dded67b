"""Users' memory over RDMA: what stays registered and for how long, and one-sided transfers over pairs in memory."""

from __future__ import annotations

import gc
import os
import select
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spoke.transport.buffers import address_of, view_of
from spoke.transport.direct import Copy, Unavailable
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.frames import Done
from spoke.transport.rdma import onesided
from spoke.transport.rdma.onesided import PART_BYTES, REGISTER_BYTES_MIN, RegisteredMemory
from spoke.transport.rdma.queue import ONE_SIDED_MAX
from spoke.transport.rdma.registered import UsersMemory
from tests.rdma_pairs import ENUMS, Device, Pair, idle, receive, send

MIB = 1 << 20


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.b.shutdown()
    for end in (pair.a, pair.b):
        end.close()
    pair.device.users_memory.close()
    assert pair.device.deregistered == len(pair.device.registered)
    assert pair.device.staging.lent_bytes == pair.device.landing.lent_bytes == 0


def region(data: Any, writable: bool = True) -> Any:
    return SimpleNamespace(area=view_of(data), writable=writable, shared=None, loans={})


def reached(pair: Pair, memory: Any) -> Any:
    reach = pair.a.reach()
    return reach.opened(pair.b.lend(memory, reach.params))


def copy(pair: Pair, remote: Any, value: Any, offset: int = 0, *, write: bool, call_id: int = 1) -> None:
    assert remote.begin(Copy(value, view_of(value), offset, write), call_id) is False
    assert receive(pair.a, 1) == [Done(call_id)]
    idle(pair.a)


@pytest.mark.parametrize("nbytes", [1, REGISTER_BYTES_MIN - 1, REGISTER_BYTES_MIN, 3 * PART_BYTES + 5])
def test_transfers_of_every_size(pair: Pair, nbytes: int) -> None:
    theirs = np.frombuffer(os.urandom(nbytes + 10), "u1").copy()
    remote = reached(pair, region(theirs))
    assert remote.begin(Copy(b"", memoryview(b""), 0, True), 1) is True
    ours = np.zeros(nbytes, "u1")
    copy(pair, remote, ours, 7, write=False)
    assert (ours == theirs[7:-3]).all()
    ours[:] = np.frombuffer(os.urandom(nbytes), "u1")
    copy(pair, remote, ours, 2, write=True, call_id=2)
    assert (ours == theirs[2:-8]).all()
    copy(pair, remote, bytes(nbytes), write=True)
    assert not theirs[:nbytes].any()
    with pytest.raises(Unavailable):
        remote.begin(Copy(ours, view_of(ours), 11, True), 3)


def test_frames_go_on_beside_many_transfers(pair: Pair) -> None:
    theirs, ours = np.arange(9 * MIB, dtype="u1"), np.zeros(9 * MIB, "u1")
    remote = reached(pair, region(theirs))
    for number in range(2 * ONE_SIDED_MAX):
        remote.begin(Copy(ours, view_of(ours), 0, False), 100 + number)
    send(pair.a, 5, b"x" * MIB)
    send(pair.b, 6)
    found = receive(pair.a, 2 * ONE_SIDED_MAX + 1)
    assert sorted(incoming.call_id for incoming in found) == [6, *range(100, 100 + 2 * ONE_SIDED_MAX)]
    assert receive(pair.b, 1)[0].call_id == 5
    assert (ours == theirs).all()


@pytest.mark.parametrize("nbytes", [1, REGISTER_BYTES_MIN, PART_BYTES])
def test_what_a_device_in_software_has_copied_is_done_at_once_and_wakes_nobody(pair: Pair, nbytes: int) -> None:
    theirs, ours = np.zeros(nbytes, "u1"), np.ones(nbytes, "u1")
    remote = reached(pair, region(theirs))
    idle(pair.a)
    pair.queues[0].in_software = True
    for _ in range(2 * ONE_SIDED_MAX):
        assert remote.begin(Copy(ours, view_of(ours), 0, True), 1) is True
    assert (theirs == ours).all()
    assert not select.select([pair.a.readable_fd()], [], [], 0)[0]


def test_what_is_found_done_when_another_transfer_begins_wakes_the_reader(pair: Pair) -> None:
    theirs, ours = np.zeros(2 * MIB, "u1"), np.ones(MIB, "u1")
    remote = reached(pair, region(theirs))
    assert remote.begin(Copy(ours, view_of(ours), 0, True), 1) is False
    idle(pair.a)
    pair.queues[0].in_software = True
    assert remote.begin(Copy(ours, view_of(ours), MIB, True), 2) is True
    assert receive(pair.a, 1) == [Done(1)]
    assert theirs.all()
    idle(pair.a)


def test_what_nobody_waits_for_is_not_begun(pair: Pair) -> None:
    theirs, ours = np.zeros(100 * MIB, "u1"), np.ones(100 * MIB, "u1")
    remote = reached(pair, region(theirs))
    remote.begin(Copy(ours, view_of(ours), 0, True), 1)
    remote.forget(1)
    remote.forget(2)
    assert receive(pair.a, 1) == [Done(1)]
    assert theirs.sum() == ONE_SIDED_MAX * PART_BYTES
    copy(pair, remote, ours[:10], write=True, call_id=3)


def test_the_end_of_the_connection_gives_all_memory_back(pair: Pair) -> None:
    theirs, ours = np.zeros(100 * MIB, "u1"), np.ones(100 * MIB, "u1")
    remote = reached(pair, region(theirs))
    remote.begin(Copy(ours, view_of(ours), 0, True), 1)
    remote.begin(Copy(ours, view_of(b"x" * 10), 0, True), 2)
    pair.a.close()
    with pytest.raises(EndpointClosed):
        remote.begin(Copy(ours, view_of(ours), 0, True), 3)
    remote.forget(1)


def test_lent_memory_is_registered_once_with_the_rights_it_needs(pair: Pair) -> None:
    for data, writable, access in [(bytearray(10), True, 7), (bytearray(10), False, 5), (b"0123456789", False, 4)]:
        memory = region(data, writable)
        before = len(pair.device.registered)
        onesided.lend(pair.device, memory)
        onesided.lend(pair.device, memory)
        assert pair.device.registered[before:] == [(address_of(memory.area), 10, access)]
        (loan,) = memory.loans.values()
        loan.close()
        loan.close()
        assert onesided.lend(pair.device, memory)  # anew
        assert len(pair.device.registered) == before + 2
    for nothing in (None, memoryview(b"")):
        with pytest.raises(Unavailable):
            onesided.lend(pair.device, SimpleNamespace(area=nothing, loans={}))


def users_memory() -> tuple[UsersMemory, Device]:
    device = Device()
    return device.users_memory, device


def test_memory_stays_registered_as_long_as_its_object_lives() -> None:
    memory, device = users_memory()
    array = np.zeros(1000, "u1")
    for part in (array, array, array[:], array[10:20], array[10:20]):
        memory.give_back(memory.take(part, view_of(part)))
    assert [entry[1] for entry in device.registered] == [1000, 10]
    with pytest.raises(ValueError, match="resize"):
        array.resize(2000)  # which would move it
    del array, part
    gc.collect()
    assert device.deregistered == 2


def test_memory_that_may_move_is_registered_for_one_transfer() -> None:
    memory, device = users_memory()
    data = bytearray(1000)
    first, second = memory.take(data, view_of(data)), memory.take(data, view_of(data))
    with pytest.raises(BufferError):
        data.clear()  # not while the card may write into it
    memory.give_back(first)
    memory.give_back(second)
    assert device.deregistered == 2
    del first, second
    data.clear()


def test_memory_in_use_outlives_its_object() -> None:
    memory, device = users_memory()
    array = np.zeros(1000, "u1")
    taken = memory.take(array, view_of(array))
    del array
    gc.collect()
    assert device.deregistered == 0
    memory.give_back(taken)
    del taken
    gc.collect()
    assert device.deregistered == 1


def test_torch_tensors_and_their_views() -> None:
    torch = pytest.importorskip("torch")
    memory, device = users_memory()
    tensor = torch.zeros(1000, dtype=torch.uint8)
    for _ in range(2):
        part = tensor[5:]
        memory.give_back(memory.take(part, view_of(part)))
    assert len(device.registered) == 1
    del tensor, part
    gc.collect()
    assert device.deregistered == 1


def test_users_memory_is_not_registered_where_a_fork_would_lose_it() -> None:
    memory = UsersMemory(lambda *_: None, ENUMS, safe=False)
    with pytest.raises(Unavailable, match="kernel"):
        memory.take(b"", memoryview(b"x"))


def test_a_refused_registration_says_what_to_do() -> None:
    def refuse(*_: int) -> Any:
        raise OSError("Cannot allocate memory")

    memory = UsersMemory(refuse, ENUMS, safe=True)
    with pytest.raises(Unavailable, match="ulimit -l"):
        memory.lend(memoryview(bytearray(10)), writable=True)


def test_a_grant_of_a_broken_peer_is_refused(pair: Pair) -> None:
    for grant in ({}, {"rdma": "text"}, {"rdma": b"short"}):
        with pytest.raises(Exception, match="should"):
            pair.a.reach().opened(grant)
    assert isinstance(pair.a.reach().opened({"rdma": bytes(20)}), RegisteredMemory)
