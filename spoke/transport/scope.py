"""A ticket's part in this process: its secret, and the connections to the owners of its buffers."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final

from spoke.errors import ActorUnreachable
from spoke.transport.call import Connection, connect
from spoke.transport.direct import RemoteMemory
from spoke.transport.handles import scope_id

log = logging.getLogger(__name__)

CONNECT_S: Final = 10.0
REMOTES_MAX: Final = 256

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
        self._lock = threading.Lock()
        self._owners: dict[str, Owner] = {}
        self._opening: dict[str, Future[Owner]] = {}
        self._working = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def owner(self, address: str) -> Owner:
        """The owner of buffers at an address, connected; raises ActorUnreachable.

        Who asks first connects, and who asks for the same owner meanwhile gets what comes of it: one that does not
        answer holds up nobody who asks for another.
        """
        known = self._owners.get(address)
        if known is not None and not known.connection.closed:
            return known
        opening, open_it = self._find(address)
        if open_it is not None:
            open_it()
        try:
            return opening.result(CONNECT_S + 1)
        except TimeoutError:  # in a forked child, nobody connects any more
            raise ActorUnreachable(f"{address} could not be reached within {CONNECT_S:.0f} s") from None

    def owner_soon(self, address: str) -> Future[Owner]:
        """The same, without waiting for it: a thread of its own connects, unless somebody does already."""
        opening, open_it = self._find(address)
        if open_it is not None:
            threading.Thread(target=open_it, name="spoke-connects", daemon=True).start()
        return opening

    def _find(self, address: str) -> tuple[Future[Owner], Callable[[], None] | None]:
        """The owner, or what comes of connecting to it; and how to do that, unless somebody does already."""
        with self._lock:
            known, opening = self._owners.get(address), self._opening.get(address)
            if opening is not None:
                return opening, None
            opening = Future[Owner]()
            if known is not None and not known.connection.closed:
                opening.set_result(known)
            elif self._closed:
                opening.set_exception(_left(address))
            else:
                self._owners.pop(address, None)
                self._opening[address] = opening
                return opening, partial(self._open, address, opening, known)
        return opening, None

    def _open(self, address: str, opening: Future[Owner], former: Owner | None) -> None:
        if former is not None:
            former.connection.close()
        try:
            made = Owner(connect(address, self._secret, timeout_s=CONNECT_S))
        except BaseException as error:
            with self._lock:
                del self._opening[address]
            interrupted = ActorUnreachable(f"connecting to {address} was interrupted: ask again")
            opening.set_exception(error if isinstance(error, Exception) else interrupted)
            if not isinstance(error, Exception):
                raise
            return
        with self._lock:
            del self._opening[address]
            closed = self._closed
            if not closed:
                self._owners[address] = made
        if closed:
            made.connection.close()
            opening.set_exception(_left(address))
        else:
            opening.set_result(made)

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
            try:
                work()
            except Exception:  # others wait behind it
                log.exception("a transfer failed in a way that was not expected")

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


def _left(address: str) -> ActorUnreachable:
    return ActorUnreachable(f"{address} is not asked any more: this process has left the ticket")


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


def joined(id: bytes) -> Scope | None:
    """The scope of that id (``scope_id``), if this process has a part in it."""
    return _scopes.get(id)
