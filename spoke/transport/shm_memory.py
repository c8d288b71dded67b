"""Memory shared by the two ends of one connection: how it is laid out, and how blocks of it are lent.

One sealed memfd holds, for each direction, a ring for messages, a list for blocks that come back, and an arena of
blocks for large buffers. It has no name and goes when its last user does; sealed, it cannot be cut under a reader.
Pages cost nothing until they are touched. No word in it controls anything: who sends knows its own arena and its place
in the ring, and how much is new is told by eventfds, which also order memory between the two.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from bisect import insort
from typing import Any, Final

from spoke.errors import MalformedData

RING_BYTES: Final = 1 << 20
BLOCKS_MAX: Final = 4096
ARENA_BYTES: Final = 512 << 20
WARM_BYTES: Final = 128 << 20
PAGE: Final = 4096
_RETURNS_BYTES: Final = 8 * BLOCKS_MAX
_SIDE_BYTES: Final = RING_BYTES + _RETURNS_BYTES + ARENA_BYTES
REGION_BYTES: Final = 2 * _SIDE_BYTES
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Region:
    """The mapped memory. ``sides[0]`` is what the server writes, ``sides[1]`` what the client writes."""

    def __init__(self, fd: int) -> None:
        """Map a memfd; MalformedData unless it is sealed and of the right size. The descriptor stays the caller's."""
        if os.fstat(fd).st_size != REGION_BYTES or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise MalformedData("the peer's shared memory has not the size or the seals it should have")
        self.area = mmap.mmap(fd, REGION_BYTES)
        self.sides = (Side(self.area, 0), Side(self.area, _SIDE_BYTES))

    def close(self) -> None:
        """Unmap it, or, while blocks are still looked at, leave that to the last of them."""
        for side in self.sides:
            side.close()
        with contextlib.suppress(BufferError):
            self.area.close()
        del self.area


def create_memory() -> int:
    """A new sealed memfd; raises OSError."""
    fd = os.memfd_create("spoke", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, REGION_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Side:
    """What one side writes: its ring, its blocks; and where the other side says which of them it is done with."""

    def __init__(self, area: mmap.mmap, start: int) -> None:
        self._area = area
        self.arena_start = start + RING_BYTES + _RETURNS_BYTES
        whole = memoryview(area)
        self.ring = whole[start : start + RING_BYTES]
        self.returns = whole[start + RING_BYTES : self.arena_start].cast("Q")
        self.blocks = whole[self.arena_start : self.arena_start + ARENA_BYTES]
        whole.release()

    def lend(self, offset: int, nbytes: int) -> Any:
        """An object that holds a block; views of it keep it alive."""
        return (ctypes.c_char * nbytes).from_buffer(self._area, self.arena_start + offset)

    def cool(self, start: int, end: int) -> None:
        """Give the pages of free blocks back to the system."""
        with contextlib.suppress(OSError):
            self._area.madvise(mmap.MADV_REMOVE, self.arena_start + start, end - start)

    def close(self) -> None:
        """Let go of the memory; blocks that are lent keep it."""
        for view in (self.returns, self.ring, self.blocks):
            view.release()
        del self._area


class Loan(weakref.ref[Any]):
    """Notices the end of the last view of a block."""

    __slots__ = ("offset",)
    offset: int


class Arena:
    """Which parts of an arena are free: first fit, so that the same warm pages are used again. Not locked."""

    def __init__(self, nbytes: int = ARENA_BYTES) -> None:
        self._free: list[tuple[int, int]] = [(0, nbytes)]  # start and end, in order, never adjacent
        self._live: dict[int, int] = {}
        self._touched = 0

    def __len__(self) -> int:
        return len(self._live)

    def take(self, nbytes: int) -> int | None:
        """The offset of a block of at least that size; None when there is none."""
        size = -(-nbytes // PAGE) * PAGE
        if len(self._live) >= BLOCKS_MAX:
            return None
        for position, (start, end) in enumerate(self._free):
            if end - start >= size:
                if end - start == size:
                    del self._free[position]
                else:
                    self._free[position] = (start + size, end)
                self._live[start] = start + size
                self._touched = max(self._touched, start + size)
                return start
        return None

    def give_back(self, offset: int) -> tuple[int, int] | None:
        """Take a block back; what to cool now, if anything. MalformedData for a block that is not out."""
        end = self._live.pop(offset, None)
        if end is None:
            raise MalformedData("the peer gave back a block of shared memory that it did not have")
        insort(self._free, (offset, end))
        position = self._free.index((offset, end))
        if position + 1 < len(self._free) and self._free[position + 1][0] == end:
            self._free[position] = (offset, self._free.pop(position + 1)[1])
        if position and self._free[position - 1][1] == offset:
            self._free[position - 1] = (self._free[position - 1][0], self._free.pop(position)[1])
        used = max(self._live.values(), default=0) if self._touched > WARM_BYTES else self._touched
        cold = max(used, WARM_BYTES)
        if cold >= self._touched:
            return None
        span = (cold, self._touched)
        self._touched = cold
        return span
