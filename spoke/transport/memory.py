"""Memory of other processes: the side that reads and writes it by a handle.

A *scope* is one ticket's part in this process: its secret, and the connections to the owners of its buffers, which are
opened when they are needed. The first transfer to or from a buffer asks its owner whether this process may reach the
memory by itself (``direct.py``); the answer is kept. Where it may not, and where reaching it has failed, since the
owner has closed the buffer or the connection has ended, the owner is asked by calls: a transfer goes in pieces then,
several under way at a time, and its errors are the owner's own words.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, InvalidStateError
from functools import partial
from typing import Any, Final

from spoke.errors import ActorUnreachable, CallTimeout, InvalidRequest, MalformedData, SpokeError
from spoke.transport.buffers import view_of
from spoke.transport.call import Connection, connect
from spoke.transport.direct import Copy, Gone, Reach, RemoteMemory, Unavailable
from spoke.transport.future import CallFuture
from spoke.transport.handles import BufferHandle, scope_id

PIECE_BYTES: Final = 8 << 20
PIECES_UNDER_WAY: Final = 4
CONNECT_S: Final = 10.0
REMOTES_MAX: Final = 256
COPY_AT_ONCE_BYTES: Final = 1 << 20

_scopes: dict[bytes, Scope] = {}
_scopes_lock = threading.Lock()


class Owner:
    """The connection to one process that owns buffers, and what of its memory this side reaches by itself."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._remotes: OrderedDict[bytes, RemoteMemory | None] = OrderedDict()
        self._lock = threading.Lock()

    def remote(self, key: bytes) -> RemoteMemory | None:
        """A buffer as this side reaches it; None where it does not, KeyError where the owner has not been asked."""
        with self._lock:
            self._remotes.move_to_end(key)
            return self._remotes[key]

    def keep(self, key: bytes, remote: RemoteMemory | None) -> None:
        """Remember what the owner has answered."""
        with self._lock:
            self._remotes[key] = remote
            if len(self._remotes) > REMOTES_MAX:
                self._remotes.popitem(last=False)

    def forget(self, key: bytes) -> None:
        """It is of no use any more."""
        with self._lock:
            self._remotes.pop(key, None)


