"""Restore, SQL, Parquet and the timeline on the golden log, live and archived."""

from __future__ import annotations

import builtins
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from bench.synthetic import events
from spoke.cli.progress import shown
from spoke.cli.timeline_chart import Chart, chart_of, html, svg
from spoke.events import types as e
from spoke.events.archive import Archive
from spoke.events.archived import StoredLog
from spoke.events.audit import verify
from spoke.events.log import EventLog, WatchedLog
from spoke.events.state import PoolState
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.golden import END, HOUR, START, golden_pool
from tests.unit.test_audit_tools import Golden, golden, log

__all__ = ["golden", "log"]

# --- restore -----------------------------------------------------------------------------------------------------


def restore(golden: Golden, pool: str) -> Any:
    words = ("restore", str(golden.archive), "--from", golden.pool)
    return Golden(golden.url, pool, golden.archive).spoke(*words)


def test_an_archive_is_restored_into_an_empty_pool_and_nowhere_else(golden: Golden) -> None:
    result = restore(golden, "anew")
    assert result.exit_code == 0, result.output
    keys, was = Keys("anew"), Keys(golden.pool)
    with connect(golden.url) as redis:
        assert redis.xrange(keys.events) == redis.xrange(was.events)
        back = EventLog(redis, keys.events, keys.snapshot)
        assert verify(back).problems == []
        assert redis.hget(keys.leader, "epoch") == b"1", "so that the next allocator's epoch is above it"
        again = restore(golden, "anew")
        assert again.exit_code == 1
        assert "not empty" in again.stderr
        redis.delete(keys.events, keys.snapshot, keys.leader)
        redis.xadd(keys.requests, {"type": "x"})
        assert "inbox" in restore(golden, "anew").stderr
        redis.delete(keys.requests)


def test_an_archive_that_does_not_verify_is_not_restored(golden: Golden) -> None:
    (segment,) = Archive(golden.archive, golden.pool).segments()
    segment.write_bytes(segment.read_bytes()[:-40])
    assert restore(golden, "broken").exit_code == 1
    with connect(golden.url) as redis:
        assert not redis.exists(Keys("broken").events)


def test_an_archive_alone_is_verified(golden: Golden) -> None:
    result = golden.spoke("verify", offline=True)
    assert result.exit_code == 0
    assert "every invariant holds" in result.stdout


# --- SQL and Parquet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offline", [False, True])
def test_the_log_is_asked_in_sql(golden: Golden, log: list[e.Recorded], offline: bool) -> None:
    counts = golden.lines("query", "SELECT type, count(*) AS n FROM events GROUP BY type", offline=offline)
    assert {line["type"]: line["n"] for line in counts}["gang.allocated"] == 7
    assert sum(line["n"] for line in counts) == len(log)
    joined = (
        "SELECT a.ticket_id, r.ms - a.ms AS held FROM events a JOIN events r USING (ticket_id) "
        "WHERE a.type = 'gang.allocated' AND r.type = 'gang.released' ORDER BY r.ms"
    )
    found = golden.lines("query", joined, offline=offline)
    assert [(line["ticket_id"], line["held"]) for line in found] == [
        ("t-1", 3 * HOUR - 1),
        ("t-3", HOUR + 1),
        ("t-2", 4 * HOUR + 3),
        ("t-6", 3 * HOUR + 30_003),
        ("t-5", 6 * HOUR + 2),
        ("t-5", 6 * HOUR + 5),
    ]
    fields = "SELECT fields->>'$.spec.name' AS name FROM events WHERE ticket_id = 't-1' AND type = 'gang.allocated'"
    assert golden.spoke("query", fields, "--csv", offline=offline).stdout.splitlines() == ["name", "train"]
    table = golden.spoke("query", "SELECT max(time), 1 FROM events", offline=offline).stdout
    assert "2023-11-15T11:13:20" in table


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY events TO '/tmp/out.csv'",
        "CREATE TABLE x AS SELECT 1",
        "DROP TABLE events",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "ATTACH '/tmp/other.duckdb'",
        "SELECT 1; SELECT 2",
        "SELECT * FROM sql",
        "SELECT nonsense FROM events",
        "PRAGMA database_list",
        "",
    ],
)
def test_sql_reaches_the_events_and_nothing_else(golden: Golden, sql: str) -> None:
    result = golden.spoke("query", sql)
    assert result.exit_code == 1, result.stdout
    assert result.stdout == ""
    assert result.stderr.startswith("spoke: ")


