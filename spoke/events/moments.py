"""Moments as text that people can read, and back: ISO 8601 in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def moment(ms: int) -> str:
    """Milliseconds since 1970 as text; empty for 0, which stands for never.

    >>> moment(1_700_000_000_123), moment(0)
    ('2023-11-14T22:13:20.123Z', '')
    """
    if not ms:
        return ""
    seconds, rest = divmod(ms, 1000)
    try:
        return f"{_second(seconds)}.{rest:03d}Z"
    except (ValueError, OverflowError, OSError):  # beyond what a calendar has
        return str(ms)


@lru_cache(1024)
def _second(seconds: int) -> str:
    """Views say the same moments again and again, in the allocator's thread."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def ms_at(text: str) -> int:
    """The milliseconds since 1970 that ``moment`` has put into words; raises ValueError.

    >>> ms_at("2023-11-14T22:13:20.123Z"), ms_at("")
    (1700000000123, 0)
    """
    if not text:
        return 0
    if text.isdigit():
        return int(text)
    return (datetime.fromisoformat(text) - _EPOCH) // _MS
