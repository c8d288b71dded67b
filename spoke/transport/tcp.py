"""The endpoint over TCP: vectored sends, receives into place, and a backlog for peers that do not read.

The socket is a blocking one with SO_SNDTIMEO, and everything that must not wait says MSG_DONTWAIT: a large frame is
then one blocking sendmsg inside the kernel, as fast as a bare sendall, and still notices a peer that stands still.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final

from spoke.transport.carrier import Acceptance, Carrier, Offer, Params, Wire
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import FRAME_BYTES_MAX, FrameReader, Incoming, Kind, encode_frame
from spoke.transport.turn import STALL_S, wait_for_turn

CLOSE_S: Final = 5.0
_RECEIVE_ROUNDS_MAX: Final = 64
_PIECES_MAX: Final = 1024  # IOV_MAX

Piece = bytes | memoryview


class TcpEndpoint(Endpoint):
    """One TCP connection whose peer has proved itself."""

    transport: ClassVar[str] = "tcp"

    def __init__(self, sock: socket.socket, peer: str, *, limit_bytes: int = FRAME_BYTES_MAX) -> None:
        self.peer = peer
        self.limit_bytes = limit_bytes
        self.wants_flush = lambda: None
        tune(sock)
        sock.settimeout(None)
        seconds = int(STALL_S)
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, int((STALL_S - seconds) * 1e6))
        )
        self._sock = sock
        self._second_fd = os.dup(sock.fileno())  # epoll knows descriptors, and reading and flushing wait apart
        self._reader = FrameReader(limit_bytes)
        self._out = threading.Condition()
        self._sending = False
        self._backlog: deque[Piece] = deque()
        self._backlog_bytes = 0
        self._shut = False
        self._closed = False

    def readable_fd(self) -> int:
        """The socket."""
        return self._sock.fileno()

    def flush_fd(self) -> int:
        """The same socket under a second number."""
        return self._second_fd

    @property
    def backlog_bytes(self) -> int:
        """How much is kept back because the peer does not take it."""
        return self._backlog_bytes

    def receive(self) -> list[Incoming]:
        """What has come; a large frame is received until the socket is empty, but with a bound on the rounds."""
        reader = self._reader
        for _ in range(_RECEIVE_ROUNDS_MAX):
            space = reader.space()
            try:
                count = self._sock.recv_into(space, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return []
            except OSError as error:
                raise EndpointClosed(f"the connection to {self.peer} broke: {error}") from error
            if not count:
                cut = " in the middle of a message" if reader.mid_frame else ""
                raise EndpointClosed(f"{self.peer} ended the connection{cut}")
            frames = reader.filled(count)
            if frames:
                return frames
            if count < len(space) and not reader.mid_frame:
                return []
        return []

    def send(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], *, may_wait: bool, must: bool
    ) -> None:
        """Send one frame; see the interface."""
        pieces = encode_frame(kind, call_id, header, buffers, self.limit_bytes)
        with self._out:
            if self._sending or self._backlog:
                wait_for_turn(
                    self._out,
                    self._is_taken,
                    lambda: self._backlog_bytes,
                    sum(map(len, pieces)),
                    may_wait=may_wait,
                    must=must,
                    peer=self.peer,
                )
                if self._sending or self._backlog:  # the turn did not come: the frame waits in line
                    self._keep(pieces)
                    return
            self._check_open()
            self._sending = True
        rest: list[Piece] = []
        try:
            rest = self._transmit(pieces, may_wait)
        finally:
            self._end_turn(rest)

    def _is_taken(self) -> bool:
        return (self._sending or bool(self._backlog)) and not self._shut

    def _keep(self, pieces: Sequence[Piece]) -> None:
        """Under the lock: copy what cannot go now, since its owner may change it once send returns."""
        self._check_open()
        for piece in pieces:
            copied = bytes(piece)
            self._backlog.append(copied)
            self._backlog_bytes += len(copied)

    def _transmit(self, pieces: Sequence[Piece], may_wait: bool) -> list[Piece]:
        """Send in order; what the peer would not take."""
        rest = list(pieces)
        flags = socket.MSG_NOSIGNAL if may_wait else socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        while rest:
            try:
                if len(rest) == 1:
                    count = self._sock.send(rest[0], flags)
                else:
                    count = self._sock.sendmsg(rest[:_PIECES_MAX], (), flags)
            except BlockingIOError:
                return rest
            except OSError as error:
                raise EndpointClosed(f"the connection to {self.peer} broke: {error}") from error
            except BaseException:  # Ctrl-C: nobody knows how much of the frame is out
                self.shutdown()
                raise
            rest = _after(rest, count)
        return rest

    def _end_turn(self, rest: Sequence[Piece]) -> None:
        with self._out:
            self._sending = False
            self._put_back(rest)
            waiting = bool(self._backlog) and not self._shut
            self._out.notify_all()
        if waiting and not self.flush():
            self.wants_flush()

    def flush(self) -> bool:
        """Send of the backlog what fits now; True when nothing is left."""
        while True:
            with self._out:
                if self._sending or not self._backlog:
                    return True  # whoever sends now asks for another flush when it is done
                self._check_open()
                self._sending = True
                pieces = [self._backlog.popleft() for _ in range(min(len(self._backlog), _PIECES_MAX))]
                self._backlog_bytes -= sum(map(len, pieces))
            rest: list[Piece] = []
            try:
                rest = self._transmit(pieces, may_wait=False)
            finally:
                with self._out:
                    self._sending = False
                    self._put_back(rest)
                    self._out.notify_all()
            if rest:
                return False

    def _put_back(self, rest: Sequence[Piece]) -> None:
        if self._shut:
            return
        for piece in reversed(rest):
            self._backlog.appendleft(piece if isinstance(piece, bytes) else bytes(piece))
            self._backlog_bytes += len(piece)

    def _check_open(self) -> None:
        if self._shut:
            raise EndpointClosed(f"the connection to {self.peer} is closed")

    def shutdown(self) -> None:
        """Shut the socket down: every thread in it wakes at once."""
        with self._out:
            if self._shut:
                return
            self._shut = True
            self._backlog.clear()
            self._backlog_bytes = 0
            self._out.notify_all()
            with contextlib.suppress(OSError):  # the peer may have ended it already
                self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptors, once no sender uses them."""
        self.shutdown()
        with self._out:
            self._out.wait_for(lambda: not self._sending, CLOSE_S)
            if self._closed:
                return
            self._closed = True
            self._sock.close()
            os.close(self._second_fd)


