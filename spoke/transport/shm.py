"""The endpoint over shared memory: records in a ring, large buffers in blocks that the receiver looks at in place.

Sending writes a record and adds its length to an eventfd; the receiver reads from the eventfd how many bytes are new.
The other way, another eventfd carries credit: ring bytes that were read (its low half) and blocks that came back (its
high half). Nobody spins, and no word in shared memory says where anything is. The stream socket stays open: its end is
the end of the peer, also by kill -9.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final

from spoke.errors import LimitExceeded, MalformedData
from spoke.transport import shm_buffer
from spoke.transport.direct import Lendable, Params, Reach
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import Incoming, Kind, check_size
from spoke.transport.shm_bells import Bells, take
from spoke.transport.shm_buffer import ShmReach
from spoke.transport.shm_inbox import Inbox, ring_bell
from spoke.transport.shm_memory import BLOCKS_MAX, RING_BYTES, Arena, Region
from spoke.transport.shm_reader import HEAD, PLACE, STREAMED
from spoke.transport.turn import STALL_S, wait_for_turn

BLOCK_BYTES_MIN: Final = 16 * 1024
PIECE_BYTES: Final = 64 * 1024
CLOSE_S: Final = 5.0
_PATIENCE_S: Final = 0.2
_LOW: Final = (1 << 32) - 1


class ShmEndpoint(Endpoint):
    """One connection between two processes of a machine. ``side`` is 0 at the server, 1 at the client."""

    transport: ClassVar[str] = "shm"
    flush_events: ClassVar[int] = select.EPOLLIN

    def __init__(
        self, sock: socket.socket, peer: str, region: Region, bells: Bells, side: int, *, limit_bytes: int
    ) -> None:
        self.peer = peer
        self.limit_bytes = limit_bytes
        self.wants_flush = lambda: None
        self._sock = sock
        sock.settimeout(None)
        self._region = region
        self._out_side = region.sides[side]
        self._bells = bells
        self._inbox = Inbox(sock, peer, region.sides[1 - side], bells, limit_bytes)
        self._wait_fd = select.epoll()
        self._wait_fd.register(bells.data_in, select.EPOLLIN)
        self._wait_fd.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
        self._out = threading.Condition()
        self._users = 0  # senders that touch the memory
        self._sending = False
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._shut = False
        self._closed = False
        self._memory = threading.Lock()  # arena, ring's credit
        self._arena = Arena()
        self._returns_read = 0
        self._free = RING_BYTES
        self._head = 0

    def readable_fd(self) -> int:
        """An epoll of the peer's messages and of the socket's end."""
        return self._wait_fd.fileno()

    def flush_fd(self) -> int:
        """The eventfd that carries credit."""
        return self._bells.credit_in

    @property
    def backlog_bytes(self) -> int:
        """How much is kept back because the peer does not take it."""
        return self._backlog_bytes

    def receive(self) -> list[Incoming]:
        """What has come."""
        return self._inbox.receive()

    # Sending.

    def send(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], *, may_wait: bool, must: bool
    ) -> None:
        """Send one frame; see the interface."""
        check_size(len(header) + sum(map(len, buffers)), len(buffers), self.limit_bytes)
        record = b""
        if not buffers and len(header) <= PIECE_BYTES:
            record = HEAD.pack(HEAD.size + len(header), kind, 0, 0, call_id, len(header)) + header
        with self._out:
            self._check_open()
            self._users += 1
            at_once = bool(record) and self._free >= len(record) and not self._is_taken()
            if at_once:
                self._sending = True
        if at_once:
            self._send_now(record)
            return
        try:
            if record:
                self._submit([record], [], may_wait, must)
            else:
                placed: list[int] = []
                records = self._place(kind, call_id, header, buffers, placed)
                self._submit(records, placed, may_wait, must)
        except MalformedData as error:
            self.shutdown()
            raise EndpointClosed(f"the connection to {self.peer} was ended: {error}") from error
        finally:
            with self._out:
                self._users -= 1
                self._out.notify_all()

    def _send_now(self, record: bytes) -> None:
        """Send one record, whose turn it is and for which there is room."""
        try:
            self._put(record)
        except BaseException:  # nobody knows whether it is out
            self.shutdown()
            raise
        finally:
            with self._out:
                self._sending = False
                self._users -= 1
                waiting = bool(self._backlog)
                self._out.notify_all()
        if waiting and not self.flush():
            self.wants_flush()

    def _place(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], placed: list[int]
    ) -> list[bytes | memoryview]:
        """Write large buffers into blocks while there are any; the records, or views of what is still to be cut."""
        places = []
        streams: list[bytes | memoryview] = [header]
        for buffer in buffers:
            offset = self._take_block(len(buffer)) if len(buffer) >= BLOCK_BYTES_MIN else None
            if offset is None:
                places.append(PLACE.pack(len(buffer), STREAMED))
                streams.append(buffer)
            else:
                placed.append(offset)
                self._out_side.blocks[offset : offset + len(buffer)] = buffer
                places.append(PLACE.pack(len(buffer), offset))
        head = b"".join(places)
        small = sum(map(len, streams)) <= PIECE_BYTES
        body = head + b"".join(streams) if small else head
        first = HEAD.pack(HEAD.size + len(body), kind, 0, len(buffers), call_id, len(header)) + body
        return [first] if small else [first, *streams]

    def _take_block(self, nbytes: int) -> int | None:
        with self._memory:
            self._collect()  # first, so that a block that is back, and warm, is taken before a cold one
            return self._arena.take(nbytes)

    def _collect(self) -> None:
        """Under ``_memory``: take the credit that has come; MalformedData for a wrong one."""
        try:
            news = take(self._bells.credit_in)
        except OSError as error:
            raise EndpointClosed(f"the connection to {self.peer} broke: {error}") from error
        read, returned = news & _LOW, news >> 32
        if self._free + read > RING_BYTES or returned > len(self._arena):
            raise MalformedData("the peer says that it read or gave back more than it had")
        self._free += read
        for _ in range(returned):
            offset = self._out_side.returns[self._returns_read % BLOCKS_MAX]
            self._returns_read += 1
            span = self._arena.give_back(offset)
            if span is not None:
                self._out_side.cool(*span)

    def _submit(self, records: list[bytes | memoryview], placed: list[int], may_wait: bool, must: bool) -> None:
        """Put the pieces of one frame on the ring, in order, once it is this frame's turn."""
        nbytes = sum(map(len, records))
        with self._out:
            if self._is_taken():
                try:
                    wait_for_turn(
                        self._out,
                        self._is_taken,
                        lambda: self._backlog_bytes,
                        nbytes,
                        may_wait=may_wait,
                        must=must,
                        peer=self.peer,
                    )
                except LimitExceeded:
                    with self._memory:
                        for offset in placed:
                            self._arena.give_back(offset)
                    raise
            if self._is_taken():
                self._keep(_Records(records))
                return
            self._check_open()
            self._sending = True
        rest: list[bytes] = []
        try:
            rest = self._transmit(_Records(records), may_wait)
        except BaseException:  # Ctrl-C: nobody knows how much of the frame is out
            self.shutdown()
            raise
        finally:
            with self._out:
                self._sending = False
                if not self._shut:
                    self._backlog.extendleft(reversed(rest))
                    self._backlog_bytes += sum(map(len, rest))
                waiting = bool(self._backlog)
                self._out.notify_all()
        if waiting and not self.flush():
            self.wants_flush()

    def _is_taken(self) -> bool:
        return (self._sending or bool(self._backlog)) and not self._shut

    def _keep(self, pieces: _Records) -> None:
        self._check_open()
        for piece in pieces:
            self._backlog.append(piece)
            self._backlog_bytes += len(piece)

    def _transmit(self, records: _Records, may_wait: bool) -> list[bytes]:
        for record in records:
            if not self._fits(len(record), may_wait):
                return [record, *records]
            self._put(record)
        return []

    def _fits(self, nbytes: int, may_wait: bool) -> bool:
        if self._free >= nbytes:
            return True
        deadline = time.monotonic() + STALL_S
        while True:
            with self._memory:
                before = self._free
                self._collect()
                if self._free >= nbytes:
                    return True
            if self._free > before:
                deadline = time.monotonic() + STALL_S
            left_s = deadline - time.monotonic()
            if not may_wait or left_s <= 0:
                return False
            self._check_open()
            poll = select.poll()
            poll.register(self._bells.credit_in, select.POLLIN)
            poll.register(self._sock, select.POLLIN | select.POLLRDHUP)
            for fd, _ in poll.poll(left_s * 1000):
                if fd != self._bells.credit_in:
                    raise EndpointClosed(f"{self.peer} ended the connection")

    def _put(self, record: bytes) -> None:
        ring, head, count = self._out_side.ring, self._head, len(record)
        here = min(count, RING_BYTES - head)
        if here == count:
            ring[head : head + count] = record
        else:
            ring[head:] = record[:here]
            ring[: count - here] = record[here:]
        self._head = (head + count) % RING_BYTES
        with self._memory:
            self._free -= count
        ring_bell(self._bells.data_out, count, self.peer)

    def flush(self) -> bool:
        """Send of the backlog what fits now; True when nothing is left."""
        with self._out:
            if self._sending or not self._backlog:
                return True  # whoever sends now asks for another flush when it is done
            self._check_open()
            self._sending = True
            self._users += 1
        done = False
        try:
            while True:
                with self._out:
                    if self._shut or not self._backlog:
                        done = True
                        return True
                    record = self._backlog[0]
                if not self._fits(len(record), may_wait=False):
                    return False
                self._put(record)
                with self._out:
                    if self._backlog and self._backlog[0] is record:
                        self._backlog.popleft()
                        self._backlog_bytes -= len(record)
        except MalformedData as error:
            self.shutdown()
            raise EndpointClosed(f"the connection to {self.peer} was ended: {error}") from error
        finally:
            with self._out:
                self._sending = False
                self._users -= 1
                again = done and bool(self._backlog) and not self._shut
                self._out.notify_all()
            if again:
                self.wants_flush()

    def _check_open(self) -> None:
        if self._shut:
            raise EndpointClosed(f"the connection to {self.peer} is closed")

    # Memory of one side that the other one maps.

    def lend(self, memory: Lendable, wishes: Params) -> Params:
        """Hand over the memfd that it lies in; see the interface."""
        return shm_buffer.lend(memory, wishes)

    def reach(self) -> Reach:
        """A question for the peer's memfd."""
        return ShmReach(self._check_alive)

    def _check_alive(self) -> None:
        with self._out:
            self._check_open()
            poll = select.poll()
            poll.register(self._sock, select.POLLRDHUP)
            if poll.poll(0):
                raise EndpointClosed(f"{self.peer} ended the connection")

    # The end.

    def shutdown(self) -> None:
        """Shut the socket down: every thread that waits for the peer wakes at once."""
        with self._out:
            if self._shut:
                return
            self._shut = True
            self._backlog.clear()
            self._backlog_bytes = 0
            self._out.notify_all()
            with contextlib.suppress(OSError):  # the peer may have ended it already
                self._sock.shutdown(socket.SHUT_RDWR)
            if not self._closed:
                self._inbox.shutdown()

    def close(self) -> None:
        """Close the descriptors and unmap, once no sender uses them. Blocks that are still looked at stay mapped."""
        self.shutdown()
        with self._out:
            if self._closed or not self._senders_left():
                return
            self._closed = True
            if not self._inbox.close():
                return  # rather leak than close under whoever writes
            self._wait_fd.close()
            self._bells.close()
            self._sock.close()
        self._region.close()

    def _senders_left(self) -> bool:
        """Under ``_out``: wait for it; only a peer that fills the eventfd makes one stay, and room lets it out."""
        if not self._out.wait_for(lambda: not self._users, _PATIENCE_S):
            with contextlib.suppress(OSError):
                take(self._bells.data_out)
        return self._out.wait_for(lambda: not self._users, CLOSE_S)


class _Records:
    """The records of one frame, cut only when they are needed: what waits in line is copied, what goes out is not."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        self._first = bytes(pieces[0])
        self._streams = [memoryview(piece) for piece in pieces[1:] if len(piece)]
        self._begun = False

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return self._first
        if not self._streams:
            raise StopIteration
        piece = bytes(self._streams[0][:PIECE_BYTES])
        self._streams[0] = self._streams[0][PIECE_BYTES:]
        if not len(self._streams[0]):
            del self._streams[0]
        return HEAD.pack(HEAD.size + len(piece), 0, 0, 0, 0, 0) + piece
