"""Where in the log: an event's id, or a time; and spans of time, as people write them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import typer

from spoke.cli.output import duration
from spoke.errors import InvalidRequest

_ID = re.compile(r"\d{1,19}(-\d{1,20})?\Z")
_AGO = re.compile(r"(\d+(?:\.\d+)?[smhd])(?: ago)?\Z")
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def last_id_at(text: str) -> str:
    """The greatest event id up to an id, an ISO time (local, if it names no zone), or so long ago. InvalidRequest.

    >>> last_id_at("5-1"), last_id_at("1970-01-01T00:00:01Z")
    ('5-1', '1000')
    """
    return text.strip() if _ID.match(text.strip()) else str(_milliseconds(text))


def id_before(text: str) -> str:
    """The id after which reading begins: an event's own, or the last one before such a time.

    >>> id_before("5-1"), id_before("1970-01-01T00:00:01Z")
    ('5-1', '999-18446744073709551615')
    """
    text = text.strip()
    if _ID.match(text):
        return text if "-" in text else f"{text}-0"
    return f"{max(1, _milliseconds(text)) - 1}-{2**64 - 1}"


def _milliseconds(text: str) -> int:
    ago_s = parse_ago(text)
    if ago_s is not None:
        return max(0, round((time.time() - ago_s) * 1000))
    try:
        return parse_moment(text)
    except InvalidRequest:
        raise InvalidRequest(
            f"{text!r} is neither an event's id (1764000000000-0, see `spoke log`), nor a time (2026-01-31T12:00:00), "
            f"nor a time span (10m: so long ago)"
        ) from None


def parse_moment(text: str) -> int:
    """An ISO time (local, if it names no zone) in milliseconds since 1970; raises InvalidRequest."""
    try:
        return max(0, round(datetime.fromisoformat(text.strip()).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(f"{text!r} is no time: write it like 2026-01-31T12:00:00") from None


def parse_ago(text: str) -> float | None:
    """How many seconds ago; None for what is no time span with a unit.

    >>> parse_ago("10m"), parse_ago("1.5h ago"), parse_ago("10")
    (600.0, 5400.0, None)
    """
    found = _AGO.match(text.strip())
    return parse_time(found[1]) if found else None


def seconds(value: str | float) -> float:
    """What an option of a time span gives: its default, or what was written; raises BadParameter."""
    try:
        return parse_time(value) if isinstance(value, str) else float(value)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error)) from None


def patience(value: str | float) -> float:
    """The same, or -1 for ever."""
    return -1.0 if value in ("-1", -1) else seconds(value)


def time_option(text: str, default_s: int, *names: str, parser: Callable[[Any], float] = seconds) -> Any:
    """An option that takes seconds, or a time span with a unit; ``default_s`` is the default as help shows it."""
    return typer.Option(*names, metavar="TIME", parser=parser, show_default=duration(1_000 * default_s), help=text)


def parse_time(text: str) -> float:
    """A time span in seconds: a number, or one with a unit (s, m, h, d); raises InvalidRequest.

    >>> parse_time("90"), parse_time("10m"), parse_time("1.5h")
    (90.0, 600.0, 5400.0)
    """
    number, unit = (text[:-1], UNITS_S[text[-1]]) if text[-1:] in UNITS_S else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 365 * 86_400:
        raise InvalidRequest(f"{text!r} is no time span: write e.g. 90s, 10m or 2h, at most a year")
    return seconds