class Scope:
    """One ticket's part in this process. Made by ``join``; each ``join`` needs one ``leave``."""

    def __init__(self, secret: bytes) -> None:
        self.id = scope_id(secret)
        self.users = 0
        self._secret = secret
        self._lock = threading.Lock()  # held while a connection opens, or ends
        self._owners: dict[str, Owner] = {}
        self._working = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def owner(self, address: str) -> Owner:
        """The owner of buffers at an address, connected; raises ActorUnreachable."""
        known = self._owners.get(address)
        if known is not None and not known.connection.closed:
            return known
        with self._lock:
            known = self._owners.pop(address, None)
            if known is not None and not known.connection.closed:
                self._owners[address] = known
                return known
            if known is not None:
                known.connection.close()
            if self._closed:
                raise ActorUnreachable(f"{address} is not asked any more: this process has left the ticket")
            made = self._owners[address] = Owner(connect(address, self._secret, timeout_s=CONNECT_S))
            return made

    def later(self, work: Callable[[], None]) -> bool:
        """Let the scope's own thread do what takes a while; False when it has ended."""
        with self._working:
            if self._closed:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spoke-transfers", daemon=True)
                self._thread.start()
            self._work.put(work)
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def close(self) -> None:
        """End its connections and its thread; transfers under way fail."""
        with self._working:
            self._closed = True
        with self._lock:
            owners, thread = list(self._owners.values()), self._thread
            self._owners.clear()
        self._work.put(None)
        for owner in owners:
            owner.connection.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CONNECT_S)


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
    """The future of one transfer; it can be awaited. Waiting for it reads the connection that carries it."""

    def __init__(self) -> None:
        super().__init__()
        self.carried_by: CallFuture | None = None

    def result(self, timeout: float | None = None) -> None:
        """None when all is there; raises what the transfer failed with, or TimeoutError after ``timeout`` seconds."""
        return super().result(self._read(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the transfer failed with, or None; raises TimeoutError after ``timeout`` seconds."""
        return super().exception(self._read(timeout))

    def _read(self, timeout: float | None) -> float | None:
        call = self.carried_by
        return timeout if call is None or self.done() else call.read(timeout)

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


class _Task:
    """One transfer: directly where that can be, else by calls."""

    def __init__(self, handle: BufferHandle, scope: Scope, copy: Copy, timeout_s: float | None) -> None:
        self.future = Transfer()
        self._handle = handle
        self._scope = scope
        self._copy = copy
        self._deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s

    def start(self) -> Transfer:
        owner = self._owner()
        if owner is None:
            return self.future
        try:
            remote = owner.remote(self._handle.key)
        except KeyError:
            reach = owner.connection.reach()
            if reach is not None:
                ask = owner.connection.ask("memory.reach", (self._handle.key, reach.params), timeout_s=self._left_s())
                ask.add_done_callback(partial(self._answered, owner, reach))
                return self.future
            remote = None
        self._go(owner, remote)
        return self.future

    def _owner(self) -> Owner | None:
        try:
            return self._scope.owner(self._handle.address)
        except SpokeError as error:
            self.future.fail(error)
            return None

    def _left_s(self) -> float | None:
        return None if self._deadline == math.inf else max(0.0, self._deadline - time.monotonic())

    def _answered(self, owner: Owner, reach: Reach, ask: Future[Any]) -> None:
        remote: RemoteMemory | None = None
        try:
            grant = ask.result(0)
            if type(grant) is not dict:
                raise MalformedData("the owner of the buffer sent something else than was asked for")
            if "why_not" not in grant:
                remote = reach.opened(grant)
        except Unavailable:
            remote = None
        except ActorUnreachable as error:
            self._try_again(error)
            return
        except BaseException as error:
            self.future.fail(error)
            return
        finally:
            reach.close()
        owner.keep(self._handle.key, remote)
        self._go(owner, remote)

    def _go(self, owner: Owner, remote: RemoteMemory | None) -> None:
        if remote is None:
            self._by_calls(owner)
        elif not remote.waits or len(self._copy.view) <= COPY_AT_ONCE_BYTES:
            self._directly(owner, remote)
        elif not self._scope.later(partial(self._directly, owner, remote)):
            self.future.fail(ActorUnreachable("the transfer was not made: this process has left the ticket"))

    def _directly(self, owner: Owner, remote: RemoteMemory) -> None:
        call = owner.connection.copy(remote, self._copy, timeout_s=self._left_s())
        self.future.carried_by = call
        call.add_done_callback(lambda _: self._copied(owner, remote, call))

    def _copied(self, owner: Owner, remote: RemoteMemory, call: CallFuture) -> None:
        self.future.carried_by = None
        try:
            call.result(0)
        except (Gone, Unavailable):
            owner.forget(self._handle.key)
            self._by_calls(owner)
        except ActorUnreachable as error:
            self._try_again(error)
        except BaseException as error:
            if isinstance(error, CallTimeout | CancelledError):
                remote.forget(call.call_id)
            self.future.fail(error)
        else:
            self.future.succeed()

    def _try_again(self, error: ActorUnreachable) -> None:
        """The owner may live all the same: a connection breaks when somebody reaches for memory that was withdrawn."""
        if not self._scope.later(self._again):
            self.future.fail(error)

    def _again(self) -> None:
        owner = self._owner()
        if owner is not None:
            self._by_calls(owner)

    def _by_calls(self, owner: Owner) -> None:
        _Pieces(self._handle.key, owner.connection, self._copy, self.future, self._deadline).start()


class _Pieces:
    """A transfer in pieces: what is done with each that was answered, and which comes next."""

    def __init__(self, key: bytes, connection: Connection, copy: Copy, future: Transfer, deadline: float) -> None:
        self._key = key
        self._connection = connection
        self._copy = copy
        self._future = future
        self._deadline = deadline
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
        left_s = None if self._deadline == math.inf else max(0.0, self._deadline - time.monotonic())
        if self._copy.write:
            ask = self._connection.ask("memory.write", (self._key, offset, piece), timeout_s=left_s)
        else:
            ask = self._connection.ask("memory.read", (self._key, offset, len(piece)), timeout_s=left_s)
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
    return _Task(handle, _scope_of(handle), copy, timeout_s).start()


def write_from(handle: BufferHandle, source: Any, offset: int, timeout_s: float | None) -> Transfer:
    """See ``BufferHandle.write_from``."""
    if not handle.writable:
        raise InvalidRequest("the buffer may only be read: its owner made it with writable=False")
    copy = Copy(source, _checked(handle, source, offset, False), offset, True)
    return _Task(handle, _scope_of(handle), copy, timeout_s).start()


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
