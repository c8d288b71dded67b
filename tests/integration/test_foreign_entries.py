"""What people write into a pool's streams by hand: the pool goes on, and says what it found."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from tenacity import wait_none
from typer.testing import CliRunner

import spoke as public
from spoke.agent.conversation import Outage
from spoke.agent.logs.server import _Intake
from spoke.allocator import service
from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from spoke.events import types as e
from spoke.events.archive import Archive
from spoke.events.archived import StoredLog
from spoke.events.audit import verify
from spoke.events.chain import hash_of, link_of
from spoke.events.codec import encode_event
from spoke.events.ids import ms_of
from spoke.events.log import EventLog
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.logs import Asked, ReadLogs, encode_ask
from spoke.protocol.server import Redis, connect
from tests.builders import gang
from tests.fakes import eventually
from tests.integration.test_allocator_log import Asker, allocator, register


@pytest.fixture
def redis(server: EmbeddedServer) -> Iterator[Redis]:
    with connect(server.url) as client:
        yield client


def log_of(redis: Redis, pool: str) -> EventLog:
    keys = Keys(pool)
    return EventLog(redis, keys.events, keys.snapshot)


def struck(redis: Redis, pool: str) -> list[e.LogEntryStruck]:
    return [one.event for one in log_of(redis, pool).read() if isinstance(one.event, e.LogEntryStruck)]


@contextlib.contextmanager
def helpless(server: EmbeddedServer, pool: str) -> Iterator[Allocator]:
    """An allocator that need not get to lead."""
    made = Allocator(AllocatorConfig(server.url, pool))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join(20)
        assert not thread.is_alive(), "it goes on trying, and can be stopped"


def spoke(server: EmbeddedServer, pool: str, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*words, "--url", server.url, "--pool", pool], env={"COLUMNS": "400"})
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "fields",
    [
        {"hello": "world"},
        {"type": "gang.teleported", "v": "1"},
        {b"\xff\x00": b"\xfe" * 100_000},
        {"type": "x", "h": "no hash"},
    ],
    ids=["garbage", "unknown", "bytes", "bad hash"],
)
def test_an_entry_that_no_allocator_wrote_is_taken_out_and_that_is_recorded(
    server: EmbeddedServer, redis: Redis, pool: str, fields: dict[str | bytes, str | bytes], tmp_path: Path
) -> None:
    keys = Keys(pool)
    with allocator(server.url, pool):
        register(redis, keys, "n1")
        asker = Asker(redis, keys)
        assert isinstance(asker.ask(r.AllocateGang(gang(), 0)), p.Granted)
        foreign = redis.xadd(keys.events, fields).decode()  # type: ignore[arg-type, union-attr]
        assert isinstance(asker.ask(r.AllocateGang(gang(), 0)), p.Granted)
        (found,) = struck(redis, pool)
        assert (found.entry, found.by) == (foreign, "")
        assert len(found.said) <= 2_002
        assert all(name in found.said for name in fields if isinstance(name, str))
    assert not redis.xrange(keys.events, min=foreign, max=foreign)
    assert verify(log_of(redis, pool)).problems == []
    archive = Archive(tmp_path, pool)
    archive.write(log_of(redis, pool))
    assert verify(StoredLog(archive)).problems == []


def test_a_forged_event_without_a_hash_changes_nothing(server: EmbeddedServer, redis: Redis, pool: str) -> None:
    keys = Keys(pool)
    with allocator(server.url, pool):
        register(redis, keys, "n1")
        asker = Asker(redis, keys)
        granted = asker.ask(r.AllocateGang(gang(1, 4), 0))
        assert isinstance(granted, p.Granted)
        forged = e.GangReleased(granted.ticket_id, ("n1",), final=True)
        redis.xadd(keys.events, encode_event(forged))  # type: ignore[arg-type]
        assert isinstance(asker.ask(r.AllocateGang(gang(1, 4), 0)), p.Failed), "the GPUs are still held"
    assert len(struck(redis, pool)) == 1
    assert granted.ticket_id in log_of(redis, pool).recover().tickets


def test_a_first_entry_that_is_no_event_is_taken_out(server: EmbeddedServer, redis: Redis, pool: str) -> None:
    redis.xadd(Keys(pool).events, {"hello": "world"})
    with allocator(server.url, pool):
        assert isinstance(Asker(redis, Keys(pool)).ask(r.AllocateGang(gang(), 0)), p.Failed)
    assert [one.said for one in struck(redis, pool)] == ['{"hello":"world"}']
    assert verify(log_of(redis, pool)).problems == []


def test_what_may_be_an_event_stops_the_pool_until_an_operator_has_said_so(
    server: EmbeddedServer, redis: Redis, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(pool)
    with allocator(server.url, pool):
        register(redis, keys, "n1")
    foreign = redis.xadd(keys.events, {"type": "gang.teleported", "v": "1", "h": "0" * 32}).decode()  # type: ignore[union-attr]
    with caplog.at_level(logging.INFO), helpless(server, pool) as made:
        eventually(lambda: foreign in caplog.text)
        assert f"redis-cli XRANGE '{keys.events}' {foreign} {foreign}" in caplog.text
        assert f"spoke audit strike {foreign}" in caplog.text
        code, said = spoke(server, pool, "doctor", "--json")
        assert code == 1
        assert f"spoke audit strike {foreign}" in said
        code, said = spoke(server, pool, "audit", "verify")
        assert code == 1
        assert f"first at event {foreign}" in said
        assert f"spoke audit strike {foreign}" in said
        assert redis.hget(keys.leader, "deadline") == b"0", "another release may lead meanwhile"
        code, said = spoke(server, pool, "audit", "strike", foreign, "--reason", "bob's typo")
        assert code == 0, said
        assert made.leading.wait(20)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert sum("the log cannot be taken up" in record.getMessage() for record in warnings) == 1, "said once"
    (found,) = struck(redis, pool)
    assert (found.entry, found.reason) == (foreign, "bob's typo")
    assert found.by
    assert verify(log_of(redis, pool)).problems == []
    assert not redis.hexists(keys.snapshot, "strike")
    assert "bob's typo" in spoke(server, pool, "log")[1]


def test_what_an_allocator_wrote_is_not_struck(server: EmbeddedServer, redis: Redis, pool: str) -> None:
    """An event of a later release, say: the hash tells that it is one."""
    keys = Keys(pool)
    with allocator(server.url, pool):
        register(redis, keys, "n1")
    log = log_of(redis, pool)
    code, said = spoke(server, pool, "audit", "strike", log.last_id(), "--reason", "I do not like it")
    assert code == 1
    assert "nothing in it needs to be taken out" in said
    before = hash_of(log.tail(1)[0][1])
    h = link_of(before, later := "99999999999999-0", ["type", "gang.teleported", "v", "1"])
    redis.xadd(keys.events, {"type": "gang.teleported", "v": "1", "h": h}, id=later)
    code, said = spoke(server, pool, "audit", "strike", later, "--reason", "what is it?")
    assert code == 1
    assert "an allocator wrote" in said
    with helpless(server, pool) as made:
        assert not made.leading.wait(0.5)
    assert log.last_id() == later, "and nothing came after it"


def test_an_entry_from_the_future_is_not_passed_over_silently(
    server: EmbeddedServer, redis: Redis, pool: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Whatever comes after it in the stream would have to lie in the future, too."""
    keys = Keys(pool)
    with allocator(server.url, pool):
        register(redis, keys, "n1")
    last = "18446744073709551615-18446744073709551615"
    redis.xadd(keys.events, {"hello": "world"}, id=last)
    with helpless(server, pool):
        eventually(lambda: "lies in the future" in caplog.text)
    code, said = spoke(server, pool, "doctor", "--json")
    assert code == 1
    assert "lies in the future" in said
    code, said = spoke(server, pool, "audit", "archive", str(tmp_path))  # and the way on
    assert code == 0, said
    code, said = spoke(server, f"{pool}-anew", "audit", "restore", str(tmp_path), "--from", pool)
    assert code == 0, said
    with allocator(server.url, f"{pool}-anew"):
        assert verify(log_of(redis, f"{pool}-anew")).problems == []


