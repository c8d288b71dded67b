"""What users write as times, checked."""

from __future__ import annotations

import math
from typing import Final

from spoke.errors import InvalidRequest

TIMEOUT_S_MAX: Final = 10 * 365 * 24 * 3600.0


def check_seconds(what: str, value: float, at_least: float, at_most: float) -> None:
    """Raise InvalidRequest unless it is a number of seconds within the limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not at_least <= value <= at_most:
        raise InvalidRequest(f"{what} must be from {at_least:g} to {at_most:g} seconds, not {value!r}")


def check_timeout(timeout: float | None, what: str = "timeout") -> float | None:
    """The time limit in seconds; raises InvalidRequest."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= TIMEOUT_S_MAX:
        raise InvalidRequest(f"{what} must be None (no limit) or seconds from 0 on, not {timeout!r}")
    return float(timeout)


def duration_ms(what: str, seconds: float | None) -> int:
    """A duration in milliseconds, 0 for None; raises InvalidRequest."""
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise InvalidRequest(f"{what} must be None or seconds above 0, not {seconds!r}")
    return max(1, math.ceil(seconds * 1000))