def test_a_query_without_end_is_stopped(golden: Golden) -> None:
    endless = "SELECT count(*) FROM range(10000000000) a, range(10000000000) b WHERE hash(a.range, b.range) = 7"
    result = golden.spoke("query", endless, "--timeout", "0.3")
    assert result.exit_code == 1
    assert "stopped after 0.3 s" in result.stderr


@pytest.mark.parametrize("offline", [False, True])
def test_events_are_exported_as_parquet(golden: Golden, log: list[e.Recorded], tmp_path: Path, offline: bool) -> None:
    file = tmp_path / "events.parquet"
    result = golden.spoke("export", "-o", str(file), offline=offline)
    assert result.exit_code == 0, result.output
    rows = pq.read_table(file).to_pylist()
    assert [(row["id"], row["type"], row["ms"]) for row in rows] == [(x.id, x.event.TYPE, x.ms) for x in log]
    assert json.loads(rows[-1]["fields"])["ticket_id"] == rows[-1]["ticket_id"] == "t-5"
    assert all(len(row["h"]) == 32 for row in rows)
    late = duckdb.execute(f"SELECT count(*) FROM '{file}' WHERE time > '2023-11-15'").fetchall()
    assert late[0][0] > 0
    assert golden.spoke("export", "-o", str(tmp_path / "events.csv")).exit_code == 2


@pytest.mark.parametrize("by", ["user", "project", "node", "ticket"])
def test_usage_is_written_as_csv_and_parquet(golden: Golden, tmp_path: Path, by: str) -> None:
    file, sheet = tmp_path / "usage.parquet", tmp_path / "usage.csv"
    words = ("usage", "--by", by, "--until", str(START + 5 * HOUR + 3))
    assert golden.spoke(*words, "-o", str(file)).exit_code == 0
    assert golden.spoke(*words, "-o", str(sheet)).exit_code == 0
    rows, lines = pq.read_table(file).to_pylist(), golden.lines(*words)
    assert [(row[by], int(row["gpu_milli_ms"])) for row in rows] == [(x[by], x["gpu_milli_ms"]) for x in lines]
    assert sheet.read_text() == golden.spoke(*words, "--csv").stdout
    assert golden.spoke("usage", "-o", str(tmp_path / "usage.txt")).exit_code == 2


