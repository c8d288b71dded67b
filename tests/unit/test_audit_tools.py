"""History and usage on the golden log: every answer is known; and the commands that show them, live and archived."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from spoke.cli.output import cell
from spoke.events import types as e
from spoke.events.archive import Archive, BadSegment
from spoke.events.archived import ArchivedLog, StoredLog
from spoke.events.audit import verify
from spoke.events.diff import Facts, changes, facts
from spoke.events.fold import fold
from spoke.events.history import Kind, history
from spoke.events.holdings import Holding, Holdings
from spoke.events.log import EventLog
from spoke.events.state import PoolState
from spoke.events.usage import BY, By, Ledger, Usage
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.golden import END, HOUR, START, golden_pool, write_log

T1, T2, T3, T4 = 2000 * (3 * HOUR - 1), 750 * (4 * HOUR + 3), 2000 * (HOUR + 1), 1000 * 9 * HOUR
T5_N1, T5_N2 = 2000 * (6 * HOUR + 2), 2000 * (6 * HOUR + 5)
T5, T6, T7 = T5_N1 + T5_N2, 2000 * (3 * HOUR + 30_003), 2000 * (4 * HOUR - 30_005)
USED = {
    "user": {"alice": T1 + T4, "bob": T2 + T3, "carol": T5, "dave": T6, "erin": T7},
    "project": {"alice": T1 + T4, "bob": T2 + T3, "vision": T5, "speech": T6, "erin": T7},
    "node": {"n1": T1 + T2 + T3 + T4 + T5_N1, "n2": T5_N2 + T6 + T7},
    "ticket": {"t-1": T1, "t-2": T2, "t-3": T3, "t-4": T4, "t-5": T5, "t-6": T6, "t-7": T7},
}
ALL = T1 + T2 + T3 + T4 + T5 + T6 + T7


@pytest.fixture(scope="module")
def log() -> list[e.Recorded]:
    return golden_pool().log


def held(log: list[e.Recorded], kind: Kind, name: str) -> list[Holding]:
    return [entry for entry in history(PoolState(), log, kind, name) if isinstance(entry, Holding)]


def told(log: list[e.Recorded], kind: Kind, name: str) -> list[str]:
    found = history(PoolState(), log, kind, name)
    return [entry.event.TYPE for entry in found if isinstance(entry, e.Recorded)]


# --- the core ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n1:0", "n1-gpu-0"])
def test_who_had_this_gpu_and_when(log: list[e.Recorded], name: str) -> None:
    found = held(log, "gpu", name)
    assert [(h.ticket_id, h.user, h.rank, h.begin_ms - START, h.end_ms - START, h.reason) for h in found[:-1]] == [
        ("t-1", "alice", 0, 3, 3 * HOUR + 2, "its client released it"),
        ("t-3", "bob", 0, 3 * HOUR + 3, 4 * HOUR + 4, "node n1 was lost: its lease ran out"),
    ]
    last = found[-1]
    assert (last.ticket_id, last.begin_ms, last.end_ms, last.end_id) == ("t-4", START + 6 * HOUR, 0, "")
    assert told(log, "gpu", name) == []


def test_a_shared_gpu_had_every_rank_with_its_share(log: list[e.Recorded]) -> None:
    found = held(log, "gpu", "n1:2")
    assert [(h.ticket_id, h.rank, h.milli) for h in found] == [
        *[("t-2", rank, 250) for rank in range(3)],
        ("t-5", 1, 1000),
    ]
    assert held(log, "gpu", "n3:0") == held(log, "gpu", "n1:4") == held(log, "gpu", "nonsense") == []


def test_a_rank_that_was_repaired_held_one_gpu_after_another(log: list[e.Recorded]) -> None:
    ranks = [h for h in held(log, "ticket", "t-5") if h.rank == 0]
    assert [(h.gpu, h.begin_ms - START, h.end_ms - START) for h in ranks] == [
        (1, 7 * HOUR + 2, 10 * HOUR + 2),
        (3, 10 * HOUR + 2, 13 * HOUR + 4),
    ]
    assert [h.reason for h in ranks] == ["rank 0 was given another place", "its client closed"]


def test_a_mixed_gang_that_was_preempted_says_so(log: list[e.Recorded]) -> None:
    assert [(h.node_id, h.gpu, h.rank, h.project, h.reason) for h in held(log, "ticket", "t-6")] == [
        ("n2", gpu, rank, "speech", "makes room for t-7: priority 10 goes before 0") for gpu, rank in ((2, 1), (3, 2))
    ]
    assert told(log, "ticket", "t-6") == ["gang.allocated", "ticket.preempting", "gang.releasing", "gang.released"]
    assert told(log, "ticket", "t-8") == ["gang.queued", "gang.refused"]
    assert told(log, "ticket", "t-9") == ["gang.queued", "gang.prioritized", "gang.cancelled"]
    assert "gpu.marked_unhealthy" in told(log, "node", "n1")


def test_a_node_a_ticket_an_actor_and_a_client_have_their_events(log: list[e.Recorded]) -> None:
    node = told(log, "node", "n1")
    assert node.count("node.registered") == 2
    assert node.count("gang.allocated") == node.count("gang.released") + 1 == 6
    assert told(log, "node", "n3") == []
    assert told(log, "ticket", "t-3")[:2] == ["gang.queued", "gang.allocated"]
    assert told(log, "ticket", "t-3")[-4:] == ["actor.lost", "actor.lost", "gang.releasing", "gang.released"]
    assert told(log, "actor", "actor-1")[:3] == ["actor.launch_requested", "actor.started", "actor.exited"]
    client = told(log, "client", "bob-1")
    assert client[0] == "client.connected"
    assert client[-1] == "client.lost"
    assert "gang.refused" in client
    assert {h.ticket_id for h in held(log, "client", "bob-1")} == {"t-2", "t-3"}


@pytest.mark.parametrize("by", BY)
def test_gpu_time_is_exact(log: list[e.Recorded], by: By) -> None:
    ledger = Ledger(by, 0, END)
    assert {row.key: row.milli_ms for row in ledger.rows(PoolState(), log)} == USED[by]
    assert (ledger.total.milli_ms, ledger.total.tickets) == (ALL, 7)


def test_a_window_cuts_what_reaches_over_it(log: list[e.Recorded]) -> None:
    ledger = Ledger("ticket", START + 2 * HOUR, START + 4 * HOUR)
    found = {row.key: row.milli_ms for row in ledger.rows(PoolState(), log)}
    assert found == {"t-1": 2000 * (HOUR + 2), "t-2": 750 * 2 * HOUR, "t-3": 2000 * (HOUR - 3)}
    assert ledger.total.tickets == 3


def test_windows_side_by_side_add_up(log: list[e.Recorded]) -> None:
    total = 0
    for hour in range(15):
        ledger = Ledger("user", START + hour * HOUR, START + (hour + 1) * HOUR)
        list(ledger.rows(PoolState(), log))
        total += ledger.total.milli_ms
    assert total == ALL


@pytest.mark.parametrize("by", BY)
def test_a_trimmed_log_gives_the_same_from_where_it_begins(log: list[e.Recorded], by: By) -> None:
    for cut in range(2, len(log)):
        begin_ms, base = log[cut - 1].ms, PoolState()
        for recorded in log[:cut]:
            fold(base, recorded)
        trimmed, whole = Ledger(by, begin_ms, END), Ledger(by, begin_ms, END)
        rows = list(trimmed.rows(base, log[cut:]))
        assert sorted(rows, key=str) == sorted(whole.rows(PoolState(), log), key=str), cut
        assert trimmed.total == whole.total


def test_nothing_older_than_the_live_tickets_is_remembered(log: list[e.Recorded]) -> None:
    holdings = Holdings(PoolState())
    for recorded in log:
        holdings.take(recorded)
    assert [h.ticket_id for h in holdings.open()] == ["t-4", "t-7", "t-7"]
    assert len(holdings._tickets) == 2


def test_thousandths_and_milliseconds_are_not_rounded() -> None:
    assert Usage("x", 1).gpu_seconds == "0.000001"
    assert Usage("x", 10**15 + 1).gpu_seconds == "1000000000.000001"


def facts_at(log: list[e.Recorded], hour: float) -> Facts:
    state = PoolState()
    for recorded in log:
        if recorded.ms <= START + hour * HOUR:
            fold(state, recorded)
    return facts(state)


def test_what_changed_is_known(log: list[e.Recorded]) -> None:
    found = {(c.kind, c.name): c for c in changes(facts_at(log, 0.5), facts_at(log, 1.5))}
    assert found.keys() == {("node", "n1"), ("ticket", "t-2")}
    node, ticket = found["node", "n1"], found["ticket", "t-2"]
    assert node.before == {"gpus_free": [2, 3], "gpus_shared": {}, "tickets": ["t-1"]}
    assert node.after == {"gpus_free": [3], "gpus_shared": {"2": 0.25}, "tickets": ["t-1", "t-2"]}
    assert (ticket.change, ticket.after["state"], ticket.after["client"]) == ("added", "allocated", "bob-1")
    later = {(c.kind, c.name): c for c in changes(facts_at(log, 2.5), facts_at(log, 4.5))}
    assert (later["node", "n1"].before["state"], later["node", "n1"].after["state"]) == ("up", "lost")
    assert later["ticket", "t-3"].before["place_in_line"] == 1
    assert {c.name for c in later.values() if c.kind == "actor"} == {"t-1 rank 0", "t-1 rank 1"}


def test_the_changes_lead_from_any_moment_to_any_other(log: list[e.Recorded]) -> None:
    state, moments = PoolState(), [facts(PoolState())]
    for recorded in log:
        fold(state, recorded)
        moments.append(facts(state))
    for before in moments:
        for after in moments:
            led = {subject: dict(fields) for subject, fields in before.items()}
            for change in changes(before, after):
                if change.change == "removed":
                    assert led.pop((change.kind, change.name)) == change.before
                else:
                    led.setdefault((change.kind, change.name), {}).update(change.after)
            assert led == after


# --- the commands ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golden:
    """The golden log on a server, and in an archive."""

    url: str
    pool: str
    archive: Path

    def spoke(self, *words: str, offline: bool = False) -> Result:
        place = ("--archive", str(self.archive), "--offline") if offline else ("--url", self.url)
        env = {"SPOKE_URL": "", "SPOKE_POOL": "", "COLUMNS": "220"}
        result = CliRunner().invoke(app, ["audit", *words, "--pool", self.pool, *place], env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def lines(self, *words: str, offline: bool = False) -> list[dict[str, Any]]:
        result = self.spoke(*words, "--json", offline=offline)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def golden(shared_server: EmbeddedServer, pool: str, tmp_path: Path, log: list[e.Recorded]) -> Golden:
    keys = Keys(pool)
    with connect(shared_server.url) as redis:
        write_log(redis, keys.events, log)
        stored = EventLog(redis, keys.events, keys.snapshot)
        assert verify(stored).problems == []
        Archive(tmp_path, pool).write(stored)
    return Golden(shared_server.url, pool, tmp_path)


@pytest.mark.parametrize("offline", [False, True])
def test_history_is_shown(golden: Golden, offline: bool) -> None:
    found = golden.lines("history", "gpu", "n1:1", offline=offline)
    assert [(line["is"], line["ticket_id"], line["ms"]) for line in found] == [
        ("holding", "t-1", 3 * HOUR - 1),
        ("holding", "t-3", HOUR + 1),
        ("holding", "t-5", 3 * HOUR),
    ]
    text = golden.spoke("history", "gpu", "n1:1", offline=offline).stdout
    for words in ("t-1", "train", "alice", "2:59:59.999", "t-3", "node n1 was lost", "1:00:00.001"):
        assert words in text
    both = golden.spoke("history", "ticket", "t-2", offline=offline).stdout
    assert "gang.allocated" in both
    assert "0.25" in both
    since = golden.lines("history", "gpu", "n1:1", "--since", f"{START + 3 * HOUR + 2}-0", offline=offline)
    assert [line["ticket_id"] for line in since] == ["t-3", "t-5"]
    until = golden.lines("history", "gpu", "n1:1", "--until", f"{START + 4 * HOUR}", offline=offline)
    assert [(line["ticket_id"], line["end"]) for line in until] == [("t-1", until[0]["end"]), ("t-3", "")]
    assert until[1]["ms"] == HOUR - 3


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("by", BY)
def test_usage_is_shown(golden: Golden, by: str, offline: bool) -> None:
    words = ("usage", "--by", by, "--until", str(START + 5 * HOUR + 3))
    found = golden.lines(*words, offline=offline)
    assert sum(line["gpu_milli_ms"] for line in found) == T1 + T2 + T3
    table = csv.DictReader(io.StringIO(golden.spoke(*words, "--csv", offline=offline).stdout))
    assert {row[by]: row["gpu_milli_ms"] for row in table} == {line[by]: str(line["gpu_milli_ms"]) for line in found}
    shown = golden.spoke(*words, offline=offline).stdout
    assert "total: 11.000 GPU-hours of 3 tickets" in shown


def test_what_goes_on_counts_to_now_or_to_the_end_of_an_archive(golden: Golden) -> None:
    (live,) = (line for line in golden.lines("usage", "--by", "ticket") if line["ticket"] == "t-4")
    assert live["gpu_hours"] > 9
    (stored,) = (line for line in golden.lines("usage", "--by", "ticket", offline=True) if line["ticket"] == "t-4")
    assert stored["gpu_milli_ms"] == 1000 * (7 * HOUR + 7)


def test_what_cannot_be_answered_is_said(golden: Golden) -> None:
    assert "NODE:INDEX" in golden.spoke("history", "gpu", "n9").stderr
    assert golden.spoke("history", "planet", "n1").exit_code == 2
    assert golden.spoke("usage", "--by", "moon").exit_code == 2
    assert golden.spoke("usage", "--json", "--csv").exit_code == 2
    no_archive = CliRunner().invoke(app, ["audit", "usage", "--offline"])
    assert no_archive.exit_code == 2


def test_a_user_who_is_a_formula_is_none_in_a_spreadsheet() -> None:
    assert cell("=1+1") == "'=1+1"
    assert cell("alice") == "alice"
    assert cell(-1) == -1


@pytest.mark.parametrize("offline", [False, True])
def test_a_diff_is_shown(golden: Golden, offline: bool) -> None:
    moments = (str(START + HOUR // 2), str(START + 3 * HOUR // 2))
    result = golden.spoke("replay", "--diff", *moments, "--json", offline=offline)
    document = json.loads(result.stdout)
    assert document["events"] == {"gang.allocated": 1, "gang.refused": 1}
    assert [(c["kind"], c["name"], c["change"]) for c in document["changes"]] == [
        ("node", "n1", "changed"),
        ("ticket", "t-2", "added"),
    ]
    text = golden.spoke("replay", "--diff", *moments, offline=offline).stdout
    assert "2 events" in text
    assert "2=0.25" in text
    assert "nothing is different" in golden.spoke("replay", "--diff", moments[0], moments[0], offline=offline).stdout
    beginning = json.loads(golden.spoke("replay", "--diff", "1", moments[0], "--json", offline=offline).stdout)
    assert beginning["from"] == {"id": "0-0", "time": ""}
    back = golden.spoke("replay", "--diff", *reversed(moments), offline=offline)
    assert back.exit_code == 1
    assert golden.spoke("replay", "--diff", *moments, "--until", "5").exit_code == 2


def test_an_archive_alone_is_replayed(golden: Golden) -> None:
    words = ("replay", "--until", str(START + HOUR), "--json")
    live, stored = (json.loads(golden.spoke(*words, offline=offline).stdout) for offline in (False, True))
    assert live == stored
    assert live["last_id"] == f"{START + HOUR}-0"


@pytest.mark.parametrize("offline", [False, True])
def test_every_hour_is_as_it_was(golden: Golden, offline: bool) -> None:
    """GPUs free, live tickets, waiting tickets, half past each hour."""

    def at(hour: int) -> tuple[int, list[str], list[str]]:
        words = ("replay", "--until", str(START + hour * HOUR + HOUR // 2), "--json")
        document = json.loads(golden.spoke(*words, offline=offline).stdout)
        free = sum(len(node["gpus_free"]) for node in document["nodes"] if node["state"] == "up")
        live = [ticket["ticket_id"] for ticket in document["tickets"] if ticket["state"] != "queued"]
        return free, live, document["queue"]

    assert at(2) == (1, ["t-1", "t-2"], ["t-3"])
    assert at(4) == (0, ["t-2"], [])
    assert at(7) == (3, ["t-4", "t-5"], [])
    assert at(8) == (1, ["t-4", "t-5", "t-6"], [])
    assert at(9) == (0, ["t-4", "t-5", "t-6"], []), "a GPU is ill"
    assert at(11) == (1, ["t-4", "t-5", "t-7"], [])
    assert at(12) == (1, ["t-4", "t-5", "t-7"], [])
    assert at(13) == (5, ["t-4", "t-7"], [])


@pytest.mark.parametrize("offline", [False, True])
def test_the_whole_log_is_verified(golden: Golden, log: list[e.Recorded], offline: bool) -> None:
    document = json.loads(golden.spoke("verify", "--json", offline=offline).stdout)
    assert (document["ok"], document["events"], document["last_id"]) == (True, 70, log[-1].id)
    expected = {
        "gang.refused": 3,
        "ticket.preempting": 1,
        "gang.repaired": 1,
        "gpu.marked_unhealthy": 1,
        "node.lost": 1,
    }
    assert expected.items() <= document["counts"].items()


@pytest.mark.parametrize("offline", [False, True])
def test_all_events_are_exported_with_their_hashes(
    golden: Golden, log: list[e.Recorded], tmp_path: Path, offline: bool
) -> None:
    result = golden.spoke("export", offline=offline)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["id"], line["type"]) for line in found] == [(x.id, x.event.TYPE) for x in log]
    assert all(len(line["h"]) == 32 for line in found)
    assert f"{len(log)} events" in result.stderr
    file = tmp_path / "out.jsonl"
    assert golden.spoke("export", "-o", str(file), "--until", log[4].id, offline=offline).stdout == ""
    assert [json.loads(line) for line in file.read_text().splitlines()] == found[:5]


def test_an_export_that_fails_leaves_what_was_there(golden: Golden, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("as it was")
    (segment,) = Archive(golden.archive, golden.pool).segments()
    segment.write_bytes(segment.read_bytes()[:-100])
    result = CliRunner().invoke(
        app, ["audit", "export", "-o", str(file), "--archive", str(golden.archive), "--offline", "--pool", golden.pool]
    )
    assert result.exit_code == 1
    assert file.read_text() == "as it was"
    assert not list(tmp_path.glob("*.part"))


def test_an_event_of_the_future_is_exported_as_it_stands(golden: Golden) -> None:
    with connect(golden.url) as redis:
        redis.xadd(Keys(golden.pool).events, {"type": "gang.teleported", "v": 1, "to": "n7"})
    last = json.loads(golden.spoke("export").stdout.splitlines()[-1])
    assert (last["type"], last["to"]) == ("gang.teleported", "n7")
    assert "unknown type" in last["problem"]
    assert golden.spoke("usage").exit_code == 1, "what cannot be read cannot be counted"


def test_an_archive_is_read_up_to_the_end_of_a_millisecond(
    shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    keys = Keys(pool)
    with connect(shared_server.url) as redis:
        write_log(redis, keys.events, [e.Recorded(f"5-{n}", e.AllocatorElected("a", n + 1)) for n in range(3)])
        live = EventLog(redis, keys.events, keys.snapshot)
        archive = Archive(tmp_path, pool)
        archive.write(live)
        logs = (live, ArchivedLog(live, archive), StoredLog(archive))
        assert [log.replay("5").last_id for log in logs] == ["5-2"] * 3
        assert [log.replay("5-1").last_id for log in logs] == ["5-1"] * 3
        with pytest.raises(BadSegment, match="holds no segments"):
            StoredLog(Archive(tmp_path / "nowhere", pool))
