"""Memory of other processes: the side that reads and writes it by a handle.

The first transfer to or from a buffer asks its owner (``scope.py``) whether this process may reach the
memory by itself (``direct.py``); the answer is kept. Where it may not, and where reaching it has failed, since the
owner has closed the buffer or the connection has ended, the owner is asked by calls: a transfer goes in pieces then,
several under way at a time, and its errors are the owner's own words.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar, Final

from spoke.errors import ActorUnreachable, CallTimeout, InvalidRequest, MalformedData, SpokeError
from spoke.transport.buffers import view_of
from spoke.transport.call import Connection
from spoke.transport.direct import Copy, Gone, Reach, RemoteMemory, Unavailable
from spoke.transport.future import CallFuture
from spoke.transport.handles import BufferHandle
from spoke.transport.scope import Owner, Scope, joined

PIECE_BYTES: Final = 8 << 20
PIECES_UNDER_WAY: Final = 4
COPY_AT_ONCE_BYTES: Final = 1 << 20


class Transfer(CallFuture):
    """One transfer and its future, which can be awaited: directly where that can be, else by calls.

    While it goes *directly*, it is one of its connection's outstanding futures, and waiting reads the connection. When
    that fails, it may go on by calls; then it is outstanding nowhere itself, and waiting only waits.
    """

    reaches_memory: ClassVar[bool] = True
    _owner: Owner  # once it was found
    _connection: Connection

    def __init__(self, handle: BufferHandle, scope: Scope, copy: Copy, timeout_s: float | None) -> None:
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        super().__init__(None, "a transfer", deadline)  # type: ignore[arg-type]  # ``_find_owner`` says which connection
        self._handle = handle
        self._scope = scope
        self._copy: Copy | None = copy  # until it has ended: it holds the user's memory
        self._remote: RemoteMemory | None = None  # while it goes directly

    def start(self) -> Transfer:
        """Begin, or fail; the transfer itself."""
        if self._find_owner():
            try:
                remote = self._owner.remote(self._handle.key)
            except KeyError:
                self._ask()
            else:
                self._go(remote)
        return self

    def _find_owner(self) -> bool:
        try:
            self._ask_from_now_on(self._scope.owner(self._handle.address))
        except SpokeError as error:
            self.fail(error)
            return False
        return True

    def _ask_from_now_on(self, owner: Owner) -> None:
        self._owner, self._connection = owner, owner.connection

    def _ask(self) -> None:
        """Ask the owner whether the memory can be reached from here."""
        reach = self._connection.reach()
        if reach is None:
            self._by_calls()
            return
        args = (self._handle.key, reach.params)
        ask = self._connection.ask("memory.reach", args, timeout_s=_left_s(self.deadline))
        ask.add_done_callback(partial(self._answered, reach))

    def _answered(self, reach: Reach, ask: Future[Any]) -> None:
        remote: RemoteMemory | None = None
        try:
            grant = ask.result(0)
            if type(grant) is not dict:
                raise MalformedData("the owner of the buffer sent something else than was asked for")
            if "why_not" not in grant:
                remote = reach.opened(grant)
        except Unavailable:
            remote = None
        except BaseException as error:
            self._go_on_after(error)
            return
        finally:
            reach.close()
        self._owner.keep(self._handle.key, remote)
        try:
            self._go(remote)
        except Exception as error:
            self.fail(error)

    def _go(self, remote: RemoteMemory | None) -> None:
        copy = self._copy
        if copy is None:
            return
        if remote is None:
            self._by_calls()
        elif not remote.waits or len(copy.view) <= COPY_AT_ONCE_BYTES:
            self._directly(remote)
        elif not self._scope.later(partial(self._directly, remote)):
            self.fail(ActorUnreachable("the transfer was not made: this process has left the ticket"))

    def _directly(self, remote: RemoteMemory) -> None:
        copy = self._copy
        if copy is not None:
            self._remote = remote
            self._connection.begin_for(self, remote, copy)

    def _go_on_after(self, error: BaseException) -> None:
        """The way that was taken has failed: take another one, where there is one."""
        if isinstance(error, Gone | Unavailable):
            self._owner.forget(self._handle.key)
            self._by_calls()
        elif isinstance(error, ActorUnreachable):
            # It may live all the same: a connection breaks when somebody reaches for memory that was withdrawn.
            self._scope.owner_soon(self._handle.address).add_done_callback(self._again)
        else:
            self.fail(error)

    def _again(self, found: Future[Owner]) -> None:
        """The owner is connected again, or is not."""
        error = found.exception()
        if error is None:
            self._ask_from_now_on(found.result())
            if self._scope.later(self._by_calls):
                return
            error = ActorUnreachable("the transfer was not made: this process has left the ticket")
        self.fail(error)

    def _by_calls(self) -> None:
        copy = self._copy
        if copy is not None:
            _Pieces(self._handle.key, self._connection, copy, self).start()

    # As the future that its connection knows.

    def ready(self) -> bool:
        """Whether its connection has no more part in it."""
        return self._remote is None or self.done()

    def read(self, timeout: float | None) -> float | None:
        """Read the connection while it goes directly, unless somebody else reads; how much of the timeout is left."""
        return timeout if self.ready() else super().read(timeout)

    def succeed(self, value: Any = None) -> None:
        """All is there."""
        self._remote = self._copy = None
        super().succeed(None)

    def fail(self, error: BaseException) -> None:
        """The way that was taken has failed, and with it the transfer, unless it went directly."""
        remote, self._remote = self._remote, None
        if remote is None or self._copy is None:
            self._copy = None
            super().fail(error)
            return
        if isinstance(error, CallTimeout):
            remote.forget(self.call_id)
        try:
            self._go_on_after(error)
        except BaseException as worse:
            self.fail(worse)
            if not isinstance(worse, Exception):
                raise

    def _given_up(self) -> None:
        remote, self._copy = self._remote, None
        if remote is not None:
            super()._given_up()
            if not self._connection.closed:
                remote.forget(self.call_id)

    def _check_process(self) -> None:
        if self._remote is not None:
            super()._check_process()


def _left_s(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())


class _Pieces:
    """A transfer in pieces: what is done with each that was answered, and which comes next."""

    def __init__(self, key: bytes, connection: Connection, copy: Copy, future: Transfer) -> None:
        self._key = key
        self._connection = connection
        self._copy = copy
        self._future = future
        self._lock = threading.Lock()
        self._next = 0
        self._left = max(1, -(-len(copy.view) // PIECE_BYTES))
        self._count = self._left

    def start(self) -> None:
        # A reader's memory is bounded by the pieces under way. A writer is held back by the connection itself.
        for _ in range(self._count if self._copy.write else min(self._count, PIECES_UNDER_WAY)):
            self._ask()

    def _ask(self) -> None:
        with self._lock:
            number, self._next = self._next, self._next + 1
        if number >= self._count or self._future.done():
            return
        piece = self._copy.view[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        offset = self._copy.offset + number * PIECE_BYTES
        name, what = ("memory.write", piece) if self._copy.write else ("memory.read", len(piece))
        try:
            ask = self._connection.ask(name, (self._key, offset, what), timeout_s=_left_s(self._future.deadline))
        except BaseException as error:
            self._future.fail(error)
            raise
        ask.add_done_callback(partial(self._answered, None if self._copy.write else piece))

    def _answered(self, target: memoryview | None, ask: Future[Any]) -> None:
        try:
            data = ask.result(0)
            if self._future.done():
                return
            if target is not None:
                if type(data) is not memoryview or len(data) != len(target):
                    raise MalformedData("the owner of the buffer sent something else than was asked for")
                target[:] = data
        except BaseException as error:
            self._future.fail(error)
            return
        with self._lock:
            self._left -= 1
            left = self._left
        if not left:
            self._future.succeed()
        elif target is not None:
            self._ask()


def read_into(handle: BufferHandle, target: Any, offset: int, timeout_s: float | None) -> Transfer:
    """See ``BufferHandle.read_into``."""
    copy = Copy(target, _checked(handle, target, offset, True), offset, False)
    return Transfer(handle, _scope_of(handle), copy, timeout_s).start()


def write_from(handle: BufferHandle, source: Any, offset: int, timeout_s: float | None) -> Transfer:
    """See ``BufferHandle.write_from``."""
    if not handle.writable:
        raise InvalidRequest("the buffer may only be read: its owner made it with writable=False")
    copy = Copy(source, _checked(handle, source, offset, False), offset, True)
    return Transfer(handle, _scope_of(handle), copy, timeout_s).start()


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
    scope = joined(handle.scope)
    if scope is None:
        raise InvalidRequest(
            "this process has no part in the ticket that the buffer belongs to: use the handle in one of its actors, "
            "or in a client that holds the gang and has called one of its actors"
        )
    return scope
