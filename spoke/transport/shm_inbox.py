"""The receiving half of a connection over shared memory: news of the ring, and the blocks that are looked at."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from typing import Any, Final

from spoke.errors import MalformedData
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.frames import Incoming
from spoke.transport.shm_bells import Bells, take
from spoke.transport.shm_memory import BLOCKS_MAX, RING_BYTES, Loan, Side
from spoke.transport.shm_reader import RecordReader

CLOSE_S: Final = 5.0
_CREDIT_STEP: Final = RING_BYTES // 4


class Inbox:
    """What the peer writes on its side of the memory. One thread at a time reads; any thread may end a loan."""

    def __init__(self, sock: socket.socket, peer: str, side: Side, bells: Bells, limit_bytes: int) -> None:
        self._sock = sock
        self._peer = peer
        self._side = side
        self._bells = bells
        self._reader = RecordReader(limit_bytes, self._borrow, self._give_back)
        self._tail = 0
        self._unreported = 0
        self._loans: dict[int, Loan] = {}
        self._given_back: deque[int] = deque()
        self._giving = threading.Lock()
        self._returns_written = 0
        self._closed = False

    def shutdown(self) -> None:
        """Let out whoever waits to give credit, which a peer can bring about; it is of no use any more."""
        with contextlib.suppress(OSError):
            take(self._bells.credit_out)

    def close(self) -> bool:
        """Tell the peer nothing any more; what it lent stays with whoever looks at it. False if one still tells it."""
        if not self._giving.acquire(timeout=CLOSE_S):
            return False
        self._closed = True
        self._giving.release()
        return True

    def receive(self) -> list[Incoming]:
        """What has come."""
        count = self._news()
        if not count:
            if not self._peer_ended():
                return []
            count = self._news()  # what it said last, it said before
            if not count:
                cut = " in the middle of a message" if self._reader.mid_frame else ""
                raise EndpointClosed(f"{self._peer} ended the connection{cut}")
        if count + self._unreported > RING_BYTES:
            raise MalformedData("the peer says that it wrote more than its ring holds")
        ring, tail = self._side.ring, self._tail
        data = bytes(ring[tail : tail + count])
        if len(data) < count:
            data += bytes(ring[: count - len(data)])
        self._tail = (tail + count) % RING_BYTES
        self._unreported += count
        if self._unreported >= _CREDIT_STEP:
            credit, self._unreported = self._unreported, 0
            ring_bell(self._bells.credit_out, credit, self._peer)
        return self._reader.read(data)

    def _news(self) -> int:
        try:
            return take(self._bells.data_in)
        except OSError as error:
            raise EndpointClosed(f"the connection to {self._peer} broke: {error}") from error

    def _peer_ended(self) -> bool:
        try:
            data = self._sock.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if data:
            raise MalformedData("the peer sent bytes beside the shared memory")
        return True

    def _borrow(self, offset: int, nbytes: int) -> memoryview:
        if offset in self._loans or len(self._loans) >= BLOCKS_MAX:
            raise MalformedData("the peer lends a block of shared memory twice, or too many")
        block = self._side.lend(offset, nbytes)
        loan = Loan(block, self._loan_ended)
        loan.offset = offset
        self._loans[offset] = loan
        return memoryview(block).cast("B")

    def _loan_ended(self, loan: Any) -> None:
        """From the garbage collector, in any thread and at any point: must not wait."""
        self._loans.pop(loan.offset, None)
        self._give_back(loan.offset)

    def _give_back(self, offset: int) -> None:
        self._given_back.append(offset)
        while self._given_back and self._giving.acquire(blocking=False):
            try:
                self._write_returns()
            finally:
                self._giving.release()

    def _write_returns(self) -> None:
        count = 0
        while self._given_back:
            offset = self._given_back.popleft()
            if not self._closed:
                self._side.returns[self._returns_written % BLOCKS_MAX] = offset
                self._returns_written += 1
                count += 1
        if count:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._bells.credit_out, count << 32)


def ring_bell(fd: int, count: int, peer: str) -> None:
    """Add to an eventfd; EndpointClosed if that cannot be done."""
    try:
        os.eventfd_write(fd, count)
    except OSError as error:  # BlockingIOError: only a broken peer lets it overflow
        raise EndpointClosed(f"the connection to {peer} broke: {error}") from error
