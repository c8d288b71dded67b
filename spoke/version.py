"""The version of this release."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release_version() -> str:
    """The installed distribution's version; ``0+unknown`` when run from a source tree that was not installed."""
    try:
        return version("spoke-scheduler")
    except PackageNotFoundError:
        return "0+unknown"
