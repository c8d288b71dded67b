"""The live views on a real pool: the follower keeps up, survives its server, and the terminal's program runs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.cli.sight.actions import Action, perform
from spoke.cli.sight.board import board_of
from spoke.cli.sight.follower import Follower
from spoke.cli.sight.rewind import Rewinder
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.dashboards import dashboard
from tests.fakes import FakeAgent, eventually, real_allocator
from tests.golden import golden_pool, write_log

GPU = spoke.Resources(gpus=1)
T_S = 20
TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def agent(shared_server: EmbeddedServer, pool: str) -> Iterator[FakeAgent]:
    with real_allocator(shared_server.url, pool), FakeAgent(shared_server.url, pool, gpus=4) as agent:
        yield agent


@pytest.fixture
def follower(shared_server: EmbeddedServer, pool: str, agent: FakeAgent) -> Iterator[Follower]:
    with Follower(shared_server.url, pool, pool) as follower:
        eventually(lambda: follower.board.allocator, "the first board")
        yield follower


@pytest.fixture
def client(shared_server: EmbeddedServer, pool: str, agent: FakeAgent) -> Iterator[spoke.Client]:
    with spoke.Client(shared_server.url, pool=pool) as client:
        yield client


def test_a_gang_is_seen_to_come_wait_and_go(follower: Follower, client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 3, GPU).result(T_S)
    row = eventually(lambda: follower.board.ticket(gang.ticket_id))
    assert (row.state, row.place) == ("allocated", 0)
    assert follower.board.gpus_free == 1
    waiting = client.gang_allocate(1, 2, GPU, timeout=300)
    queued = eventually(lambda: follower.board.queue)
    assert (queued[0].place, bool(queued[0].reason)) == (1, True)
    assert follower.board.rate > 0
    gang.release().result(T_S)
    waiting.result(T_S)
    eventually(lambda: [row.key for row in follower.board.tickets] == [queued[0].key] and not follower.board.queue)
    types = [row.type for row in follower.board.events]
    assert types.index("gang.released") < types.index("gang.releasing") < types.index("client.connected")


def test_what_operators_do_from_a_view_happens(
    follower: Follower, client: spoke.Client, shared_server: EmbeddedServer, pool: str
) -> None:
    gang = client.gang_allocate(1, 1, GPU, detached=True).result(T_S)
    where = (shared_server.url, pool)
    assert perform(Action("drain", "n1"), *where) == "n1 is being drained"
    eventually(lambda: follower.board.node("n1").state == "draining")  # type: ignore[union-attr]
    assert perform(Action("release", gang.ticket_id), *where) == f"{gang.ticket_id} is released"
    eventually(lambda: follower.board.node("n1").state == "drained")  # type: ignore[union-attr]
    assert perform(Action("uncordon", "n1"), *where) == "n1 takes new slots again"
    eventually(lambda: follower.board.node("n1").state == "up")  # type: ignore[union-attr]
    with pytest.raises(spoke.UnknownTicket):
        perform(Action("release", "t-999"), *where)


def test_a_server_that_goes_away_is_told_and_a_new_log_is_taken_up(server: EmbeddedServer, pool: str) -> None:
    golden, keys = golden_pool(), Keys(pool)
    with connect(server.url) as redis:
        write_log(redis, keys.events, golden.log[:-3])
    with Follower(server.url, pool, pool) as follower:
        eventually(lambda: follower.board.last_id == golden.log[-4].id)
        server.kill()
        eventually(lambda: follower.board.problem, "the loss is told")
        assert follower.board.nodes  # what was known last stays
        server.start()
        eventually(lambda: not follower.board.problem, "it is back")
        with connect(server.url) as redis:
            write_log(redis, keys.events, golden.log[-3:])
            eventually(lambda: follower.board.last_id == golden.log[-1].id)
            assert replace(follower.board, now_ms=0, events=(), rate=0.0, allocator="") == replace(
                board_of(golden.state, pool), now_ms=0, events=(), rate=0.0, allocator=""
            )
            redis.flushall()
        eventually(lambda: not follower.board.nodes, "an emptied server")


def test_spoke_top_runs_in_a_terminal_of_80_by_24(
    client: spoke.Client, shared_server: EmbeddedServer, pool: str
) -> None:
    gang = client.gang_allocate(1, 2, GPU).result(T_S)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "spoke.cli.main", "top", "--url", shared_server.url, "--pool", pool]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        shown = _read_until(ours, lambda text: gang.ticket_id.encode() in text and b"q quit" in text)
        assert f"pool {pool}".encode() in shown
        os.write(ours, b"q")
        _read_until(ours, lambda text: process.poll() is not None)
        assert process.wait(T_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(fd: int, holds: Callable[[bytes], bool]) -> bytes:
    found, end = b"", time.monotonic() + 2 * T_S
    while not holds(found):
        assert time.monotonic() < end, found
        if select.select([fd], [], [], 0.1)[0]:
            with suppress(OSError):  # the other end was closed
                found += os.read(fd, 65_536)
    return found


# --- the dashboard ----------------------------------------------------------------------------------------------


def test_the_past_is_the_same_with_frames_and_without(server: EmbeddedServer, pool: str) -> None:
    golden, keys = golden_pool(), Keys(pool)
    with connect(server.url) as redis:
        write_log(redis, keys.events, golden.log)
        log = EventLog(redis, keys.events, keys.snapshot)
        rewinder = Rewinder(frame_events=3)
        ids = [recorded.id for recorded in golden.log]
        for until in (*ids[::-4], *ids[::5], "+"):
            assert rewinder.at(log, until) == log.replay(until)
        redis.delete(keys.events)
        write_log(redis, keys.events, golden.log[:1])
        assert rewinder.at(log, "+") == log.replay("+")  # frames of a log that is gone are not used


def test_the_stream_sends_a_board_and_then_what_changes(web: str, client: spoke.Client) -> None:
    with httpx.stream("GET", f"{web}/api/stream", timeout=T_S) as stream:
        messages = _messages(stream.iter_lines())
        name, board = next(messages)
        assert (name, [one["key"] for one in board["nodes"]["set"]]) == ("board", ["n1"])
        gang = client.gang_allocate(1, 2, GPU).result(T_S)
        for name, change in messages:
            assert name == "change"
            if "tickets" in change:
                break
        assert [one["key"] for one in change["tickets"]["set"]] == [gang.ticket_id]
        assert [cell["kind"] for cell in change["nodes"]["set"][0]["gpus"]] == ["held", "held", "free", "free"]


def test_the_dashboard_goes_back_in_time_explains_and_acts(web: str, client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 2, GPU).result(T_S)
    ms = httpx.get(f"{web}/api/span").json()["last_ms"]
    refused = httpx.post(f"{web}/api/release/{gang.ticket_id}", headers={"Authorization": "Bearer guess"})
    assert refused.status_code == 401
    done = httpx.post(f"{web}/api/release/{gang.ticket_id}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=T_S)
    assert done.json() == {"done": f"{gang.ticket_id} is released"}
    now = httpx.get(f"{web}/api/board?at={ms + 3_600_000}").json()
    then = httpx.get(f"{web}/api/board?at={ms}").json()
    assert "tickets" not in now
    assert [one["key"] for one in then["tickets"]["set"]] == [gang.ticket_id]
    assert then["events"]["set"][0]["type"] == "gang.allocated"
    told = httpx.get(f"{web}/api/explain/{gang.ticket_id}?at={ms}", timeout=T_S).json()
    assert "placed by" in told["sentence"]
    assert "was released" in httpx.get(f"{web}/api/explain/{gang.ticket_id}", timeout=T_S).json()["sentence"]


@pytest.fixture
def web(shared_server: EmbeddedServer, pool: str, agent: FakeAgent, tmp_path: Path) -> Iterator[str]:
    """A dashboard of the pool, as a process."""
    with dashboard(shared_server.url, pool, tmp_path, TOKEN) as address:
        yield address


def _messages(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
