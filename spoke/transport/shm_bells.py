"""The four eventfds of a connection over shared memory, and how to use what a peer can change under our hands.

A peer has the same open files, so it can clear O_NONBLOCK, or fill a counter. Reading says for itself that it must not
wait. Writing cannot say so: at the end of the connection a thread that waits in it is let out by ``take``, which makes
room.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from spoke.transport.direct import Unavailable


class Bells:
    """From one side's point of view. Owns the descriptors."""

    def __init__(self, fds: Sequence[int]) -> None:
        """``fds``: data out, credit in, data in, credit out."""
        self.data_out, self.credit_in, self.data_in, self.credit_out = fds

    def close(self) -> None:
        """Close all four."""
        for fd in (self.data_out, self.credit_in, self.data_in, self.credit_out):
            os.close(fd)


def take(fd: int) -> int:
    """What was added to an eventfd, which is 0 then; never waits. Raises OSError."""
    count = bytearray(8)
    try:
        os.preadv(fd, (count,), -1, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0
    return int.from_bytes(count, "little")


def check_system() -> None:
    """Unavailable where eventfds are missing, or cannot be read without waiting (before Linux 5.8)."""
    if not hasattr(os, "eventfd") or not hasattr(os, "RWF_NOWAIT"):
        raise Unavailable("this system has no eventfd")
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        take(fd)
    except OSError as error:
        raise Unavailable(f"this kernel cannot read an eventfd without waiting ({error.strerror})") from error
    finally:
        os.close(fd)
