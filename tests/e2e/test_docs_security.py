"""The page "Secure a pool", walked: passwords, a server with its own TLS, signed requests, and who is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from spoke.cli.embedded import free_port
from tests.integration.test_security_tls_server import tls_server
from tests.pages import ROOT, Walk


@pytest.mark.timeout(200)
def test_the_page(tmp_path: Path) -> None:
    program = tls_server()
    if not program or shutil.which("openssl") is None:
        pytest.skip("no server with TLS, or no openssl: install redis-tools and openssl")
    port = free_port()
    stand_ins = {
        "/etc/spoke": str(tmp_path / "reader/etc"),
        "10.0.0.5:6379": f"127.0.0.1:{port}",
        "tls-port 6379": f"tls-port {port}",
        "10.0.0.5": "127.0.0.1",
        "--gpus auto": "--gpus 4",
    }
    with Walk(tmp_path / "reader", stand_ins) as walk:
        (tmp_path / "reader/etc").mkdir()
        for name in ("redis.conf", "users.acl"):
            (tmp_path / "reader/etc" / name).write_text((ROOT / "deploy" / name).read_text())
        runs = walk.programs / "redis-server"  # the program looks at the name by which it was called
        runs.write_text(f'#!/bin/bash\nexec -a redis-server {program} "$@"\n')
        runs.chmod(0o755)
        walk.walk(ROOT / "docs/how-to/security.md")
        secret = [path.name for path in (tmp_path / "reader/etc").iterdir() if path.stat().st_mode & 0o077]
    assert set(secret) == {"redis.conf", "users.acl", "server.conf"}, "the rest is for its owner alone"
