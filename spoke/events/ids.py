"""The ids of events, as Redis writes those of stream entries: milliseconds of server time, a dash, a number."""

from __future__ import annotations


def order_of(event_id: str) -> tuple[int, int]:
    """An event id as numbers that sort: as text, ``5-10`` would stand before ``5-9``."""
    ms, _, seq = event_id.partition("-")
    return int(ms), int(seq or 0)


def ms_of(event_id: str) -> int:
    """The server's time in an event id, in ms since 1970.

    >>> ms_of("1700000000123-4")
    1700000000123
    """
    return int(event_id.partition("-")[0])
