"""Ctrl-C in a wait: a real process, a real SIGINT. It works at once, nothing leaks, what was asked for is withdrawn."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.client.status import TicketStatus
from tests.fakes import FakeAgent, eventually, real_allocator

PROMPT_S = 1.5
"""From the signal to the end of the wait, on a machine that does other things as well."""
SCRIPT = """
import json, os, sys, threading, time
import spoke
what, url, pool = sys.argv[1:]
client = spoke.Client(url, pool=pool)
mine = spoke.Resources(gpus=1)
threads = threading.active_count()
if what == "allocate":
    start = lambda: client.gang_allocate(1, 4, mine)
elif what == "spawn":
    start = lambda: client.spawn("Worker", "w", spoke.Resources(gpus=4))
elif what == "timed":
    start = lambda: client.gang_allocate(1, 4, mine)
elif what == "call":
    worker = client.spawn("Worker", "w").result(20)
    start = lambda: worker.call("sleep", 60)
elif what == "ends":
    gang = client.gang_allocate(1, 1).result(20)
    gang.launch("Worker").result(20)
    start = gang.wait
future = start()
print("waiting", flush=True)
try:
    future.result(60 if what == "timed" else None)
except KeyboardInterrupt:
    print("interrupted", future.cancelled(), flush=True)
if what == "call":
    print("then", worker.call("echo", "still there").result(20), flush=True)
elif what == "ends":
    print("then", len(gang.actors), flush=True)
else:
    print("then", threading.active_count() - threads, client.gang_allocate(1, 1, mine).result(20).ticket_id, flush=True)
client.close()
print("closed", flush=True)
"""


@pytest.fixture
def place(shared_server: EmbeddedServer, pool: str) -> Iterator[tuple[str, str]]:
    with real_allocator(shared_server.url, pool), FakeAgent(shared_server.url, pool, "n0", gpus=4):
        yield shared_server.url, pool


def sleeps(pid: int) -> bool:
    """Whether the main thread sits still in a wait."""

    def look() -> tuple[str, str]:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines())
        return fields["State"].split()[0], fields["voluntary_ctxt_switches"]

    before = look()
    time.sleep(0.1)
    return before[0] == "S" and look() == before


@contextmanager
def started(what: str, place: tuple[str, str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The script, once it waits."""
    command = [sys.executable, "-c", SCRIPT, what, *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            eventually(lambda: sleeps(process.pid), "it waits")
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def interrupt(process: subprocess.Popen[str]) -> tuple[str, float]:
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    line = process.stdout.readline()
    return line, time.monotonic() - began


def rest(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    found = process.stdout.read().splitlines()
    assert process.wait(20) == 0
    return found


@pytest.mark.parametrize("what", ["allocate", "timed", "spawn"])
def test_a_gang_that_is_waited_for_is_withdrawn(what: str, place: tuple[str, str]) -> None:
    with spoke.Client(place[0], pool=place[1]) as client:
        gang = client.gang_allocate(1, 3, spoke.Resources(gpus=1)).result(20)

        def waiting() -> list[TicketStatus]:
            return [ticket for ticket in client.status().tickets if ticket.state == "queued"]

        with started(what, place) as process:
            eventually(waiting, "it waits in line")
            line, seconds = interrupt(process)
            assert line == "interrupted True\n"
            assert seconds < PROMPT_S
            eventually(lambda: not waiting(), "it has left the line")
            assert rest(process) == ["then 0 t-3", "closed"], "the client goes on, without another thread"
        gang.release().result(20)
        eventually(lambda: client.status().gpus_free == 4)


def test_a_call_is_given_up_and_the_actor_can_be_called_again(place: tuple[str, str]) -> None:
    with started("call", place) as process:
        line, seconds = interrupt(process)
        assert line == "interrupted True\n"
        assert seconds < PROMPT_S
        assert rest(process) == ["then still there", "closed"]


def test_a_wait_for_ends_stays_and_so_does_the_gang(place: tuple[str, str]) -> None:
    with started("ends", place) as process:
        line, seconds = interrupt(process)
        assert line == "interrupted False\n"
        assert seconds < PROMPT_S
        assert rest(process) == ["then 1", "closed"]


def test_a_person_at_a_terminal_sees_a_line_and_ctrl_c_takes_it_away(place: tuple[str, str]) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "SPOKE_PROGRESS": "1", "COLUMNS": "200"}
    with spoke.Client(place[0], pool=place[1]) as client:
        gang = client.gang_allocate(1, 3, spoke.Resources(gpus=1)).result(20)
        with started("allocate", place, stderr=theirs, env=env) as process:
            os.close(theirs)
            shown = b""
            while shown.count(b"t-2 waits") < 2:
                shown += os.read(ours, 4096)
            assert b"1 of 1 in line" in shown
            line, seconds = interrupt(process)
            assert line == "interrupted True\n"
            assert seconds < PROMPT_S
            rest(process)
            last = os.read(ours, 65_536)
            assert last.endswith(b"\r\x1b[K")
        os.close(ours)
        gang.release().result(20)


def test_in_a_notebook(place: tuple[str, str], tmp_path: Path) -> None:
    jupyter_client = pytest.importorskip("jupyter_client", reason="needs ipykernel")
    pytest.importorskip("ipykernel")
    kernel, cells = jupyter_client.manager.start_new_kernel(cwd=str(Path(__file__).resolve().parents[2]))
    try:

        def run(code: str) -> list[dict[str, Any]]:
            asked = cells.execute(code)
            return outputs(asked)

        def outputs(asked: str, until: str = "") -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            while True:
                message = cells.get_iopub_msg(timeout=30)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                found.append({"type": message["msg_type"], **message["content"]})
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    return found
                if until and until in json.dumps(message["content"]):
                    return found

        run(f"import spoke; client = spoke.Client({place[0]!r}, pool={place[1]!r})")
        (shown,) = [one for one in run("gang = client.gang_allocate(1, 3, spoke.Resources(gpus=1)).result(20); gang")
                    if one["type"] == "execute_result"]  # fmt: skip
        assert "<table>" in shown["data"]["text/html"]
        asked = cells.execute("client.gang_allocate(1, 4, spoke.Resources(gpus=1)).result()")
        line = outputs(asked, until="in line")[-1]
        assert line["type"] in ("display_data", "update_display_data")
        began = time.monotonic()
        kernel.interrupt_kernel()
        ended = outputs(asked)
        assert time.monotonic() - began < PROMPT_S
        assert [one["ename"] for one in ended if one["type"] == "error"] == ["KeyboardInterrupt"]
        assert [one["data"] for one in ended if one["type"] == "update_display_data"][-1]["text/plain"] == ""

        with spoke.Client(place[0], pool=place[1]) as client:
            eventually(lambda: [ticket.state for ticket in client.status().tickets] == ["allocated"])
    finally:
        cells.stop_channels()
        kernel.shutdown_kernel(now=True)
