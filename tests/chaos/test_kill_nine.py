"""kill -9 of a client, an actor, an agent and the allocator: afterwards the log verifies and nothing leaks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.events.audit import Report, verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.daemons import end_all

HERE = Path(__file__).parent
WAIT_S = 40.0
LEASE_S = 2.0


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition, up to a limit."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Cluster:
    """A server, and daemons as processes of their own that a test may kill."""

    def __init__(self, server: EmbeddedServer, pool: str, directory: Path) -> None:
        self.server, self.pool, self.directory = server, pool, directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.redis = connect(server.url)
        self.keys = Keys(pool)

    def spawn(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "spoke.cli.main", *words, "--url", self.server.url, "--pool", self.pool]
        with open(self.directory / "daemons.log", "ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, cwd=HERE)
        self.processes.append(process)
        return process

    def allocator(self) -> subprocess.Popen[bytes]:
        return self.spawn("allocator")

    def agent(self, name: str) -> subprocess.Popen[bytes]:
        where = ("--log-dir", str(self.directory / "logs"), "--lease", str(LEASE_S))
        what = ("--gpus", "4", "--import", "chaos_actors.py", "--allow-commands", "--cpus", "64")
        return self.spawn("agent", "--node-id", name, *where, *what)

    def client(self) -> spoke.Client:
        return spoke.Client(self.server.url, pool=self.pool, lease_s=LEASE_S)

    def wait_for_nodes(self, count: int) -> None:
        def up() -> bool:
            with self.client() as client:
                return sum(node.state == "up" for node in client.status().nodes) == count

        eventually(up, f"{count} nodes up")

    def report(self) -> Report:
        return verify(EventLog(self.redis, self.keys.events, self.keys.snapshot))

    def assert_whole(self, nodes: int) -> None:
        """Everything came back, and the log says how."""

        def free() -> bool:
            state = self.report().state
            up = [node for node in state.nodes.values() if node.phase == "up"]
            return len(up) == nodes and not state.tickets and all(node.free == node.total for node in up)

        eventually(free, "all tickets gone and all GPUs free")
        report = self.report()
        assert report.problems == []

    def close(self) -> None:
        end_all(self.processes)
        self.redis.close()


@pytest.fixture
def cluster(server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(server, pool, tmp_path)
    try:
        yield made
    finally:
        made.close()


CLIENT = """
import sys, time, spoke
client = spoke.Client(sys.argv[1], pool=sys.argv[2], lease_s=2.0)
gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=30).result(40)
actors = gang.launch("Sleeper").result(40)
print(*[actor.call("pid").result(10) for actor in actors], actors[0].call("grandchild").result(10), flush=True)
time.sleep(600)
"""


def _start_client(cluster: Cluster) -> tuple[subprocess.Popen[bytes], list[int]]:
    command = [sys.executable, "-c", CLIENT, cluster.server.url, cluster.pool]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    cluster.processes.append(process)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 3
    assert all(map(is_alive, pids))
    return process, pids


def test_a_killed_client_loses_its_tickets_within_the_lease(cluster: Cluster) -> None:
    cluster.allocator()
    cluster.agent("n1")
    cluster.wait_for_nodes(1)
    process, pids = _start_client(cluster)
    process.kill()
    eventually(lambda: not any(map(is_alive, pids)), "the client's actors and their children are dead")
    cluster.assert_whole(1)
    assert cluster.report().counts["client.lost"] == 1


def test_a_killed_actor_is_reported_and_its_gang_released_when_asked_to(cluster: Cluster) -> None:
    cluster.allocator()
    cluster.agent("n1")
    cluster.agent("n2")
    cluster.wait_for_nodes(2)
    with cluster.client() as client:
        gang = client.gang_allocate(2, 2, spoke.Resources(gpus=1), timeout=30, on_failure="release").result(40)
        actors = gang.launch("Sleeper").result(40)
        pids = [actor.call("pid").result(10) for actor in actors]
        grandchild = actors[1].call("grandchild").result(10)
        nap = actors[1].call("nap", 60)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(spoke.ActorUnreachable):
            nap.result(20)
        ends = {end.rank: end for end in gang.wait(30).result(30)}
        assert ends[1].signal == signal.SIGKILL
        assert not ends[1].expected
        eventually(lambda: not any(map(is_alive, [*pids, grandchild])), "the whole gang is dead")
        cluster.assert_whole(2)


def test_a_killed_agent_takes_its_actors_along_and_comes_back_clean(cluster: Cluster) -> None:
    cluster.allocator()
    agent = cluster.agent("n1")
    cluster.wait_for_nodes(1)
    with cluster.client() as client:
        gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=30).result(40)
        actors = gang.launch("Sleeper").result(40)
        pids = [actor.call("pid").result(10) for actor in actors] + [actors[0].call("grandchild").result(10)]
        agent.kill()
        eventually(lambda: not any(map(is_alive, pids)), "nothing outlives the agent")
        ends = gang.wait(30).result(30)
        assert {end.phase for end in ends} == {"lost"}
        cluster.agent("n1")
        cluster.wait_for_nodes(1)
        again = gang.launch("Sleeper").result(40)  # the ticket kept its slots, and the node is back
        assert again[0].call("pid").result(10) not in pids
    cluster.assert_whole(1)


def test_a_killed_allocator_answers_every_request_exactly_once_through_its_standby(cluster: Cluster) -> None:
    leader = cluster.allocator()
    cluster.agent("n1")
    cluster.wait_for_nodes(1)
    standby = cluster.allocator()
    answered: list[str] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def load() -> None:
        try:
            with cluster.client() as client:
                while not stop.is_set():
                    gangs = [client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=60) for _ in range(3)]
                    for gang in gangs:
                        granted = gang.result(60)
                        answered.append(granted.ticket_id)
                        assert granted.release().result(60)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(answered) > 50 or bool(errors), "some load before the kill")
    leader.kill()
    before = len(answered)
    eventually(lambda: len(answered) > before + 50 or bool(errors), "the standby took over and goes on")
    standby.kill()
    eventually(lambda: standby.poll() is not None, "both are dead")
    cluster.allocator()
    before = len(answered)
    eventually(lambda: len(answered) > before + 50 or bool(errors), "a third one goes on")
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    assert len(answered) == len(set(answered)), "a ticket was granted twice"
    cluster.assert_whole(1)
    report = cluster.report()
    assert report.counts["gang.allocated"] == len(answered)
    assert report.counts["allocator.elected"] == 3


def test_a_paused_leader_cannot_write_when_it_wakes_up(cluster: Cluster) -> None:
    first = cluster.allocator()
    cluster.agent("n1")
    cluster.wait_for_nodes(1)
    os.kill(first.pid, signal.SIGSTOP)
    cluster.allocator()
    with cluster.client() as client:
        client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=30).result(40).release().result(30)
        os.kill(first.pid, signal.SIGCONT)
        for _ in range(20):
            client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=30).result(40).release().result(30)
    cluster.assert_whole(1)


def test_a_killed_server_comes_back_and_everybody_goes_on(cluster: Cluster) -> None:
    cluster.allocator()
    cluster.agent("n1")
    cluster.wait_for_nodes(1)
    with cluster.client() as client:
        gang = client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=30).result(40)
        # everysec: what is older than two seconds is on disk
        reached = cluster.redis.xrevrange(cluster.keys.events, count=1)[0][0]
        time.sleep(2.1)
        cluster.server.kill()
        cluster.server.start()
        assert cluster.redis.xrange(cluster.keys.events, min=reached, count=1)
        with contextlib.suppress(spoke.LeaseLost):  # after an outage longer than the lease the pool took it back
            assert gang.release().result(40)
    cluster.assert_whole(1)
