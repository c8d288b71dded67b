"""Connections to the owners of buffers: each is opened for itself, and one that does not answer holds up no other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from spoke.errors import ActorUnreachable
from spoke.transport import CallServer
from spoke.transport import scope as scopes
from spoke.transport.handles import BufferHandle
from spoke.transport.scope import Scope

SECRET = b"scope-tests-----" * 2


@pytest.fixture
def scope() -> Iterator[Scope]:
    scope = scopes.join(SECRET)
    yield scope
    scopes.leave(scope)


@pytest.fixture
def owner() -> Iterator[str]:
    """The address of an owner that answers."""
    server = CallServer(object(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1")
    server.start()
    yield server.address
    server.close()


class Silent:
    """Takes connections, and says nothing until it is hung up."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.came: list[socket.socket] = []

    def take(self) -> None:
        self.came.append(self.listener.accept()[0])

    def hang_up(self) -> None:
        for sock in (*self.came, self.listener):
            sock.close()
        self.came.clear()


@pytest.fixture
def silent() -> Iterator[Silent]:
    silent = Silent()
    yield silent
    silent.hang_up()


def test_an_owner_that_does_not_answer_holds_up_nobody_else(scope: Scope, owner: str, silent: Silent) -> None:
    with ThreadPoolExecutor(2) as threads:
        stuck = threads.submit(scope.owner, silent.address)
        silent.take()
        assert not threads.submit(scope.owner, owner).result(5).connection.closed
        assert not stuck.done()
        silent.hang_up()
        assert type(stuck.exception(5)) is ActorUnreachable


class Dying:
    """A connection to an owner that ends as soon as it is asked something."""

    closed = False

    def reach(self) -> SimpleNamespace:
        return SimpleNamespace(params=None, close=lambda: None)

    def ask(self, name: str, args: object, *, timeout_s: float | None) -> Future[object]:
        self.closed = True
        failed: Future[object] = Future()
        failed.set_exception(ActorUnreachable("the connection has ended"))
        return failed

    def close(self) -> None:
        pass


def test_a_transfer_that_connects_to_its_owner_again_holds_up_no_other(
    scope: Scope, owner: str, silent: Silent
) -> None:
    scope._owners[silent.address] = scopes.Owner(Dying())  # type: ignore[arg-type]
    transfer = BufferHandle(silent.address, b"k" * 16, 10, True, scope.id).read_into(bytearray(10))
    silent.take()
    others = threading.Event()
    assert scope.later(others.set)
    assert others.wait(5)
    assert not scope.owner_soon(owner).result(5).connection.closed
    assert not transfer.done()
    silent.hang_up()
    assert type(transfer.exception(5)) is ActorUnreachable


def test_all_who_wait_for_an_owner_share_one_connection(
    scope: Scope, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, real = threading.Semaphore(0), threading.Event(), scopes.connect

    def connect(address: str, secret: bytes, *, timeout_s: float) -> scopes.Connection:
        begun.release()
        assert go_on.wait(10)
        return real(address, secret, timeout_s=timeout_s)

    monkeypatch.setattr(scopes, "connect", connect)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(scope.owner, owner) for _ in range(4)]
        assert begun.acquire(timeout=10)
        go_on.set()
        first, *others = [future.result(10) for future in asked]
    assert all(other is first for other in others)
    assert not begun.acquire(blocking=False)  # nobody else connected
    assert scope.owner(owner) is first


def test_all_who_wait_for_an_owner_hear_that_it_is_gone_and_the_next_tries_again(scope: Scope, silent: Silent) -> None:
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(scope.owner, silent.address) for _ in range(3)]
        silent.take()
        silent.hang_up()
        assert {type(future.exception(5)) for future in asked} == {ActorUnreachable}
    with pytest.raises(ActorUnreachable, match="nothing answers"):
        scope.owner(silent.address)


def test_a_broken_connection_is_replaced(scope: Scope, owner: str) -> None:
    first = scope.owner(owner)
    first.connection.close()
    assert not scope.owner(owner).connection.closed
    assert scope.owner(owner) is not first


def test_leaving_does_not_wait_for_who_connects_and_lets_nobody_in(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scope, begun, go_on, real = scopes.join(SECRET), threading.Event(), threading.Event(), scopes.connect
    made: list[scopes.Connection] = []

    def connect(address: str, secret: bytes, *, timeout_s: float) -> scopes.Connection:
        begun.set()
        assert go_on.wait(10)
        made.append(real(address, secret, timeout_s=timeout_s))
        return made[0]

    monkeypatch.setattr(scopes, "connect", connect)
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(scope.owner, owner)
        assert begun.wait(10)
        threads.submit(scopes.leave, scope).result(5)
        go_on.set()
        assert "left the ticket" in str(late.exception(10))
    assert made[0].closed
    with pytest.raises(ActorUnreachable, match="left the ticket"):
        scope.owner(owner)
