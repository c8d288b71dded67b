"""TLS with certificates of our own, local sockets, signed requests, and secrets that stay where they belong."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.errors import Forbidden, InvalidRequest, ServerUnreachable
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.identity import issue, new_master, read_masters
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.certificates import Authority
from tests.daemons import Daemons
from tests.fakes import eventually
from tests.servers import Process, TlsFront

T_S = 40
HELLO = [sys.executable, "-c", "import os; print(sorted(os.environ))"]


def run_a_gang(daemons: Daemons, url: str, pool: str, **options: str) -> None:
    """Allocate, launch, wait, release: all that crosses the server."""
    with spoke.Client(url, pool=pool, **options) as client:
        eventually(lambda: any(node.state == "up" for node in client.status().nodes), "a node", T_S)
        gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1)).result(T_S)
        gang.launch_command(HELLO).result(T_S)
        ends = gang.wait(T_S).result(T_S)
        assert all(end.ok for end in ends), daemons.said()
        assert gang.release().result(T_S)


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(shared_server: EmbeddedServer, tmp_path: Path) -> Iterator[tuple[Authority, TlsFront]]:
    """A front that ends TLS and wants a client's certificate, before the shared server."""
    authority = Authority(tmp_path / "certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    context.load_verify_locations(authority.path)
    context.verify_mode = ssl.CERT_REQUIRED
    with TlsFront(shared_server.port, context) as front:
        yield authority, front


def tls_url(front: TlsFront, ca: Path, certificate: tuple[Path, Path] | None, host: str = "127.0.0.1") -> str:
    mine = f"&ssl_certfile={certificate[0]}&ssl_keyfile={certificate[1]}" if certificate else ""
    return f"rediss://{host}:{front.port}?ssl_ca_certs={ca}{mine}"


def test_a_gang_runs_over_tls_with_certificates_on_both_sides(
    tls: tuple[Authority, TlsFront], pool: str, tmp_path: Path
) -> None:
    authority, front = tls
    url = tls_url(front, authority.path, authority.issue("client"))
    with Daemons(tmp_path, pool) as daemons:
        daemons.allocator(url)
        daemons.agent(url, "n1")
        run_a_gang(daemons, url, pool)
        front.cut()
        run_a_gang(daemons, url, pool)


def test_tls_refuses_a_stranger_on_either_side(tls: tuple[Authority, TlsFront], tmp_path: Path) -> None:
    authority, front = tls
    mine, stranger = authority.issue("client"), Authority(tmp_path / "stranger")
    for url in (
        tls_url(front, stranger.path, mine),  # the server's certificate is of an authority that we do not know
        tls_url(front, authority.path, None),  # the server wants a certificate
        tls_url(front, authority.path, stranger.issue("client")),  # of its own authority
        tls_url(front, authority.path, mine, host="127.0.0.2"),  # and its certificate is for 127.0.0.1
        f"redis://127.0.0.1:{front.port}",
    ):
        with pytest.raises(ServerUnreachable):
            spoke.Client(url)


# --- local sockets -----------------------------------------------------------------------------------------------


def test_a_gang_runs_over_a_local_socket(tmp_path: Path, pool: str) -> None:
    path = tmp_path / "s.sock"
    with (
        Process(tmp_path / "server", "--unixsocket", str(path), "--unixsocketperm", "700"),
        Daemons(tmp_path, pool) as daemons,
    ):
        url = f"unix://{path}"
        daemons.allocator(url)
        daemons.agent(url, "n1")
        run_a_gang(daemons, url, pool)


# --- signed requests ---------------------------------------------------------------------------------------------


def test_in_a_pool_with_keys_users_own_their_tickets(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    url, path = shared_server.url, tmp_path / "master"
    new_master(path)
    master = read_masters(path)[0]
    alice, bob, ops = (issue(master, *of).text for of in (("user", "alice"), ("user", "bob"), ("admin", "ops")))
    with Daemons(tmp_path, pool) as daemons:
        daemons.allocator(url, "--keys", str(path))
        daemons.agent(url, "n1", key=issue(master, "node", "n1").text)
        run_a_gang(daemons, url, pool, key=alice)
        with spoke.Client(url, pool=pool, key=alice) as hers, spoke.Client(url, pool=pool, key=bob) as his:
            assert hers.client_id.startswith("alice.")
            gang = hers.gang_allocate(1, 1).result(T_S)
            with pytest.raises(Forbidden, match="alice"):
                his.gang_release(gang.ticket_id).result(T_S)
            with spoke.Client(url, pool=pool, key=ops) as theirs:
                assert theirs.gang_release(gang.ticket_id).result(T_S)
        client = spoke.Client(url, pool=pool)
        with pytest.raises(spoke.SpokeError, match="SPOKE_KEY"):
            client.gang_allocate(1, 1).result(T_S)
        client.close()
        agent = daemons.agent(url, "n2", key=issue(b"x" * 32, "node", "n2").text)
        assert agent.wait(T_S) == 1
        assert "not signed" in daemons.said()
    with contextlib.closing(connect(url)) as redis:
        keys = Keys(pool)
        report = verify(EventLog(redis, keys.events, keys.snapshot))
        assert report.problems == []
        assert redis.keys(keys.secret("*")) == [], "a ticket's secret goes with the ticket"


# --- secrets -----------------------------------------------------------------------------------------------------


def test_passwords_and_keys_stand_in_no_log_no_event_and_no_command_line(tmp_path: Path, pool: str) -> None:
    password, master_file = "pa55word-of-this-very-test", tmp_path / "master"
    new_master(master_file)
    master = read_masters(master_file)[0]
    node_key, user_key = issue(master, "node", "n1"), issue(master, "user", "alice")
    hidden = [password, master.hex(), node_key.secret.hex(), user_key.secret.hex()]
    (tmp_path / "node.key").write_text(node_key.text)
    with Process(tmp_path / "server", "--requirepass", password) as server, Daemons(tmp_path, pool) as daemons:
        url = f"redis://:{password}@127.0.0.1:{server.port}"
        daemons.allocator(url, "--keys", str(master_file))
        environment = {"SPOKE_KEY_FILE": str(tmp_path / "node.key"), "SPOKE_URL": url}
        words = ("--node-id", "n1", "--gpus", "4", "--allow-commands", "--log-dir", str(tmp_path / "logs"))
        daemons.spawn(url, "agent", *words, env=environment)
        with spoke.Client(url, pool=pool, key=user_key.text) as client:
            eventually(lambda: any(node.state == "up" for node in client.status().nodes), "a node", T_S)
            gang = client.gang_allocate(1, 1, spoke.Resources(gpus=1)).result(T_S)
            handles = gang.launch_command([sys.executable, "-c", "import time; time.sleep(600)"]).result(T_S)
            processes = {process.pid for process in daemons.processes} | _descendants(os.getpid())
            for pid in processes - {server.pid}:  # the server of this test has it on its command line
                found = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                assert not [secret for secret in hidden if secret in found], f"on the command line: {found}"
            actor = Path(f"/proc/{handles[0].pid}/environ").read_bytes().decode()
            assert "SPOKE_TICKET" in actor
            assert not [secret for secret in hidden if secret in actor], "in the environment of an actor"
            assert "SPOKE_KEY" not in actor
            assert "SPOKE_URL" not in actor
            shown = repr(client) + client.url + str(client.status())
            gang.release().result(T_S)
        with pytest.raises(spoke.SpokeError) as caught:
            spoke.Client(url.replace(password, password + "-wrong"), pool=pool)
        shown += str(caught.value) + daemons.said()
        with contextlib.closing(connect(url)) as redis:
            keys = Keys(pool)
            shown += str(list(EventLog(redis, keys.events, keys.snapshot).raw()))
            shown += str([redis.hgetall(key) for key in redis.scan_iter(match="*", _type="hash")])
    shown += "".join(path.read_text(errors="replace") for path in (tmp_path / "logs").rglob("*") if path.is_file())
    assert "***" in shown
    assert not [secret for secret in hidden if secret in shown]


def _descendants(pid: int) -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def test_a_password_in_an_option_is_warned_about(tmp_path: Path, pool: str, shared_server: EmbeddedServer) -> None:
    with Daemons(tmp_path, pool) as daemons:
        daemons.url_file = lambda url: url  # type: ignore[method-assign]
        daemons.allocator(f"redis://default:secret-word@127.0.0.1:{shared_server.port}")
        eventually(lambda: "file://" in daemons.said(), "the warning", T_S)
        assert "secret-word" not in daemons.said()


def test_a_url_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for name, text in (("empty", ""), ("two", "redis://a redis://b"), ("absent", None)):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(InvalidRequest, match=path.name):
            spoke.Client(path.as_uri())
