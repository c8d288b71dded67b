"""The handle of a buffer: plain data that names memory in another process."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from spoke.errors import MalformedData

KEY_BYTES: Final = 16
SCOPE_BYTES: Final = 8
TRANSFER_S: Final = 60.0


def scope_id(secret: bytes) -> bytes:
    """What names a ticket in the handles of its buffers; it tells nothing of the secret."""
    return hashlib.sha256(b"spoke scope" + secret).digest()[:SCOPE_BYTES]


@dataclass(frozen=True, slots=True)
class BufferHandle:
    """Names a ``Buffer`` of another process. It is plain data: pass it in a call, also inside lists and dicts.

    Whoever has a part in the buffer's ticket (its actors, and clients that hold the gang) can use it; ``scope`` tells
    which ticket that is, and says nothing of its secret.

    >>> handle = worker.call("buffer", b"weights").result()
    >>> handle.nbytes, handle.writable
    (7, True)
    """

    address: str
    key: bytes = field(repr=False)
    nbytes: int
    writable: bool
    scope: bytes = field(repr=False)

    def read_into(self, target: Any, offset: int = 0, *, timeout_s: float | None = TRANSFER_S) -> Future[None]:
        """Copy the buffer from ``offset`` bytes on into all of ``target``, a contiguous array, tensor, bytearray ….

        The future is done when the data is there; it can be awaited. It fails with ActorUnreachable when the owner's
        process is gone, CallTimeout after ``timeout_s`` seconds, InvalidRequest for a range outside the buffer, or a
        buffer that was closed. Leave ``target`` alone until then; after a time-out or a cancellation, what was under
        way may still arrive in it.

        >>> handle, target = worker.call("buffer", b"weights").result(), bytearray(7)
        >>> handle.read_into(target).result()
        >>> bytes(target)
        b'weights'
        """
        done: Future[None] = _memory().read_into(self, target, offset, timeout_s)
        return done

    def write_from(self, source: Any, offset: int = 0, *, timeout_s: float | None = TRANSFER_S) -> Future[None]:
        """Copy all of ``source`` into the buffer, from ``offset`` bytes on. As ``read_into``; InvalidRequest also for a
        buffer that may only be read.

        >>> handle = worker.call("buffer", b"weights").result()
        >>> handle.write_from(b"W").result()
        >>> worker.call("read", handle).result()
        b'Weights'
        """
        done: Future[None] = _memory().write_from(self, source, offset, timeout_s)
        return done

    def as_data(self) -> list[Any]:
        """As it crosses."""
        return [self.address, self.key, self.nbytes, self.writable, self.scope]


@cache
def _memory() -> Any:
    """What moves memory; imported when it is first used, since it needs all that handles are used in."""
    from spoke.transport import memory

    return memory


def read_handle(data: Any) -> BufferHandle:
    """The handle that the data holds; raises MalformedData."""
    if type(data) is not list or [type(part) for part in data] != [str, bytes, int, bool, bytes]:
        raise MalformedData("the handle of a buffer does not hold the fields it should")
    if len(data[1]) != KEY_BYTES or len(data[4]) != SCOPE_BYTES or data[2] < 0:
        raise MalformedData("the handle of a buffer holds impossible values")
    return BufferHandle(*data)
