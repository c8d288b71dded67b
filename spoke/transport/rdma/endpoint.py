"""The endpoint over RDMA: small frames are sent, large ones are read by the receiver, and nobody needs a thread.

Before a reader sleeps it looks for a moment longer, if answers have lately come that fast; only then are the completion
channels armed. Until they are, ``readable_fd`` stays readable, so that its user comes back.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import ClassVar, Final

from spoke.transport.direct import Copy, Lendable, Params, Reach
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import Done, Incoming, Kind
from spoke.transport.rdma import onesided
from spoke.transport.rdma.device import Device
from spoke.transport.rdma.onesided import RdmaReach
from spoke.transport.rdma.outgoing import RETURN_AT, Item, Large, item_of
from spoke.transport.rdma.progress import LAZY_IN_FLIGHT, Progress
from spoke.transport.rdma.queue import QueuePair
from spoke.transport.rdma.wire import SMALL_BYTES_MAX
from spoke.transport.turn import STALL_S, wait_for_turn

SPIN_VARIABLE: Final = "SPOKE_RDMA_SPIN_US"
SPIN_US: Final = 200


class RdmaEndpoint(Progress, Endpoint):
    """One connected queue pair whose peer has proved itself."""

    transport: ClassVar[str] = "rdma"
    flush_events: ClassVar[int] = select.EPOLLIN

    def __init__(self, device: Device, queue: QueuePair, sock: socket.socket, peer: str, limit_bytes: int) -> None:
        super().__init__(device, queue, sock, peer, limit_bytes)
        self.limit_bytes = limit_bytes
        self._small_max = min(SMALL_BYTES_MAX, limit_bytes)
        self.wants_flush = lambda: None
        self._idle_since = 0.0
        self._idle_s = 0.0  # how long it has lately taken until something came, smoothed
        self._spin_s = _spin_s()

    def readable_fd(self) -> int:
        """An epoll of the completion channels, the socket, and our own bell."""
        return self._read_poll.fileno()

    def flush_fd(self) -> int:
        """The same for those who wait to send."""
        return self._flush_poll.fileno()

    @property
    def backlog_bytes(self) -> int:
        """How much is kept back because the peer does not take it."""
        return self._outgoing.backlog_bytes

    # Receiving.

    def receive(self) -> list[Incoming]:
        """The frames that are complete; see the interface."""
        with self._lock:
            found = self._receive_once()
            if found:
                return found
            if not self._idle_since:
                self._idle_since = time.monotonic()
        if self._idle_s < self._spin_s:
            until = self._idle_since + self._spin_s
            while time.monotonic() < until:
                os.sched_yield()
                with self._lock:
                    if found := self._receive_once():
                        return found
        with self._lock:
            known = self._arm() or self._readable_rung  # why the descriptor is readable; else it may be the socket
            found = self._receive_once()
            if found is None:
                if not known:
                    self._check_peer()
                self._unring_readable()
            return found or []

    def _receive_once(self) -> list[Incoming] | None:
        """The frames that are complete; None when nothing at all was there.

        With anything else, the beginning of a large frame for example, there is more to wait for than before, and the
        channels must be armed once more before the reader may sleep.
        """
        try:
            outgoing = self._outgoing
            arrived = [] if self._closed else self._queue.recv_queue.poll()
            frame = None
            if len(arrived) == 1 and not (self._waiting or outgoing.backlog or outgoing.in_flight > LAZY_IN_FLIGHT):
                frame = self._incoming.small_frame(arrived[0])
            found: list[Incoming]
            if frame is not None:  # the usual thing: one small frame, and nothing else to do
                found = [frame]
            else:
                self._progress(arrived)
                if not self._incoming.pending and not self._one_sided.finished:
                    self._check_open()
                    return None
                found = self._incoming.take()
            if self._one_sided.finished:
                found.extend(map(Done, self._one_sided.take_finished()))
            if outgoing.done or outgoing.returns >= RETURN_AT:
                outgoing.update()
        except BaseException as error:
            self._broke(error)
            raise
        if self._idle_since:
            waited_s = min(time.monotonic() - self._idle_since, 4 * self._spin_s)
            self._idle_s += (waited_s - self._idle_s) / 4
            self._idle_since = 0.0
        if not self._readable_rung and not self._armed:
            self._ring_readable()
        return found

    # Sending.

    def send(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], *, may_wait: bool, must: bool
    ) -> None:
        """Send one frame; see the interface."""
        if not buffers and len(header) <= self._small_max and self._sent_at_once(kind, call_id, header):
            return
        item = item_of(kind, call_id, header, buffers, self.limit_bytes)
        with self._lock:
            if self._sending or self._outgoing.backlog:
                wait_for_turn(
                    self._out,
                    self._is_taken,
                    lambda: self._outgoing.backlog_bytes,
                    _left(item),
                    may_wait=may_wait,
                    must=must,
                    peer=self.peer,
                )
            if self._end is not None or self._incoming.said_goodbye:
                self._check_open()
            if self._sending or self._outgoing.backlog:
                self._outgoing.keep(item)
            else:
                with self._guard:
                    if not self._outgoing.ready:
                        self._progress()
                    if self._outgoing.transmit(item):
                        return
                if may_wait:
                    self._transmit_waiting(item)
                else:
                    self._outgoing.keep(item)
            kept = bool(self._outgoing.backlog)
        if kept and not self.flush():
            self.wants_flush()

    def _sent_at_once(self, kind: Kind, call_id: int, header: bytes) -> bool:
        """Send a small frame, which is the usual thing, without a detour; False where something is in its way."""
        with self._lock:
            outgoing = self._outgoing
            if self._end is not None or self._sending or outgoing.backlog or self._incoming.said_goodbye:
                return False
            if not outgoing.ready:
                return False
            try:
                outgoing.post_small(kind, call_id, header)
            except BaseException as error:
                self._broke(error)
                raise
            return True

    def _is_taken(self) -> bool:
        return (self._sending or bool(self._outgoing.backlog)) and self._end is None

    def _transmit_waiting(self, item: Item) -> None:
        """Send it all, as the peer takes it; what is left when it stands still goes to the backlog."""
        self._sending = True
        deadline = time.monotonic() + STALL_S
        try:
            while time.monotonic() < deadline:
                before = _left(item)
                with self._guard:
                    if self._outgoing.transmit(item):
                        return
                if _left(item) < before:
                    deadline = time.monotonic() + STALL_S
                self._wait_for_peer(deadline)
                self._check_open()
            self._outgoing.keep(item)
        except BaseException as error:
            if not isinstance(error, EndpointClosed) and isinstance(item, Large) and item.at:
                self._end_with("sending over it was interrupted")  # nobody can finish the frame
            raise
        finally:
            self._sending = False
            self._out.notify_all()

    def _wait_for_peer(self, deadline: float) -> None:
        """Let go of the lock until something has completed, and take note of it."""
        self._waiting += 1
        try:
            self._arm()
            with self._guard:
                before = (self._outgoing.credits, len(self._outgoing.chunks), self._outgoing.in_flight)
                self._progress()
            if before != (self._outgoing.credits, len(self._outgoing.chunks), self._outgoing.in_flight):
                return
            self._out.release()
            try:
                self._send_poll.poll(max(0.0, min(deadline - time.monotonic(), STALL_S)) * 1000)
            finally:
                self._out.acquire()
            if self._closed or self._end is not None:
                return
            if self._sender_rung:
                self._sender_rung = False
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
            with self._guard:
                self._progress()
            with contextlib.suppress(EndpointClosed):
                self._check_peer()
        finally:
            self._waiting -= 1

    def flush(self) -> bool:
        """Send of the backlog what may go now; True when nothing is left."""
        with self._lock:
            if self._sending or not self._outgoing.backlog:
                return True  # whoever sends now asks for another flush when it is done
            self._check_open()
            self._arm()
            with self._guard:
                self._waiting += 1  # so that completed sends are looked at
                try:
                    self._progress()
                finally:
                    self._waiting -= 1
                self._outgoing.push()
            if self._sender_rung and self._end is None:
                self._sender_rung = False
                os.eventfd_read(self._bell)
            self._out.notify_all()
            self._check_peer()
            return not self._outgoing.backlog

    # One-sided transfers.

    def lend(self, memory: Lendable, wishes: Params) -> Params:
        """Register it for the peers of this ticket; see the interface."""
        with self._lock:
            self._check_open()
            return onesided.lend(self._device, memory)

    def reach(self) -> Reach:
        """A question for the address and key of the peer's memory."""
        return RdmaReach(self)

    def copy(self, call_id: int, copy: Copy, remote: int, rkey: int) -> bool:
        """Begin a one-sided transfer; True when it is done already, else ``receive`` tells of its end."""
        with self._lock:
            self._check_open()
            with self._guard:
                self._one_sided.add(call_id, copy, remote, rkey)
                done = self._has_finished(call_id)
                if not done and not self._queue.send_queue.armed:
                    self._queue.send_queue.arm()  # a reader that sleeps is woken by the end of it
                    done = self._has_finished(call_id)
                return done

    def _has_finished(self, call_id: int) -> bool:
        """Look once. A device in software has copied it all when a post returns, and nobody needs to be woken then."""
        changed = self._look_at_sends()
        done = self._one_sided.take_one(call_id)
        if changed:
            self._tell()
        return done

    def forget_copy(self, call_id: int) -> None:
        """Post no more of a transfer."""
        with self._lock:
            if not self._closed:
                self._one_sided.forget(call_id)

    # The end.

    def shutdown(self) -> None:
        """End the connection and wake every thread in it."""
        with self._lock:
            if self._end is None:
                self._end_with(f"the connection to {self.peer} is closed")

    def close(self) -> None:
        """Let what was sent arrive, for a second at most, and free everything in order."""
        ended_here = self._end is None or self._end == f"the connection to {self.peer} is closed"
        self.shutdown()
        with self._lock:
            self._out.wait_for(lambda: not self._sending, STALL_S)
            if self._closed:
                return
            if ended_here:
                self._linger()
            self._closed = True
            self._queue.close()
            for block in self._outgoing.chunks:
                self._device.staging.give_back(block)
            self._outgoing.chunks.clear()
            self._incoming.drop()
            self._one_sided.drop()
            self._device.release()
            self._read_poll.close()
            self._flush_poll.close()
            os.close(self._inbox)
            os.close(self._bell)
            self._sock.close()


def _spin_s() -> float:
    """How long a reader looks before it sleeps; on one processor not at all, since its peer may need that one."""
    text = os.environ.get(SPIN_VARIABLE, "")
    if text.isdecimal():
        return min(int(text), 1_000_000) / 1e6
    return SPIN_US / 1e6 if len(os.sched_getaffinity(0)) > 1 else 0.0


def _left(item: Item) -> int:
    return item.left_bytes if isinstance(item, Large) else len(item)
