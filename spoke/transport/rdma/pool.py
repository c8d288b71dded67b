"""Registered memory, kept for the next message, since registering costs more than sending.

A block is lent as a view. It comes back when the last view of it is collected, numpy arrays made of it included: each
loan has an exporter object of its own, and its finalizer gives the block back. That may happen in any thread at any
point, so the finalizer takes no lock that its own thread may hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from spoke.errors import LimitExceeded

BLOCK_BYTES_MIN: Final = 64 << 10
KEEP_BYTES_MAX: Final = 256 << 20
_HUGE_PAGE_BYTES: Final = 2 << 20


def block_bytes(nbytes: int) -> int:
    """The size of the block for ``nbytes``: quarter steps between powers of two, so that little is wasted."""
    if nbytes <= BLOCK_BYTES_MIN:
        return BLOCK_BYTES_MIN
    step = 1 << max(0, (nbytes - 1).bit_length() - 3)
    return -(-nbytes // step) * step


class Block:
    """Page-aligned memory and its registration."""

    __slots__ = ("__weakref__", "address", "area", "lkey", "mr", "nbytes", "rkey", "view")

    def __init__(self, nbytes: int, register: Callable[[int, int], Any]) -> None:
        self.nbytes = nbytes
        self.area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= 2 * _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self.area.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self.area)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.mr = register(self.address, nbytes)
        self.lkey: int = self.mr.lkey
        self.rkey: int = self.mr.rkey

    def deregister(self) -> None:
        """Unpin it. The memory itself lives as long as somebody has a view of it."""
        self.mr.close()


class Pool:
    """Blocks of one kind of access. ``take`` and ``give_back`` for the transport, ``lend`` for views of users."""

    def __init__(self, register: Callable[[int, int], Any]) -> None:
        self._register = register
        self._lock = threading.Lock()
        self._blocks: set[Block] = set()
        self._free: dict[int, list[Block]] = {}
        self._free_bytes = 0
        self._returned: deque[Block] = deque()
        self._closed = False

    def take(self, nbytes: int) -> Block:
        """A block of at least ``nbytes``; LimitExceeded when the system does not let it be registered."""
        size = block_bytes(nbytes)
        with self._lock:
            self._collect()
            free = self._free.get(size)
            if free:
                self._free_bytes -= size
                return free.pop()
            try:
                block = Block(size, self._register)
            except Exception as error:
                raise LimitExceeded(
                    f"{size} bytes of memory could not be registered for RDMA ({error}); raise the limit of locked "
                    "memory (`ulimit -l unlimited`, LimitMEMLOCK= of the service)"
                ) from error
            self._blocks.add(block)
            return block

    def give_back(self, block: Block) -> None:
        """The block is not used any more. From any thread, also out of a finalizer."""
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def lend(self, block: Block, nbytes: int) -> memoryview:
        """A writable view of the block's begin; the block comes back when nothing refers to it any more."""
        exporter = (ctypes.c_char * nbytes).from_buffer(block.area)
        weakref.finalize(exporter, self.give_back, block).atexit = False
        return memoryview(exporter).cast("B")

    def _collect(self) -> None:
        """Under the lock: sort in what has come back, and let go of what is too much."""
        while self._returned:
            block = self._returned.popleft()
            if self._closed or self._free_bytes + block.nbytes > KEEP_BYTES_MAX:
                self._blocks.discard(block)
                if not self._closed:
                    block.deregister()
            else:
                self._free.setdefault(block.nbytes, []).append(block)
                self._free_bytes += block.nbytes

    @property
    def lent_bytes(self) -> int:
        """How much is with somebody."""
        with self._lock:
            self._collect()
            return sum(block.nbytes for block in self._blocks) - self._free_bytes

    def close(self) -> None:
        """Unregister everything; what is lent stays readable."""
        with self._lock:
            self._closed = True
            for block in self._blocks:
                block.deregister()
            self._blocks.clear()
            self._free.clear()
            self._free_bytes = 0
