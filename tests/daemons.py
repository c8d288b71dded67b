"""Allocators and agents as processes of their own, ended with the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path


def end_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End processes in order, stopped ones too, and by force those that do not obey."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.terminate()
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Daemons:
    """Starts daemons for one pool. A URL goes to them in a file, as operators are told to do."""

    def __init__(self, directory: Path, pool: str, *, cwd: Path | None = None) -> None:
        self.directory, self.pool, self._cwd = directory, pool, cwd
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *error: object) -> None:
        end_all(self.processes)

    def said(self) -> str:
        """What all of them logged."""
        path = self.directory / "daemons.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url_file(self, url: str) -> str:
        path = self.directory / f"url-{len(list(self.directory.glob('url-*')))}"
        path.touch(mode=0o600)
        path.write_text(url + "\n")
        return path.as_uri()

    def allocator(self, url: str, *words: str) -> subprocess.Popen[bytes]:
        return self.spawn(url, "allocator", *words)

    def agent(
        self, url: str, node_id: str, *words: str, gpus: int = 4, lease_s: float = 10.0, key: str = ""
    ) -> subprocess.Popen[bytes]:
        what = ("--node-id", node_id, "--gpus", str(gpus), "--lease", str(lease_s), "--allow-commands", "--cpus", "64")
        where = ("--log-dir", str(self.directory / "logs"))
        return self.spawn(url, "agent", *what, *where, *words, env={"SPOKE_KEY": key} if key else {})

    def spawn(self, url: str, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "spoke.cli.main", *words, "--url", self.url_file(url), "--pool", self.pool]
        with open(self.directory / "daemons.log", "ab") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=self._cwd or self.directory,
                env={**os.environ, **(env or {})},
            )
        self.processes.append(process)
        return process
