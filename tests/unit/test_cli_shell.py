"""`spoke shell`: the command line for every kind of server, and a password that stands on none of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from spoke.cli.main import app
from spoke.protocol import located
from spoke.protocol.keys import Keys

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/redis-cli.md"


@pytest.fixture(autouse=True)
def no_redis_cli_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("REDISCLI_AUTH", raising=False)


def shell(url: str, *words: str, pool: str = "p") -> Result:
    return CliRunner().invoke(app, ["shell", *words], env={"SPOKE_URL": url, "SPOKE_POOL": pool})


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://10.0.0.5", "redis-cli -h 10.0.0.5 -p 6379"),
        ("redis://[::1]:7000/3", "redis-cli -h ::1 -p 7000 -n 3"),
        ("redis://bob:geheim@h:77", "redis-cli -h h -p 77 --user bob"),
        ("redis://:geheim@h", "redis-cli -h h -p 6379"),
        ("unix://bob:geheim@/run/my redis.sock?db=2", "redis-cli -s '/run/my redis.sock' --user bob -n 2"),
        ("rediss://h", "redis-cli -h h -p 6379 --tls"),
        (
            "rediss://h?ssl_ca_certs=/c/ca.pem&ssl_certfile=/c/me.pem&ssl_keyfile=/c/me.key",
            "redis-cli -h h -p 6379 --tls --cacert /c/ca.pem --cert /c/me.pem --key /c/me.key",
        ),
        ("rediss://h?ssl_cert_reqs=none", "redis-cli -h h -p 6379 --tls --insecure"),
    ],
)
def test_the_line_for_a_server(url: str, line: str) -> None:
    said = shell(url)
    assert (said.exit_code, said.stdout) == (0, line + "\n")


def test_sentinels_are_asked_for_the_present_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(address: Any, options: Any, *command: str) -> Any:
        assert (address, command) == (("s1", 26379), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "spoke"))
        return [b"10.0.0.9", b"6380"]

    monkeypatch.setattr(located, "_ask", ask)
    assert (
        shell("redis+sentinel://bob:geheim@s1:26379/spoke/1").stdout
        == "redis-cli -h 10.0.0.9 -p 6380 --user bob -n 1\n"
    )


def test_a_cluster_is_asked_for_the_node_that_has_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = located.key_slot(Keys("p").events.encode())
    slots = [[0, slot - 1, [b"10.0.0.1", 6379]], [slot, 16383, [b"10.0.0.2", 6379]]]
    monkeypatch.setattr(located, "_ask", lambda *asked: slots)
    assert shell("rediss+cluster://c1,c2").stdout == "redis-cli -h 10.0.0.2 -p 6379 -c --tls\n"


def test_sentinels_that_do_not_answer_are_an_error() -> None:
    said = shell("redis+sentinel://bob:geheim@127.0.0.1:1/spoke")
    assert said.exit_code == 1
    assert "no sentinel says where 'spoke' is" in said.stderr
    assert "geheim" not in said.output


def test_a_password_is_spoken_of_but_never_shown() -> None:
    said = shell("redis://bob:geheim@h:77")
    assert "read -rs REDISCLI_AUTH && export REDISCLI_AUTH" in said.stderr
    assert "geheim" not in said.output
    assert shell("redis://h:77").stderr == ""


def test_without_redis_cli_nothing_can_be_run_and_it_says_what_to_install() -> None:
    said = shell("redis://h:77", "--exec")
    assert said.exit_code == 1
    assert "apt install redis-tools" in said.stderr


@pytest.mark.parametrize("program", ["redis-cli", "valkey-cli"])
def test_exec_becomes_redis_cli_and_hands_the_password_over_in_the_environment(program: str, tmp_path: Path) -> None:
    fake = tmp_path / program
    fake.write_text('#!/bin/sh\nprintf "%s|" "$0" "$@"; echo "$REDISCLI_AUTH"; exit 3\n')
    fake.chmod(0o755)
    url = tmp_path / "url"
    url.write_text("redis://bob:geheim@h:77\n")
    command = [sys.executable, "-m", "spoke.cli.main", "shell", "--exec", "--url", url.as_uri(), "XLEN", "a b"]
    env = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{fake}|-h|h|-p|77|--user|bob|XLEN|a b|geheim\n", done.stderr
    assert done.returncode == 3


def test_the_page_says_what_it_prints() -> None:
    (line,) = re.findall(r"^\$ spoke shell\n(.*)$", PAGE.read_text(), re.MULTILINE)
    assert shell("redis://auditor:geheim@10.0.0.5").stdout == line + "\n"
    (hint,) = re.findall(r"^\$ (read .*)$", PAGE.read_text(), re.MULTILINE)
    told = subprocess.run(
        ["/bin/bash", "-c", f"{hint}; printenv REDISCLI_AUTH"],
        input="geheim\n",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert told.stdout == "geheim\n"
