"""Where in the log: an event's id, or a time."""

from __future__ import annotations

import re
from datetime import datetime

from spoke.errors import InvalidRequest

_ID = re.compile(r"\d{1,19}(-\d{1,20})?\Z")


def last_id_at(text: str) -> str:
    """The greatest event id up to an id or an ISO time (local, if it names no zone); raises InvalidRequest.

    >>> last_id_at("5-1"), last_id_at("1970-01-01T00:00:01Z")
    ('5-1', '1000')
    """
    return text.strip() if _ID.match(text.strip()) else str(_milliseconds(text))


def id_before(text: str) -> str:
    """The id after which reading begins: an event's own, or the last one before an ISO time.

    >>> id_before("5-1"), id_before("1970-01-01T00:00:01Z")
    ('5-1', '999-18446744073709551615')
    """
    text = text.strip()
    if _ID.match(text):
        return text if "-" in text else f"{text}-0"
    return f"{max(1, _milliseconds(text)) - 1}-{2**64 - 1}"


def _milliseconds(text: str) -> int:
    try:
        return max(0, round(datetime.fromisoformat(text.strip()).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"{text!r} is neither an event's id (1764000000000-0, see `spoke log`) nor a time (2026-01-31T12:00:00)"
        ) from None
