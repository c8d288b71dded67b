"""A dashboard as a process of its own, ended with the test."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemons import end_all


@contextmanager
def dashboard(url: str, pool: str, directory: Path, token: str = "") -> Iterator[str]:
    """Run `spoke web` on a free port; its address, once it is there. With a token it can change things."""
    command = [sys.executable, "-m", "spoke.cli.main", "web", "--port", "0", "--url", url, "--pool", pool]
    if token:
        path = directory / "token"
        path.touch(mode=0o600)
        path.write_text(token)
        command += ["--token-file", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        found = re.match(r"(http://127\.0\.0\.1:\d+)/ shows pool", said)
        assert found, said
        yield found[1]
    finally:
        end_all([process])
        if process.stdout is not None:
            process.stdout.close()
