"""Calls between real processes: answers, errors, time limits, deaths, and an end in every state."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spoke.errors import ActorError, ActorUnreachable, CallTimeout, InvalidRequest, LimitExceeded, NotSerializable
from spoke.transport import CallServer, Connection, connect, pack
from spoke.transport.auth import ClientHandshake
from spoke.transport.choice import VARIABLE
from spoke.transport.door import STRANGERS_MAX
from spoke.transport.negotiate import encode
from tests import nursery

CARRIERS = os.environ.get("SPOKE_TEST_CARRIERS", "shm,tcp").split(",")
SECRET = b"transport-tests!" * 2
MIB = 1 << 20
FEWER = 12 if os.environ.get("SPOKE_TEST_RDMA") == "1" else 1  # repetitions on an emulated processor


class Actor:
    """The process of transport_actor.py."""

    def __init__(self, limit_bytes: int = 1 << 30, workers: int = 16) -> None:
        env = {name: value for name, value in os.environ.items() if name != VARIABLE}
        if len(CARRIERS) == 1:  # then what the actor itself connects to goes over that one, too
            env[VARIABLE] = CARRIERS[0]
        self.process = nursery.start("tests.integration.transport_actor", [str(limit_bytes), str(workers)], env)
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.rsplit(":", 1)[1])

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        """SIGSTOP, and wait until it has taken effect."""
        self.signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")

    def end(self) -> str:
        """Let it close its server by itself; what it printed."""
        return self.process.communicate(timeout=20)[0]

    def destroy(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Actor]]:
    actors: list[Actor] = []

    def start(**options: int) -> Actor:
        actors.append(Actor(**options))
        return actors[-1]

    yield start
    for actor in actors:
        actor.destroy()


@pytest.fixture(scope="module")
def actor() -> Iterator[Actor]:
    actor = Actor()
    yield actor
    actor.destroy()


@pytest.fixture
def connection(actor: Actor) -> Iterator[Connection]:
    with connect(actor.address, SECRET) as connection:
        yield connection


@pytest.fixture(params=CARRIERS, autouse=True)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs over each transport; SPOKE_TEST_CARRIERS=rdma,tcp names others."""
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_left(carrier: str) -> Iterator[None]:
    """No thread of the transport and no descriptor outlives a test."""
    threads, fds, mappings = threads_of_spoke(), count_fds(), count_mappings()
    yield
    until(lambda: threads_of_spoke() <= threads)
    until(lambda: gc.collect() >= 0 and count_mappings() <= mappings)
    until(lambda: count_fds() <= fds + 5)  # the module's actor may have come up in between, and the nursery


def threads_of_spoke() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("spoke")}


def count_mappings() -> int:
    """Shared memory that is mapped into this process."""
    return Path("/proc/self/maps").read_text().count("memfd:spoke")


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def took_s(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


# Answers.


def test_a_call_carries_arguments_and_brings_the_result(connection: Connection, carrier: str) -> None:
    assert connection.call("echo", (1, "two"), {"three": [3.0, None, b"x"]}).result(10) == [
        [1, "two"],
        {"three": [3.0, None, b"x"]},
    ]
    assert connection.call("async_echo", ("later",)).result(10) == "later"
    assert connection.transport.name == carrier


def test_a_large_array_arrives_whole_and_writable(connection: Connection) -> None:
    array = np.random.default_rng(0).integers(0, 2**62, 8 * MIB)
    found = connection.call("double", (array,)).result(60)
    assert np.array_equal(found, array * 2)
    found[0] = 1


@pytest.mark.parametrize("nbytes", [0, 1, 16383, 16384, 65516, 65536, MIB - 1, MIB, 5 * MIB + 1])
def test_sizes_around_every_threshold(connection: Connection, nbytes: int) -> None:
    data = os.urandom(nbytes)
    assert connection.call("echo", (data,)).result(30) == data
    assert connection.call("echo", (np.frombuffer(data, "u1"),)).result(30).tobytes() == data


def test_the_arguments_may_be_changed_once_call_has_returned(connection: Connection) -> None:
    array = np.ones(8 * MIB, "u1")
    futures = []
    for number in range(5):
        array[:] = number
        futures.append(connection.call("echo", (array,)))
    for number, future in enumerate(futures):
        assert (future.result(60) == number).all()


def test_a_hundred_concurrent_calls_from_ten_threads(connection: Connection) -> None:
    found: dict[int, int] = {}

    def work(first: int) -> None:
        for number in range(first, first + 10):
            found[number] = connection.call("async_echo" if number % 2 else "echo", (number,)).result(30)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 100, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: number for number in range(100)}


