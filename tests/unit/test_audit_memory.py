"""What the audit commands remember while they read a log does not grow with the log."""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from bench.synthetic import chained, events
from spoke.cli import audit_parquet
from spoke.cli.audit_export import _write_lines
from spoke.cli.timeline_chart import chart_of
from spoke.events.entries import RawEntry
from spoke.events.history import history
from spoke.events.log import EventLog
from spoke.events.state import PoolState
from spoke.events.usage import Ledger

EVENTS = 8_000
MARK_EVERY = 100
END_MS = 2**50


class Measured(EventLog):
    """A log in memory that notes how much memory is in use as it is read."""

    def __init__(self, entries: list[RawEntry]) -> None:
        super().__init__(None, "", "")
        self._entries = entries
        self.marks: list[int] = []

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        for number, entry in enumerate(self._entries):
            if number % MARK_EVERY == 0:
                self.marks.append(tracemalloc.get_traced_memory()[0])
            yield entry

    def base(self) -> PoolState:
        return PoolState()


@pytest.fixture(scope="module")
def entries() -> list[RawEntry]:
    return list(chained(events(EVENTS, nodes=10)))


def consume(found: Iterable[Any]) -> None:
    deque(found, maxlen=0)


def export(log: EventLog) -> None:
    with open("/dev/null", "w") as file:
        _write_lines(log, "0-0", "+", file)


def to_arrow(log: EventLog) -> None:
    pytest.importorskip("pyarrow")
    consume(audit_parquet.arrow_batches(log, "0-0", "+"))


COMMANDS: dict[str, Callable[[EventLog], object]] = {
    "export": export,
    "parquet and query": to_arrow,
    "usage by user": lambda log: consume(Ledger("user", 0, END_MS).rows(PoolState(), log.read())),
    "usage by ticket": lambda log: consume(Ledger("ticket", 0, END_MS).rows(PoolState(), log.read())),
    "history": lambda log: consume(history(PoolState(), log.read(), "node", "node-0001")),
    "timeline": lambda log: chart_of("p", PoolState(), log.read(), 0, END_MS, 400),
    "replay": lambda log: log.replay(),
}


def grows(command: Callable[[EventLog], object], entries: list[RawEntry]) -> bool:
    """Whether more is in use in the log's last quarter than in its second one, but for a little."""
    log = Measured(entries)
    tracemalloc.start()
    try:
        command(log)
    finally:
        tracemalloc.stop()
    quarter = len(log.marks) // 4
    early, late = max(log.marks[quarter : 2 * quarter]), max(log.marks[3 * quarter :])
    return late > 1.25 * early + 200_000


@pytest.mark.parametrize("name", COMMANDS)
def test_memory_does_not_follow_the_logs_length(
    name: str, entries: list[RawEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_parquet, "ROWS_AT_ONCE", 500)
    assert not grows(COMMANDS[name], entries)


def test_what_keeps_all_events_would_be_found(entries: list[RawEntry]) -> None:
    assert grows(lambda log: list(log.read()), entries)
