"""Memory of other processes: the side that reads and writes it by a handle.

A *scope* is one ticket's part in this process: its secret, and the connections to the owners of its buffers, which are
opened when they are needed. A transfer goes in pieces, several under way at a time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Final

from spoke.errors import InvalidRequest, MalformedData, SpokeError
from spoke.transport.buffers import view_of
from spoke.transport.call import Connection, connect
from spoke.transport.handles import BufferHandle, scope_id

PIECE_BYTES: Final = 8 << 20
PIECES_UNDER_WAY: Final = 4
CONNECT_S: Final = 10.0

_scopes: dict[bytes, Scope] = {}
_scopes_lock = threading.Lock()


class Scope:
    """One ticket's part in this process. Made by ``join``; each ``join`` needs one ``leave``."""

    def __init__(self, secret: bytes) -> None:
        self.id = scope_id(secret)
        self.users = 0
        self._secret = secret
        self._lock = threading.Lock()
        self._connections: dict[str, Connection] = {}

    def connection(self, address: str) -> Connection:
        """The connection to an owner of buffers; raises ActorUnreachable."""
        known = self._connections.get(address)
        if known is not None and not known.closed:
            return known
        with self._lock:
            known = self._connections.pop(address, None)
            if known is not None and not known.closed:
                self._connections[address] = known
                return known
            if known is not None:
                known.close()
            made = self._connections[address] = connect(address, self._secret, timeout_s=CONNECT_S)
            return made

    def close(self) -> None:
        """End its connections; transfers under way fail."""
        with self._lock:
            connections = list(self._connections.values())
            self._connections.clear()
        for connection in connections:
            connection.close()


def join(secret: bytes) -> Scope:
    """Take part in a ticket: from now on, handles of its buffers work here."""
    with _scopes_lock:
        scope = _scopes.setdefault(scope_id(secret), Scope(secret))
        scope.users += 1
        return scope


def leave(scope: Scope) -> None:
    """Undo one ``join``."""
    with _scopes_lock:
        scope.users -= 1
        if scope.users:
            return
        _scopes.pop(scope.id, None)
    scope.close()


class Transfer(Future[None]):
    """The future of one transfer; it can be awaited."""

    def __await__(self) -> Generator[Any, None, None]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def succeed(self) -> None:
        """All is there."""
        try:
            self.set_result(None)
        except InvalidStateError:  # cancelled, or failed already
            return

    def fail(self, error: BaseException) -> None:
        """One piece has failed."""
        try:
            self.set_exception(error)
        except InvalidStateError:
            return


class _Pieces:
    """A transfer in pieces: what is done with each that was answered, and which comes next."""

    def __init__(self, handle: BufferHandle, view: memoryview, offset: int, timeout_s: float | None) -> None:
        self.future = Transfer()
        self._handle = handle
        self._view = view
        self._offset = offset
        self._deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._next = 0
        self._left = max(1, -(-len(view) // PIECE_BYTES))
        self._count = self._left
        self._connection: Connection | None = None

    def start(self, *, reads: bool) -> Transfer:
        try:
            self._connection = _scope_of(self._handle).connection(self._handle.address)
        except InvalidRequest:
            raise
        except SpokeError as error:
            self.future.fail(error)
            return self.future
        # A reader's memory is bounded by the pieces under way. A writer is held back by the connection itself.
        for _ in range(min(self._count, PIECES_UNDER_WAY) if reads else self._count):
            self._ask(reads)
        return self.future

    def _ask(self, reads: bool) -> None:
        with self._lock:
            number, self._next = self._next, self._next + 1
        if number >= self._count or self.future.done():
            return
        piece = self._view[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        offset = self._offset + number * PIECE_BYTES
        left_s = None if self._deadline == math.inf else max(0.0, self._deadline - time.monotonic())
        assert self._connection is not None
        key = self._handle.key
        if reads:
            ask = self._connection.ask("memory.read", (key, offset, len(piece)), timeout_s=left_s)
        else:
            ask = self._connection.ask("memory.write", (key, offset, piece), timeout_s=left_s)
        ask.add_done_callback(partial(self._answered, piece if reads else None))

    def _answered(self, target: memoryview | None, ask: Future[Any]) -> None:
        try:
            data = ask.result(0)
            if self.future.done():
                return
            if target is not None:
                if type(data) is not memoryview or len(data) != len(target):
                    raise MalformedData("the owner of the buffer sent something else than was asked for")
                target[:] = data
        except BaseException as error:
            self.future.fail(error)
            return
        with self._lock:
            self._left -= 1
            left = self._left
        if not left:
            self.future.succeed()
        elif target is not None:
            self._ask(True)


def read_into(handle: BufferHandle, target: Any, offset: int, timeout_s: float | None) -> Transfer:
    """See ``BufferHandle.read_into``."""
    return _Pieces(handle, _checked(handle, target, offset, True), offset, timeout_s).start(reads=True)


def write_from(handle: BufferHandle, source: Any, offset: int, timeout_s: float | None) -> Transfer:
    """See ``BufferHandle.write_from``."""
    if not handle.writable:
        raise InvalidRequest("the buffer may only be read: its owner made it with writable=False")
    return _Pieces(handle, _checked(handle, source, offset, False), offset, timeout_s).start(reads=False)


def _checked(handle: BufferHandle, value: Any, offset: int, writable: bool) -> memoryview:
    try:
        view = view_of(value, writable=writable)
    except TypeError as error:
        raise InvalidRequest(f"{type(value).__name__} cannot be used for a transfer: {error}") from None
    if type(offset) is not int or offset < 0 or offset + len(view) > handle.nbytes:
        raise InvalidRequest(
            f"{len(view)} bytes from offset {offset!r} on were asked for; the buffer has {handle.nbytes}"
        )
    return view


def _scope_of(handle: BufferHandle) -> Scope:
    scope = _scopes.get(handle.scope)
    if scope is None:
        raise InvalidRequest(
            "this process has no part in the ticket that the buffer belongs to: use the handle in one of its actors, "
            "or in a client that holds the gang and has called one of its actors"
        )
    return scope
