"""When a frame may go out: one after the other, and a bound on what waits for a peer that does not read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from spoke.errors import LimitExceeded

STALL_S: Final = 1.0
"""A peer that takes nothing for so long is not waited for any more."""
BACKLOG_BYTES_MAX: Final = 64 << 20
COPY_BYTES_MAX: Final = 64 * 1024
"""A frame up to here waits in the backlog, where it is copied, rather than in its sender."""


def wait_for_turn(
    out: threading.Condition,
    is_taken: Callable[[], object],
    backlog_bytes: Callable[[], int],
    nbytes: int,
    *,
    may_wait: bool,
    must: bool,
    peer: str,
) -> None:
    """Under the lock of ``out``: wait while others send, where copying would cost more or the backlog is full.

    When it returns and the turn ``is_taken`` still, the frame belongs into the backlog; LimitExceeded where that is
    full, unless the frame ``must`` go.
    """
    deadline = time.monotonic() + STALL_S
    while is_taken():
        held = backlog_bytes()
        full = held > 0 and held + nbytes > BACKLOG_BYTES_MAX
        if not full and (nbytes <= COPY_BYTES_MAX or not may_wait):
            return
        if not may_wait or not out.wait(max(0.0, deadline - time.monotonic())):
            if full and not must:
                raise LimitExceeded(
                    f"{peer} does not read: {held} bytes wait for it already (the limit is {BACKLOG_BYTES_MAX}); "
                    f"wait for answers before sending more"
                )
            return
        if backlog_bytes() < held:
            deadline = time.monotonic() + STALL_S
