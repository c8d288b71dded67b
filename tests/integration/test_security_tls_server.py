"""TLS that the server itself ends, with certificates on both sides. The server that comes along has none: see below."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import free_port
from spoke.errors import ServerUnreachable
from tests.certificates import Authority
from tests.daemons import Daemons
from tests.integration.test_security_wire import run_a_gang
from tests.servers import Process


@functools.cache
def tls_server() -> str:
    """A server program with TLS: SPOKE_TEST_TLS_SERVER, or one on the path; empty if there is none.

    Debian's redis-check-rdb is the server under another name, in the package of redis-cli: `make tests` installs it.
    """
    named = os.environ.get("SPOKE_TEST_TLS_SERVER")
    for program in filter(None, [named, *map(shutil.which, ("valkey-server", "redis-server", "redis-check-rdb"))]):
        with tempfile.TemporaryDirectory() as directory:
            command = ["redis-server", "--port", "0", "--tls-port", str(free_port()), "--dir", directory]
            done = subprocess.run(command, executable=program, capture_output=True, text=True, timeout=30, check=False)
        # Without certificates neither starts; a build without TLS complains about something else.
        if "tls-cert-file" in done.stdout or "certificate" in done.stdout:
            return program
        assert program != named, f"SPOKE_TEST_TLS_SERVER={named} has no TLS: {done.stdout[-500:]}"
    return ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Authority, int]]:
    """A server that speaks TLS only to others, and asks for a client's certificate; the authority, and its TLS port."""
    program = tls_server()
    if not program:
        pytest.skip("no server with TLS: install redis-tools or valkey-server, or name one in SPOKE_TEST_TLS_SERVER")
    authority, port = Authority(tmp_path / "certificates"), free_port()
    certificate, key = authority.issue("server")
    words = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    words += ["--tls-ca-cert-file", str(authority.path), "--tls-auth-clients", "yes"]
    with Process(tmp_path / "server", *words, program=program):
        yield authority, port


def url_of(port: int, ca: Path, certificate: tuple[Path, Path] | None, host: str = "127.0.0.1") -> str:
    mine = f"&ssl_certfile={certificate[0]}&ssl_keyfile={certificate[1]}" if certificate else ""
    return f"rediss://{host}:{port}?ssl_ca_certs={ca}{mine}"


def test_a_gang_runs_over_the_servers_own_tls(server: tuple[Authority, int], pool: str, tmp_path: Path) -> None:
    authority, port = server
    url = url_of(port, authority.path, authority.issue("client"))
    with Daemons(tmp_path, pool) as daemons:
        daemons.allocator(url)
        daemons.agent(url, "n1")
        run_a_gang(daemons, url, pool)


def test_strangers_are_told_what_is_wrong(server: tuple[Authority, int], tmp_path: Path) -> None:
    authority, port = server
    mine, stranger = authority.issue("client"), Authority(tmp_path / "stranger")
    for url, why in (
        (url_of(port, stranger.path, mine), "certificate verify failed"),
        (url_of(port, authority.path, None), "needs ssl_certfile"),
        (url_of(port, authority.path, stranger.issue("client")), "of an authority that it knows"),
        (url_of(port, authority.path, mine, host="localhost"), "certificate is not valid for 'localhost'"),
        (f"redis://127.0.0.1:{port}", "rediss://"),
    ):
        with pytest.raises(ServerUnreachable) as caught:
            spoke.Client(url)
        assert why in str(caught.value), caught.value
