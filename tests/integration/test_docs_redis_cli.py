"""The commands of "Look with redis-cli" run as they stand, as an auditor, and print what the page shows."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import spoke
from spoke.protocol.server import connect
from tests import redis_cli
from tests.fakes import FakeAgent, eventually, real_allocator
from tests.servers import Process

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/how-to/redis-cli.md"
PASSWORD = "pw-of-a-test"
VARIES = (
    (r"release\t\S+", "release\tRELEASE"),
    (r"c-[0-9a-f]{16}", "c-CLIENT"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "MOMENT"),
    (r"node:node-(\d):[\w-]+", r"node:node-\1:RUN"),
    (r"[\w.-]+:\d+:[0-9a-f]{6}\b", "ALLOCATOR"),
    (r"\b[0-9a-f]{32}\b", "HASH"),
    (r"\b1[0-9]{12}(-\d+)?\b", "TIME"),
    (r"\b1\d{9}\t\d+", "TIME"),
    (r"\bpid\\?\":\d+", "PID"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
)


def alike(text: str) -> str:
    """The text without what is different every time."""
    for pattern, name in VARIES:
        text = re.sub(pattern, name, text)
    return text.strip()


def blocks() -> list[tuple[str, str]]:
    """Each command of the page, and what it shows below."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


class Shell:
    """A shell in which redis-cli reaches the test's server as the auditor: the real one, or our stand-in."""

    def __init__(self, directory: Path, port: int) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        real = shutil.which("redis-cli") or shutil.which("valkey-cli")
        program = real or f"{sys.executable} -m tests.redis_cli"
        script = self.bin / "redis-cli"
        script.write_text(f'#!/bin/sh\nexec {program} $FLAGS -p {port} --user auditor "$@"\n')
        script.chmod(0o755)

    def run(self, command: str) -> str:
        # at a terminal redis-cli numbers and quotes; into a pipe it does not
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "FLAGS": "" if "|" in command else "--no-raw"}
        env |= {"REDISCLI_AUTH": PASSWORD, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


def waits_in_xread(server: Process) -> bool:
    with contextlib.closing(connect(f"redis://127.0.0.1:{server.port}")) as redis:
        return any((one["user"], one["cmd"]) == ("auditor", "xread") for one in redis.client_list())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    acl = (ROOT / "deploy/users.acl").read_text().replace("user auditor off ", f"user auditor on >{PASSWORD} ")
    acl = acl.replace("user default off resetchannels resetkeys -@all", "user default on nopass ~* &* +@all")
    (tmp_path / "users.acl").write_text(acl)
    with Process(tmp_path / "server", "--aclfile", str(tmp_path / "users.acl")) as process:
        yield process


def test_the_page(server: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    url, shell = f"redis://127.0.0.1:{server.port}", Shell(tmp_path, server.port)
    with (
        real_allocator(url, "default"),
        FakeAgent(url, "default", "node-0", gpus=4),
        FakeAgent(url, "default", "node-1", gpus=4),
        spoke.Client(url, pool="default", project="vision") as client,
        spoke.Client(url, pool="default") as operator,
    ):
        gang = client.gang_allocate(2, 2, spoke.Resources(gpus=1), name="resnet", timeout=30).result(30)
        gang.launch_command(["python", "train.py"]).result(30)
        client.gang_allocate(1, 4, spoke.Resources(gpus=1), name="eval", timeout=600)
        eventually(lambda: [ticket.state for ticket in client.status().tickets] == ["active", "queued"])
        ran = 0
        for command, shown in blocks():
            if not command.startswith("redis-cli"):
                continue
            ran += 1
            if "XREAD" in command:
                with ThreadPoolExecutor(1) as aside:
                    reading = aside.submit(shell.run, command)
                    eventually(lambda: waits_in_xread(server))
                    operator.cordon_node("node-1", reason="its fan rattles").result(30)
                    told = reading.result(30)
            else:
                told = shell.run(command)
            assert alike(told) == alike(shown), f"{command}\n{told}"
        assert ran >= 10


def test_the_stand_in_prints_what_redis_cli_prints() -> None:
    answer = [b"a", [1, None, [b'say "hi"']], []]
    assert redis_cli.raw(answer) == 'a\n1\n\nsay "hi"\n'
    assert redis_cli.formatted(answer) == (
        '1) "a"\n2) 1) (integer) 1\n   2) (nil)\n   3) 1) "say \\"hi\\""\n3) (empty array)'
    )
