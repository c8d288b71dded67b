"""The terms on which a gang waits and holds its places: what the queue needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass

from spoke.errors import InvalidRequest
from spoke.events import names

PRIORITY_MAX = 1_000_000
DURATION_MS_MAX = 10 * 365 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Terms:
    """Of two gangs the one with the higher ``priority`` goes first. ``project`` is whom it counts for (or the user).

    ``expected_ms`` is how long it will hold its places, as far as is known (0: unknown); ``max_ms`` is how long it may,
    before it is released (0: for ever). ``preemptible``: a gang of higher priority may take its place, after a notice.
    ``reservation`` names the reservation in which it is placed.
    """

    priority: int = 0
    project: str = ""
    expected_ms: int = 0
    max_ms: int = 0
    preemptible: bool = False
    reservation: str = ""

    def __post_init__(self) -> None:
        if type(self.priority) is not int or not -PRIORITY_MAX <= self.priority <= PRIORITY_MAX:
            raise InvalidRequest(
                f"priority must be a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}, not {self.priority!r}"
            )
        for name, value in (("expected_duration", self.expected_ms), ("max_duration", self.max_ms)):
            if type(value) is not int or not 0 <= value <= DURATION_MS_MAX:
                raise InvalidRequest(f"{name} must be from 0 to ten years, not {value!r} ms")
        for what, name in (("the project", self.project), ("the reservation", self.reservation)):
            if name != "":
                names.check_name(what, name)

    @property
    def length_ms(self) -> int:
        """How long it will hold its places, as far as is known; 0: unknown."""
        known = [ms for ms in (self.expected_ms, self.max_ms) if ms]
        return min(known, default=0)


DEFAULT = Terms()
