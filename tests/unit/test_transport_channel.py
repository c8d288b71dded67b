"""Outstanding futures and who reads for them, over an endpoint that does what the test says."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, ClassVar

import pytest

from spoke.errors import ActorUnreachable, CallTimeout
from spoke.transport import channel
from spoke.transport.call import Connection
from spoke.transport.direct import Copy, Gone, RemoteMemory
from spoke.transport.endpoint import Endpoint, EndpointClosed
from spoke.transport.frames import Done, Frame, Incoming, Kind
from spoke.transport.handles import BufferHandle
from spoke.transport.memory import Transfer
from spoke.transport.scope import Owner, Scope
from spoke.transport.values import pack


class Peer(Endpoint):
    """An endpoint whose peer says what the test lets it say."""

    transport: ClassVar[str] = "tcp"
    backlog_bytes: ClassVar[int] = 0  # type: ignore[assignment]

    def __init__(self) -> None:
        self.peer = "nobody"
        self.wants_flush = lambda: None
        self.story: list[str] = []
        self.sent: list[tuple[Kind, int]] = []
        self.broken = False
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._room = os.eventfd(0, os.EFD_NONBLOCK)
        self._incoming: list[Incoming] = []
        self._lock = threading.Lock()
        self._shut = False

    def says(self, *incoming: Incoming) -> None:
        self._incoming += incoming
        os.eventfd_write(self._news, 1)

    def answers(self, future: Any, value: object) -> None:
        self.says(Frame(Kind.RESULT, future.call_id, pack(value), []))

    def readable_fd(self) -> int:
        return self._news

    def flush_fd(self) -> int:
        return self._room

    def receive(self) -> list[Incoming]:
        try:
            os.eventfd_read(self._news)
        except BlockingIOError:
            return []
        if self._shut:
            raise EndpointClosed("the end")
        if self.broken:
            raise OSError("no memory for what comes")
        found, self._incoming = self._incoming, []
        return found

    def send(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], *, may_wait: bool, must: bool
    ) -> None:
        self.sent.append((kind, call_id))

    def flush(self) -> bool:
        return True

    def shutdown(self) -> None:
        with self._lock:
            if not self._shut:
                self._shut = True
                os.eventfd_write(self._news, 1 << 20)

    def close(self) -> None:
        self.story.append("the endpoint is closed")
        os.close(self._news)
        os.close(self._room)


class Memory(RemoteMemory):
    """Memory of the peer: a transfer begins, and ends when the test says so."""

    waits = False

    def __init__(self, error: Exception | None = None) -> None:
        self.begun: list[int] = []
        self.forgotten: list[int] = []
        self.error = error

    def begin(self, copy: Copy, call_id: int) -> bool:
        if self.error is not None:
            raise self.error
        self.begun.append(call_id)
        return False

    def forget(self, call_id: int) -> None:
        self.forgotten.append(call_id)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def connection(peer: Peer) -> Iterator[Connection]:
    with Connection(peer) as connection:
        yield connection
    assert not connection._thread.is_alive()


COPY = Copy(b"x", memoryview(b"x"), 0, True)


def transfer(
    connection: Connection, memory: Memory | None, limit_s: float = 60, scope: Scope | None = None
) -> Transfer:
    """One of a byte, by calls where ``memory`` is None."""
    scope = scope or Scope(b"secret")
    scope._owners["there"] = owner = Owner(connection)
    owner.keep(b"key", memory)
    return Transfer(BufferHandle("there", b"key", 1, True, scope.id), scope, COPY, limit_s).start()


def answer_piece(peer: Peer) -> None:
    """What the owner says when it was asked to write the byte."""
    kind, call_id = peer.sent[-1]
    assert kind is Kind.ASK
    peer.says(Frame(Kind.RESULT, call_id, pack(None), []))


def in_thread(work: Callable[[], object]) -> Future[Any]:
    """What it returns, or raises, in a thread of its own."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def until(condition: Callable[[], object], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# Who reads.


def test_an_answer_that_nobody_waits_for_is_read_after_a_reader_has_left(connection: Connection, peer: Peer) -> None:
    for number in range(50):
        first, second = connection.call("a"), connection.call("b")
        peer.answers(first, number)
        assert first.result(10) == number
        peer.answers(second, number)
        assert wait([second], 10).done  # waits, and does not read


def test_a_thread_that_waits_while_another_one_reads_gets_its_answer_when_that_one_has_left(
    connection: Connection, peer: Peer
) -> None:
    for number in range(50):
        first, second = connection.call("a"), connection.call("b")
        reading = in_thread(lambda first=first: first.result(10))  # type: ignore[misc]
        until(lambda: connection._leader is not None)
        waiting = in_thread(lambda second=second: second.result(10))  # type: ignore[misc]
        until(lambda: connection._crowded)
        peer.answers(first, number)
        assert reading.result(10) == number
        peer.answers(second, -number)
        assert waiting.result(10) == -number
    assert not connection._outstanding


