"""What a check of ``spoke doctor`` finds, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, ABSENT, BROKEN = "ok", "warning", "absent", "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result: ``level`` is ok, warning, absent or broken; ``remedy`` is empty when there is nothing to do.

    What Spoke cannot work without is ``broken``; what makes it slower or less safe is a ``warning``; what is not there
    (a feature that nobody asked for), or could not be looked at, is ``absent``.
    """

    check: str
    level: str
    found: str
    remedy: str = ""


def some(names: list[str], most: int = 5) -> str:
    """The first few of many names.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
