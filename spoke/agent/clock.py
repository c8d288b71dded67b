"""The clock of leases."""

from __future__ import annotations

import time


def clock_s() -> float:
    """A monotonic clock that goes on while the machine is suspended, as the server's clock does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