def test_thousands_outstanding_and_mixed_ways_to_wait(connection: Connection) -> None:
    count = 5000 // FEWER
    futures = [connection.call("echo", (number,)) for number in range(count)]
    assert futures[count - 99].result(30) == count - 99
    assert {future.result() for future in as_completed(futures[:100], 30)} == set(range(100))
    assert not wait(futures, 30).not_done
    assert [future.result() for future in futures] == list(range(count))


def test_threads_that_wait_while_others_use_callbacks_lose_no_answer(connection: Connection) -> None:
    """The hand-over of reading between waiting threads and the connection's own one, many times."""
    late = threading.Event()
    counted: list[int] = []

    def work(seed: int) -> None:
        for number in range(1500 // FEWER):
            future = connection.call("echo", (number,))
            if (number + seed) % 3 == 0:
                future.add_done_callback(lambda done: counted.append(done.result()))
            elif future.result(20) != number:
                late.set()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    until(lambda: len(counted) == 1500 // FEWER)
    assert not late.is_set()


def test_a_callback_may_wait_for_another_call(connection: Connection) -> None:
    found: Future[Any] = Future()
    first = connection.call("async_sleep", (0.05,))
    first.add_done_callback(lambda _: found.set_result(connection.call("echo", ("inner",)).result(10)))
    assert found.result(10) == "inner"


def test_asyncio_awaits_calls(connection: Connection) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(asyncio.wrap_future(connection.call("echo", (n,))) for n in range(50)))

    assert asyncio.run(main()) == list(range(50))


def test_async_calls_of_one_connection_start_in_order(start: Callable[..., Actor]) -> None:
    with connect(start().address, SECRET) as connection:
        wait([connection.call("note", (number,)) for number in range(500)], 30)
        assert connection.call("noted").result(10) == list(range(500))


def test_a_slow_method_does_not_block_the_others(connection: Connection) -> None:
    slow = [connection.call("sleep", (1.0,)) for _ in range(8)]
    assert took_s(lambda: connection.call("echo", (1,)).result(10)) < 0.7
    assert took_s(lambda: connection.call("async_echo", (1,)).result(10)) < 0.7
    assert not any(future.done() for future in slow)
    assert took_s(lambda: wait(slow, 10)) < 3


def test_when_all_workers_are_busy_async_calls_and_cancels_still_go_through(start: Callable[..., Actor]) -> None:
    with connect(start(workers=2).address, SECRET) as connection:
        slow = [connection.call("sleep", (2.0,)) for _ in range(2)]
        waiting = connection.call("echo", ("never",))
        assert connection.call("async_echo", (1,)).result(1.5) == 1
        assert waiting.cancel()
        wait(slow, 10)
        assert connection.call("echo", ("now",)).result(10) == "now"


# Errors.


def test_a_remote_exception_carries_its_traceback_and_type(connection: Connection) -> None:
    error = connection.call("fail", ("the reason",)).exception(10)
    assert type(error) is ActorError
    assert error.remote_type == "KeyError"
    assert "raise KeyError(text)" in str(error)
    assert "the reason" in str(error)
    error = connection.call("async_fail", ("é",)).exception(10)
    assert isinstance(error, ActorError)
    assert error.remote_type == "ValueError"
    error = connection.call("exit").exception(10)
    assert isinstance(error, ActorError)
    assert error.remote_type == "SystemExit"
    assert connection.call("echo", (1,)).result(10) == 1


@pytest.mark.parametrize(
    "name", ["_private", "shutdown", "__init__", "trap", "seen", "nothing", "", "sleeep", "x" * 10_000]
)
def test_only_public_methods_can_be_called(connection: Connection, name: str) -> None:
    error = connection.call(name).exception(10)
    assert isinstance(error, ActorError)
    assert "cannot be called; " in str(error)
    assert "he actor offers a" in str(error)


def test_a_method_that_is_nearly_there_is_named(connection: Connection) -> None:
    with pytest.raises(ActorError, match=r"cannot be called; did you mean async_fail.*\? The actor offers a"):
        connection.call("asynk_fail").result(10)


def test_errors_call_the_actor_by_the_name_that_its_caller_gave_it(start: Callable[..., Actor]) -> None:
    actor = start()
    with connect(actor.address, SECRET, name="Model-3 (rank 3 on node-1)") as connection:
        waiting = connection.call("sleep", (30,))
        actor.signal(signal.SIGKILL)
        with pytest.raises(ActorUnreachable, match=r"sleep on Model-3 \(rank 3 on node-1\) got no answer"):
            waiting.result(10)
    with pytest.raises(ActorUnreachable, match=r"Model-3 cannot be reached: .*tcp://"):
        connect(actor.address, SECRET, name="Model-3")


def test_wrong_arguments_are_the_methods_type_error(connection: Connection) -> None:
    for name in ("sleep", "async_sleep"):
        error = connection.call(name, (), {"wrong": 1}).exception(10)
        assert isinstance(error, ActorError)
        assert error.remote_type == "TypeError"


def test_arguments_that_are_no_data_fail_and_send_nothing(connection: Connection) -> None:
    with pytest.raises(NotSerializable, match=r"args\[0\]\['x'\].* set"):
        connection.call("echo", ({"x": {1}},)).result(10)
    with pytest.raises(NotSerializable, match=r"kwargs\['f'\].*function"):
        connection.call("echo", (), {"f": until}).result(10)
    with pytest.raises(NotSerializable, match=r"args\[0\]\[1\].* 65 bits"):
        connection.call("echo", ([1, 2**64],)).result(10)


def test_a_result_that_is_no_data_comes_back_as_an_error(connection: Connection) -> None:
    with pytest.raises(NotSerializable, match=r"result of Target.unsendable\['a'\]\[1\].* set"):
        connection.call("unsendable").result(10)


def test_messages_over_a_limit_fail_alone(start: Callable[..., Actor]) -> None:
    actor = start(limit_bytes=MIB)
    with connect(actor.address, SECRET) as connection:
        before = connection.call("async_sleep", (0.3,))
        with pytest.raises(LimitExceeded, match="receiver's limit"):  # refused by the actor
            connection.call("echo", (bytes(3 * MIB),)).result(20)
        with pytest.raises(LimitExceeded):  # the actor cannot send it
            connection.call("zeros", (2 * MIB,)).result(20)
        assert before.result(20) == 0.3
    with connect(start().address, SECRET, limit_bytes=MIB) as connection:
        with pytest.raises(LimitExceeded, match="send it in parts"):  # not sent at all
            connection.call("echo", (bytes(3 * MIB),)).result(20)
        with pytest.raises(LimitExceeded, match="cannot be taken"):  # refused here
            connection.call("zeros", (3 * MIB,)).result(20)
        assert connection.call("echo", (1,)).result(20) == 1


# Time limits and cancellation.


def test_a_call_without_an_answer_in_time_fails_whether_waited_for_or_not(start: Callable[..., Actor]) -> None:
    with connect(start().address, SECRET) as connection:
        waited = connection.call("async_sleep", (30.0,), timeout_s=0.2)
        assert took_s(lambda: waited.exception(10)) < 2
        assert isinstance(waited.exception(), CallTimeout)
        assert connection.call("wait_cancelled").result(10)  # the actor was told
        unwaited = connection.call("async_sleep", (30.0,), timeout_s=0.2)
        until(unwaited.done)
        assert isinstance(unwaited.exception(), CallTimeout)
        assert connection.call("echo", (1,), timeout_s=10).result() == 1


def test_waiting_has_its_own_time_limit(connection: Connection) -> None:
    future = connection.call("async_sleep", (0.5,))
    with pytest.raises(TimeoutError):
        future.result(0.05)
    assert future.result(10) == 0.5


def test_cancelling_wakes_who_waits_and_cancels_the_method(start: Callable[..., Actor]) -> None:
    with connect(start().address, SECRET) as connection:
        future = connection.call("async_sleep", (30.0,))
        assert connection.call("wait_entered").result(10)
        timer = threading.Timer(0.1, future.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            future.result(10)
        timer.join()
        assert connection.call("wait_cancelled").result(10)
        assert future.cancel()


# Deaths.


def test_kill_9_of_the_actor_fails_all_outstanding_calls_at_once(start: Callable[..., Actor]) -> None:
    actor = start()
    with connect(actor.address, SECRET) as connection:
        futures = [connection.call("async_sleep", (60.0,)) for _ in range(50)]
        assert connection.call("wait_entered").result(10)
        timer = threading.Timer(0.1, actor.signal, (signal.SIGKILL,))
        timer.start()
        assert took_s(lambda: futures[0].exception(10)) < 3
        timer.join()
        assert not wait(futures, 2).not_done
        assert all(isinstance(future.exception(), ActorUnreachable) for future in futures)
        until(lambda: connection.closed)
        assert isinstance(connection.call("echo").exception(1), ActorUnreachable)
    actor.process.wait(10)
    with pytest.raises(ActorUnreachable, match="nothing answers"):
        connect(actor.address, SECRET)


def test_an_actor_stopped_in_mid_transfer_and_killed_ends_every_call(start: Callable[..., Actor]) -> None:
    actor = start()
    with connect(actor.address, SECRET) as connection:
        array = np.zeros(48 * MIB, "u1")
        futures: list[Future[Any]] = []

        def work() -> None:
            for _ in range(6):
                futures.append(connection.call("echo", (array,)))

        sender = threading.Thread(target=work)
        sender.start()
        until(lambda: len(futures) > 0 or connection._endpoint.backlog_bytes > 0 or not sender.is_alive())
        actor.stop()
        actor.signal(signal.SIGKILL)
        sender.join(10)
        assert not sender.is_alive()
        assert not wait(futures, 10).not_done
        assert all(isinstance(future.exception(), ActorUnreachable | None) for future in futures)
        until(lambda: connection.closed)


def test_a_caller_that_dies_leaves_nothing_in_the_actor(start: Callable[..., Actor]) -> None:
    actor = start()
    with connect(actor.address, SECRET) as connection:
        connection.call("echo").result(10)
        connection.call("async_echo", (1,)).result(10)
        fds = connection.call("fds").result(10)
        code = (
            "import os, sys, time; from spoke.transport import connect\n"
            f"c = connect({actor.address!r}, {SECRET!r})\n"
            f"c.call('async_sleep', (60.0,)); c.call('zeros', ({(50 << 20) // FEWER},))\n"
            "c.call('wait_entered').result(20); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
        assert connection.call("wait_cancelled").result(10)
        until(lambda: connection.call("fds").result(10) <= fds)


def test_close_ends_within_seconds_when_the_actor_is_stopped_in_mid_transfer(start: Callable[..., Actor]) -> None:
    actor = start()
    connection = connect(actor.address, SECRET)
    connection.call("echo", (1,)).result(10)
    actor.stop()
    try:
        waiting = connection.call("echo", (2,))
        # Far more than the sockets hold: comes back after a second without progress.
        assert took_s(lambda: connection.call("echo", (np.zeros(40 * MIB, "u1"),))) < 6
        small = connection.call("echo", (3,))
        for _ in range(20):  # shared memory takes some before it is full
            refused = connection.call("echo", (np.zeros(60 * MIB, "u1"),))
            if refused.done():
                break
        with pytest.raises(LimitExceeded, match="does not read"):
            refused.result(1)
        timed = connection.call("echo", (4,), timeout_s=0.1)
        assert isinstance(timed.exception(5), CallTimeout)
        assert took_s(connection.close) < 3
        for future in (waiting, small):
            assert isinstance(future.exception(1), ActorUnreachable)
    finally:
        actor.signal(signal.SIGCONT)


def test_a_stopped_actor_gets_the_backlog_when_it_goes_on(start: Callable[..., Actor]) -> None:
    actor = start()
    with connect(actor.address, SECRET) as connection:
        connection.call("echo", (1,)).result(10)
        actor.stop()
        array = np.arange(5 * MIB)
        futures = [connection.call("echo", (array,))] + [connection.call("echo", (n,)) for n in range(100)]
        array[:] = 0  # what waited was copied
        actor.signal(signal.SIGCONT)
        assert np.array_equal(futures[0].result(30), np.arange(5 * MIB))
        assert [future.result(30) for future in futures[1:]] == list(range(100))


def test_close_from_another_thread_wakes_who_sends_and_who_waits(start: Callable[..., Actor]) -> None:
    actor = start()
    connection = connect(actor.address, SECRET)
    future = connection.call("async_sleep", (60.0,))
    outcome: list[BaseException | None] = []
    waiter = threading.Thread(target=lambda: outcome.append(future.exception(30)))
    waiter.start()
    assert connection.call("wait_entered").result(10)
    actor.stop()
    sender = threading.Thread(target=lambda: connection.call("echo", (np.zeros(200 * MIB, "u1"),)))
    sender.start()
    try:
        assert took_s(connection.close) < 3
        waiter.join(3)
        sender.join(3)
        assert not waiter.is_alive()
        assert not sender.is_alive()
        assert isinstance(outcome[0], ActorUnreachable)
    finally:
        actor.signal(signal.SIGCONT)


def test_a_server_closes_in_the_middle_of_everything(start: Callable[..., Actor]) -> None:
    actor = start()
    with connect(actor.address, SECRET) as connection, connect(actor.address, SECRET):
        futures = [connection.call("async_sleep", (60.0,)), connection.call("sleep", (1.0,))]
        futures += [connection.call("zeros", (20 * MIB,)) for _ in range(5)]
        assert connection.call("wait_entered").result(10)
        started = time.monotonic()
        assert "left []" in actor.end()
        assert time.monotonic() - started < 10
        assert not wait(futures, 5).not_done


@pytest.mark.door
def test_a_server_closes_whether_started_or_not_and_twice() -> None:
    CallServer(object(), secret=SECRET, advertise="127.0.0.1").close()
    server = CallServer(object(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1")
    server.start()
    server.close()
    server.close()


# Strangers.


@pytest.mark.door
def test_a_wrong_secret_is_refused_and_says_so(actor: Actor) -> None:
    with pytest.raises(ActorUnreachable, match="another ticket"):
        connect(actor.address, b"w" * 32)


@pytest.mark.door
@pytest.mark.parametrize("address", ["", "tcp://", "tcp://host", "http://h:1", "tcp://h:99999", "tcp://[::", "x" * 999])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest, match="tcp://host:port"):
        connect(address, SECRET)


@pytest.mark.door
def test_a_peer_that_does_not_speak_the_protocol_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ActorUnreachable):
            connect(address, SECRET, timeout_s=0.3)
        assert time.monotonic() - started < 3


@pytest.mark.door
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(min_size=1, max_size=200), st.binary(max_size=64).map(lambda b: ClientHandshake(SECRET).hello + b)
    )
)
def test_garbage_to_the_port_ends_that_connection_only(actor: Actor, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", actor.port), timeout=10) as sock:
        sock.sendall(data)
        with contextlib.suppress(OSError):  # the actor may have hung up already
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    with connect(actor.address, SECRET) as connection:
        assert connection.call("echo", (1,)).result(10) == 1


@pytest.mark.door
@pytest.mark.parametrize(
    "data",
    [
        b"garbage that is no frame at all, and long enough for a head",
        struct.pack("<4sBBHQI", b"SPK1", 1, 0, 0, 1, 3) + b"\xff\xc1\xc1",
        struct.pack("<4sBBHQI", b"SPK1", 1, 0, 0, 1, 1) + b"\x90",
        struct.pack("<4sBBHQIQ", b"SPK1", 1, 0, 1, 1, 0, 1 << 62),
        struct.pack("<4sBBHQI", b"SPK1", 4, 0, 0, 77, 0),
        struct.pack("<4sBBHQI", b"SPK1", 2, 0, 0, 77, 0),
    ],
)
def test_garbage_from_a_peer_with_the_secret_harms_nobody_else(
    actor: Actor, connection: Connection, data: bytes
) -> None:
    handshake = ClientHandshake(SECRET)
    with socket.create_connection(("127.0.0.1", actor.port), timeout=10) as sock:
        sock.sendall(handshake.hello)
        sock.sendall(handshake.answer(sock.recv(40, socket.MSG_WAITALL)))
        handshake.check(sock.recv(33, socket.MSG_WAITALL))
        sock.sendall(encode(["offer", {"tcp": {}}]))
        assert sock.recv(4, socket.MSG_WAITALL)
        sock.sendall(encode(["confirm"]) + data)
        assert connection.call("echo", (1,)).result(10) == 1
    assert connection.call("echo", (2,)).result(10) == 2


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(["echo", "async_count", "count", "memory.read", "memory.write", "identify", "mail", "", "x"])
_HEADERS = st.one_of(
    st.binary(max_size=60),
    _VALUES.map(pack),
    st.tuples(_NAMES, st.lists(_VALUES, max_size=3), st.dictionaries(st.text(max_size=5), _VALUES, max_size=2)).map(
        pack
    ),
    st.tuples(_NAMES, st.lists(_VALUES, max_size=1), st.just({}), st.lists(st.integers(-1, 2**40), max_size=3)).map(
        pack
    ),
    st.lists(st.integers(-1, 2**62), min_size=2, max_size=2).map(pack),
)
_FRAMES = st.tuples(st.integers(0, 12), st.integers(0, 3), _HEADERS, st.lists(st.binary(max_size=30), max_size=2))


@pytest.mark.door
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_FRAMES, min_size=1, max_size=6))
def test_no_frames_of_a_peer_with_the_secret_harm_anybody_else(
    actor: Actor, connection: Connection, frames: list[tuple[int, int, bytes, list[bytes]]]
) -> None:
    """Calls, streams, mail, mailboxes and memory, whole and broken, with ids that are in use and credit for nothing."""
    handshake = ClientHandshake(SECRET)
    with socket.create_connection(("127.0.0.1", actor.port), timeout=10) as sock:
        sock.sendall(handshake.hello)
        sock.sendall(handshake.answer(sock.recv(40, socket.MSG_WAITALL)))
        handshake.check(sock.recv(33, socket.MSG_WAITALL))
        with contextlib.suppress(ConnectionError):
            for kind, call_id, header, buffers in frames:
                head = struct.pack("<4sBBHQI", b"SPK1", kind, 0, len(buffers), call_id, len(header))
                sizes = struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
                sock.sendall(head + sizes + header + b"".join(buffers))
        assert connection.call("echo", (1,)).result(10) == 1
        assert connection.call("async_echo", (2,)).result(10) == 2
    assert connection.call("echo", (3,)).result(10) == 3


