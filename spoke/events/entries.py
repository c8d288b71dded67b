"""Entries of a log as its readers get them: raw, with what proves them, or as many events at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spoke.errors import LogError
from spoke.events.codec import Fields
from spoke.events.columns import Read
from spoke.events.ids import order_of
from spoke.events.types import Event

RawEntry = tuple[str, Fields]


def end_of(until: str) -> tuple[int, int]:
    """The bound that ``until`` names, as numbers: ``+`` and a millisecond without a sequence take in all of it.

    >>> end_of("5-1"), end_of("5") > order_of("5-7")
    ((5, 1), True)
    """
    if until == "+":
        return 2**63, 0
    return order_of(until) if "-" in until else (int(until), 2**64 - 1)


class Link(NamedTuple):
    """An entry of the log as an auditor sees it: its hash, its fields (name, value, name …), and the event it tells."""

    id: str
    h: str
    args: list[str | bytes]
    event: Read


@dataclass(slots=True)
class Batch:
    """Events that follow each other, with their ids. ``problem``: why the event after them cannot be read, if so."""

    ids: list[str]
    events: list[Event]
    problem: LogError | None = None

    @classmethod
    def of(cls, ids: list[str], found: Sequence[Read | None]) -> Batch:
        """The events before the first that cannot be read, without those that were not asked for."""
        if None in found:
            kept = [(i, event) for i, event in zip(ids, found, strict=True) if event is not None]
            ids, found = [i for i, _ in kept], [event for _, event in kept]
        problem = next((event for event in found if isinstance(event, LogError)), None)
        if problem is not None:
            end = found.index(problem)
            ids, found = ids[:end], found[:end]
        return cls(ids, found, problem)  # type: ignore[arg-type]

    def between(self, begin: tuple[int, int], end: tuple[int, int]) -> Batch:
        """The events after ``begin``, up to and including ``end``."""
        inside = [(i, x) for i, x in zip(self.ids, self.events, strict=True) if begin < order_of(i) <= end]
        over = bool(self.ids) and order_of(self.ids[-1]) > end
        return Batch([i for i, _ in inside], [event for _, event in inside], None if over else self.problem)