def test_what_is_missing_is_named(golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("pyarrow", "duckdb", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for words in (
        ("export", "-o", str(tmp_path / "x.parquet")),
        ("usage", "-o", str(tmp_path / "x.parquet")),
        ("query", "SELECT 1"),
    ):
        result = golden.spoke(*words)
        assert result.exit_code == 1
        assert 'pip install "spoke-scheduler[audit]"' in result.stderr
    assert not list(tmp_path.glob("x.*"))


# --- the timeline ------------------------------------------------------------------------------------------------


def test_a_timeline_has_every_holding(log: list[e.Recorded]) -> None:
    chart = chart_of("p", PoolState(), log, 0, END)
    assert chart.rows == [f"{node}:{gpu}" for node in ("n1", "n2") for gpu in range(4)]
    bars = [(chart.rows[row], begin, end, chart.tickets[ticket][0]) for row, begin, end, ticket, *_ in chart.bars]
    assert ("n1:0", START + 3, START + 3 * HOUR + 2, "t-1") in bars
    assert ("n1:0", START + 6 * HOUR, END, "t-4") in bars
    shares = [bar[4:] for bar in chart.bars if bar[0] == 2]
    assert shares == [(250, 0), (250, 250), (250, 500), (1000, 0)], "one on another"
    assert len(bars) == 2 + 3 + 2 + 1 + 5 + 2 + 2
    cut = chart_of("p", PoolState(), log, START + 14 * HOUR, END)
    assert [(bar[1], bar[2]) for bar in cut.bars] == [(START + 14 * HOUR, END)] * 3


def test_names_in_the_log_do_not_become_markup() -> None:
    evil = "</script><script>alert(1)</script>"
    chart = Chart(evil, 0, 10, [evil], [(evil, evil, evil, evil)], [(0, 0, 10, 0, 1000, 0)])
    page = html(chart)
    assert evil not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert evil not in "".join(svg(chart))
    assert "http" not in re.sub(r"http-equiv", "", page), "no network"


@pytest.mark.parametrize("offline", [False, True])
def test_a_timeline_is_written(golden: Golden, tmp_path: Path, offline: bool) -> None:
    from typer.testing import CliRunner

    from spoke.cli.main import app

    place = ["--archive", str(golden.archive), "--offline"] if offline else ["--url", golden.url]
    begins = {"html": b"<!doctype html>", "svg": b"<svg ", "png": b"\x89PNG"}
    for kind, begin in begins.items():
        file = tmp_path / f"out.{kind}"
        result = CliRunner().invoke(app, ["timeline", "-o", str(file), "--pool", golden.pool, *place])
        assert result.exit_code == 0, result.output
        assert file.read_bytes().startswith(begin)
    assert CliRunner().invoke(app, ["timeline", "-o", "out.gif", *place]).exit_code == 2


def test_a_large_timeline_stays_small_enough() -> None:
    chart = chart_of("p", PoolState(), events(20_000, nodes=125), 0, 2**50)
    assert len(chart.rows) == 1_000
    assert len(html(chart)) < 2_000_000


@pytest.mark.parametrize("bars_max", [100, 1_000])
def test_a_timeline_of_any_length_has_a_bounded_number_of_bars(bars_max: int) -> None:
    log = list(events(30_000, nodes=2))
    whole = chart_of("p", PoolState(), log, 0, log[-1].ms)
    chart = chart_of("p", PoolState(), log, 0, log[-1].ms, bars_max)
    assert len(whole.bars) > 4_000
    assert not whole.note
    assert len(chart.bars) + len(chart.cells) <= bars_max
    assert len(chart.rows) == 16
    assert chart.together + len(chart.bars) == len(whole.bars)
    assert sum(count for _, _, _, count, _ in chart.cells) == chart.together
    short = [bar for bar in whole.bars if bar[2] - bar[1] < chart.cell_ms]
    assert len(short) == chart.together, "what is long has its own bar"
    assert f"{chart.together:,} holdings" in chart.note
    assert chart.note in html(chart)
    assert chart.note in "".join(svg(chart))
    held = sum((end - begin) * milli for _, begin, end, _, milli in chart.cells)
    assert held == pytest.approx(sum((end - begin) * 1000 for _, begin, end, *_ in short), rel=0.01)
    for row, begin, end, _, milli in chart.cells[:: len(chart.cells) // 50 + 1]:
        inside = (min(end, bar[2]) - max(begin, bar[1]) for bar in short if bar[0] == row)
        assert milli == pytest.approx(1000 * sum(max(0, ms) for ms in inside) / (end - begin), abs=1)


def test_more_gpus_than_bars_are_a_timeline_all_the_same() -> None:
    log = list(events(2_000, nodes=50))
    chart = chart_of("p", PoolState(), log, 0, log[-1].ms, bars_max=10)
    assert len(chart.rows) == 400
    assert len(chart.bars) + len(chart.cells) <= 4 * 400


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_watched_log_tells_how_far_it_was_read(golden: Golden, log: list[e.Recorded]) -> None:
    told: list[tuple[int, str]] = []
    tell: Callable[[int, str], None] = lambda events, last_id: told.append((events, last_id))  # noqa: E731
    watched = WatchedLog(StoredLog(Archive(golden.archive, golden.pool)), tell)
    assert list(watched.read()) == log
    assert told == [(len(log), log[-1].id), (0, "")]
    assert verify(watched).problems == []
    assert watched.replay() == golden_pool().state


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("prints", "terminal"), [(False, True), (True, True), (False, False)])
def test_a_terminal_is_shown_how_far_a_log_was_read(
    golden: Golden, log: list[e.Recorded], monkeypatch: pytest.MonkeyPatch, prints: bool, terminal: bool
) -> None:
    errors = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    stored = StoredLog(Archive(golden.archive, golden.pool))
    with shown(stored, prints=prints) as watched:
        assert list(watched.read()) == log
    seen = terminal and not prints
    assert (f"{len(log)} events" in errors.getvalue()) == seen
    assert ("100%" in errors.getvalue()) == seen


def test_what_a_command_prints_goes_to_its_file_whatever_the_terminal_is_shown(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `spoke audit export > events.jsonl`, whose lines went to the terminal."""
    errors, output = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    with shown(StoredLog(Archive(golden.archive, golden.pool)), prints=False) as watched:
        for batch in watched.batches():
            print(batch.ids[0])
        shown_meanwhile = len(errors.getvalue())
        print("done")
    assert shown_meanwhile > 0
    assert len(errors.getvalue()) == shown_meanwhile, "the bar was gone when the range had been read"
    assert output.getvalue().endswith("-0\ndone\n")
