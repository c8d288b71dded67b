"""What comes in over a queue pair: slots in the order they arrived, and large frames, which are read from the peer.

A large frame's memory is reserved after its length was checked, and each chunk is read straight to its place in it
(one-sided, the peer's processor has no part in it). Frames come out in the order in which they were sent.
Everything here runs under the endpoint's lock.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from spoke.errors import MalformedData
from spoke.transport.frames import (
    BUFFERS_MAX,
    KINDS,
    MAGIC,
    Frame,
    FrameReader,
    Incoming,
    Oversized,
    read_one,
)
from spoke.transport.frames import HEAD as FRAME_HEAD
from spoke.transport.rdma.outgoing import Outgoing
from spoke.transport.rdma.pool import Block, Pool
from spoke.transport.rdma.queue import READ, QueuePair
from spoke.transport.rdma.wire import (
    BYE,
    CHUNK,
    CHUNK_HEAD,
    FIRST,
    FRAMES,
    HEAD,
    HEAD_BYTES,
    PAYLOAD_BYTES_MAX,
    SMALL_HEAD,
    UPDATE,
    layout,
)


class _Open:
    """A large frame whose chunks are coming."""

    def __init__(self, frame: Frame, lengths: list[int], limit_bytes: int) -> None:
        self.frame = frame
        self.lengths = lengths
        self.offsets, self.nbytes = layout(lengths)
        self.skipped = sum(lengths) > limit_bytes
        self.block: Block | None = None
        self.offered = 0
        self.read = 0

    @property
    def complete(self) -> bool:
        return self.read == self.nbytes

    def finish(self, landing: Pool, limit_bytes: int) -> Incoming:
        frame = self.frame
        if self.skipped or self.block is None:
            return Oversized(frame.kind, frame.call_id, sum(self.lengths), limit_bytes)
        block, self.block = self.block, None
        view = landing.lend(block, self.nbytes)
        frame.header = bytes(view[: self.lengths[0]])
        frame.buffers = [view[at : at + nbytes] for at, nbytes in zip(self.offsets[1:], self.lengths[1:], strict=True)]
        return frame


class IncomingHalf:
    """The receiving half of an endpoint."""

    def __init__(self, queue: QueuePair, outgoing: Outgoing, landing: Pool, limit_bytes: int) -> None:
        self._queue = queue
        self._outgoing = outgoing
        self._landing = landing
        self._limit_bytes = limit_bytes
        self._small_max = min(PAYLOAD_BYTES_MAX, limit_bytes)
        self._reader = FrameReader(limit_bytes)
        self._arrived: deque[tuple[int, int, int, int]] = deque()  # slot, kind, flags, bytes
        self._frames: deque[Incoming | _Open] = deque()
        self._open: _Open | None = None
        self._reads: deque[tuple[_Open, int]] = deque()
        self.said_goodbye = False

    @property
    def pending(self) -> bool:
        """Whether ``take`` has something to do."""
        first = self._frames[0] if self._frames else None
        return bool(self._arrived) or (first is not None and (not isinstance(first, _Open) or first.complete))

    @property
    def reading(self) -> bool:
        """Whether reads of the peer's memory are under way."""
        return bool(self._reads)

    def arrived(self, slot: int) -> None:
        """A message is in the slot: take note of what it gives back; its content waits for ``take``."""
        kind, flags, credits, done, nbytes = HEAD.unpack_from(self._queue.recv_slots[slot])
        if nbytes > PAYLOAD_BYTES_MAX or kind not in (UPDATE, FRAMES, CHUNK):
            raise MalformedData("the peer sent something that is no message of this release")
        if credits or done:
            self._outgoing.granted(credits, done)
        if kind == UPDATE:
            self.said_goodbye = self.said_goodbye or bool(flags & BYE)
            self._repost(slot)
        else:
            self._arrived.append((slot, kind, flags, nbytes))

    def small_frame(self, completion: Any) -> Frame | None:
        """The frame that has come, if it is small, alone in its message, and nothing is before it; taken at once.

        Otherwise None, and nothing is done: ``arrived`` and ``take`` are for everything.
        """
        slot = completion.wr_id
        message = self._queue.recv_slots[slot]
        what, _, credits, done, nbytes, magic, code, zero, buffers, call_id, size = SMALL_HEAD.unpack_from(message)
        kind = KINDS.get(code)
        if kind is None or what != FRAMES or magic != MAGIC or zero or buffers or nbytes != FRAME_HEAD.size + size:
            return None
        if nbytes > self._small_max or done or completion.status or self._arrived or self._frames:
            return None
        frame = Frame(kind, call_id, bytes(message[SMALL_HEAD.size : SMALL_HEAD.size + size]), [])
        if credits:
            self._outgoing.granted(credits, 0)
        self._queue.post_recv(slot)
        self._outgoing.returns += 1
        return frame

    def was_read(self) -> None:
        """The oldest read has completed."""
        frame, nbytes = self._reads.popleft()
        frame.read += nbytes
        self._outgoing.done += 1

    def take(self) -> list[Incoming]:
        """The frames that are complete, in order; begins to read what was offered. Raises MalformedData."""
        while self._arrived:
            slot, kind, flags, nbytes = self._arrived.popleft()
            payload = self._queue.recv_slots[slot][HEAD_BYTES : HEAD_BYTES + nbytes]
            if kind == FRAMES:
                frame = read_one(bytes(payload)) if nbytes <= self._small_max else None
                if frame is not None:
                    self._frames.append(frame)
                else:
                    self._read_several(payload)
            else:
                self._chunk(payload, bool(flags & FIRST))
            self._repost(slot)
        out: list[Incoming] = []
        while self._frames:
            first = self._frames[0]
            if isinstance(first, _Open):
                if not first.complete:
                    break
                first = first.finish(self._landing, self._limit_bytes)
            self._frames.popleft()
            out.append(first)
        return out

    def _read_several(self, payload: memoryview) -> None:
        self._reader.space()[: len(payload)] = payload
        self._frames.extend(self._reader.filled(len(payload)))
        if self._reader.mid_frame:
            raise MalformedData("the peer sent a frame that ends beyond its message")

    def _repost(self, slot: int) -> None:
        self._queue.post_recv(slot)
        self._outgoing.returns += 1

    def _chunk(self, payload: memoryview, first: bool) -> None:
        if len(payload) < CHUNK_HEAD.size or first != (self._open is None):
            raise MalformedData("the peer sent a chunk of no frame")
        address, rkey, nbytes = CHUNK_HEAD.unpack_from(payload)
        if first:
            self._open = self._begin(payload[CHUNK_HEAD.size :])
            self._frames.append(self._open)
        frame = self._open
        assert frame is not None
        if not 0 < nbytes <= frame.nbytes - frame.offered:
            raise MalformedData("the peer sent a chunk that is larger than its frame")
        if frame.skipped:
            frame.read += nbytes
            self._outgoing.done += 1
        else:
            if frame.block is None:
                frame.block = self._landing.take(frame.nbytes)
            target = frame.block.address + frame.offered
            self._queue.post_read(READ, target, frame.block.lkey, nbytes, address, rkey)
            self._reads.append((frame, nbytes))
        frame.offered += nbytes
        if frame.offered == frame.nbytes:
            self._open = None

    def _begin(self, head: memoryview) -> _Open:
        if len(head) < FRAME_HEAD.size + 8 or (len(head) - FRAME_HEAD.size) % 8:
            raise MalformedData("the peer sent a frame without its lengths")
        magic, kind, zero, count, call_id, header_bytes = FRAME_HEAD.unpack_from(head)
        lengths = list(struct.unpack_from(f"<{(len(head) - FRAME_HEAD.size) // 8}Q", head, FRAME_HEAD.size))
        if magic != MAGIC or zero or count or header_bytes or len(lengths) > BUFFERS_MAX + 1:
            raise MalformedData("the peer sent something that is no frame of this release")
        found = KINDS.get(kind)
        if found is None:
            raise MalformedData("the peer sent a frame of an unknown kind")
        return _Open(Frame(found, call_id, b"", []), lengths, self._limit_bytes)

    def drop(self) -> None:
        """Give the memory of unfinished frames back; nothing reads into it any more."""
        for frame in self._frames:
            if isinstance(frame, _Open) and frame.block is not None:
                self._landing.give_back(frame.block)
                frame.block = None
        self._frames.clear()
        self._arrived.clear()
        self._reads.clear()
