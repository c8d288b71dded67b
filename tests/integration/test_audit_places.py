"""Every audit command on a pool at work, on a read-only replica of its server, and on archived files with no server."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from spoke.events.log import EventLog
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.builders import gang
from tests.fakes import eventually
from tests.integration.test_allocator_log import Asker, allocator, register

GRANTED = 6


@dataclass
class Place:
    """Where the commands read, and the pool's last event when they begin."""

    words: tuple[str, ...]
    folder: Path
    last_id: str
    answers: dict[str, str] = field(default_factory=dict)

    def spoke(self, *words: str, code: int = 0) -> str:
        env = {"SPOKE_URL": "", "SPOKE_POOL": "", "COLUMNS": "200"}
        result = CliRunner().invoke(app, [*words, *self.words], env=env)
        assert result.exit_code == code, f"{words}: {result.output}"
        return result.stdout

    def told(self, *words: str) -> str:
        """The answer up to that event: it is the same everywhere."""
        answer = self.spoke(*words, "--until", self.last_id)
        self.answers[" ".join(words)] = answer
        return answer


@contextmanager
def working(url: str, pool: str) -> Iterator[str]:
    """A pool with its allocator at work; the id of its last event."""
    keys = Keys(pool)
    with allocator(url, pool), connect(url) as redis:
        register(redis, keys, "n1")
        asker = Asker(redis, keys)
        for at in range(GRANTED):
            granted = asker.ask(r.AllocateGang(gang(1, 2), 0))
            assert isinstance(granted, p.Granted)
            if at < GRANTED - 1:
                assert asker.ask(r.ReleaseGang(granted.ticket_id)) == p.Done(True)
        refused = asker.ask(r.AllocateGang(gang(1, 4), 0))
        assert isinstance(refused, p.Failed)
        yield EventLog(redis, keys.events, keys.snapshot).last_id()


def walk(place: Place) -> dict[str, str]:
    """Ask everything that can be asked; what was answered."""
    verified = json.loads(place.spoke("audit", "verify", "--json"))
    assert verified["ok"]
    assert verified["counts"]["gang.allocated"] == GRANTED
    state = json.loads(place.told("audit", "replay", "--json"))
    assert [ticket["ticket_id"] for ticket in state["tickets"]] == [f"t-{GRANTED}"]
    diff = json.loads(place.spoke("audit", "replay", "--diff", "1", place.last_id, "--json"))
    assert diff["events"]["gang.released"] == GRANTED - 1
    for kind, name, least in (("gpu", "n1:0", 1), ("node", "n1", 10), ("ticket", "t-1", 3), ("client", "asker", 10)):
        lines = place.told("audit", "history", kind, name, "--json").splitlines()
        assert len(lines) >= least
    assert place.told("audit", "history", "actor", "nobody", "--json") == ""
    for by in ("user", "project", "node", "ticket"):
        rows = list(csv.DictReader(place.told("audit", "usage", "--by", by, "--csv").splitlines()))
        assert sum(int(row["gpu_milli_ms"]) for row in rows) > 0
    exported = place.told("audit", "export").splitlines()
    assert json.loads(exported[-1])["id"] == place.last_id
    file = place.folder / "events.parquet"
    place.told("audit", "export", "-o", str(file))
    assert pq.read_table(file).num_rows == len(exported)
    sql = "SELECT count(*) AS n FROM events WHERE type = 'gang.allocated'"
    assert json.loads(place.told("audit", "query", sql, "--json")) == {"n": GRANTED}
    tried = json.loads(place.told("audit", "what-if", "--json"))
    assert (tried["first_difference"], tried["happened"]["granted"]) == ("", GRANTED)
    place.told("audit", "what-if", "--policy", "fair,stranding", "--no-backfill")
    for kind, begin in (("html", "<!doctype html>"), ("svg", "<svg "), ("png", "")):
        chart = place.folder / f"chart.{kind}"
        place.told("timeline", "-o", str(chart))
        assert chart.read_bytes().startswith(begin.encode())
        chart.unlink()
    return place.answers


@pytest.fixture
def replica(shared_server: EmbeddedServer, tmp_path: Path) -> Iterator[EmbeddedServer]:
    primary = urlsplit(shared_server.url)
    with EmbeddedServer(tmp_path / "replica") as server, connect(server.url) as redis:
        redis.replicaof(str(primary.hostname), str(primary.port))
        eventually(lambda: redis.info("replication")["master_link_status"] == "up", "the replica follows", 30)
        yield server
        redis.replicaof("NO", "ONE")


def test_all_commands_on_a_pool_at_work(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    with working(shared_server.url, pool) as last_id:
        place = Place(("--url", shared_server.url, "--pool", pool), tmp_path, last_id)
        walk(place)
        place.spoke("audit", "archive", str(tmp_path / "archive"))
        both = Place((*place.words, "--archive", str(tmp_path / "archive")), tmp_path, last_id)
        assert walk(both) == place.answers
        place.spoke("audit", "restore", str(tmp_path / "archive"), code=1)  # this pool is not empty
        anew = Place(("--url", shared_server.url, "--pool", f"{pool}-anew"), tmp_path, last_id)
        anew.spoke("audit", "restore", str(tmp_path / "archive"), "--from", pool)
        assert json.loads(anew.spoke("audit", "verify", "--json"))["ok"]


def test_all_commands_on_a_replica(
    shared_server: EmbeddedServer, replica: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    with working(shared_server.url, pool) as last_id, connect(replica.url) as redis:
        keys = Keys(pool)
        eventually(lambda: EventLog(redis, keys.events, keys.snapshot).last_id() >= last_id, "it has all", 30)
        place = Place(("--url", replica.url, "--pool", pool), tmp_path, last_id)
        primary = Place(("--url", shared_server.url, "--pool", pool), tmp_path, last_id)
        assert walk(place) == walk(primary)
        place.spoke("audit", "archive", str(tmp_path / "archive"))
        assert redis.hget(keys.snapshot, "archived") is None, "the primary was not told"
        place.spoke("audit", "restore", str(tmp_path / "archive"), "--from", pool, code=1)


def test_all_commands_on_an_archive_with_no_server(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    with working(shared_server.url, pool) as last_id:
        live = Place(("--url", shared_server.url, "--pool", pool), tmp_path, last_id)
        live.spoke("audit", "archive", str(tmp_path / "archive"))
        answers = walk(live)
    stored = Place(("--archive", str(tmp_path / "archive"), "--offline", "--pool", pool), tmp_path, last_id)
    assert walk(stored) == answers