def test_who_comes_back_for_the_next_of_several_answers_wakes_nobody(
    connection: Connection, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_TICK_S", 60.0)  # on a busy machine a tick may pass between two answers
    first = connection.call("a")
    reading = in_thread(lambda: first.result(10))
    until(lambda: connection._leader is first)
    calls = [connection.call("a") for _ in range(200)]
    peer.answers(first, 0)
    reading.result(10)
    read_by = set()
    for number, call in enumerate(calls):
        call.add_done_callback(lambda _: read_by.add(threading.current_thread().name))
        peer.answers(call, number)
        assert call.result(10) == number
    assert read_by == {threading.current_thread().name}


# Ends.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_exits_ends_the_connection_and_leaves_no_call_waiting(
    connection: Connection, peer: Peer
) -> None:
    fatal, other = connection.call("a"), connection.call("b")
    fatal.add_done_callback(lambda _: sys.exit(3))
    peer.answers(fatal, 1)
    assert wait([other], 10).done  # does not read
    assert isinstance(other.exception(0), ActorUnreachable)
    until(lambda: peer.story == ["the endpoint is closed"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_cannot_be_read_ends_the_connection_and_leaves_no_call_waiting(connection: Connection, peer: Peer) -> None:
    calls = [connection.call("a"), connection.call("b")]
    calls[0].add_done_callback(lambda _: sys.exit(3))
    peer.broken = True
    peer.says()
    assert len(wait(calls, 10).done) == 2
    assert {type(call.exception(0)) for call in calls} == {ActorUnreachable}
    until(lambda: peer.story == ["the endpoint is closed"])


def test_calls_fail_at_once_and_transfers_when_the_card_cannot_reach_their_memory_any_more(
    connection: Connection, peer: Peer
) -> None:
    scope = Scope(b"secret")
    connection.call("a").add_done_callback(lambda _: peer.story.append("the call fails"))
    transfer(connection, Memory(), scope=scope).add_done_callback(lambda _: peer.story.append("the transfer fails"))
    scope.close()
    assert peer.story == ["the call fails", "the endpoint is closed", "the transfer fails"]


# Transfers.


def test_a_transfer_that_is_done(connection: Connection, peer: Peer) -> None:
    made = transfer(connection, Memory())
    assert not made.done()
    peer.says(Done(made.call_id))
    assert made.result(10) is None
    assert not connection._outstanding


@pytest.mark.parametrize("reading", [False, True])
def test_a_cancelled_transfer_is_posted_no_further_and_wakes_who_waits(connection: Connection, reading: bool) -> None:
    memory = Memory()
    made = transfer(connection, memory)
    waiting = in_thread(lambda: made.exception(10) if reading else wait([made], 10).done)
    until(lambda: connection._leader is made or made._waiters)
    assert made.cancel()
    assert made.cancel()
    if reading:
        assert type(waiting.exception(10)).__name__ == "CancelledError"
    else:
        assert waiting.result(10) == {made}
    assert memory.forgotten == memory.begun
    assert not connection._outstanding


def test_a_transfer_that_takes_long_to_begin_does_not_hold_answers_up(connection: Connection, peer: Peer) -> None:
    connection._begin_s = 100.0
    first, second = connection.call("a"), connection.call("b")
    peer.answers(first, 1)
    assert first.result(10) == 1
    peer.answers(second, 2)
    assert wait([second], 10).done


def test_a_transfer_that_goes_by_calls_can_be_cancelled_and_wakes_who_waits(connection: Connection) -> None:
    made = transfer(connection, None)
    waiting = in_thread(lambda: wait([made], 10).done)
    until(lambda: made._waiters)
    assert made.cancel()
    assert waiting.result(10) == {made}
    made.fail(ActorUnreachable("late"))
    made.succeed()
    assert made.cancelled()


def test_a_transfer_whose_time_is_over_is_posted_no_further(connection: Connection) -> None:
    memory = Memory()
    made = transfer(connection, memory, limit_s=0.05)
    assert isinstance(made.exception(10), CallTimeout)
    assert memory.forgotten == memory.begun


def test_where_memory_is_gone_the_owner_is_asked_and_waiting_goes_on(connection: Connection, peer: Peer) -> None:
    made = transfer(connection, Memory(Gone("closed")))
    waiting = in_thread(lambda: made.result(10))
    with pytest.raises(TimeoutError):
        made.result(0.05)
    answer_piece(peer)
    assert waiting.result(10) is None


def test_an_error_on_the_other_way_is_the_transfers(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(connection, "ask", ask)
    assert isinstance(transfer(connection, Memory(Gone("closed"))).exception(10), MemoryError)


@pytest.mark.parametrize("end", ["done", "cancelled", "late", "by calls"])
def test_a_transfer_holds_no_memory_once_it_is_done(connection: Connection, peer: Peer, end: str) -> None:
    made = transfer(connection, None if end == "by calls" else Memory(), 0.05 if end == "late" else 60)
    if end == "done":
        peer.says(Done(made.call_id))
    elif end == "cancelled":
        made.cancel()
    elif end == "by calls":
        answer_piece(peer)
    wait([made], 10)
    assert made._copy is None
