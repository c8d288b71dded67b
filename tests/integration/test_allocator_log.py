"""The allocator on a real server: recovery, snapshots, trimming, views, and a log that was tampered with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson
import pytest

from spoke.allocator import views
from spoke.allocator.leases import LEASE_MS_MAX
from spoke.allocator.limits import Limits
from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.cli.embedded import EmbeddedServer
from spoke.events import types as e
from spoke.events.audit import verify
from spoke.events.codec import encode_event
from spoke.events.log import EventLog
from spoke.events.model import ActorSpec, Member
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect, read_stream
from tests.builders import gang, node_spec

WAIT_S = 20.0


@contextmanager
def allocator(url: str, pool: str, **options: int) -> Iterator[Allocator]:
    made = Allocator(AllocatorConfig(url, pool, **options))  # type: ignore[arg-type]
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        assert made.leading.wait(WAIT_S)
        yield made
    finally:
        made.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


class Asker:
    """A client by hand: requests in, answers out."""

    def __init__(self, redis: Redis, keys: Keys, client_id: str = "asker") -> None:
        self._redis, self._keys, self._client_id, self._seq, self._last = redis, keys, client_id, 0, "0-0"
        self.ask(r.ConnectClient(3_600_000))

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def ask(self, request: r.Request) -> p.Message:
        return self.answer_to(self.send(request))

    def send(self, request: r.Request) -> int:
        seq = self.next_seq()
        fields = r.encode_request(r.Envelope(request, self._client_id, seq))
        for _ in range(2):  # twice, as a client that is not sure would
            self._redis.xadd(self._keys.requests, fields)  # type: ignore[arg-type]
        return seq

    def answer_to(self, asked: int) -> p.Message:
        return self.answers_to([asked])[0]

    def answers_to(self, asked: list[int]) -> list[p.Message]:
        """The answers to all of these; each once, and none to anything else."""
        deadline, key = time.monotonic() + WAIT_S, self._keys.reply(self._client_id)
        found: dict[int, p.Message] = {}
        while len(found) < len(asked):
            for entry_id, raw in read_stream(self._redis, key, self._last, block_ms=500):
                self._last = entry_id.decode()
                for field, told in raw.items():
                    seq, message = int(field), p.decode_message(told)
                    if seq:
                        assert seq in asked, f"request {seq} was answered twice: {message}"
                        assert seq not in found, f"request {seq} was answered twice: {message}"
                        found[seq] = message
            assert time.monotonic() < deadline
        return [found[seq] for seq in asked]


def register(redis: Redis, keys: Keys, node_id: str) -> None:
    asked = r.Envelope(r.RegisterNode(node_spec(node_id), 3_600_000), node_id=node_id, incarnation="i")
    redis.xadd(keys.requests, r.encode_request(asked))  # type: ignore[arg-type]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_snapshots_trimming_and_recovery(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    log = EventLog(redis, keys.events, keys.snapshot)
    options = {"snapshot_every": 50, "keep_events": 120}
    with allocator(shared_server.url, pool, **options):
        register(redis, keys, "n1")
        asker = Asker(redis, keys)
        for _ in range(120):
            granted = asker.ask(r.AllocateGang(gang(), 0))
            assert isinstance(granted, p.Granted)
            assert asker.ask(r.ReleaseGang(granted.ticket_id)) == p.Done(True)
        assert redis.xlen(keys.events) < 300, "the log is trimmed behind a snapshot"
        report = verify(log)
        assert report.problems == []
        assert log.recover() == log.replay()
    with allocator(shared_server.url, pool, **options):
        granted = asker.ask(r.AllocateGang(gang(), 0))
        assert isinstance(granted, p.Granted)
        assert granted.ticket_id == "t-121", "the number of a ticket is never given out again"
        until(lambda: redis.hexists(keys.tickets, "t-121"))
        assert orjson.loads(redis.hget(keys.nodes, "n1"))["tickets"] == ["t-121"]  # type: ignore[arg-type]
    assert verify(log).ok
    redis.close()


def test_the_views_of_the_newest_tickets_outlive_them_and_older_ones_are_deleted(
    shared_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "ENDED_TICKETS_KEPT", 3)
    redis, keys = connect(shared_server.url), Keys(pool)

    def state_of(ticket_id: str) -> bytes | None:
        return redis.hget(keys.ticket(ticket_id), "state")  # type: ignore[return-value]

    with allocator(shared_server.url, pool):
        register(redis, keys, "n1")
        asker, tickets = Asker(redis, keys), []
        for _ in range(5):
            granted = asker.ask(r.AllocateGang(gang(), 0))
            assert isinstance(granted, p.Granted)
            tickets.append(granted.ticket_id)
            until(lambda: state_of(tickets[-1]) == b"allocated")
            assert asker.ask(r.ReleaseGang(granted.ticket_id)) == p.Done(True)
            until(lambda: state_of(tickets[-1]) == b"ended")
        assert [state_of(ticket) for ticket in tickets] == [None, None, b"ended", b"ended", b"ended"]
    redis.close()


def test_garbage_in_the_inbox_is_recorded_and_stops_nothing(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    with allocator(shared_server.url, pool):
        redis.xadd(keys.requests, {"hello": "world"})
        redis.xadd(keys.requests, {"type": "gang.allocate", "v": "99", "client_id": "x", "seq": "1"})
        redis.xadd(keys.requests, {"type": "gang.allocate", "v": "1", "client_id": "x", "seq": "2", "body": "{"})
        asker = Asker(redis, keys)
        refused = asker.ask(r.AllocateGang(gang(), 0))
        assert isinstance(refused, p.Failed)
    report = verify(EventLog(redis, keys.events, keys.snapshot))
    assert report.ok
    assert report.counts["request.refused"] == 3
    redis.close()


def test_verify_finds_what_no_allocator_would_write(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    log = EventLog(redis, keys.events, keys.snapshot)
    with allocator(shared_server.url, pool):
        register(redis, keys, "n1")
        granted = Asker(redis, keys).ask(r.AllocateGang(gang(), 0))
        assert isinstance(granted, p.Granted)
    assert verify(log).ok
    forged = e.GangAllocated("t-2", "asker", 9, gang(), granted.slots, "127.0.0.1", 0, "pack/1")
    redis.xadd(keys.events, encode_event(forged))  # type: ignore[arg-type]
    report = verify(log)
    assert not report.ok
    assert any("handed out twice" in problem for problem in report.problems)
    redis.delete(keys.snapshot)
    redis.close()


def test_an_event_of_a_newer_release_is_a_clear_error(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    redis.xadd(keys.events, {"type": "gang.teleported", "v": "1"})
    report = verify(EventLog(redis, keys.events, keys.snapshot))
    assert not report.ok
    assert "unknown type 'gang.teleported'" in report.problems[0]
    assert [fields for _, fields in EventLog(redis, keys.events, keys.snapshot).raw()] == [
        {b"type": b"gang.teleported", b"v": b"1"}
    ]
    redis.close()


def test_the_view_of_an_ended_ticket_tells_how_its_actors_ended(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    with allocator(shared_server.url, pool):
        register(redis, keys, "n1")
        asker = Asker(redis, keys)
        ticket = asker.ask(r.AllocateGang(gang(), 0)).ticket_id  # type: ignore[attr-defined]
        launch = r.Envelope(r.LaunchActors(ticket, ActorSpec("Worker"), (Member(0, "w"),)), "asker", asker.next_seq())
        redis.xadd(keys.requests, r.encode_request(launch))  # type: ignore[arg-type]
        until(lambda: b"launching" in (redis.hget(keys.ticket(ticket), "rank.0") or b""))  # type: ignore[operator]
        launch_id = next(i.decode() for i, f in redis.xrange(keys.events) if f[b"type"] == b"actor.launch_requested")  # type: ignore[union-attr]
        asker.send(r.ReleaseGang(ticket))
        for report in (r.ReportStarted(ticket, 0, launch_id, 7), r.ReportExited(ticket, 0, launch_id, -1, 15)):
            fields = r.encode_request(r.Envelope(report, node_id="n1", incarnation="i"))
            redis.xadd(keys.requests, fields)  # type: ignore[arg-type]
        until(lambda: redis.hget(keys.ticket(ticket), "state") == b"ended")
        assert orjson.loads(redis.hget(keys.ticket(ticket), "rank.0"))["signal"] == 15  # type: ignore[arg-type]
        assert not redis.hexists(keys.tickets, ticket)
    redis.close()


def test_a_flooding_client_does_not_stop_the_others(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    with allocator(shared_server.url, pool, limits=Limits(client_outstanding=500)):  # type: ignore[arg-type]
        register(redis, keys, "n1")
        asker = Asker(redis, keys)
        flood = [r.Envelope(r.ConnectClient(60_000), "loud", 1)]
        flood += [r.Envelope(r.ReleaseGang("t-1"), "loud", seq) for seq in range(2, 20_000)]
        with redis.pipeline(transaction=False) as pipe:
            for asked in flood:
                pipe.xadd(keys.requests, r.encode_request(asked))  # type: ignore[arg-type]
            pipe.execute()
        granted = asker.ask(r.AllocateGang(gang(), 0))
        assert isinstance(granted, p.Granted)
        assert asker.ask(r.ReleaseGang(granted.ticket_id)) == p.Done(True)
        until(lambda: redis.xlen(keys.requests) <= 1)
        found = [event.event for event in EventLog(redis, keys.events, keys.snapshot).read()]
        lost = [event for event in found if isinstance(event, e.ClientLost)]
        assert [event.client_id for event in lost] == ["loud"]
        assert "without waiting for answers" in lost[0].reason
        assert len(found) < 5_000, "what is dropped leaves no event each"
    assert verify(EventLog(redis, keys.events, keys.snapshot)).problems == []
    redis.close()


def test_replies_outlive_the_lease_and_go_when_the_session_is_over(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    with allocator(shared_server.url, pool):
        asker = Asker(redis, keys)
        ttl = redis.ttl(keys.reply("asker"))
        assert isinstance(ttl, int)
        assert ttl * 1000 > LEASE_MS_MAX, "a client that was away for as long as its lease allows finds its replies"
        asker.ask(r.CloseClient())
        assert 0 < redis.ttl(keys.reply("asker")) <= 3_600  # type: ignore[operator]
    redis.close()


def test_a_request_answered_while_its_client_was_away_is_found_later(shared_server: EmbeddedServer, pool: str) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)
    with allocator(shared_server.url, pool, snapshot_every=20, keep_events=40):
        register(redis, keys, "n1")
        away = Asker(redis, keys, "away")
        seq = away.send(r.AllocateGang(gang(), 0))
        asker = Asker(redis, keys)
        for _ in range(100):  # the log is trimmed far beyond that request
            asker.ask(r.CancelGang(9_999))
        log = EventLog(redis, keys.events, keys.snapshot)
        until(lambda: log.base().last_id != "0-0")
        assert isinstance(away.answer_to(seq), p.Granted)
    redis.close()


def test_every_end_of_a_term_is_logged_once_with_its_reason(
    shared_server: EmbeddedServer, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis, keys = connect(shared_server.url), Keys(pool)

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    with caplog.at_level("INFO", "spoke.allocator"), allocator(shared_server.url, pool):
        redis.delete(keys.leader)
        until(lambda: said("FENCED held by nobody") == 1 and said("leading pool") == 2)
        redis.delete(keys.leases)
        redis.set(keys.leases, "a slip of the operator's")
        until(lambda: said("WRONGTYPE"))
        epoch = int(redis.hget(keys.leader, "epoch") or 0)  # type: ignore[arg-type]
        until(lambda: int(redis.hget(keys.leader, "epoch") or 0) > epoch + 1)  # type: ignore[arg-type]
        assert said("WRONGTYPE") == 1, "once, however often it tries"
        redis.delete(keys.leases)
        until(lambda: said("leading pool") == 3)
        redis.delete(keys.leader)
        until(lambda: said("FENCED held by nobody") == 2)
    redis.close()


def test_a_standby_says_for_whom_it_stands_by(
    shared_server: EmbeddedServer, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "spoke.allocator"), allocator(shared_server.url, pool):
        redis = connect(shared_server.url)
        holder = (redis.hget(Keys(pool).leader, "holder") or b"").decode()  # type: ignore[union-attr]
        redis.close()
        standby = Allocator(AllocatorConfig(shared_server.url, pool))
        thread = threading.Thread(target=standby.run, daemon=True)
        thread.start()
        text = f"standing by in pool {pool} at {shared_server.url}: {holder} leads"
        until(lambda: any(record.getMessage() == text for record in caplog.records))
        standby.stop()
        thread.join(WAIT_S)


def test_after_a_clean_stop_a_standby_leads_at_once(shared_server: EmbeddedServer, pool: str) -> None:
    with allocator(shared_server.url, pool, leader_ms=600_000) as first:
        standby = Allocator(AllocatorConfig(shared_server.url, pool, leader_ms=600_000))
        thread = threading.Thread(target=standby.run, daemon=True)
        thread.start()
        try:
            assert not standby.leading.wait(0.3)
            first.stop()
            assert standby.leading.wait(WAIT_S), "it need not wait for the lease to run out"
        finally:
            standby.stop()
            thread.join(WAIT_S)
    assert not thread.is_alive()