def _after(pieces: list[Piece], count: int) -> list[Piece]:
    """The pieces without their first ``count`` bytes."""
    for position, piece in enumerate(pieces):
        if count < len(piece):
            return [memoryview(piece)[count:], *pieces[position + 1 :]] if count else pieces[position:]
        count -= len(piece)
    return []


def tune(sock: socket.socket) -> None:
    """No delay for small messages, and keepalive, so that a host that vanished is noticed in half a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpCarrier(Carrier):
    """The stream socket itself: always possible, with nothing to agree on."""

    name: ClassVar[str] = "tcp"

    def offer(self, wire: Wire) -> Offer:
        """Nothing to offer but itself."""
        return _TcpOffer(wire)

    def accept(self, params: Params, wire: Wire) -> Acceptance:
        """Nothing to answer."""
        return _TcpAcceptance(wire)


class _TcpOffer(Offer):
    def __init__(self, wire: Wire) -> None:
        self.params = {}
        self._wire = wire

    def complete(self, answer: Params, deadline: float) -> Endpoint:
        return TcpEndpoint(self._wire.sock, self._wire.peer, limit_bytes=self._wire.limit_bytes)

    def close(self) -> None:
        pass


class _TcpAcceptance(Acceptance):
    def __init__(self, wire: Wire) -> None:
        self.answer = {}
        self._wire = wire

    def endpoint(self) -> Endpoint:
        return TcpEndpoint(self._wire.sock, self._wire.peer, limit_bytes=self._wire.limit_bytes)

    def close(self) -> None:
        pass
