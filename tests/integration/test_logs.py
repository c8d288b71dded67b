"""Reading actors' output through their agents, on a real server with real agents and actors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import Result
from typer.testing import CliRunner

import spoke
from spoke.agent import procfs
from spoke.agent.logs import files
from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from spoke.client.logs import reading as client_logs
from spoke.client.logs.output import TicketOutput
from spoke.client.logs.reading import Begin, Feed, LogReader
from spoke.errors import Forbidden, LogsUnavailable, UnknownTicket
from spoke.protocol import requests as r
from spoke.protocol.identity import issue, new_master, read_masters
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from tests.daemons import Daemons
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import Pool, command, kill, pool_at, shell, wait_until

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


# --- writing ----------------------------------------------------------------------------------------------------------


def scribe_of(allocator: Pool) -> int:
    mine = f"{allocator.mark()}scribe"
    return wait_until(lambda: next((pid for pid in procfs.marked(mine) if procfs.is_alive(pid)), 0), "a scribe")


def test_a_log_is_rotated_while_it_is_written_and_followed(allocator: Pool, reader: LogReader) -> None:
    allocator.join(log_bytes=100_000, log_files=2)
    start = allocator.start(shell("for n in $(seq 40); do seq 3000; sleep 0.02; done"))
    feed = Feed(reader, start.ticket_id)
    feed.add("n0", start.rank, start.actor_id, Begin(), 0)
    once = b"".join(b"%d\n" % number for number in range(1, 3001))
    found, lost, until_s = b"", 0, time.monotonic() + T_S
    while len(found) + lost < 40 * len(once):
        for chunk in feed.read(2.0, 2.0):
            found, lost = found + chunk.data, lost + chunk.lost
        assert time.monotonic() < until_s
    assert lost == 0, "a follower keeps up"
    assert found == once * 40
    allocator.report(start, r.ReportExited)
    log = allocator.log_of(start)
    parts = files.segments(str(log))
    assert len(parts) == 3
    assert sum(part.size for part in parts) < 3 * 200_000
    assert sorted(log.parent.glob("*.log*")) == sorted(Path(part.path) for part in parts)
    (listed,) = reader.files(start.ticket_id, ["n0"])[0]["n0"]
    assert (listed.start, listed.end) == (parts[0].start, 40 * len(once))


def test_a_scribe_that_dies_costs_no_actor_and_another_goes_on(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    start = allocator.start(shell(f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.01; done; seq 100000; echo end"))
    log = allocator.log_of(start)
    wait_until(lambda: log.exists() and log.read_bytes() == b"one\n", "the first line")
    first = scribe_of(allocator)
    kill(first)
    (tmp_path / "go").touch()
    assert allocator.report(start, r.ReportExited).code == 0
    assert log.read_bytes() == b"one\n" + b"".join(b"%d\n" % n for n in range(1, 100_001)) + b"end\n"
    assert scribe_of(allocator) != first


def test_a_scribe_that_stands_still_keeps_no_end_from_being_told(allocator: Pool) -> None:
    allocator.join()
    start = allocator.start(shell("echo one; exit 3"))
    allocator.report(start, r.ReportExited)
    scribe = scribe_of(allocator)
    os.kill(scribe, signal.SIGSTOP)
    try:
        again = allocator.start(shell("echo two; exit 4"))
        assert allocator.report(again, r.ReportExited).code == 4
    finally:
        os.kill(scribe, signal.SIGCONT)
    wait_until(lambda: allocator.log_of(again).read_bytes() == b"two\n", "the line, later")


def test_a_full_disk_kills_no_actor(allocator: Pool, tmp_path: Path) -> None:
    allocator.join()
    log = tmp_path / "logs" / "t1" / "0-a1.log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    script = f"print('x' * 500_000)\nopen('{tmp_path}/printed', 'w').close()\n"
    script += f"import os, time\nwhile not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\nprint('still here')"
    start = allocator.start(command(script))
    wait_until((tmp_path / "printed").exists, "half a megabyte was printed")
    log.unlink()
    (tmp_path / "go").touch()
    assert allocator.report(start, r.ReportExited).code == 0
    assert "bytes of output were lost here: No space left on device" in log.read_text()


def test_an_agent_that_is_killed_takes_its_scribe_with_it_and_what_was_printed_stays(allocator: Pool) -> None:
    agent = allocator.join()
    start = allocator.start(shell("echo printed; exec sleep 600"))
    allocator.report(start, r.ReportStarted)
    wait_until(lambda: allocator.log_of(start).exists() and allocator.log_of(start).read_bytes(), "the line")
    agent.kill()
    agent.wait()
    wait_until(lambda: allocator.processes() == [], "the keeper, the scribe and the actor are gone")
    assert allocator.log_of(start).read_bytes() == b"printed\n"


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


def test_nodes_that_share_a_log_directory_show_everything_once(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, redis: Redis
) -> None:
    url = shared_server.url
    daemons.allocator(url)
    for node in ("n1", "n2"):
        daemons.agent(url, node)
    with spoke.Client(url, pool=pool) as client:
        eventually(lambda: [node.state for node in client.status().nodes] == ["up", "up"], "two nodes", T_S)
        gang = client.gang_allocate(2, 1).result(T_S)
        gang.launch_command(["sh", "-c", "echo of $RANK"]).result(T_S)
        gang.wait(T_S).result(T_S)
        assert sorted(output_of(redis, url, pool, gang.ticket_id)) == ["0 of 0", "1 of 1"]
        redis.delete(Keys(pool).ticket(gang.ticket_id))
        assert sorted(output_of(redis, url, pool, gang.ticket_id)) == ["0 of 0", "1 of 1"]


def test_a_node_that_is_gone_is_named_and_the_rest_is_shown(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_logs, "ANSWER_S", 1.0)
    url = shared_server.url
    daemons.allocator(url)
    directories = [str(tmp_path / f"logs-of-{node}") for node in ("n1", "n2")]
    agents = [
        daemons.agent(url, node, "--log-dir", directory, lease_s=3.0)
        for node, directory in zip(("n1", "n2"), directories, strict=True)
    ]
    with spoke.Client(url, pool=pool) as client:
        eventually(lambda: [node.state for node in client.status().nodes] == ["up", "up"], "two nodes", T_S)
        gang = client.gang_allocate(2, 1, detached=True).result(T_S)
        gang.launch_command(["sh", "-c", "echo of $RANK; exec sleep 600"]).result(T_S)
        eventually(lambda: len(list(gang.logs())) == 2, "both have printed", T_S)
        agents[1].kill()
        gone = next(slot.global_rank for slot in gang.slots if slot.node_id == "n2")

        def shown() -> Result:
            return CliRunner().invoke(app, ["logs", gang.ticket_id, "--url", url, "--pool", pool])

        result = shown()
        assert result.exit_code == 1
        assert result.stdout == f"[{1 - gone}] of {1 - gone}\n"
        assert "the agent of node n2 has not answered for 1 s" in result.stderr or "n2, which is lost" in result.stderr
        eventually(lambda: {n.node_id: n.state for n in client.status().nodes}["n2"] == "lost", "n2 is lost", T_S)
        eventually(lambda: "n2, which is lost: its output is " in shown().stderr, "where it is", T_S)
        assert f"{directories[1]}/{gang.ticket_id}/{gone}-rank-{gone}.log" in shown().stderr
        client.gang_release(gang.ticket_id).result(T_S)


def test_a_client_reads_and_follows_its_gangs_output(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, tmp_path: Path
) -> None:
    url = shared_server.url
    daemons.allocator(url)
    daemons.agent(url, "n1")
    with spoke.Client(url, pool=pool) as client:
        wait_for_node(client)
        gang = client.gang_allocate(1, 2).result(T_S)
        script = f"echo one of $RANK; until [ -e {tmp_path}/go ]; do sleep 0.05; done; printf 'two of %s' $RANK"
        gang.launch_command(["sh", "-c", script]).result(T_S)
        lines = gang.logs(follow=True)
        assert {next(lines), next(lines)} == {spoke.LogLine(rank, f"one of {rank}") for rank in (0, 1)}
        (tmp_path / "go").touch()
        assert sorted(line.text for line in lines) == ["two of 0", "two of 1"]
        assert [line.text for line in gang.logs(1, tail=1)] == ["two of 1"]
        assert [line.text for line in gang.logs(1, since=3600)] == ["one of 1", "two of 1"]
        with pytest.raises(spoke.RankOutOfRange):
            next(gang.logs(2))
        for words in ({"tail": -1}, {"tail": 1, "since": 1.0}, {"since": -1.0}, {"rank": "0"}):
            with pytest.raises(spoke.InvalidRequest):
                gang.logs(**words)  # type: ignore[arg-type]
        gang.release().result(T_S)
        assert len(list(client.logs(gang.ticket_id))) == 4
        left = gang.logs(follow=True)
    with pytest.raises(spoke.ClientClosed):
        next(left)


def scribes_of(pid: int) -> list[psutil.Process]:
    """The process that writes the logs of an agent, once it has come up."""
    return [p for p in psutil.Process(pid).children(recursive=True) if "logs.scribe" in str(p.cmdline())]


def test_output_that_a_full_disk_did_not_take_is_told_to_who_runs_follows_and_reads(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = shared_server.url
    daemons.allocator(url)
    agent = daemons.agent(url, "n1")
    own = [*(sys.executable, "-m", "spoke.cli.main"), "--url", url, "--pool", pool]
    with spoke.Client(url, pool=pool) as client:
        wait_for_node(client)
        (scribe,) = eventually(lambda: scribes_of(agent.pid), "the process that writes the logs")
        disk_is_full, disk_has_room = (0, resource.RLIM_INFINITY), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        scribe.rlimit(psutil.RLIMIT_FSIZE, disk_is_full)
        done = subprocess.run(
            [*own[:3], "run", *own[3:], "--", "bash", "-c", "echo hello; exit 3"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        assert done.stdout == ""
        lost = "6 bytes of rank 0's output were lost: node n1 could not write them (File too large)"
        assert lost in done.stderr
        ticket_id = "t-1"

        def shown() -> Result:
            return CliRunner().invoke(app, ["logs", ticket_id, *own[3:]])

        assert (shown().exit_code, shown().stdout) == (0, "")
        assert lost in shown().stderr

        gang = client.gang_allocate(1, 1).result(T_S)
        script = f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo three"
        gang.launch_command(["sh", "-c", script]).result(T_S)
        lines = gang.logs(follow=True)
        found: list[spoke.LogLine] = []
        following = threading.Thread(target=lambda: found.extend(lines))
        following.start()
        eventually(lambda: "output of rank 0 is being lost: node n1 cannot write it (File too large)" in caplog.text)
        scribe.rlimit(psutil.RLIMIT_FSIZE, disk_has_room)
        eventually(
            lambda: "[spoke: 6 bytes of output were lost here: File too large]" in shown().stdout, "of the first"
        )
        assert shown().stderr == ""
        (tmp_path / "go").touch()
        following.join(T_S)
        assert [line.text for line in found] == [
            "",
            "[spoke: 4 bytes of output were lost here: File too large]",
            "three",
        ]
        gang.release().result(T_S)


def test_a_follower_stays_while_an_actor_is_started_again(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons, redis: Redis, tmp_path: Path
) -> None:
    url = shared_server.url
    daemons.allocator(url)
    daemons.agent(url, "n1")
    script = f"echo run; if [ -e {tmp_path}/again ]; then exit 0; fi; touch {tmp_path}/again; exit 1"
    care = spoke.Supervision(restart=spoke.Restart(backoff_s=2.0))
    with spoke.Client(url, pool=pool) as client:
        wait_for_node(client)
        gang = client.gang_allocate(1, 1).result(T_S)
        gang.launch_command(["sh", "-c", script], supervision=care).result(T_S)

        def waits_to_be_started_again() -> bool:
            raw: Any = redis.hget(Keys(pool).ticket(gang.ticket_id), "rank.0")
            return b"restarting" in (raw or b"")

        eventually(waits_to_be_started_again, "it failed", T_S)
        assert [line.text for line in gang.logs(follow=True)] == ["run", "run"]


def test_an_asynchronous_client_follows_and_leaves_when_it_is_cancelled(
    shared_server: EmbeddedServer, pool: str, daemons: Daemons
) -> None:
    url = shared_server.url
    daemons.allocator(url)
    daemons.agent(url, "n1")

    async def main() -> list[str]:
        async with spoke.AsyncClient(url, pool=pool) as client:
            gang = await asyncio.wait_for(allocated(client), T_S)
            await gang.launch_command(["sh", "-c", "echo one; echo two; exec sleep 600"])
            seen: list[str] = []

            async def follow() -> None:
                async for line in gang.logs(follow=True):
                    seen.append(line.text)

            task = asyncio.create_task(follow())
            while len(seen) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gang.release()
            return [line.text async for line in client.logs(gang.ticket_id)]

    async def allocated(client: spoke.AsyncClient) -> spoke.AsyncGang:
        return await client.gang_allocate(1, 1, timeout=T_S)

    before = threading.active_count()
    assert asyncio.run(main()) == ["one", "two"]
    eventually(lambda: threading.active_count() <= before + 1, "its threads have ended")


def test_output_is_removed_some_time_after_its_ticket_was_released(
    shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        agents.start_agent("n0", log_keep_s=2.0)
        with spoke.Client(shared_server.url, pool=pool) as client:
            wait_for_node(client)
            gang = client.gang_allocate(1, 1).result(T_S)
            gang.launch_command(["echo", "printed"]).result(T_S)
            gang.wait(T_S).result(T_S)
            log = tmp_path / "logs" / gang.ticket_id / "0-rank-0.log"
            written_s = log.stat().st_mtime
            wait_until(lambda: time.time() > written_s + 3.0, "its time would be over")
            assert log.exists(), "the ticket lives"
            gang.release().result(T_S)
            assert log.exists()
        wait_until(lambda: not log.parent.exists(), "it is removed")


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
    for key in (alice, issue(master, "admin", "ops")):
        assert output_of(redis, url, pool, gang.ticket_id, key=key) == ["0 hers"]
    with pytest.raises(Forbidden):
        output_of(redis, url, pool, gang.ticket_id, key=issue(master, "operator", "ops"))
