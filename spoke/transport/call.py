"""Calls from the caller's side: call, stream, tell."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Final

from spoke.errors import ActorUnreachable, InvalidRequest, NotSerializable
from spoke.transport.bell import Bell
from spoke.transport.channel import Channel
from spoke.transport.closing import Closing
from spoke.transport.credit import Window
from spoke.transport.dial import dial
from spoke.transport.direct import Reach
from spoke.transport.frames import FRAME_BYTES_MAX, Kind
from spoke.transport.future import CallFuture, StreamFuture
from spoke.transport.messages import pack_call, pack_mailbox, pack_stream
from spoke.transport.stream import Stream

_WINDOW: Final = Window()


def connect(
    address: str,
    secret: bytes,
    *,
    timeout_s: float = 10.0,
    limit_bytes: int = FRAME_BYTES_MAX,
    transport: str | None = None,
    name: str = "",
) -> Connection:
    """A connection to the actor at ``address``; ActorUnreachable when it is not there or serves another ticket.

    ``transport``: the one to use (else SPOKE_TRANSPORT, else the best that works); TransportUnavailable if it cannot.
    ``name``: what errors call the actor, else its address.
    """
    try:
        endpoint = dial(address, secret, timeout_s=timeout_s, limit_bytes=limit_bytes, transport=transport)
    except ActorUnreachable as error:
        raise type(error)(f"{name} cannot be reached: {error}" if name else str(error)) from error
    return Connection(endpoint, name)


class Connection(Channel, Closing):
    """Calls to one actor; usable from any number of threads. Its owner closes it."""

    def call(
        self,
        method: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> CallFuture:
        """Call a method; the future has its result, or fails with ActorError, ActorUnreachable, CallTimeout or
        NotSerializable.

        Returns once the operating system has taken the arguments (they may be changed then), or a peer that does not
        read has let it wait a second, after which the rest is copied. LimitExceeded in the future: the arguments are
        too large, or too many calls wait already.
        """
        _check_name(method)
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        future = CallFuture(self, method, deadline)
        try:
            header, buffers = pack_call(method, args, kwargs or {})
        except NotSerializable as error:
            future.set_exception(error)
            return future
        self.send_for(future, Kind.CALL, header, buffers)
        return future

    def stream(
        self,
        method: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
        window: Window = _WINDOW,
    ) -> Stream:
        """Call a method that yields; the items come through the stream, and so does everything that goes wrong."""
        _check_name(method)
        future = StreamFuture(self, method, window)
        try:
            header, buffers = pack_stream(method, args, kwargs or {}, window)
        except NotSerializable as error:
            future.set_exception(error)
        else:
            self.send_for(future, Kind.STREAM, header, buffers)
        return Stream(future, timeout_s)

    def ask(self, name: str, args: Sequence[object] = (), *, timeout_s: float | None = None) -> CallFuture:
        """Ask the server itself for something that is no method: memory, mail, who it is."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        future = CallFuture(self, name, deadline)
        try:
            header, buffers = pack_call(name, args, {})
        except NotSerializable as error:
            future.set_exception(error)
        else:
            self.send_for(future, Kind.ASK, header, buffers)
        return future

    def reach(self) -> Reach | None:
        """Ask for a piece of the peer's memory, to reach it without the peer; None where this transport cannot."""
        return self._endpoint.reach()

    def open_mailbox(self, window: Window, bell: Bell) -> StreamFuture:
        """Let the actor push to this side; ``bell`` rings when something has come."""
        future = StreamFuture(self, "mailbox", window, bell)
        self.send_for(future, Kind.MAILBOX, pack_mailbox(window), [])
        return future

    def tell(self, method: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None) -> None:
        """Call a method and wait for nothing: it starts after all that was called before; its errors are logged there.

        Raises ActorUnreachable, NotSerializable, or LimitExceeded when too much waits already.
        """
        _check_name(method)
        header, buffers = pack_call(method, args, kwargs or {})
        end = self.send_unanswered(Kind.TELL, header, buffers)
        if end:
            raise ActorUnreachable(f"{method} could not be told to {self.peer}: {end}")


def _check_name(method: str) -> None:
    if not isinstance(method, str):
        raise InvalidRequest(f"a method's name is text, not {type(method).__name__}")
