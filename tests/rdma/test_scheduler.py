"""The whole of Spoke on one machine with RDMA: server, allocator, agent, a gang that talks, a death, nothing left."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from spoke.transport.choice import VARIABLE
from spoke.transport.rdma import device
from tests.daemons import Daemons

ACTORS = Path(__file__).parents[1] / "integration" / "peer_actors.py"
MIB = 1 << 20


def held_by() -> set[int]:
    """The processes for which the kernel holds queue pairs, memory regions, or anything else of the device."""
    threads: set[int] = set()  # the kernel names the thread that made it
    for kind in ("qp", "cq", "mr", "pd", "ctx"):
        said = subprocess.run(["rdma", "resource", "show", kind], capture_output=True, text=True, check=True).stdout
        threads |= set(map(int, re.findall(r"\bpid (\d+)", said)))
    return {process_of(thread) for thread in threads}


def process_of(thread: int) -> int:
    """The process of a thread; of one that has ended, its own number."""
    try:
        return int(re.findall(r"^Tgid:\s*(\d+)", Path(f"/proc/{thread}/status").read_text(), re.MULTILINE)[0])
    except OSError:
        return thread


def until(condition: object, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[spoke.Client]:
    monkeypatch.setenv(VARIABLE, "rdma")  # for the actors, by way of the agent
    with EmbeddedServer(tmp_path / "server") as server, Daemons(tmp_path, "rdma") as daemons:
        daemons.allocator(server.url)
        daemons.agent(server.url, "n0", "--import", str(ACTORS), gpus=2, lease_s=30.0)
        with connect(server.url) as redis:  # the daemons take long to come up here
            until(lambda: redis.exists(Keys("rdma").leader) and redis.hexists(Keys("rdma").nodes, "n0"), 100)
        fds = len(os.listdir("/proc/self/fd"))
        with spoke.Client(server.url, pool="rdma", transport="rdma") as client:
            try:
                yield client
            except BaseException:
                print(daemons.said())
                raise
        until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("spoke")])
        assert not device._open
        until(lambda: gc.collect() >= 0 and len(os.listdir("/proc/self/fd")) <= fds)
        assert os.getpid() not in held_by()


@pytest.mark.timeout(150)
def test_a_gang_over_rdma_from_allocation_to_release(client: spoke.Client) -> None:
    gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=60).result(70)
    first, second = gang.launch("Member").result(60)
    assert [first.call("rank").result(30), second.call("rank").result(30)] == [0, 1]
    processes = {actor.call("pid").result(30) for actor in (first, second)}
    assert held_by() >= {os.getpid(), *processes}
    assert first.transport is not None
    assert first.transport.name == "rdma"
    # Large buffers, streams, actor to actor.
    array = np.arange(2 * MIB, dtype="f4")
    sums = [actor.call("all_reduce", array) for actor in (first, second)]
    assert all((future.result(60) == 2 * array).all() for future in sums)
    assert list(first.stream("count", 200)) == list(range(200))
    assert second.call("sum_of", 0, 200).result(60) == 19_900
    # Memory: an actor's and the client's, from both sides.
    handle = second.call("share", 3 * MIB).result(30)
    here = np.empty(3 * MIB, "u1")
    handle.read_into(here).result(30)
    assert (here == 1).all()
    assert first.call("read", handle).result(30) == 3 * MIB
    with spoke.Buffer(np.full(MIB, 3, "u1"), gang) as buffer:
        assert first.call("read", buffer.handle).result(30) == 3 * MIB
    # One of the two dies: its calls and its memory end with errors, the other one goes on.
    waiting = second.call("recv_forever")
    killed = second.call("pid").result(30)
    started = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    begun = handle.read_into(here)  # may be done before the kernel has taken the memory away
    until(lambda: killed not in held_by())
    begun.exception(30)
    for future in (waiting, handle.read_into(here), first.call("read", handle)):
        assert isinstance(future.exception(30), spoke.ActorUnreachable | spoke.ActorError)
    assert time.monotonic() - started < 20
    assert first.call("rank").result(30) == 0
    gang.release().result(60)
    until(lambda: not processes & held_by())


def test_doctor_finds_that_rdma_can_be_used() -> None:
    """The last command of the page on RDMA; there is no server here, of which it complains."""
    command = [sys.executable, "-m", "spoke.cli.main", "doctor", "--json", "--url", "redis://127.0.0.1:1"]
    done = subprocess.run(command, check=False, timeout=200, capture_output=True, text=True)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    for name in ("RDMA ports", "pyverbs", "RDMA"):
        assert found[name]["level"] == "ok", found[name]
    assert "rxe0" in found["RDMA ports"]["found"]
