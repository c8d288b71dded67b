"""Columns of an archive: entries come back exactly as they were, whatever they hold, and events as they are decoded."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.synthetic import chained, events
from spoke.errors import LogError
from spoke.events import segment, snapshot
from spoke.events.archive import Archive
from spoke.events.archived import StoredLog
from spoke.events.audit import verify
from spoke.events.columns import entries_of, events_of, read_event, read_event_of, some_events_of, to_columns
from spoke.events.entries import RawEntry
from spoke.events.fold import fold
from spoke.events.state import PoolState
from spoke.events.types import GangAllocated, NodeLost, Recorded
from tests.golden import golden_pool

BEFORE = segment.Before(state=snapshot.encode(PoolState()))


def entries(log: list[Recorded]) -> list[RawEntry]:
    return list(chained(log))


def test_the_golden_log_comes_back_from_columns() -> None:
    log = golden_pool().log
    columns = to_columns(entries(log))
    assert entries_of(columns) == entries(log)
    assert events_of(columns) == [recorded.event for recorded in log]
    assert [type(event) for event in events_of(columns)] == [type(recorded.event) for recorded in log]


def test_only_the_events_that_are_asked_for_are_read() -> None:
    log = golden_pool().log
    only = frozenset({GangAllocated, NodeLost})
    columns = to_columns(entries(log))
    asked = [recorded.event if type(recorded.event) in only else None for recorded in log]
    assert some_events_of(columns, only) == asked
    raw = [read_event_of(only, *entry) for entry in entries(log)]
    assert raw == asked
    columns.odd.append([["type", "gang.teleported"], ["v", "1"]])
    columns.order.append(-1)
    columns.ids.append("9999999999999-0")
    assert isinstance(some_events_of(columns, only)[-1], LogError), "it may matter, whatever it is"


names = st.sampled_from([b"type", b"v", b"h", b"seq", b"ticket_id", b"client_id", b"\xff"])
values = st.sampled_from(
    [
        b"client.closed",
        b"gang.cancelled",
        b"1",
        b"01",
        b"-7",
        b"",
        b"0" * 32,
        b"\xff\xfe",
        b"9" * 30,
        b"\xc2\xb2",
        b"nan",
    ]
)


@settings(max_examples=300)
@given(st.lists(st.dictionaries(names, values, max_size=7), max_size=6))
def test_any_entries_come_back_and_are_read_as_the_codec_reads_them(found: list[dict[bytes, bytes]]) -> None:
    log = [(f"{at}-0", fields) for at, fields in enumerate(found)]
    columns = to_columns(log)
    assert entries_of(columns) == log
    assert [list(fields) for _, fields in entries_of(columns)] == [list(fields) for _, fields in log]
    for read, entry in zip(events_of(columns), log, strict=True):
        expected = read_event(*entry)
        assert str(read) == str(expected) if isinstance(expected, LogError) else read == expected


def test_a_synthetic_log_verifies_and_an_archive_folds_to_the_same_state(tmp_path: Path) -> None:
    log = list(events(6_000, nodes=20))
    state = PoolState()
    for recorded in log:
        fold(state, recorded)
    first, last = log[0].id, log[-1].id
    segment.write(tmp_path / f"{first}_{last}.jsonl.gz", "p", entries(log), BEFORE)
    stored = StoredLog(Archive(tmp_path, "p"))
    assert list(stored.read()) == log
    assert stored.replay() == state
    assert list(stored.read(log[999].id, log[4_500].id)) == log[1_000:4_501]
    assert verify(stored).problems == []


def test_replay_leaves_the_capacity_index_as_fold_does(tmp_path: Path) -> None:
    log = golden_pool().log
    segment.write(tmp_path / f"{log[0].id}_{log[-1].id}.jsonl.gz", "p", entries(log), BEFORE)
    state = StoredLog(Archive(tmp_path, "p")).replay()
    for node in state.nodes.values():
        assert state.capacity.free(node.spec.node_id) == node.free
