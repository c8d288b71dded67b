"""Buffers in shared memory, which processes of one machine map: the owner's side, and the side that copies.

The memory is a sealed memfd. Each user gets an open file description of its own, by a datagram as in ``shm_carrier``,
and holds a shared lock (flock) on it while it copies. The owner ends it all by a mark behind the data, and by taking
the lock for itself: that waits for copies under way, and the kernel lets go of the locks of users that die. The end of
the owner's process is seen at the connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from spoke.errors import MalformedData
from spoke.transport.direct import Copy, Gone, Lendable, Params, Reach, RemoteMemory, Unavailable
from spoke.transport.handover import TOKEN_BYTES, Inbox, hand_over, is_name

CLOSE_S: Final = 2.0
_PIECE_BYTES: Final = 8 << 20  # a copy holds the interpreter's lock
_PAGE: Final = mmap.PAGESIZE
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_F_SEAL_FUTURE_WRITE: Final = 0x10  # Linux 5.1; the module fcntl has no name for it before Python 3.13


class SharedMemory:
    """Memory of this process that others can map, while it is open. ``view`` is what its users see of it."""

    def __init__(self, nbytes: int, *, writable: bool) -> None:
        """Raises OSError where the system has no memfd or does not seal it."""
        fd = os.memfd_create("spoke-buffer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._fd = fd
        self.writable = writable
        size = _size(nbytes)
        os.ftruncate(fd, size)
        area: Any = memoryview(mmap.mmap(fd, size))
        self.view: memoryview = area[:nbytes]
        self._closed = area[size - _PAGE :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | (0 if writable else _F_SEAL_FUTURE_WRITE) | fcntl.F_SEAL_SEAL)

    @staticmethod
    def make(nbytes: int, *, writable: bool) -> SharedMemory | None:
        """Such memory, where the system has it."""
        try:
            return SharedMemory(nbytes, writable=writable)
        except (AttributeError, OSError):
            return None

    def hand_over(self, name: bytes, token: bytes) -> None:
        """Send a description of it to a user's socket; raises OSError."""
        if not self._finalizer.alive:
            raise OSError("it was closed")
        fd = os.open(f"/proc/self/fd/{self._fd}", (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            hand_over(name, token, [fd])
        finally:
            os.close(fd)

    def mark_closed(self) -> None:
        """Let no new copy begin. Waits for nothing."""
        self._closed[0] = 1

    def close(self) -> None:
        """Let nobody copy any more; waits, for a bounded time, for copies under way. The memory stays its holders'."""
        if not self._finalizer.alive:
            return
        self.mark_closed()
        deadline = time.monotonic() + CLOSE_S
        while not _lock(self._fd, fcntl.LOCK_EX) and time.monotonic() < deadline:
            time.sleep(0.001)
        self._finalizer()


def lend(memory: Lendable, wishes: Params) -> Params:
    """``Endpoint.lend`` over shared memory."""
    name, token = wishes.get("name"), wishes.get("token")
    if not is_name(name) or type(token) is not bytes or len(token) != TOKEN_BYTES:
        raise MalformedData("a request to map memory does not hold what it should")
    if memory.shared is None:
        raise Unavailable("the buffer's memory is not shared: make it by spoke.Buffer(number of bytes)")
    try:
        memory.shared.hand_over(name, token)
    except OSError as error:
        raise Unavailable(f"the memory cannot be handed over ({error})") from error
    return {"shared": True}


class ShmReach(Reach):
    """A socket where the owner can send its memory."""

    def __init__(self, is_alive: Callable[[], None]) -> None:
        """``is_alive`` raises EndpointClosed once the owner is gone."""
        self._is_alive = is_alive
        self._inbox = Inbox()
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self.params = {"name": self._inbox.name, "token": self._token}

    def opened(self, grant: Params) -> RemoteMemory:
        """Map what has come; see the interface."""
        if grant.get("shared") is not True:
            raise MalformedData("the answer to a request to map memory does not hold what it should")
        fds = self._inbox.receive(self._token, 1)
        if fds is None:
            raise Unavailable("the memory that the owner handed over did not arrive")
        (fd,) = fds
        try:
            return MappedMemory(fd, self._is_alive)
        except (OSError, ValueError) as error:
            os.close(fd)
            raise Unavailable(f"the memory that the owner handed over cannot be mapped ({error})") from error
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the socket."""
        self._inbox.close()


class MappedMemory(RemoteMemory):
    """Memory of another process of this machine. Unmapped when nothing refers to it any more."""

    waits = True

    def __init__(self, fd: int, is_alive: Callable[[], None]) -> None:
        """Takes ``fd`` over, unless it raises: OSError, MalformedData."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise MalformedData("the memory that the owner handed over is not sealed")
        access = mmap.ACCESS_WRITE if flags & os.O_ACCMODE == os.O_RDWR else mmap.ACCESS_READ
        self._area = mmap.mmap(fd, os.fstat(fd).st_size, access=access)
        if len(self._area) < 2 * _PAGE:
            raise MalformedData("the memory that the owner handed over is too small")
        self._fd = fd
        self._is_alive = is_alive
        self._lock = threading.Lock()
        self._copying = 0
        weakref.finalize(self, os.close, fd)

    def begin(self, copy: Copy, call_id: int) -> bool:
        """Copy; see the interface."""
        self._is_alive()
        with self._held():
            area: Any = memoryview(self._area)
            if copy.write and area.readonly:
                raise Unavailable("the memory may only be read")
            for at in range(0, len(copy.view), _PIECE_BYTES):
                here = copy.view[at : at + _PIECE_BYTES]
                there = area[copy.offset + at : copy.offset + at + len(here)]
                if copy.write:
                    there[:] = here
                else:
                    here[:] = there
        self._is_alive()  # what was written to a process that is gone was not written
        return True

    def forget(self, call_id: int) -> None:
        """A copy is never left half way."""

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            if not self._copying and not _lock(self._fd, fcntl.LOCK_SH):
                raise Gone("the owner is closing the buffer")
            self._copying += 1
        try:
            if self._area[len(self._area) - _PAGE]:
                raise Gone("the owner has closed the buffer")
            yield
        finally:
            with self._lock:
                self._copying -= 1
                if not self._copying:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)


def _size(nbytes: int) -> int:
    """Of the memfd: the data, and a page that says whether it is closed."""
    return -(-nbytes // _PAGE) * _PAGE + _PAGE


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
