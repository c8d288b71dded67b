"""Frames: what travels on a connection, and the reader that never reserves memory before it has checked a length.

    magic "SPK1" | kind u8 | 0 u8 | buffers u16 | call id u64 | header bytes u32 | u64 for the length of each buffer
    header (msgpack) | buffer | buffer | ...                                          all little-endian

The header is small and is parsed; the buffers are large and are not: each is received straight into memory of its
own and handed on as a view. A frame above the limit is skipped, not fatal: the reader drops its bytes as they come
and reports it, so that the one call gets an error and the connection lives on.

Nothing here does I/O: a transport asks ``space()`` where to put bytes and says with ``filled(n)`` how many came.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from spoke.errors import LimitExceeded, MalformedData

FRAME_BYTES_MAX: Final = 1 << 30
BUFFERS_MAX: Final = 1000  # with the head, below the 1024 pieces that one sendmsg takes
STAGE_BYTES: Final = 64 * 1024

MAGIC: Final = b"SPK1"
HEAD_FORMAT: Final = "4sBBHQI"
HEAD: Final = struct.Struct("<" + HEAD_FORMAT)
HEAD_BYTES: Final = HEAD.size
_JOIN_BYTES_MAX: Final = 16 * 1024
_MAP_BYTES_MIN: Final = 1 << 20
_HUGE_PAGE_BYTES: Final = 2 << 20


class Kind(IntEnum):
    """What a frame says."""

    CALL = 1  # of a method of the target
    RESULT = 2  # the answer, or a stream's end
    ERROR = 3
    CANCEL = 4
    STREAM = 5  # a call whose results come one by one, within the credit it carries
    ITEM = 6  # one of them
    CREDIT = 7  # so many of them were consumed
    TELL = 8  # a call that nobody waits for
    ASK = 9  # a call of the server itself: memory, mail, who it is
    MAILBOX = 10  # a stream of what the target pushes, within the credit it carries


KINDS: Final = {int(kind): kind for kind in Kind}


@dataclass(slots=True)
class Frame:
    """One message: its header is msgpack, its buffers are writable views of memory that nobody else uses."""

    kind: Kind
    call_id: int
    header: bytes
    buffers: list[memoryview]

    @property
    def nbytes(self) -> int:
        """The size of its contents."""
        return len(self.header) + sum(len(buffer) for buffer in self.buffers)


@dataclass(frozen=True, slots=True)
class Oversized:
    """A frame that was skipped because it is larger than the limit."""

    kind: Kind
    call_id: int
    nbytes: int
    limit_bytes: int

    def __str__(self) -> str:
        return f"a message of {self.nbytes} bytes is over the receiver's limit of {self.limit_bytes}"


@dataclass(frozen=True, slots=True)
class Done:
    """Something that this side asked of its own endpoint, and not of the peer, is done: a one-sided transfer."""

    call_id: int
    kind: Kind = Kind.RESULT


Incoming = Frame | Oversized | Done


def check_size(nbytes: int, buffers: int, limit_bytes: int) -> None:
    """LimitExceeded for a frame that is too large, or in too many pieces."""
    if nbytes > limit_bytes:
        raise LimitExceeded(
            f"a message of {nbytes} bytes is over the limit of {limit_bytes}: send it in parts (by a method "
            "that yields), or lend it as a spoke.Buffer"
        )
    if buffers > BUFFERS_MAX:
        raise LimitExceeded(f"a message has {buffers} large buffers; the limit is {BUFFERS_MAX}: join some")


def encode_frame(
    kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview] = (), limit_bytes: int = FRAME_BYTES_MAX
) -> list[bytes | memoryview]:
    """The pieces to send, in order; LimitExceeded (and nothing sent) above the limit."""
    lengths = [len(buffer) for buffer in buffers]
    check_size(len(header) + sum(lengths), len(lengths), limit_bytes)
    head = HEAD.pack(MAGIC, kind, 0, len(lengths), call_id, len(header))
    if not lengths:
        return [head + header] if len(header) <= _JOIN_BYTES_MAX else [head, header]
    return [b"".join((head, struct.pack(f"<{len(lengths)}Q", *lengths), header)), *buffers]


def encode_small(kind: Kind, call_id: int, header: bytes) -> bytes:
    """A frame without buffers, whose size the caller has checked."""
    return HEAD.pack(MAGIC, kind, 0, 0, call_id, len(header)) + header


def read_one(data: bytes) -> Frame | None:
    """The frame, if the bytes are exactly one and it has no buffers; whatever else they are is for the reader."""
    if len(data) < HEAD_BYTES:
        return None
    header = data[HEAD_BYTES:]
    magic, kind_code, zero, count, call_id, header_bytes = HEAD.unpack_from(data)
    kind = KINDS.get(kind_code)
    if magic != MAGIC or kind is None or zero or count or header_bytes != len(header):
        return None
    return Frame(kind, call_id, header, [])


class FrameReader:
    """Turns received bytes into frames, whatever pieces they come in.

    Small frames are cut out of one stage; what is larger is received into its own memory. MalformedData from
    ``filled`` is final: the stream has no meaning any more and must be closed.
    """

    def __init__(self, limit_bytes: int = FRAME_BYTES_MAX) -> None:
        self._limit_bytes = limit_bytes
        self._stage = bytearray(STAGE_BYTES)
        self._view = memoryview(self._stage)
        self._start = 0
        self._end = 0
        self._frame: Frame | None = None
        self._targets: list[memoryview] = []  # what the open frame still needs, the next one last
        self._header: bytearray | None = None
        self._skip = 0

    @property
    def mid_frame(self) -> bool:
        """Whether an end of the stream now would cut a frame."""
        return self._frame is not None or self._skip > 0 or self._end > self._start

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._targets:
            return self._targets[-1]
        return self._view[self._end :]

    def filled(self, count: int) -> list[Incoming]:
        """Take note of ``count`` bytes put into ``space()``; the frames that they complete."""
        out: list[Incoming] = []
        if self._targets:
            rest = self._targets.pop()[count:]
            if len(rest):
                self._targets.append(rest)
            if self._targets:
                return out
            out.append(self._finished())
            return out
        self._end += count
        while self._next_from_stage(out):
            pass
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            # At most a partial head is left here; moving it keeps room for the next read.
            rest_bytes = bytes(self._view[self._start : self._end])
            self._view[: len(rest_bytes)] = rest_bytes
            self._start, self._end = 0, len(rest_bytes)
        return out

    def _next_from_stage(self, out: list[Incoming]) -> bool:
        """Take one step through the stage; False when it needs more bytes."""
        here = self._end - self._start
        if self._skip:
            dropped = min(self._skip, here)
            self._skip -= dropped
            self._start += dropped
            return dropped > 0
        if here < HEAD.size:
            return False
        magic, kind_code, zero, count, call_id, header_bytes = HEAD.unpack_from(self._stage, self._start)
        kind = KINDS.get(kind_code)
        if magic != MAGIC or kind is None or zero or count > BUFFERS_MAX:
            raise MalformedData("the peer sent something that is no frame of this release")
        body = HEAD.size + 8 * count
        if here < body:
            return False
        lengths: tuple[int, ...] = ()
        nbytes = header_bytes
        if count:
            lengths = struct.unpack_from(f"<{count}Q", self._stage, self._start + HEAD.size)
            nbytes += sum(lengths)
        self._start += body
        if nbytes > self._limit_bytes:
            self._skip = nbytes
            out.append(Oversized(kind, call_id, nbytes, self._limit_bytes))
            return True
        here -= body
        if not count and header_bytes <= here:
            end = self._start + header_bytes
            out.append(Frame(kind, call_id, bytes(self._view[self._start : end]), []))
            self._start = end
            return True
        return self._open(Frame(kind, call_id, b"", [reserve(length) for length in lengths]), header_bytes, out)

    def _open(self, frame: Frame, header_bytes: int, out: list[Incoming]) -> bool:
        self._frame = frame
        self._header = bytearray(header_bytes)
        for target in (memoryview(self._header), *frame.buffers):
            take = min(len(target), self._end - self._start)
            target[:take] = self._view[self._start : self._start + take]
            self._start += take
            if take < len(target):
                self._targets.append(target[take:])
        self._targets.reverse()
        if self._targets:
            return False
        out.append(self._finished())
        return True

    def _finished(self) -> Frame:
        frame, header = self._frame, self._header
        assert frame is not None
        assert header is not None
        frame.header = bytes(header)
        self._frame = self._header = None
        return frame


def reserve(nbytes: int) -> memoryview:
    """Writable memory of its own; a large one is a mapping, which costs nothing until bytes arrive in it."""
    if nbytes < _MAP_BYTES_MIN:
        return memoryview(bytearray(nbytes))
    area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= 2 * _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages is only slower
            area.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(area)
