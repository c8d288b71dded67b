"""The door of a server: the listening socket, and the strangers that have not proved themselves yet.

One thread, which parses nothing of a stranger but a handshake of fixed size; who has proved itself may then agree on
a transport, in short messages. Each of the two has its time limit, and there is room for a bounded number of strangers:
when one more comes, the one that has stood there longest is thrown out, so that idle connections cannot lock the
others out.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from spoke.errors import SpokeError
from spoke.transport.auth import ServerHandshake
from spoke.transport.carrier import Unavailable, Wire
from spoke.transport.choice import Choice
from spoke.transport.endpoint import Endpoint
from spoke.transport.handles import scope_id
from spoke.transport.negotiate import ServerNegotiation
from spoke.transport.tcp import tune

_log = logging.getLogger(__name__)

STRANGERS_MAX: Final = 64
HANDSHAKE_S: Final = 5.0
NEGOTIATION_S: Final = 20.0
"""For who has proved itself: opening a device and its queue pairs may take seconds, on both sides."""
_ACCEPTS_PER_TURN: Final = 32
_FULL_PAUSE_S: Final = 0.1


class _Stranger:
    def __init__(self, wire: Wire, secret: bytes, choice: Choice) -> None:
        self.sock = wire.sock
        self.peer = wire.peer
        self.deadline = time.monotonic() + HANDSHAKE_S
        self.handshake = ServerHandshake(secret)
        self.negotiation = ServerNegotiation(wire, choice)

    @property
    def wanted(self) -> int:
        return self.negotiation.wanted if self.handshake.accepted else self.handshake.wanted

    def feed(self, data: bytes) -> bytes:
        """What to send in answer; raises when it is to be dropped."""
        had_proved = self.handshake.accepted
        if had_proved:
            return self.negotiation.feed(data)
        answer = self.handshake.feed(data)
        if self.handshake.accepted:
            self.deadline = time.monotonic() + NEGOTIATION_S
        return answer

    @property
    def refused(self) -> bool:
        """Whether it failed to prove itself."""
        return not self.handshake.accepted and self.handshake.wanted <= 0


class Door:
    """Lets in who knows the secret: calls ``admit(endpoint)`` on its own thread."""

    def __init__(
        self,
        host: str,
        secret: bytes,
        admit: Callable[[Endpoint], None],
        *,
        limit_bytes: int,
        transport: str | None = None,
    ) -> None:
        choice = Choice(transport)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._secret = secret
        self._scope = scope_id(secret)
        self._admit = admit
        self._limit_bytes = limit_bytes
        self._choice = choice
        self._strangers: dict[int, _Stranger] = {}  # by descriptor, the oldest first
        self._closing = threading.Event()
        self._paused_until = 0.0
        self._bell, self._bell_far = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="spoke-door", daemon=True)

    def start(self) -> None:
        """Start to let in."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop listening and drop the strangers."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._bell_far.send(b"x")
        if self._thread.ident is None:
            self._free()
        else:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        self._choice.prepare()
        try:
            while not self._closing.is_set():
                for key, _ in self._selector.select(self._patience_s()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif stranger := self._strangers.get(key.fd):
                        self._hear(stranger)
                self._expire()
        finally:
            self._free()

    def _free(self) -> None:
        for stranger in list(self._strangers.values()):
            self._drop(stranger)
        self._selector.close()
        for sock in (self._listener, self._bell, self._bell_far):
            sock.close()

    def _patience_s(self) -> float | None:
        now = time.monotonic()
        ends = [stranger.deadline for stranger in self._strangers.values()]
        if self._paused_until:
            ends.append(self._paused_until)
        return max(0.0, min(ends) - now) if ends else None

    def _expire(self) -> None:
        now = time.monotonic()
        for stranger in list(self._strangers.values()):
            if stranger.deadline <= now:
                self._drop(stranger)
        if self._paused_until and self._paused_until <= now:
            self._paused_until = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:
                # Out of descriptors: the connection stays in the queue, and asking at once again would spin.
                self._selector.unregister(self._listener)
                self._paused_until = time.monotonic() + _FULL_PAUSE_S
                return
            if len(self._strangers) >= STRANGERS_MAX:
                self._drop(next(iter(self._strangers.values())))
            sock.setblocking(False)
            wire = Wire(sock, f"{address[0]}:{address[1]}", self._limit_bytes, self._scope)
            stranger = _Stranger(wire, self._secret, self._choice)
            self._strangers[sock.fileno()] = stranger
            self._selector.register(sock, selectors.EVENT_READ)

    def _hear(self, stranger: _Stranger) -> None:
        try:
            tune(stranger.sock)
            data = stranger.sock.recv(stranger.wanted)
            if not data:
                self._drop(stranger)
                return
            answer = stranger.feed(data)
            # An answer is short, and the client waits for it: it always fits into the buffer of a new connection.
            complete = stranger.sock.send(answer) == len(answer) if answer else True
        except BlockingIOError:
            return
        except (OSError, SpokeError, Unavailable):
            self._drop(stranger)
            return
        except Exception:  # a defect must not close the door for everybody else
            _log.exception("letting in %s failed", stranger.peer)
            self._drop(stranger)
            return
        if not complete or stranger.refused:
            self._drop(stranger)
        elif stranger.negotiation.endpoint is not None:
            self._forget(stranger)
            self._admit(stranger.negotiation.endpoint)

    def _forget(self, stranger: _Stranger) -> None:
        self._selector.unregister(stranger.sock)
        del self._strangers[stranger.sock.fileno()]

    def _drop(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        stranger.negotiation.close()
        stranger.sock.close()