def test_doctor_names_what_no_allocator_has_taken_out_yet(server: EmbeddedServer, redis: Redis, pool: str) -> None:
    keys = Keys(pool)
    with allocator(server.url, pool):
        register(redis, keys, "n1")
    foreign = redis.xadd(keys.events, {"hello": "world"}).decode()  # type: ignore[union-attr]
    _, said = spoke(server, pool, "doctor", "--json")
    (found,) = [one for one in orjson.loads(said) if one["check"] == "log"]
    assert foreign in found["found"]
    assert found["level"] == "warning"


def test_terms_that_end_as_soon_as_they_begin_come_slowly_and_are_told_a_few_times(
    server: EmbeddedServer, redis: Redis, pool: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inbox is not a stream any more: each term begins with an event in the log, and fails when it reads."""
    monkeypatch.setattr(service, "_SOON", wait_none())
    keys = Keys(pool)
    with caplog.at_level(logging.INFO), helpless(server, pool) as made:
        assert made.leading.wait(20)
        redis.delete(keys.requests)
        redis.set(keys.requests, "a slip")
        eventually(lambda: made._short_terms > service.SHORT_TERMS_SOON - 1)
        elected = sum(isinstance(one.event, e.AllocatorElected) for one in log_of(redis, pool).read())
        assert not made._stop.wait(1.5), "no further one within a second and a half"
        assert sum(isinstance(one.event, e.AllocatorElected) for one in log_of(redis, pool).read()) == elected
        told = [record.getMessage() for record in caplog.records]
        assert sum("WRONGTYPE" in line for line in told) <= service.SHORT_TERMS_TOLD + 1
        assert sum("leading pool" in line for line in told) <= service.SHORT_TERMS_TOLD + 1


LAST = 2**64 - 1


@pytest.mark.parametrize("entry_id", [f"{LAST}-{LAST}", f"{LAST}-0", "99999999999999-0"])
def test_a_request_that_uses_up_the_ids_of_the_inbox_does_not_keep_others_out(
    server: EmbeddedServer, redis: Redis, pool: str, entry_id: str
) -> None:
    keys = Keys(pool)
    with allocator(server.url, pool), public.Client(server.url, pool=pool) as client:
        register(redis, keys, "n1")
        for _ in range(3):
            redis.xadd(keys.requests, {"hello": "world"}, id=entry_id)
            waiting = [client.gang_allocate(1, 1, timeout=0) for _ in range(4)]
            assert all(one.result(20).release().result(20) for one in waiting)
            eventually(lambda: ms_of(redis.hget(keys.leader, "cursor").decode()) < 9e13)  # type: ignore[union-attr]
    assert verify(log_of(redis, pool)).problems == []


def test_an_ask_for_output_that_uses_up_the_ids_does_not_keep_others_from_asking(
    server: EmbeddedServer, redis: Redis, pool: str
) -> None:
    keys = Keys(pool)
    asks: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
    intake = _Intake(server.url, keys, "n1", Outage(server.url), asks)
    intake.start()
    try:
        redis.xadd(keys.logs("n1"), {"hello": "world"}, id=f"{LAST}-{LAST}")
        eventually(lambda: not redis.exists(keys.logs("n1")))
        redis.xadd(keys.logs("n1"), encode_ask(ReadLogs("t-1"), "r-1", 1, opens=b"", pool=pool, node_id="n1"))  # type: ignore[arg-type]
        found = asks.get(timeout=20)
        assert found is not None
        assert found.seq == 1
    finally:
        intake.stop()
