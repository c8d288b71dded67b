"""The command line end to end: ``spoke up`` and everything a user does with it, as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from spoke.cli.embedded import free_port
from tests.marks import MARK, marked

SPOKE = [sys.executable, "-m", "spoke.cli.main"]
START_S, COMMAND_S, STOP_S = 60.0, 60.0, 30.0


def wait_until(true: Callable[[], object], what: str, limit_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)


@dataclass
class Place:
    """A running ``spoke up``, and how to use it."""

    url: str
    pool: str
    data: Path
    mark: str
    up: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, MARK: self.mark, "SPOKE_URL": self.url, "SPOKE_POOL": self.pool, "COLUMNS": "200"}

    def spoke(self, *words: str, limit_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SPOKE, *words],
            env=self.env,
            cwd=self.data,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def start(self, *words: str, out: Path) -> subprocess.Popen[bytes]:
        with open(out, "wb") as file:
            return subprocess.Popen(
                [*SPOKE, *words], env=self.env, cwd=self.data, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def document(self, *words: str) -> object:
        done = self.spoke(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def free_gpus(self) -> int:
        status = self.document("status")
        assert isinstance(status, dict)
        return int(status["gpus_free"])


def start_up(data: Path, pool: str, mark: str) -> Place:
    """Start ``spoke up`` with two agents of four GPUs; returns when it says that it is up."""
    data.mkdir(parents=True, exist_ok=True)
    port, said = free_port(), data / "up.out"
    command = [*SPOKE, "up", "--agents", "2", "--gpus", "4", "--port", str(port), "--data", str(data), "--pool", pool]
    with open(said, "wb") as out:
        up = subprocess.Popen(
            command, env={**os.environ, MARK: mark}, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=data
        )
    place = Place(f"redis://127.0.0.1:{port}", pool, data, mark, up)

    def is_up() -> bool:
        text = said.read_text()
        assert up.poll() is None, text
        return f"export SPOKE_URL={place.url}" in text

    try:
        wait_until(is_up, "spoke up", START_S)
    except BaseException:
        end(place)
        raise
    return place


def end(place: Place) -> None:
    """End everything, whatever state it is in."""
    if place.up.poll() is None:
        place.up.terminate()
        try:
            place.up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            place.up.kill()
    for process in marked(place.mark):
        process.kill()
    place.up.wait(STOP_S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One ``spoke up`` for the tests that leave it as they found it."""
    place = start_up(tmp_path_factory.mktemp("up"), f"cli-{uuid.uuid4().hex[:6]}", uuid.uuid4().hex)
    yield place
    end(place)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Place]:
    """A ``spoke up`` that the test may end."""
    place = start_up(tmp_path / "data", f"cli-{uuid.uuid4().hex[:6]}", uuid.uuid4().hex)
    yield place
    end(place)


def last_ticket(place: Place) -> str:
    events = [json.loads(line) for line in place.spoke("log", "--json").stdout.splitlines()]
    return str([event["ticket_id"] for event in events if event["type"] == "gang.allocated"][-1])


# --- run -------------------------------------------------------------------------------------------------------


def test_run_prints_every_ranks_output_to_the_last_byte(place: Place) -> None:
    script = "echo rank $RANK of $WORLD_SIZE GPU $CUDA_VISIBLE_DEVICES; seq 2000; printf 'the end of %s' $RANK"
    done = place.spoke(
        "run", "--nodes", "2", "--actors-per-node", "2", "--gpus-per-actor", "1", "--", "bash", "-c", script
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for rank in range(4):
        mine = [line for line in lines if line.startswith(f"[{rank}] ")]
        assert re.fullmatch(rf"\[{rank}\] rank {rank} of 4 GPU [01]", mine[0])
        assert mine[1:-1] == [f"[{rank}] {number}" for number in range(1, 2001)]
        assert mine[-1] == f"[{rank}] the end of {rank}"
    assert done.stderr == ""
    assert place.free_gpus() == 8


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", 7), ("kill -9 $$", 128 + 9), ("kill -SEGV $$", 128 + 11), ("true", 0)]
)
def test_run_returns_the_exit_code(place: Place, script: str, code: int) -> None:
    assert place.spoke("run", "--", "bash", "-c", script).returncode == code