@pytest.mark.door
def test_idle_strangers_cannot_lock_the_others_out(actor: Actor) -> None:
    strangers = [socket.create_connection(("127.0.0.1", actor.port)) for _ in range(3 * STRANGERS_MAX)]
    try:
        assert took_s(lambda: connect(actor.address, SECRET).close()) < 3
        strangers[0].settimeout(10)
        assert strangers[0].recv(1) == b""  # the oldest were thrown out
        strangers[-1].settimeout(15)
        assert strangers[-1].recv(1) == b""  # and the others, after their time limit
    finally:
        for stranger in strangers:
            stranger.close()


def test_what_a_server_cannot_take_ends_that_connection_and_no_other(carrier: str, monkeypatch: Any) -> None:
    class Target:
        def size(self, data: Any) -> int:
            return len(data)

    server = CallServer(Target(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1", workers=1)
    server.start()
    try:
        with connect(server.address, SECRET) as broken, connect(server.address, SECRET) as other:
            assert broken.call("size", (b"x",)).result(20) == other.call("size", (b"x",)).result(20) == 1
            [caller] = [known for known, _ in server._callers.values() if known.jobs or known.endpoint.peer][:1]

            def receive() -> list[Any]:
                raise MemoryError("there is no room for what comes")

            monkeypatch.setattr(caller.endpoint, "receive", receive)
            calls = [connection.call("size", (b"xy",)) for connection in (broken, other)]
            found = [call.exception(20) for call in calls]
            assert sorted(type(error).__name__ for error in found) == ["ActorUnreachable", "NoneType"]
            alive = (broken, other)[found.index(None)]
            assert alive.call("size", (b"xyz",)).result(20) == 3
    finally:
        server.close()
