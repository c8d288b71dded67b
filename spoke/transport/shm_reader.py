"""Records of the ring, turned into frames; what the peer wrote is copied before it is looked at.

    u32 length of the record | u8 kind, 0: more bytes | u8 0 | u16 buffers | u64 call id | u32 header bytes
    (u64 length, u64 place) of each buffer | bytes

A buffer's place is a block of the sender's arena, or STREAMED. The header and the streamed buffers follow as bytes, in
this record and as many others as it takes. Only lengths within the limit make the reader reserve memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from spoke.errors import MalformedData
from spoke.transport.frames import BUFFERS_MAX, Frame, Incoming, Kind, Oversized, reserve
from spoke.transport.shm_memory import ARENA_BYTES, PAGE

HEAD: Final = struct.Struct("<IBBHQI")
PLACE: Final = struct.Struct("<QQ")
STREAMED: Final = (1 << 64) - 1
_KINDS: Final = {int(kind): kind for kind in Kind}


class RecordReader:
    """``borrow(offset, n)`` gives a view of a block, ``give_back(offset)`` returns one that is not wanted."""

    def __init__(
        self, limit_bytes: int, borrow: Callable[[int, int], memoryview], give_back: Callable[[int], None]
    ) -> None:
        self._limit_bytes = limit_bytes
        self._borrow = borrow
        self._give_back = give_back
        self._frame: Frame | None = None
        self._header = bytearray()
        self._targets: list[memoryview] = []  # the next one last
        self._skip = 0

    @property
    def mid_frame(self) -> bool:
        """Whether an end now would cut a frame."""
        return self._frame is not None or self._skip > 0

    def read(self, data: bytes) -> list[Incoming]:
        """The frames that whole records complete; MalformedData is final."""
        out: list[Incoming] = []
        start, end = 0, len(data)
        while start < end:
            if end - start < HEAD.size:
                raise MalformedData("the peer's ring holds a cut record")
            length, code, zero, count, call_id, header_bytes = HEAD.unpack_from(data, start)
            body = HEAD.size + count * PLACE.size
            if length < body or length > end - start or zero or count > BUFFERS_MAX:
                raise MalformedData("the peer's ring holds something that is no record of this release")
            start += length
            whole = not count and header_bytes == length - body <= self._limit_bytes
            if whole and code in _KINDS and not self.mid_frame:  # as most are: small, and without buffers
                out.append(Frame(_KINDS[code], call_id, data[start - header_bytes : start], []))
                continue
            if not code:
                if count or call_id or header_bytes or not self.mid_frame:
                    raise MalformedData("the peer's ring goes on with a message that was not begun")
            else:
                if self.mid_frame:
                    raise MalformedData("the peer's ring begins a message within another")
                first = start - length + HEAD.size
                places = [PLACE.unpack_from(data, first + i * PLACE.size) for i in range(count)]
                self._begin(code, call_id, header_bytes, places, out)
            self._fill(memoryview(data)[start - length + body : start])
            if self._frame is not None and not self._targets:
                frame, self._frame = self._frame, None
                frame.header = bytes(self._header)
                out.append(frame)
        return out

    def _begin(
        self, code: int, call_id: int, header_bytes: int, places: list[tuple[int, int]], out: list[Incoming]
    ) -> None:
        kind = _KINDS.get(code)
        if kind is None:
            raise MalformedData("the peer sent a message of a kind that this release does not know")
        for nbytes, place in places:
            fits = place % PAGE == 0 and 0 < nbytes <= ARENA_BYTES and place <= ARENA_BYTES - nbytes
            if place != STREAMED and not fits:
                raise MalformedData("the peer points outside of its shared memory")
        nbytes = header_bytes + sum(length for length, _ in places)
        if nbytes > self._limit_bytes:
            self._skip = header_bytes + sum(length for length, place in places if place == STREAMED)
            for _, place in places:
                if place != STREAMED:
                    self._give_back(place)
            out.append(Oversized(kind, call_id, nbytes, self._limit_bytes))
            return
        self._header = bytearray(header_bytes)
        streams = [memoryview(self._header)]
        buffers = []
        for length, place in places:
            view = reserve(length) if place == STREAMED else self._borrow(place, length)
            buffers.append(view)
            if place == STREAMED:
                streams.append(view)
        self._frame = Frame(kind, call_id, b"", buffers)
        self._targets = [view for view in reversed(streams) if len(view)]

    def _fill(self, data: memoryview) -> None:
        if self._skip:
            if len(data) > self._skip:
                raise MalformedData("the peer's ring holds more bytes than it announced")
            self._skip -= len(data)
            return
        while len(data):
            if not self._targets:
                raise MalformedData("the peer's ring holds more bytes than it announced")
            target = self._targets.pop()
            take = min(len(target), len(data))
            target[:take] = data[:take]
            data = data[take:]
            if take < len(target):
                self._targets.append(target[take:])
