"""The client and a server that is away, restarts, is full, wants a password, or is a replica."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from redis.exceptions import RedisError, ResponseError

import spoke
from spoke.cli.embedded import EmbeddedServer, free_port
from spoke.errors import AuthenticationFailed, InvalidRequest, ServerUnreachable, ServerUnsuitable
from spoke.protocol import requests as r
from spoke.protocol import server as protocol_server
from spoke.protocol.server import Redis, connect
from tests.fakes import FakeAllocator, eventually

T_S = 30


# --- at the start ------------------------------------------------------------------------------------------------


def test_no_server_is_told_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable, match="spoke up"):
        spoke.Client(f"redis://127.0.0.1:{free_port()}")
    assert time.monotonic() - begun < 5


def test_a_port_where_something_else_listens_is_told_within_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_server.connect, "__kwdefaults__", {"timeout_s": 0.5})
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ServerUnreachable):
        spoke.Client(f"redis://127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://localhost:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL"):
        spoke.Client(url)


def test_a_password_is_asked_for_and_checked(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server") as server:
        admin = connect(server.url)
        admin.config_set("requirepass", "s3cret")
        with pytest.raises(AuthenticationFailed, match="redis://USER:PASSWORD@"):
            spoke.Client(server.url)
        wrong = server.url.replace("redis://", "redis://:other@")
        with pytest.raises(AuthenticationFailed, match="refuses the user or password") as caught:
            spoke.Client(wrong)
        assert "other" not in str(caught.value)
        with spoke.Client(server.url.replace("redis://", "redis://:s3cret@")) as client:
            assert "s3cret" not in repr(client)
        admin.close()


def test_a_user_without_the_rights_is_told(server: EmbeddedServer) -> None:
    admin = connect(server.url)
    admin.execute_command("ACL", "SETUSER", "reader", "on", ">x", "~*", "+@read", "+@connection", "+info")
    with pytest.raises(ServerUnsuitable, match="does not allow this user"):
        spoke.Client(server.url.replace("redis://", "redis://reader:x@"))
    admin.close()


def test_a_read_only_replica_is_refused(server: EmbeddedServer) -> None:
    admin = connect(server.url)
    admin.replicaof("127.0.0.1", str(free_port()))
    with pytest.raises(ServerUnsuitable, match="read-only replica"):
        spoke.Client(server.url)
    admin.close()


def test_a_server_that_is_too_old_is_refused(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_server, "VERSION_MIN", (99, 0))
    with pytest.raises(ServerUnsuitable, match="upgrade it"):
        spoke.Client(server.url)


def test_a_full_server_is_refused_and_leaves_no_thread(server: EmbeddedServer) -> None:
    admin = connect(server.url)
    admin.config_set("maxmemory", 1)
    with pytest.raises(ServerUnsuitable, match="out of memory"):
        spoke.Client(server.url)
    admin.close()


# --- later -------------------------------------------------------------------------------------------------------


def test_a_server_killed_and_started_again_loses_no_request(server: EmbeddedServer, pool: str) -> None:
    with FakeAllocator(server.url, pool) as allocator, spoke.Client(server.url, pool=pool, lease_s=60) as client:
        held = client.gang_allocate(1, 1).result(T_S)
        allocator.muted.set()
        futures = [client.gang_allocate(1, 1, name=f"before-{i}") for i in range(50)]
        server.kill()
        futures += [client.gang_allocate(1, 1, name=f"while-{i}") for i in range(50)]
        assert not any(future.done() for future in futures)
        server.start()
        allocator.muted.clear()
        gangs = [future.result(T_S) for future in futures]
        names = [request.spec.name for request in allocator.requests(r.AllocateGang)]
        assert sorted(names) == sorted({gang.ticket.spec.name for gang in gangs} | {""})
        assert held.release().result(T_S)
        for gang in gangs:
            gang.release().result(T_S)
        assert allocator.tickets == {}


def test_a_server_that_loses_what_it_had_acknowledged_is_asked_again(server: EmbeddedServer, pool: str) -> None:
    with FakeAllocator(server.url, pool) as allocator, spoke.Client(server.url, pool=pool, lease_s=60) as client:
        client.gang_allocate(1, 1).result(T_S)
        allocator.muted.set()
        futures = [client.gang_allocate(1, 1) for _ in range(20)]
        admin = connect(server.url)
        eventually(lambda: admin.xlen(allocator.keys.requests) >= 22)
        admin.delete(allocator.keys.requests)  # as if the last second of the log had never reached the disk
        admin.close()
        server.restart()
        allocator.muted.clear()
        assert len({future.result(T_S).ticket_id for future in futures}) == 20


def test_a_launch_while_the_server_is_away_waits_for_it(server: EmbeddedServer, pool: str) -> None:
    with FakeAllocator(server.url, pool), spoke.Client(server.url, pool=pool, retry_s=60, lease_s=60) as client:
        gang = client.gang_allocate(1, 1).result(T_S)
        server.kill()
        launched: list[list[spoke.ActorHandle]] = []
        # In a thread: the first launch of a ticket asks the server for the ticket's secret before it returns.
        thread = threading.Thread(target=lambda: launched.append(gang.launch("Worker").result(T_S)), daemon=True)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it has failed instead of waiting"
        server.start()
        thread.join(T_S)
        assert len(launched[0]) == 1


def test_a_launch_gives_up_on_a_server_that_stays_away(server: EmbeddedServer, pool: str) -> None:
    with FakeAllocator(server.url, pool):
        client = spoke.Client(server.url, pool=pool, retry_s=0.5, lease_s=60)
        gang = client.gang_allocate(1, 1).result(T_S)
        server.kill()
        with pytest.raises(ServerUnreachable, match="no server answers"):
            gang.launch("Worker").result(T_S)
        client.close()


def test_a_server_that_stays_away_fails_what_waits_in_time(server: EmbeddedServer, pool: str) -> None:
    with FakeAllocator(server.url, pool) as allocator:
        client = spoke.Client(server.url, pool=pool, retry_s=0.5)
        gang = client.gang_allocate(1, 1).result(T_S)
        allocator.muted.set()
        waiting = client.gang_allocate(1, 1)
        server.kill()
        begun = time.monotonic()
        later = client.gang_allocate(1, 1)
        for future in (waiting, later, gang.release()):
            with pytest.raises(ServerUnreachable, match="no server answers"):
                future.result(T_S)
        assert time.monotonic() - begun < 10
        client.close()
        assert time.monotonic() - begun < 20


def test_a_server_that_hangs_fails_what_waits_in_time(
    server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_server.connect, "__kwdefaults__", {"timeout_s": 2.5})
    client = spoke.Client(server.url, pool=pool, retry_s=0.5, lease_s=3)
    server.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(ServerUnreachable):
            client.gang_allocate(1, 1).result(T_S)
        assert time.monotonic() - begun < 15
    finally:
        server.resume()
        client.close()


def test_a_full_server_fails_the_request_and_recovers(server: EmbeddedServer, pool: str) -> None:
    admin = connect(server.url)
    with FakeAllocator(server.url, pool) as allocator, spoke.Client(server.url, pool=pool, lease_s=60) as client:
        gang = client.gang_allocate(1, 1).result(T_S)
        admin.config_set("maxmemory", 1)
        for future in (client.gang_allocate(1, 1), gang.release()):
            with pytest.raises(ServerUnsuitable, match="out of memory"):
                future.result(T_S)
        del gang  # its release is refused now ...
        client.gang_allocate(1, 1).exception(T_S)
        admin.config_set("maxmemory", 0)
        eventually(lambda: not allocator.tickets)  # ... and repeated until it goes through
        assert client.gang_allocate(1, 1).result(T_S)
    admin.close()


def test_a_server_that_becomes_a_replica_is_told_and_forgiven(server: EmbeddedServer, pool: str) -> None:
    admin = connect(server.url)
    with FakeAllocator(server.url, pool), spoke.Client(server.url, pool=pool, lease_s=60) as client:
        admin.replicaof("127.0.0.1", str(free_port()))
        with pytest.raises(ServerUnsuitable, match="read-only replica"):
            client.gang_allocate(1, 1).result(T_S)
        admin.replicaof("NO", "ONE")
        assert client.gang_allocate(1, 1).result(T_S)
    admin.close()


def test_a_server_that_is_busy_for_a_moment_is_asked_again(tmp_path: Path, pool: str) -> None:
    with (
        EmbeddedServer(tmp_path / "server", options=("--busy-reply-threshold", "50")) as server,
        FakeAllocator(server.url, pool),
        spoke.Client(server.url, pool=pool, lease_s=60) as client,
        closing(connect(server.url, timeout_s=60)) as admin,
        closing(connect(server.url)) as other,
    ):
        script = threading.Thread(target=lambda: _ignoring_errors(lambda: admin.eval("while true do end", 0)))
        script.start()
        eventually(lambda: _is_refused(other, "BUSY"))
        futures = [client.gang_allocate(1, 1) for _ in range(20)]
        time.sleep(0.5)
        assert not any(future.done() for future in futures)
        other.script_kill()
        script.join(T_S)
        assert len({future.result(T_S).ticket_id for future in futures}) == 20


def test_a_primary_without_its_replica_is_asked_again(server: EmbeddedServer, pool: str) -> None:
    with (
        FakeAllocator(server.url, pool),
        spoke.Client(server.url, pool=pool, lease_s=60) as client,
        closing(connect(server.url)) as admin,
    ):
        admin.config_set("min-replicas-to-write", 1)
        futures = [client.gang_allocate(1, 1) for _ in range(20)]
        eventually(lambda: _is_refused(admin, "NOREPLICAS"))
        admin.config_set("min-replicas-to-write", 0)
        assert len({future.result(T_S).ticket_id for future in futures}) == 20


def _is_refused(admin: Redis, code: str) -> bool:
    try:
        admin.set("probe", "x")
    except ResponseError as error:
        return str(error).startswith(code)
    return False


def _ignoring_errors(act: Callable[[], object]) -> None:
    with suppress(RedisError):
        act()


def test_a_password_that_changed_fails_what_waits_at_once(server: EmbeddedServer, pool: str) -> None:
    admin = connect(server.url)
    with FakeAllocator(server.url, pool) as allocator:
        client = spoke.Client(server.url, pool=pool)
        client.gang_allocate(1, 1).result(T_S)
        allocator.muted.set()
        admin.config_set("requirepass", "s3cret")
        admin.client_kill_filter(_type="normal", skipme=True)
        begun = time.monotonic()
        with pytest.raises(AuthenticationFailed):
            client.gang_allocate(1, 1).result(T_S)
        assert time.monotonic() - begun < 5
        client.close()
    admin.close()


def test_connections_that_break_under_load_lose_and_double_nothing(server: EmbeddedServer, pool: str) -> None:
    admin = connect(server.url)
    with FakeAllocator(server.url, pool) as allocator, spoke.Client(server.url, pool=pool, lease_s=60) as client:
        futures = []
        for turn in range(20):
            futures += [client.gang_allocate(1, 1, name=f"g-{turn}-{i}") for i in range(50)]
            admin.client_kill_filter(_type="normal", skipme=True)
        tickets = [future.result(T_S) for future in futures]
        assert len({gang.ticket_id for gang in tickets}) == 1_000
        assert len(allocator.requests(r.AllocateGang)) == 1_000
        seqs = [asked.seq for asked in allocator.seen]
        assert seqs == sorted(seqs)
    admin.close()
