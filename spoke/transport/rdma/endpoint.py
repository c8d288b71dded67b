"""The endpoint over RDMA: small frames are sent, large ones are read by the receiver, and nobody needs a thread.

Whoever is here makes progress for all: a reader, a sender that waits, a flush. Each looks at the completion queues
under the one lock, since pyverbs is neither thread-safe nor lets go of the interpreter. Before a reader sleeps it
looks for a moment longer, if answers have lately come that fast; only then are the completion channels armed, which
costs system calls. Until they are, ``readable_fd`` stays readable, so that its user comes back.

The stream socket that came first stays open: its end is how a peer's death is noticed at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from spoke.errors import LimitExceeded, MalformedData
from spoke.transport.direct import Copy, Lendable, Params, Reach
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import Done, Incoming, Kind
from spoke.transport.rdma import onesided
from spoke.transport.rdma.device import Device
from spoke.transport.rdma.incoming import IncomingHalf
from spoke.transport.rdma.onesided import OneSided, RdmaReach
from spoke.transport.rdma.outgoing import RETURN_AT, Item, Large, Outgoing, item_of
from spoke.transport.rdma.queue import ONE_SIDED, READ, CompletionQueue, QueueBroken, QueuePair
from spoke.transport.rdma.wire import SLOTS
from spoke.transport.turn import STALL_S, wait_for_turn

LINGER_S: Final = 1.0
SPIN_VARIABLE: Final = "SPOKE_RDMA_SPIN_US"
SPIN_US: Final = 200
_LAZY_IN_FLIGHT: Final = SLOTS // 2


class RdmaEndpoint(Endpoint):
    """One connected queue pair whose peer has proved itself. Owns the queue pair, the device's use and the socket."""

    transport: ClassVar[str] = "rdma"
    flush_events: ClassVar[int] = select.EPOLLIN

    def __init__(self, device: Device, queue: QueuePair, sock: socket.socket, peer: str, limit_bytes: int) -> None:
        self.peer = peer
        self.limit_bytes = limit_bytes
        self.wants_flush = lambda: None
        self._device = device
        self._queue = queue
        self._sock = sock
        self._lock = threading.RLock()  # the one for everything here
        self._out = threading.Condition(self._lock)
        self._guard = _Guard(self._broke)
        self._outgoing = Outgoing(queue, device.staging)
        self._incoming = IncomingHalf(queue, self._outgoing, device.landing, limit_bytes)
        self._one_sided = OneSided(queue, device)
        self._sending = False
        self._waiting = 0
        self._end: str | None = None  # why nothing more can be sent or received
        self._closed = False
        self._readable_rung = self._sender_rung = False
        self._idle_since = 0.0
        self._idle_s = 0.0  # how long it has lately taken until something came, smoothed
        self._spin_s = _spin_s()
        self._inbox = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable: come and receive
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable: senders, look again
        channels = (queue.recv_queue.fd, queue.send_queue.fd, sock.fileno())
        self._read_poll = _epoll(*channels, self._inbox)
        self._flush_poll = _epoll(*channels, self._bell)
        self._send_poll = select.poll()
        for fd in (*channels, self._bell):
            self._send_poll.register(fd, select.POLLIN)
        sock.setblocking(False)
        with self._lock:
            self._ring_readable()

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
            self._arm()
            found = self._receive_once()
            if found is None:
                self._check_peer()
                self._unring_readable()
            return found or []

    def _receive_once(self) -> list[Incoming] | None:
        """The frames that are complete; None when nothing at all was there.

        With anything else, the beginning of a large frame for example, there is more to wait for than before, and the
        channels must be armed once more before the reader may sleep.
        """
        with self._guard:
            self._progress()
            if not self._incoming.pending and not self._one_sided.finished:
                self._check_open()
                return None
            found = self._incoming.take()
            if self._one_sided.finished:
                found.extend(map(Done, self._one_sided.take_finished()))
            self._update()
        if self._idle_since:
            waited_s = min(time.monotonic() - self._idle_since, 4 * self._spin_s)
            self._idle_s += (waited_s - self._idle_s) / 4
            self._idle_since = 0.0
        self._ring_readable()
        return found

    def _ring_readable(self) -> None:
        if not self._readable_rung:
            self._readable_rung = True
            os.eventfd_write(self._inbox, 1)

    def _unring_readable(self) -> None:
        """The channels are armed and nothing is here: from now on they wake the reader."""
        if self._readable_rung and self._end is None:
            self._readable_rung = False
            os.eventfd_read(self._inbox)

    # Progress: under the lock.

    def _broke(self, error: BaseException) -> None:
        """What fails in the verbs, or was sent wrong, is the connection's end; see ``_Guard``."""
        if isinstance(error, MalformedData):
            self._end_with(f"{self.peer} sent what makes no sense: {error}")
        elif isinstance(error, LimitExceeded):
            self._end_with(str(error))
            raise EndpointClosed(self._end) from error
        elif isinstance(error, QueueBroken | self._device.verbs.PyverbsError):
            self._end_with(f"the connection to {self.peer} broke: {error}")
            raise EndpointClosed(self._end) from error

    def _progress(self) -> None:
        """Take note of what has completed, and send of the backlog what may go."""
        if self._closed:
            return
        changed = False
        incoming, outgoing = self._incoming, self._outgoing
        for completion in self._queue.recv_queue.poll():
            if completion.status:
                self._fail(completion.status)
            incoming.arrived(completion.wr_id)
            changed = True
        if outgoing.in_flight > _LAZY_IN_FLIGHT or self._waiting or incoming.reading or self._one_sided.busy:
            changed = self._look_at_sends() or changed
        if changed:
            if self._outgoing.backlog and not self._sending:
                self._outgoing.push()
                self._out.notify_all()
            if self._incoming.pending or self._one_sided.finished:
                self._ring_readable()
            if self._waiting and not self._sender_rung:
                self._sender_rung = True
                os.eventfd_write(self._bell, 1)
        self._update()

    def _update(self) -> None:
        if self._outgoing.done or self._outgoing.returns >= RETURN_AT:
            self._outgoing.update()

    def _look_at_sends(self) -> bool:
        found = self._queue.send_queue.poll()
        for completion in found:
            if completion.status:
                self._fail(completion.status)
            if completion.wr_id >= ONE_SIDED:
                self._one_sided.completed()
            elif completion.wr_id >= READ:
                self._incoming.was_read()
            else:
                self._outgoing.sent(completion.wr_id)
        return bool(found)

    def _fail(self, status: int) -> None:
        if self._end is None:
            self._check_peer()  # a dead peer says more than its queue pair's status
        raise QueueBroken(f"a work request failed with status {status}")

    def _arm(self) -> None:
        """Let the channels tell what completes from now on; what has completed by now must be looked for again."""
        with self._guard:
            if self._closed:
                return
            self._queue.recv_queue.arm()
            if self._incoming.reading or self._one_sided.busy or self._waiting or self._outgoing.backlog:
                _arm_or_drain(self._queue.send_queue, True)
            else:
                _arm_or_drain(self._queue.send_queue, False)

    def _check_peer(self) -> None:
        """Whether the socket has ended, which says that the peer is gone."""
        try:
            data = self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(f"the connection to {self.peer} broke: {error}")
        else:
            self._finish(f"{self.peer} ended the connection" if not data else f"{self.peer} broke the protocol")

    def _finish(self, reason: str) -> None:
        """The peer is gone: take what is already here, then end."""
        with self._guard:
            for completion in self._queue.recv_queue.poll():
                if not completion.status:
                    self._incoming.arrived(completion.wr_id)
        self._end_with(reason)
        if not self._incoming.pending:
            raise EndpointClosed(reason)

    def _end_with(self, reason: str) -> None:
        if self._end is None:
            self._end = reason
        self._readable_rung = self._sender_rung = True
        os.eventfd_write(self._inbox, 1)
        os.eventfd_write(self._bell, 1)
        self._outgoing.clear()
        self._out.notify_all()

    def _check_open(self) -> None:
        if self._end is None and self._incoming.said_goodbye:
            self._end_with(f"{self.peer} ended the connection")
        if self._end is not None:
            raise EndpointClosed(self._end)

    # Sending.

    def send(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], *, may_wait: bool, must: bool
    ) -> None:
        """Send one frame; see the interface."""
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

    def copy(self, call_id: int, copy: Copy, remote: int, rkey: int) -> None:
        """Begin a one-sided transfer; ``receive`` tells of its end."""
        with self._lock:
            self._check_open()
            with self._guard:
                self._one_sided.add(call_id, copy, remote, rkey)
            self._ring_readable()  # the reader has something new to wait for

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

    def _linger(self) -> None:
        """Say goodbye, and wait until the peer has got what was sent and has read what was offered."""
        outgoing = self._outgoing
        deadline = time.monotonic() + LINGER_S
        try:
            outgoing.bye()
            poller = select.poll()
            for fd in (self._queue.recv_queue.fd, self._queue.send_queue.fd, self._sock.fileno()):
                poller.register(fd, select.POLLIN)
            while outgoing.in_flight or outgoing.chunks:
                for queue in (self._queue.recv_queue, self._queue.send_queue):
                    queue.arm()
                for completion in self._queue.recv_queue.poll():
                    if completion.status:
                        return
                    self._incoming.arrived(completion.wr_id)
                if any(completion.status for completion in self._note_sent()):
                    return
                left_s = deadline - time.monotonic()
                if not (outgoing.in_flight or outgoing.chunks) or self._incoming.said_goodbye or left_s <= 0:
                    return
                poller.poll(min(left_s, 0.05) * 1000)
                with contextlib.suppress(BlockingIOError):
                    if not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                        return
        except (QueueBroken, MalformedData, OSError, self._device.verbs.PyverbsError):
            return  # the peer is gone, which is what was to be found out

    def _note_sent(self) -> list[Any]:
        found = self._queue.send_queue.poll()
        for completion in found:
            if not completion.status and completion.wr_id < READ:
                self._outgoing.sent(completion.wr_id)
        return found


class _Guard:
    """Tells the endpoint of what was raised in a block; made once, since every message enters it twice."""

    __slots__ = ("_broke",)

    def __init__(self, broke: Callable[[BaseException], None]) -> None:
        self._broke = broke

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._broke(error)


def _spin_s() -> float:
    """How long a reader looks before it sleeps; on one processor not at all, since its peer may need that one."""
    text = os.environ.get(SPIN_VARIABLE, "")
    if text.isdecimal():
        return min(int(text), 1_000_000) / 1e6
    return SPIN_US / 1e6 if len(os.sched_getaffinity(0)) > 1 else 0.0


def _epoll(*fds: int) -> select.epoll:
    poll = select.epoll()
    for fd in fds:
        poll.register(fd, select.EPOLLIN)
    return poll


def _arm_or_drain(queue: CompletionQueue, wanted: bool) -> None:
    """Arm it, or take a stale event off it, which would keep its reader awake."""
    if wanted:
        queue.arm()
    elif queue.armed:
        queue.disarm()


def _left(item: Item) -> int:
    return item.left_bytes if isinstance(item, Large) else len(item)
