"""Reading actors' output through their agents, on a real server with real agents and actors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.client import logs as client_logs
from spoke.client.logs import Begin, Feed, LogReader
from spoke.client.output import TicketOutput
from spoke.errors import Forbidden, LogsUnavailable, UnknownTicket
from spoke.protocol import requests as r
from spoke.protocol.identity import issue, new_master, read_masters
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.daemons import Daemons
from tests.fakes import eventually
from tests.integration.agent_harness import Pool, pool_at, shell, wait_until

T_S = 40


@pytest.fixture
def allocator(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Pool]:
    with pool_at(shared_server.url, pool, tmp_path) as played:
        yield played


@pytest.fixture
def reader(allocator: Pool) -> Iterator[LogReader]:
    with contextlib.closing(LogReader(allocator.url, allocator.name)) as made:
        yield made


def text_of(feed: Feed, done: Callable[[bytes], bool], limit_s: float = T_S) -> bytes:
    """What the feed brings until the test is content."""
    found, until_s = b"", time.monotonic() + limit_s
    while not done(found):
        found += b"".join(chunk.data for chunk in feed.read(2.0, 2.0))
        assert time.monotonic() < until_s, found[-1000:]
    return found


def test_output_is_followed_while_it_grows(allocator: Pool, reader: LogReader, tmp_path: Path) -> None:
    allocator.join()
    start = allocator.start(shell(f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo two"))
    feed = Feed(reader, start.ticket_id)
    feed.add("n0", start.rank, start.actor_id, Begin())
    assert text_of(feed, lambda text: b"one" in text) == b"one\n"
    (tmp_path / "go").touch()
    assert text_of(feed, lambda text: b"two" in text) == b"two\n"
    allocator.report(start, r.ReportExited)
    feed.hurry()
    while feed.behind():
        assert feed.read(0.0, 0.0) == []


def test_a_follower_has_a_line_within_moments(allocator: Pool, reader: LogReader, tmp_path: Path) -> None:
    allocator.join()
    start = allocator.start(shell("while :; do date +%s.%N; sleep 0.2; done"))
    feed = Feed(reader, start.ticket_id)
    feed.add("n0", start.rank, start.actor_id, Begin(tail=0))
    delays = []
    while len(delays) < 10:
        for chunk in feed.read(2.0, 2.0):
            delays += [time.time() - float(line) for line in chunk.data.splitlines()]
    assert sorted(delays)[5] < 0.5, delays


def test_while_nobody_reads_nothing_flows(allocator: Pool, reader: LogReader) -> None:
    allocator.join()
    start = allocator.start(shell("seq 100000; exec sleep 600"))
    allocator.report(start, r.ReportStarted)
    log = allocator.log_of(start)
    wait_until(lambda: log.exists() and log.stat().st_size > 500_000, "the output")
    assert list(allocator.client.scan_iter(match=f"spoke:{{{allocator.name}}}:logs*")) == []
    found, silent = reader.files(start.ticket_id, ["n0"])
    assert silent == []
    assert [one.end for one in found["n0"]] == [588_895]
    (reply,) = allocator.client.scan_iter(match=allocator.keys.logs_reply("*", "n0"))
    assert 0 < allocator.client.pttl(reply) <= 60_000, "what is not read goes by itself"  # type: ignore[operator]
    assert allocator.client.xlen(allocator.keys.logs("n0")) == 0, "what was asked is deleted"


def test_a_large_output_comes_whole_in_bounded_pieces(allocator: Pool, reader: LogReader) -> None:
    allocator.join()
    start = allocator.start(shell("seq 300000"))
    allocator.report(start, r.ReportExited)
    feed = Feed(reader, start.ticket_id)
    feed.add("n0", start.rank, start.actor_id, Begin())
    expected = b"".join(b"%d\n" % number for number in range(1, 300_001))
    assert text_of(feed, lambda text: len(text) >= len(expected)) == expected


def test_an_agent_that_is_gone_is_told_within_its_time(
    allocator: Pool, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_logs, "ANSWER_S", 0.5)
    agent = allocator.join()
    agent.kill()
    agent.wait()
    began_s = time.monotonic()
    found, (silent,) = reader.files("t1", ["n0"])
    assert found == {}
    assert isinstance(silent.error, LogsUnavailable)
    assert "agent of node n0" in str(silent.error)
    assert time.monotonic() - began_s < 5.0


def test_asks_that_make_no_sense_do_not_disturb_the_agent(allocator: Pool, reader: LogReader) -> None:
    allocator.join()
    for fields in ({"x": "y"}, {"v": 1, "reader": "../..", "seq": 1, "body": "{}"}, {"v": 1, "body": b"\xff"}):
        allocator.client.xadd(allocator.keys.logs("n0"), fields)  # type: ignore[arg-type]
    found, silent = reader.files("t1", ["n0"])
    assert (found, silent) == ({"n0": ()}, [])


# --- a whole pool -----------------------------------------------------------------------------------------------------


@pytest.fixture
def daemons(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Daemons]:
    with Daemons(tmp_path, pool) as started:
        yield started


@pytest.fixture
def redis(shared_server: EmbeddedServer) -> Iterator[Redis]:
    with contextlib.closing(connect(shared_server.url)) as made:
        yield made


def output_of(redis: Redis, url: str, pool: str, ticket_id: str, *, key: Any = None, **words: Any) -> list[str]:
    with contextlib.closing(LogReader(url, pool, key)) as reader:
        found = TicketOutput(redis, Keys(pool), reader, ticket_id, **words)
        return [f"{line.rank} {line.data.decode()}" for line in found.lines()]


def wait_for_node(client: spoke.Client) -> None:
    eventually(lambda: any(node.state == "up" for node in client.status().nodes), "a node", T_S)


def test_the_output_of_a_ticket_is_there_after_its_release_and_after_its_view(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, redis: Redis
) -> None:
    url = shared_server.url
    daemons.allocator(url)
    daemons.agent(url, "n1")
    with spoke.Client(url, pool=pool) as client:
        wait_for_node(client)
        gang = client.gang_allocate(1, 2).result(T_S)
        gang.launch_command(["sh", "-c", "echo of $RANK"]).result(T_S)
        gang.wait(T_S).result(T_S)
        gang.release().result(T_S)
    ticket_id, expected = gang.ticket_id, ["0 of 0", "1 of 1"]
    assert sorted(output_of(redis, url, pool, ticket_id)) == expected
    redis.delete(Keys(pool).ticket(ticket_id))
    assert sorted(output_of(redis, url, pool, ticket_id)) == expected, "no view: all nodes are asked"
    assert output_of(redis, url, pool, ticket_id, rank=1) == ["1 of 1"]
    with pytest.raises(UnknownTicket, match="none of the 1 nodes"):
        output_of(redis, url, pool, "t-999")


def test_in_a_pool_with_keys_output_is_for_the_user_who_launched(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, redis: Redis, tmp_path: Path
) -> None:
    url, path = shared_server.url, tmp_path / "master"
    new_master(path)
    master = read_masters(path)[0]
    alice, bob = (issue(master, "user", name) for name in ("alice", "bob"))
    daemons.allocator(url, "--keys", str(path))
    daemons.agent(url, "n1", key=issue(master, "node", "n1").text)
    with spoke.Client(url, pool=pool, key=alice.text) as client:
        wait_for_node(client)
        gang = client.gang_allocate(1, 1).result(T_S)
        gang.launch_command(["echo", "hers"]).result(T_S)
        gang.wait(T_S).result(T_S)
        assert output_of(redis, url, pool, gang.ticket_id, key=alice) == ["0 hers"]
        for key in (bob, None):
            with pytest.raises(Forbidden, match="SPOKE_KEY"):
                output_of(redis, url, pool, gang.ticket_id, key=key)
        gang.release().result(T_S)
    assert output_of(redis, url, pool, gang.ticket_id, key=alice) == ["0 hers"]
