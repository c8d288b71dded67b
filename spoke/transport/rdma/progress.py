"""What is under way on one queue pair, and taking note of what has become of it; all of it under one lock.

Whoever is here makes progress for all: a reader, a sender that waits, a flush. pyverbs is neither thread-safe nor lets
go of the interpreter, so nothing here waits. Only who is about to sleep arms the completion channels, which costs
system calls; what has completed until then must be looked for once more.

The stream socket that came first stays open: its end is how a peer's death is noticed at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from spoke.errors import LimitExceeded, MalformedData
from spoke.transport.endpoint import EndpointClosed
from spoke.transport.rdma.device import Device
from spoke.transport.rdma.incoming import IncomingHalf
from spoke.transport.rdma.onesided import OneSided
from spoke.transport.rdma.outgoing import RETURN_AT, Outgoing
from spoke.transport.rdma.queue import ONE_SIDED, READ, QueueBroken, QueuePair
from spoke.transport.rdma.wire import SLOTS

LINGER_S: Final = 1.0
LAZY_IN_FLIGHT: Final = SLOTS // 2


class Progress:
    """One connected queue pair. Owns it, the device's use, and the socket; its endpoint frees them."""

    def __init__(self, device: Device, queue: QueuePair, sock: socket.socket, peer: str, limit_bytes: int) -> None:
        self.peer = peer
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

    def _ring_readable(self) -> None:
        if not self._readable_rung:
            self._readable_rung = True
            os.eventfd_write(self._inbox, 1)

    def _unring_readable(self) -> None:
        """The channels are armed and nothing is here: from now on they wake the reader."""
        if self._readable_rung and self._end is None:
            self._readable_rung = False
            os.eventfd_read(self._inbox)

    def _broke(self, error: BaseException) -> None:
        """What fails in the verbs, or was sent wrong, is the connection's end; see ``_Guard``."""
        if isinstance(error, MalformedData):
            reason = f"{self.peer} sent what makes no sense: {error}"
        elif isinstance(error, LimitExceeded):
            reason = str(error)
        elif isinstance(error, QueueBroken | self._device.verbs.PyverbsError):
            reason = f"the connection to {self.peer} broke: {error}"
        else:
            return
        self._end_with(reason)
        raise EndpointClosed(self._end) from error

    def _progress(self, found: list[Any] | None = None) -> None:
        """Take note of what has completed (``found``, of what arrived), and send of the backlog what may go."""
        if self._closed:
            return
        incoming, outgoing = self._incoming, self._outgoing
        if found is None:
            found = self._queue.recv_queue.poll()
        for completion in found:
            if completion.status:
                self._fail(completion.status)
            incoming.arrived(completion.wr_id)
        changed = bool(found)
        if outgoing.in_flight > LAZY_IN_FLIGHT or self._waiting or incoming.reading or self._one_sided.busy:
            changed = self._look_at_sends() or changed
        if changed:
            self._tell()
        if outgoing.done or outgoing.returns >= RETURN_AT:
            outgoing.update()

    def _tell(self) -> None:
        """Something has completed: whom does it concern?"""
        if self._outgoing.backlog and not self._sending:
            self._outgoing.push()
            self._out.notify_all()
        if self._incoming.pending or self._one_sided.finished:
            self._ring_readable()
        if self._waiting and not self._sender_rung:
            self._sender_rung = True
            os.eventfd_write(self._bell, 1)

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

    @property
    def _sends_wanted(self) -> bool:
        """Whether completions of what was posted are to be looked at."""
        return self._one_sided.busy or self._incoming.reading or self._waiting > 0 or bool(self._outgoing.backlog)

    @property
    def _armed(self) -> bool:
        """Whether the channels make the reader's descriptor readable for all that is to come."""
        return self._queue.recv_queue.armed and (self._queue.send_queue.armed or not self._sends_wanted)

    def _arm(self) -> bool:
        """Let the channels tell what completes from now on; what has completed by now must be looked for again.

        Whether the descriptors were readable for something that had been taken already.
        """
        with self._guard:
            if self._closed:
                return False
            was_readable = self._queue.recv_queue.arm()
            if self._sends_wanted:
                return self._queue.send_queue.arm() or was_readable
            if self._queue.send_queue.armed and self._queue.send_queue.disarm():
                return True  # it was stale, and would have kept the reader awake
            return was_readable

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


def _epoll(*fds: int) -> select.epoll:
    poll = select.epoll()
    for fd in fds:
        poll.register(fd, select.EPOLLIN)
    return poll