def test_when_one_rank_fails_the_others_are_stopped_and_its_code_is_returned(place: Place) -> None:
    script = "if [ $RANK = 2 ]; then echo failing; exit 9; fi; exec sleep 300"
    began = time.monotonic()
    done = place.spoke("run", "--nodes", "2", "--actors-per-node", "2", "--", "bash", "-c", script)
    assert done.returncode == 9
    assert "[2] failing" in done.stdout
    assert "rank 2 on" in done.stderr
    assert time.monotonic() - began < 30
    assert not [process for process in marked(place.mark) if process.name() == "sleep"]


def test_run_takes_the_commands_own_options_and_variables(place: Place) -> None:
    done = place.spoke("run", "-e", "GREETING=hi there", "bash", "-c", 'echo "$GREETING $PWD" $0', "--name")
    assert done.stdout == f"[0] hi there {place.data} --name\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "no-such-program"], "was not found"),
        (["--cwd", "/no/such/place", "--", "true"], "cannot be entered"),
        (["--nodes", "3", "--timeout", "0", "--", "true"], "needs 3 nodes"),
        (["--nodes", "0", "--", "true"], "num_nodes"),
        (["--actors-per-node", "1000000000", "--", "true"], "actors_per_node"),
        (["--pool", "empty-pool", "--", "true"], "no allocator"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_leaves_no_ticket(place: Place, words: list[str], said: str) -> None:
    done = place.spoke("run", *words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("spoke: ")
    assert place.document("tickets") == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_run_releases_the_gang(place: Place, tmp_path: Path, number: int, code: int) -> None:
    script = 'trap "echo stopped in order; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
    words = ("--nodes", "2", "--gpus-per-actor", "4", "--", "bash", "-c", script)
    run = place.start("run", *words, out=tmp_path / "out")
    try:
        wait_until(lambda: (tmp_path / "out").read_text().count("ready") == 2, "both ranks run")
        assert place.free_gpus() == 0
        run.send_signal(number)
        assert run.wait(STOP_S) == code
    finally:
        run.kill()
        run.wait()
    assert (tmp_path / "out").read_text().count("stopped in order") == 2
    assert place.free_gpus() == 8


def test_a_run_that_waits_in_line_says_why_and_can_be_stopped(place: Place, tmp_path: Path) -> None:
    run = place.start("run", "--nodes", "3", "--", "true", out=tmp_path / "out")
    try:
        wait_until(lambda: "waits in line" in (tmp_path / "out").read_text(), "the reason")
        run.send_signal(signal.SIGINT)
        assert run.wait(STOP_S) == 130
    finally:
        run.kill()
        run.wait()
    assert place.document("tickets") == []


def test_who_stops_waiting_for_a_drain_is_told_that_it_goes_on(place: Place, tmp_path: Path) -> None:
    run = place.start("run", "--nodes", "2", "--gpus-per-actor", "1", "--", "sleep", "600", out=tmp_path / "run")
    wait_until(lambda: place.free_gpus() == 6, "the gang runs")
    drain = place.start("node", "drain", "node-0", out=tmp_path / "drain")
    try:
        wait_until(lambda: "waiting for t-" in (tmp_path / "drain").read_text(), "it waits")
        drain.send_signal(signal.SIGINT)
        assert drain.wait(STOP_S) == 130
        said = (tmp_path / "drain").read_text()
        assert "node-0 goes on being drained; `spoke node uncordon node-0` ends that" in said
        place.spoke("node", "uncordon", "node-0")
        run.send_signal(signal.SIGINT)
        assert run.wait(STOP_S) == 130
    finally:
        for process in (drain, run):
            process.kill()
            process.wait()


def test_a_reader_that_leaves_ends_the_run_without_a_word(place: Place) -> None:
    command = " ".join([*SPOKE, "run", "--gpus-per-actor", "1", "--", "yes", "|", "head", "-n", "1"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=place.env,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.stdout == "[0] y\n"
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE
    assert place.free_gpus() == 8
    assert not [process for process in marked(place.mark) if process.name() == "yes"]


# --- looking at it ---------------------------------------------------------------------------------------------


def test_status_nodes_and_tickets_show_what_runs(place: Place, tmp_path: Path) -> None:
    words = (
        "--nodes",
        "2",
        "--gpus-per-actor",
        "2",
        "--name",
        "looked-at",
        "--",
        "bash",
        "-c",
        "echo ready; sleep 300",
    )
    run = place.start("run", *words, out=tmp_path / "out")
    try:
        wait_until(lambda: (tmp_path / "out").read_text().count("ready") == 2, "both ranks run")
        status = place.document("status")
        assert isinstance(status, dict)
        assert (status["gpus"], status["gpus_free"], len(status["nodes"])) == (8, 4, 2)
        assert status["allocator"]
        (ticket,) = status["tickets"]
        assert (ticket["state"], ticket["name"]) == ("active", "looked-at")
        ticket_id = ticket["ticket_id"]
        for words in (("status",), ("tickets",), ("nodes",)):
            assert ticket_id in place.spoke(*words).stdout
        whole = place.document("tickets", ticket_id)
        assert isinstance(whole, dict)
        assert [rank["state"] for rank in whole["ranks"]] == ["running", "running"]
        assert "sleep 300" in place.spoke("tickets", ticket_id).stdout

        released = place.spoke("release", ticket_id)
        assert released.returncode == 0, released.stderr
        assert "everything it held is free" in released.stdout
        assert run.wait(STOP_S) not in (0, None)
    finally:
        run.kill()
        run.wait()
    again = place.spoke("release", ticket_id)
    assert (again.returncode, "had ended" in again.stdout) == (0, True)
    assert place.free_gpus() == 8
    assert place.spoke("release", "t-999999").returncode == 1


def test_logs_show_what_the_ranks_printed(place: Place) -> None:
    place.spoke("run", "--actors-per-node", "2", "--", "bash", "-c", "echo out $RANK; echo err $RANK >&2; printf end")
    ticket_id = last_ticket(place)
    shown = place.spoke("logs", ticket_id).stdout.splitlines()
    assert sorted(shown) == sorted(
        f"[{rank}] {line}" for rank in (0, 1) for line in (f"out {rank}", f"err {rank}", "end")
    )
    assert place.spoke("logs", ticket_id, "--rank", "1").stdout == "out 1\nerr 1\nend\n"
    assert place.spoke("logs", ticket_id, "-f").stdout.splitlines() == shown
    wrong = place.spoke("logs", ticket_id, "--rank", "2")
    assert (wrong.returncode, "has ranks 0 to 1" in wrong.stderr) == (1, True)


def test_logs_follow_until_the_end(place: Place, tmp_path: Path) -> None:
    script = f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; printf last"
    run = place.start("run", "--", "bash", "-c", script, out=tmp_path / "run")
    logs = None
    try:
        wait_until(lambda: "first" in (tmp_path / "run").read_text(), "the rank runs")
        logs = place.start("logs", last_ticket(place), "--rank", "0", "-f", out=tmp_path / "logs")
        wait_until(lambda: (tmp_path / "logs").read_text() == "first\n", "the first line")
        (tmp_path / "go").touch()
        assert logs.wait(STOP_S) == 0
        assert (tmp_path / "logs").read_text() == "first\nlast\n"
        assert run.wait(STOP_S) == 0
    finally:
        for process in (run, logs):
            if process is not None:
                process.kill()
                process.wait()


def test_the_log_is_a_line_an_event_for_people_and_programs(place: Place) -> None:
    place.spoke("run", "--gpus-per-actor", "1", "--", "true")
    lines, objects = place.spoke("log").stdout.splitlines(), place.spoke("log", "--json").stdout.splitlines()
    events = [json.loads(line) for line in objects]
    assert [line.split()[0] for line in lines] == [event["id"] for event in events]
    assert [line.split()[3] for line in lines] == [event["type"] for event in events]
    newest = place.spoke("log", "--limit", "3").stdout.splitlines()
    assert newest == lines[-3:]
    since = place.spoke("log", "--since", events[-3]["id"]).stdout.splitlines()
    assert since == lines[-2:]
    assert place.spoke("log", "--since", "2000-01-01").stdout.splitlines() == lines
    piped = f"{' '.join(SPOKE)} log | head -n 1"
    done = subprocess.run(["bash", "-c", piped], env=place.env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (lines[0] + "\n", "")


def test_the_log_can_be_followed(place: Place, tmp_path: Path) -> None:
    follow = place.start("log", "-f", "--limit", "0", out=tmp_path / "log")
    try:
        mine = follow_until(place, tmp_path / "log")
        assert "gang.allocated" in mine
        follow.send_signal(signal.SIGINT)
        assert follow.wait(STOP_S) == 130
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        follow.kill()
        follow.wait()


def follow_until(place: Place, path: Path) -> str:
    """Run things until the follower, which needs a moment to start, has shown the end of one."""
    deadline_s = time.monotonic() + 30
    while "client.closed" not in path.read_text():
        assert time.monotonic() < deadline_s
        place.spoke("run", "--", "true")
    wait_until(lambda: "gang.allocated" in path.read_text() or place.spoke("run", "--", "true"), "an allocation")
    return path.read_text()


def test_audit_verifies_and_replays(place: Place) -> None:
    place.spoke("run", "--gpus-per-actor", "3", "--name", "replayed", "--", "true")
    verified = place.spoke("audit", "verify")
    assert verified.returncode == 0, verified.stdout
    assert "ok: every invariant holds" in verified.stdout
    document = place.document("audit", "verify")
    assert isinstance(document, dict)
    assert document["problems"] == []
    events = [json.loads(line) for line in place.spoke("log", "--json").stdout.splitlines()]
    granted = [event for event in events if event["type"] == "gang.allocated"][-1]
    then = place.document("audit", "replay", "--until", granted["id"])
    assert isinstance(then, dict)
    assert (then["last_id"], then["gpus_free"]) == (granted["id"], 5)
    assert then["tickets"][0]["name"] == "replayed"
    assert "replayed" in place.spoke("audit", "replay", "--until", granted["id"]).stdout
    now = place.document("audit", "replay")
    assert isinstance(now, dict)
    assert (now["gpus_free"], now["tickets"]) == (8, [])
    early = place.document("audit", "replay", "--until", "2000-01-01T00:00:00")
    assert isinstance(early, dict)
    assert early["nodes"] == []


# --- up --------------------------------------------------------------------------------------------------------


def test_up_ends_in_order_and_its_data_survives(own: Place) -> None:
    own.spoke("run", "--", "true")
    before = own.spoke("log").stdout.splitlines()
    refused = subprocess.run(
        [*SPOKE, "up", "--data", str(own.data), "--agents", "1"],
        env=own.env,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert refused.returncode == 1
    assert "another `spoke up` uses the data" in refused.stderr
    own.up.send_signal(signal.SIGINT)
    assert own.up.wait(STOP_S) == 0
    assert marked(own.mark) == []
    again = start_up(own.data, own.pool, own.mark)
    try:
        after = again.spoke("log").stdout.splitlines()
        assert after[: len(before)] == before
        assert sum("node.removed" in line for line in after) == 2
        assert again.spoke("run", "--gpus-per-actor", "4", "--nodes", "2", "--", "true").returncode == 0
        assert again.spoke("audit", "verify").returncode == 0
    finally:
        end(again)
    assert marked(own.mark) == []


def test_kill_9_of_up_leaves_no_process(own: Place, tmp_path: Path) -> None:
    script = 'trap "" TERM; echo ready; sleep 1000 & while :; do sleep 1; done'
    run = own.start("run", "--nodes", "2", "--", "bash", "-c", script, out=tmp_path / "out")
    try:
        wait_until(lambda: (tmp_path / "out").read_text().count("ready") == 2, "both ranks run")
        children = psutil.Process(own.up.pid).children(recursive=True)
        assert len(children) >= 4
        own.up.kill()
        own.up.wait(STOP_S)
        wait_until(lambda: not any(is_alive(child) for child in children), f"the end of {children}")
        wait_until(lambda: {process.pid for process in marked(own.mark)} <= {run.pid}, "the end of the actors")
    finally:
        run.kill()
        run.wait()
    assert marked(own.mark) == []


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_up_starts_anew_what_was_killed(own: Place) -> None:
    def pids() -> dict[str, int]:
        nodes = own.document("nodes")
        assert isinstance(nodes, list)
        return {node["node_id"]: node["pid"] for node in nodes if node["state"] == "up"}

    before = pids()
    os.kill(before["node-0"], signal.SIGKILL)
    wait_until(lambda: len(pids()) == 2 and pids()["node-0"] != before["node-0"], "the node is back")
    assert own.spoke("run", "--nodes", "2", "--gpus-per-actor", "4", "--", "true").returncode == 0
    assert own.spoke("audit", "verify").returncode == 0


def test_up_says_what_does_not_start(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [*SPOKE, "up", "--agents", "1", "--gpus", "100000", "--port", str(free_port()), "--data", str(tmp_path / "d")],
        env={**os.environ, MARK: mark},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 1
    assert "node-0 did not start" in done.stderr
    assert "gpus must be" in done.stderr
    assert marked(mark) == []
