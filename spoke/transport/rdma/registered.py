"""Users' own memory, registered where it lies: what buffers lend to peers, and what transfers read from or write into.

Registering costs more than copying a little, so memory of transfers stays registered as long as the object lives that
it belongs to. It must not stay for longer: the same addresses may then be other memory, which the card knows nothing
of. Objects whose memory can move without a trace (a bytearray) are registered for one transfer only.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from spoke.transport.buffers import address_of, lifetime_of
from spoke.transport.direct import Unavailable

KEEP_BYTES_MAX: Final = 4 << 30


class Registered:
    """One registration. Holds the memory while it is used, or lent."""

    def __init__(self, view: memoryview, mr: Any, close: Callable[[Registered], None]) -> None:
        self.address = address_of(view)
        self.nbytes = len(view)
        self.lkey: int = mr.lkey
        self.rkey: int = mr.rkey
        self.open = True
        self.mr = mr
        self.uses = 0
        self.dead = False
        self.view: memoryview | None = view
        self._close = close

    def close(self) -> None:
        """From now on the card does not reach the memory."""
        self._close(self)


class UsersMemory:
    """The registrations of one opened device. Usable from any thread."""

    def __init__(self, register: Callable[[int, int, int], Any], enums: Any, *, safe: bool) -> None:
        self._register = register
        self._e = enums
        self._safe = safe
        self._lock = threading.Lock()
        self._open: set[Registered] = set()
        self._kept: OrderedDict[tuple[int, int, int], tuple[Registered, weakref.ref[Any]]] = OrderedDict()
        self._kept_bytes = 0
        self._dead: deque[tuple[int, int, int]] = deque()

    def lend(self, view: memoryview, *, writable: bool) -> Registered:
        """Memory that peers may read, or write, too, until it is closed; Unavailable where that is impossible."""
        access = self._e.IBV_ACCESS_REMOTE_READ | (self._e.IBV_ACCESS_REMOTE_WRITE if writable else 0)
        with self._lock:
            self._collect()
            return self._make(view, access)

    def take(self, value: object, view: memoryview) -> Registered:
        """The memory of ``value`` for a transfer of our own; Unavailable where that is impossible."""
        lifetime = lifetime_of(value)
        key = (id(lifetime), address_of(view), len(view))
        with self._lock:
            self._collect()
            known = self._kept.get(key)
            if lifetime is not None and known is not None and known[1]() is lifetime:
                self._kept.move_to_end(key)
                found = known[0]
            else:
                found = self._make(view, 0)
                if lifetime is None:
                    found.dead = True
                else:
                    self._kept[key] = (found, weakref.ref(lifetime, lambda _: self._died(key)))
                    self._kept_bytes += found.nbytes
            found.uses += 1
            found.view = view
            return found

    def give_back(self, registered: Registered) -> None:
        """The transfer is over."""
        with self._lock:
            registered.uses -= 1
            if not registered.uses:
                if registered.dead:
                    self._shut(registered)
                registered.view = None
            self._collect()

    def _make(self, view: memoryview, access: int) -> Registered:
        if not self._safe:
            raise Unavailable(
                "this system's kernel cannot fork with users' memory registered (Linux 5.12 or newer can)"
            )
        if not view.readonly:
            # Also where nobody writes: pages are then not shared with zeros or a parent, and what is written into them
            # later is what the card sees.
            access |= self._e.IBV_ACCESS_LOCAL_WRITE
        try:
            mr = self._register(address_of(view), len(view), access)
        except Exception as error:
            raise Unavailable(
                f"{len(view)} bytes of memory could not be registered for RDMA ({error}); does the limit of locked "
                "memory (ulimit -l) do?"
            ) from error
        registered = Registered(view, mr, self._close)
        self._open.add(registered)
        return registered

    def _close(self, registered: Registered) -> None:
        with self._lock:
            self._shut(registered)

    def _shut(self, registered: Registered) -> None:
        if registered.open:
            registered.open = False
            registered.mr.close()
            registered.view = None
            self._open.discard(registered)

    def _died(self, key: tuple[int, int, int]) -> None:
        """From the garbage collector, in any thread and at any point: must not wait."""
        self._dead.append(key)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while self._dead:
            self._drop(self._dead.popleft())
        while self._kept_bytes > KEEP_BYTES_MAX:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[int, int, int]) -> None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return
        registered = kept[0]
        self._kept_bytes -= registered.nbytes
        registered.dead = True
        if not registered.uses:
            self._shut(registered)

    def close(self) -> None:
        """Unregister everything."""
        with self._lock:
            for registered in list(self._open):
                self._shut(registered)
            self._kept.clear()
            self._dead.clear()
            self._kept_bytes = 0
