"""Child processes that cannot outlive us: each in a session of its own, and ended by the kernel when we die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spoke.agent.procfs import signal_at_parent_death

TAIL_LINES = 8
POLL_S = 0.02


def die_with_parent(number: int) -> Callable[[], None]:
    """For ``preexec_fn``: the child gets this signal when the thread that started it (so: the main thread) ends."""
    parent = os.getpid()

    def prepare() -> None:
        signal_at_parent_death(number)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return prepare


class Child:
    """A ``spoke`` daemon as a child process, with its output in a file."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.command = [sys.executable, "-m", "spoke.cli.main", *arguments]
        self.started_at_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Call this from the main thread."""
        with open(self.log, "ab") as out:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - `spoke up` has one thread
            )
        self.started_at_s = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    def ended(self) -> int | None:
        """Its exit code (negative: the signal); None while it runs or was not started."""
        return self._process.poll() if self._process is not None else None

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def tail(self) -> str:
        """The last lines that it wrote."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        except OSError:
            return ""


def end_all(children: Sequence[Child], steps: Sequence[tuple[int, float]], hurry: Callable[[], bool]) -> None:
    """Send each signal to those that still run, and wait for them up to so many seconds (less, in a hurry).

    End the steps with SIGKILL, then none is left.
    """
    for number, limit_s in steps:
        left = [child for child in children if child.runs]
        for child in left:
            child.send(number)
        deadline_s = time.monotonic() + limit_s
        hurried = hurry()
        while any(child.runs for child in left) and time.monotonic() < deadline_s:
            if hurry() and not hurried:
                break
            time.sleep(POLL_S)
