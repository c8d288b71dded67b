"""Calls over real queue pairs: sizes, credits, large frames in place, deaths, and an end in every state."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spoke.errors import ActorUnreachable, LimitExceeded
from spoke.transport import Connection, connect
from spoke.transport.rdma import device
from spoke.transport.rdma.wire import CHUNK_BYTES, PAYLOAD_BYTES_MAX

ACTOR = Path(__file__).parents[1] / "integration" / "transport_actor.py"
SECRET = b"transport-tests!" * 2
COUNTERS = Path("/sys/class/infiniband/rxe0/ports/1/hw_counters")
MIB = 1 << 20


class Actor:
    """An actor's process."""

    def __init__(self, limit_bytes: int = 1 << 30) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ACTOR), str(limit_bytes), "4"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def connect(self) -> Connection:
        return connect(self.address, SECRET, transport="rdma")

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> str:
        return self.process.communicate(timeout=30)[0]


@pytest.fixture
def actor() -> Iterator[Actor]:
    actor = Actor()
    yield actor
    actor.process.kill()
    actor.process.communicate()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread, descriptor or opened device outlives a test, and no receiver was ever found not ready."""
    fds = len(os.listdir("/proc/self/fd"))
    yield
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("spoke")])
    assert not device._open
    until(lambda: len(os.listdir("/proc/self/fd")) <= fds + 1)
    for name in ("rcvd_rnr_err", "send_rnr_err"):
        assert int((COUNTERS / name).read_text()) == 0, name


def until(condition: Callable[[], bool], limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def took_s(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


def array(nbytes: int) -> Any:
    return np.frombuffer(os.urandom(nbytes), "u1")


def test_every_size_arrives_whole(actor: Actor) -> None:
    with actor.connect() as connection:
        assert connection.transport == "rdma" or "rdma" in str(connection.transport)
        thresholds = (PAYLOAD_BYTES_MAX, 16 << 10, 64 << 10, CHUNK_BYTES)
        for nbytes in (0, 1, *(size + step for size in thresholds for step in (-64, -1, 0, 1)), 5 * MIB + 3):
            sent = array(nbytes)
            assert np.array_equal(connection.call("echo", (sent,)).result(30), sent), nbytes
            assert connection.call("echo", (sent.tobytes(),)).result(30) == sent.tobytes(), nbytes
        found = connection.call("echo", ([array(MIB), {"b": array(20_000)}, array(3)],)).result(30)
        assert [len(found[0]), len(found[1]["b"]), len(found[2])] == [MIB, 20_000, 3]


def test_more_calls_than_credits_keep_their_order(actor: Actor) -> None:
    with actor.connect() as connection:
        futures = [connection.call("note", (number,)) for number in range(500)]
        for future in futures:
            future.result(30)
        assert connection.call("noted").result(30) == list(range(500))


def test_large_and_small_calls_of_several_threads(actor: Actor) -> None:
    with actor.connect() as connection:
        wrong: list[object] = []

        def work(seed: int) -> None:
            for number in range(8):
                sent = np.full((40_000 << number % 6) + seed, seed, "u1")
                found = connection.call("echo", (sent,)).result(60)
                if not np.array_equal(found, sent) or connection.call("echo", (seed,)).result(60) != seed:
                    wrong.append((seed, number))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)


def test_arguments_may_be_changed_once_call_has_returned(actor: Actor) -> None:
    with actor.connect() as connection:
        sent = np.ones(6 * MIB, "u1")
        future = connection.call("echo", (sent,))
        sent[:] = 2
        assert future.result(30).max() == 1


def test_received_arrays_are_views_whose_memory_comes_back_when_they_are_collected(actor: Actor) -> None:
    with actor.connect() as connection:
        pool = next(iter(device._open.values())).landing
        found = connection.call("zeros", (4 * MIB,)).result(30)
        assert pool.lent_bytes >= 4 * MIB
        part = found[10:20]
        del found
        gc.collect()
        assert pool.lent_bytes >= 4 * MIB
        part[0] = 7  # writable
        del part
        gc.collect()
        assert pool.lent_bytes == 0
    kept = None
    with actor.connect() as connection:
        kept = connection.call("zeros", (MIB,)).result(30)
    assert kept.sum() == 0  # it outlives its connection


def test_a_frame_over_the_receivers_limit_fails_alone() -> None:
    actor = Actor(limit_bytes=MIB)
    try:
        with actor.connect() as connection:
            with pytest.raises(LimitExceeded):
                connection.call("echo", (array(2 * MIB),)).result(30)
            assert connection.call("echo", (1,)).result(30) == 1
    finally:
        actor.process.kill()
        actor.process.communicate()


def test_a_killed_actor_is_noticed_at_once_in_the_middle_of_a_transfer(actor: Actor) -> None:
    with actor.connect() as connection:
        waiting = connection.call("sleep", (60,))
        large = connection.call("echo", (array(24 * MIB),))
        actor.kill()
        start = time.monotonic()
        for future in (waiting, large):
            with pytest.raises(ActorUnreachable):
                future.result(30)
        assert time.monotonic() - start < 5
    assert took_s(connection.close) < 3


def test_closing_while_the_actor_is_stopped_and_a_transfer_is_under_way(actor: Actor) -> None:
    connection = actor.connect()
    assert connection.call("echo", (1,)).result(30) == 1
    actor.kill(signal.SIGSTOP)
    futures: list[Any] = []
    sender = threading.Thread(target=lambda: futures.append(connection.call("echo", (array(40 * MIB),))))
    sender.start()
    try:
        until(lambda: connection._endpoint.backlog_bytes > 0 or not sender.is_alive())
        assert took_s(connection.close) < 8
        sender.join(10)
        assert not sender.is_alive()
        with pytest.raises(ActorUnreachable):
            futures[0].result(5)
    finally:
        actor.kill(signal.SIGCONT)


def test_closing_with_a_thread_that_waits_for_an_answer(actor: Actor) -> None:
    connection = actor.connect()
    future = connection.call("sleep", (30,))
    errors: list[BaseException | None] = []
    waiter = threading.Thread(target=lambda: errors.append(future.exception(20)))
    waiter.start()
    assert took_s(connection.close) < 5
    waiter.join(10)
    assert isinstance(errors[0], ActorUnreachable)


def test_a_killed_client_is_forgotten_by_its_actor(actor: Actor) -> None:
    with actor.connect() as connection:
        before = connection.call("fds").result(30)
        script = (
            "import os, sys, signal; from spoke.transport import connect\n"
            f"c = connect({actor.address!r}, {SECRET!r}, transport='rdma')\n"
            "c.call('echo', (bytes(1 << 20),)).result(30)\n"
            "c.call('echo', (bytes(8 << 20),)); os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        until(lambda: connection.call("fds").result(30) <= before)
        assert connection.call("echo", (1,)).result(30) == 1


def test_the_actor_closes_and_leaves_nothing(actor: Actor) -> None:
    with actor.connect() as connection:
        assert connection.call("echo", (array(2 * MIB),)).result(30).nbytes == 2 * MIB
        start = time.monotonic()
        assert "left []" in actor.end()
        assert time.monotonic() - start < 10
        with pytest.raises(ActorUnreachable):
            connection.call("echo", (1,)).result(30)
