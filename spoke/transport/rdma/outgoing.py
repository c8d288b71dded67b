"""What goes out over a queue pair: a ring of slots, the peer's credits, chunks of large frames, and the backlog.

Credits: the peer has a fixed number of receive slots, and each message takes one until the peer gives it back. The
last credit is kept for giving back a good number of the peer's own (an update), so that the two can never both be
without; a receiver that is not ready is thereby impossible. Everything here runs under the endpoint's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from spoke.errors import MalformedData
from spoke.transport.frames import HEAD_BYTES as FRAME_HEAD_BYTES
from spoke.transport.frames import MAGIC, Kind, encode_frame, encode_small
from spoke.transport.rdma.pool import Block, Pool
from spoke.transport.rdma.queue import SIGNAL_EVERY, QueuePair
from spoke.transport.rdma.wire import (
    BYE,
    CHUNK,
    CHUNK_BYTES,
    CHUNK_HEAD,
    CHUNKS_MAX,
    FIRST,
    FRAMES,
    HEAD,
    PAYLOAD_BYTES_MAX,
    SLOTS,
    SMALL_BYTES_MAX,
    SMALL_HEAD,
    UPDATE,
    layout,
)

RETURN_AT: Final = SLOTS // 3

Piece = bytes | memoryview


class Large:
    """A frame too large for a slot, on its way in chunks."""

    def __init__(self, head: bytes, parts: list[Piece]) -> None:
        self.head = head
        self.parts = parts
        self.offsets, self.nbytes = layout([len(part) for part in parts])
        self.at = 0

    @property
    def left_bytes(self) -> int:
        """What is still to be copied into registered memory."""
        return self.nbytes - self.at

    def keep(self) -> Large:
        """Own copies of what is left, since the caller may change it from now on."""
        self.parts = [
            bytes(part) if offset + len(part) > self.at else part
            for offset, part in zip(self.offsets, self.parts, strict=True)
        ]
        return self

    def fill(self, target: memoryview) -> int:
        """Copy the next chunk into registered memory; its size."""
        nbytes = min(len(target), CHUNK_BYTES, self.nbytes - self.at)
        end = self.at + nbytes
        for offset, part in zip(self.offsets, self.parts, strict=True):
            begin, stop = max(offset, self.at), min(offset + len(part), end)
            if begin < stop:
                target[begin - self.at : stop - self.at] = memoryview(part)[begin - offset : stop - offset]
        self.at = end
        return nbytes


Item = bytes | Large


def item_of(kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], limit_bytes: int) -> Item:
    """A frame as it goes out; LimitExceeded above the limit."""
    if not buffers and len(header) <= min(SMALL_BYTES_MAX, limit_bytes):
        return encode_small(kind, call_id, header)
    pieces = encode_frame(kind, call_id, header, buffers, limit_bytes)
    if sum(map(len, pieces)) <= PAYLOAD_BYTES_MAX:
        return b"".join(pieces) if len(pieces) > 1 else bytes(pieces[0])
    head = b"".join(bytes(piece) for piece in encode_frame(kind, call_id, b"", (), limit_bytes))
    lengths = [len(header), *(len(buffer) for buffer in buffers)]
    return Large(head + b"".join(length.to_bytes(8, "little") for length in lengths), [header, *buffers])


class Outgoing:
    """The sending half of an endpoint."""

    def __init__(self, queue: QueuePair, staging: Pool) -> None:
        self._queue = queue
        self._staging = staging
        self.credits = SLOTS
        self.returns = 0  # receive slots of ours that are free again, and the peer does not know
        self.done = 0  # chunks of the peer that were read, and the peer does not know
        self.backlog: deque[Item] = deque()
        self.backlog_bytes = 0
        self.in_flight = 0
        self.chunks: deque[Block] = deque()
        self._next = 0
        self._unsignaled = 0

    @property
    def ready(self) -> bool:
        """Whether one more message may go now."""
        return self.credits >= 2 and self.in_flight < SLOTS

    def post(self, kind: int, flags: int, payload: bytes, *, signaled: bool = False) -> None:
        """Send one message; the caller has looked whether it may go."""
        message = HEAD.pack(kind, flags, self.returns, self.done, len(payload)) + payload
        nbytes = len(message)
        self._queue.send_slots[self._next][:nbytes] = message
        self._post_slot(nbytes, signaled)

    def post_small(self, kind: Kind, call_id: int, header: bytes) -> None:
        """The same for a frame without buffers that fits: most messages are that."""
        slot, nbytes = self._queue.send_slots[self._next], len(header)
        SMALL_HEAD.pack_into(
            slot, 0, FRAMES, 0, self.returns, self.done, FRAME_HEAD_BYTES + nbytes, MAGIC, kind, 0, 0, call_id, nbytes
        )
        end = SMALL_HEAD.size + nbytes
        slot[SMALL_HEAD.size : end] = header
        self._post_slot(end, False)

    def _post_slot(self, nbytes: int, signaled: bool) -> None:
        slot = self._next
        self.credits -= 1
        self.returns = self.done = 0
        self._unsignaled += 1
        signaled = signaled or self._unsignaled >= SIGNAL_EVERY or self.credits < 2
        if signaled:
            self._unsignaled = 0
        self.in_flight += 1
        self._next = (slot + 1) % SLOTS
        self._queue.post_send(slot, nbytes, signaled)

    def sent(self, slot: int) -> None:
        """The message in that slot and all before it are with the peer."""
        self.in_flight = (self._next - 1 - slot) % SLOTS

    def granted(self, credits: int, done: int) -> None:
        """The peer gave back credits, and has read chunks. MalformedData for more than it had."""
        self.credits += credits
        if self.credits > SLOTS or done > len(self.chunks):
            raise MalformedData("the peer gave back more than it had")
        while done:
            done -= 1
            self._staging.give_back(self.chunks.popleft())

    def transmit(self, item: Item) -> bool:
        """Send as much of it as may go; whether all of it has."""
        if isinstance(item, bytes):
            if not self.ready:
                return False
            self.post(FRAMES, 0, item)
            return True
        while item.left_bytes:
            if not self.ready or len(self.chunks) >= CHUNKS_MAX:
                return False
            block = self._staging.take(min(CHUNK_BYTES, item.left_bytes))
            first = item.at == 0
            nbytes = item.fill(block.view)
            self.chunks.append(block)
            head = CHUNK_HEAD.pack(block.address, block.rkey, nbytes)
            self.post(CHUNK, FIRST if first else 0, head + item.head if first else head)
        return True

    def keep(self, item: Item) -> None:
        """Put it at the end of the backlog."""
        self.backlog.append(item.keep() if isinstance(item, Large) else item)
        self.backlog_bytes += _size(item)

    def push(self) -> None:
        """Send of the backlog what may go; small frames go together."""
        while self.backlog and self.ready:
            item = self.backlog[0]
            if isinstance(item, Large):
                before = item.left_bytes
                complete = self.transmit(item)
                self.backlog_bytes -= before - item.left_bytes
                if not complete:
                    return
                self.backlog.popleft()
                continue
            together: list[Piece] = []
            nbytes = 0
            while self.backlog and isinstance(item := self.backlog[0], bytes):
                if nbytes + len(item) > PAYLOAD_BYTES_MAX:
                    break
                together.append(item)
                nbytes += len(item)
                self.backlog.popleft()
            self.backlog_bytes -= nbytes
            self.post(FRAMES, 0, b"".join(together))

    def update(self) -> None:
        """Tell the peer what it can do again, if that is worth a message now."""
        if self.in_flight >= SLOTS:
            return
        many = self.returns >= RETURN_AT
        if (many and self.credits >= 1) or (self.done and self.credits >= 2):
            self.post(UPDATE, 0, b"", signaled=self.credits < 3)

    def bye(self) -> None:
        """The last message, signaled, so that all before it are known to have arrived."""
        if self.credits >= 1 and self.in_flight < SLOTS:
            self.post(UPDATE, BYE, b"", signaled=True)

    def clear(self) -> None:
        """Drop the backlog."""
        self.backlog.clear()
        self.backlog_bytes = 0


def _size(item: Item) -> int:
    return item.left_bytes if isinstance(item, Large) else len(item)
