"""One-sided transfers between users' memory of the two sides: the peer's card serves them, not its process.

Memory that is registered is read or written where it lies; what is small, or cannot be registered, goes through a
block of the pools. A transfer is cut into parts, so that a long one does not keep others waiting, and several parts
are under way at once. Everything here runs under the endpoint's lock.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final

from spoke.errors import MalformedData
from spoke.transport.direct import Copy, Lendable, Params, Reach, RemoteMemory, Unavailable
from spoke.transport.rdma.device import Device
from spoke.transport.rdma.pool import Block
from spoke.transport.rdma.queue import ONE_SIDED, ONE_SIDED_MAX, QueuePair
from spoke.transport.rdma.registered import Registered

PART_BYTES: Final = 4 << 20
BLOCK_BYTES: Final = 1 << 20
REGISTER_BYTES_MIN: Final = 128 << 10
_GRANT: Final = struct.Struct("<QIQ")


def lend(device: Device, memory: Lendable) -> Params:
    """``Endpoint.lend`` over RDMA: memory is registered once for all peers of a ticket."""
    if memory.area is None or not len(memory.area):
        raise Unavailable("there is nothing to reach")
    loan = memory.loans.get(device)
    if loan is None or not loan.open:
        loan = memory.loans[device] = device.users_memory.lend(memory.area, writable=memory.writable)
    assert isinstance(loan, Registered)
    return {"rdma": _GRANT.pack(loan.address, loan.rkey, loan.nbytes)}


class Transfer:
    """One transfer, on its way in parts."""

    def __init__(self, call_id: int, copy: Copy, remote: int, rkey: int, memory: Registered | None) -> None:
        self.call_id = call_id
        self.view = copy.view
        self.write = copy.write
        self.remote = remote
        self.rkey = rkey
        self.memory = memory
        self.posted = 0
        self.left = len(copy.view)
        self.unfinished = 0  # parts under way
        self.forgotten = False


class OneSided:
    """The one-sided transfers of an endpoint."""

    def __init__(self, queue: QueuePair, device: Device) -> None:
        self._queue = queue
        self._device = device
        self._waiting: deque[Transfer] = deque()
        self._under_way: deque[tuple[Transfer, int, int, Block | None]] = deque()
        self.finished: list[int] = []

    @property
    def busy(self) -> bool:
        """Whether completions are to come."""
        return bool(self._under_way)

    def add(self, call_id: int, copy: Copy, remote: int, rkey: int) -> None:
        """Begin one more, behind those that wait."""
        memory = None
        if len(copy.view) >= REGISTER_BYTES_MIN:
            try:
                memory = self._device.users_memory.take(copy.value, copy.view)
            except Unavailable:
                memory = None  # by blocks, which are registered already
        self._waiting.append(Transfer(call_id, copy, remote, rkey, memory))
        self.push()

    def push(self) -> None:
        """Post what may go now."""
        while self._waiting and len(self._under_way) < ONE_SIDED_MAX:
            transfer = self._waiting[0]
            self._post(transfer)
            if transfer.posted == len(transfer.view):
                self._waiting.popleft()

    def _post(self, transfer: Transfer) -> None:
        at, block = transfer.posted, None
        nbytes = min(len(transfer.view) - at, PART_BYTES if transfer.memory else BLOCK_BYTES)
        if transfer.memory is not None:
            address, lkey = transfer.memory.address + at, transfer.memory.lkey
        else:
            block = (self._device.staging if transfer.write else self._device.landing).take(nbytes)
            address, lkey = block.address, block.lkey
            if transfer.write:
                block.view[:nbytes] = transfer.view[at : at + nbytes]
        post = self._queue.post_write if transfer.write else self._queue.post_read
        post(ONE_SIDED, address, lkey, nbytes, transfer.remote + at, transfer.rkey)
        transfer.posted += nbytes
        transfer.unfinished += 1
        self._under_way.append((transfer, at, nbytes, block))

    def completed(self) -> None:
        """The oldest part is done; they complete in the order in which they were posted."""
        transfer, at, nbytes, block = self._under_way.popleft()
        if block is not None:
            if not transfer.write and not transfer.forgotten:
                transfer.view[at : at + nbytes] = block.view[:nbytes]
            self._give_back(transfer, block)
        transfer.left -= nbytes
        transfer.unfinished -= 1
        if not transfer.left or (transfer.forgotten and not transfer.unfinished):
            self._end(transfer)
            self.finished.append(transfer.call_id)
        self.push()

    def forget(self, call_id: int) -> None:
        """Nobody waits for it: post no more of it."""
        for transfer in [waiting for waiting in self._waiting if waiting.call_id == call_id]:
            self._waiting.remove(transfer)
            if not transfer.unfinished:
                self._end(transfer)
        for transfer in [entry[0] for entry in self._under_way]:
            if transfer.call_id == call_id:
                transfer.forgotten = True

    def take_one(self, call_id: int) -> bool:
        """Whether this one is done; ``take_finished`` does not tell of it any more, then."""
        done = call_id in self.finished
        if done:
            self.finished.remove(call_id)
        return done

    def take_finished(self) -> list[int]:
        """The calls whose transfers are done."""
        found, self.finished = self.finished, []
        return found

    def drop(self) -> None:
        """Let go of all memory; the queue pair is closed, and nothing is under way any more."""
        transfers = {id(transfer): transfer for transfer in self._waiting}
        for transfer, _, _, block in self._under_way:
            transfers[id(transfer)] = transfer
            if block is not None:
                self._give_back(transfer, block)
        self._under_way.clear()
        self._waiting.clear()
        for transfer in transfers.values():
            self._end(transfer)

    def _give_back(self, transfer: Transfer, block: Block) -> None:
        (self._device.staging if transfer.write else self._device.landing).give_back(block)

    def _end(self, transfer: Transfer) -> None:
        if transfer.memory is not None:
            self._device.users_memory.give_back(transfer.memory)
            transfer.memory = None


class RdmaReach(Reach):
    """Nothing needs to be prepared."""

    def __init__(self, endpoint: Any) -> None:
        self.params: Params = {}
        self._endpoint = endpoint

    def opened(self, grant: Params) -> RemoteMemory:
        """Where the peer's memory is, and its key."""
        found = grant.get("rdma")
        if type(found) is not bytes or len(found) != _GRANT.size:
            raise MalformedData("the answer to a request to reach memory does not hold what it should")
        return RegisteredMemory(self._endpoint, *_GRANT.unpack(found))

    def close(self) -> None:
        """Nothing is to be freed."""


class RegisteredMemory(RemoteMemory):
    """Memory of the peer that its card serves."""

    waits = False

    def __init__(self, endpoint: Any, address: int, rkey: int, nbytes: int) -> None:
        self._endpoint = endpoint
        self._address = address
        self._rkey = rkey
        self._nbytes = nbytes

    def begin(self, copy: Copy, call_id: int) -> bool:
        """Post it; see the interface."""
        if copy.offset + len(copy.view) > self._nbytes:
            raise Unavailable("the buffer is smaller than its handle says")
        if not len(copy.view):
            return True
        done: bool = self._endpoint.copy(call_id, copy, self._address + copy.offset, self._rkey)
        return done

    def forget(self, call_id: int) -> None:
        """See the interface."""
        self._endpoint.forget_copy(call_id)
