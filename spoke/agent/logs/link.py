"""The keeper's end of the scribe: starts it, hands it pipes, and starts another one when it has died.

Nothing here blocks. Standard library only, since the keeper imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from spoke.agent import procfs
from spoke.agent.datagrams import DATAGRAM_BYTES_MAX
from spoke.agent.logs.scribe import LAST_S

ROOT = str(Path(__file__).resolve().parents[3])
_RUN = f"import sys; sys.path.append({ROOT!r}); from spoke.agent.logs.scribe import main; main()"
AGAIN_S = 0.2
"""No more scribes are started than one in this time."""


class ScribeLink:
    """One scribe at a time. ``mark`` goes into its environment, so that a sweep finds a scribe, too."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._pipes: dict[str, tuple[bytes, int]] = {}  # launch id -> what the scribe is told of it, and the read end
        self._finishing: set[str] = set()
        self._unsent: deque[tuple[bytes, int]] = deque()
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = -AGAIN_S
        self.revive()

    @property
    def pid(self) -> int:
        """The scribe's process id; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def fd(self) -> int:
        """What to poll for its messages; -1 while there is none."""
        return self._sock.fileno() if self._sock is not None else -1

    @property
    def has_unsent(self) -> bool:
        """Whether to poll for room to send, too."""
        return bool(self._unsent)

    def revive(self) -> None:
        """Start a scribe if there is none, and tell it of every pipe; unless that was tried just now."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._sock is not None:
            self._sock.close()
        self._sock = self._process = None
        if time.monotonic() - self._started_s < AGAIN_S:
            return
        self._started_s = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _RUN, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env={**os.environ, procfs.LAUNCH_MARK: self._mark},
                )
            except OSError:  # no memory or no process: tried again
                ours.close()
                return
        ours.setblocking(False)
        self._sock = ours
        self._unsent.clear()
        for launch_id, (message, fd) in self._pipes.items():
            self._unsent.append((message, fd))
            if launch_id in self._finishing:
                self._unsent.append((_finish(launch_id), -1))
        self.flush()

    def open(self, launch_id: str, spec: dict[str, Any]) -> int:
        """Have what is written into a new pipe go to the launch's log; returns the write end. Raises OSError."""
        read, write = os.pipe()
        message = {
            "do": "open",
            "id": launch_id,
            "log": spec["log"],
            "bytes": spec["log_bytes"],
            "files": spec["log_files"],
        }
        self._pipes[launch_id] = found = json.dumps(message).encode(), read
        self._unsent.append(found)
        self.flush()
        return write

    def finish(self, launch_id: str) -> None:
        """Nothing of the launch is alive any more: have the rest written, and say when that is done."""
        if launch_id in self._pipes:
            self._finishing.add(launch_id)
            self._unsent.append((_finish(launch_id), -1))
            self.flush()

    def forget(self, launch_id: str) -> None:
        """Do not wait for the launch's end in the log any more."""
        self._finishing.discard(launch_id)
        found = self._pipes.pop(launch_id, None)
        if found is not None:
            self.flush()  # the pipe may still be on its way to the scribe
            self._unsent = deque(one for one in self._unsent if one[1] != found[1])
            os.close(found[1])

    def flush(self) -> None:
        """Send what can be sent."""
        if self._sock is None:
            return
        with contextlib.suppress(OSError):  # it does not read, or is dead, which is noticed elsewhere
            while self._unsent:
                message, fd = self._unsent[0]
                socket.send_fds(self._sock, [message], [fd] if fd >= 0 else [])
                self._unsent.popleft()

    def hear(self) -> list[dict[str, Any]]:
        """What it says: which logs are complete now (``finished``), and of which something is ``lost``."""
        found: list[dict[str, Any]] = []
        if self._sock is None:
            return found
        try:
            while raw := self._sock.recv(DATAGRAM_BYTES_MAX):
                message = json.loads(raw)
                if message["is"] == "finished":
                    self.forget(message["id"])
                found.append(message)
        except BlockingIOError:
            return found
        except OSError:
            pass
        self._sock.close()  # it is dead or dying: `revive` sees to it
        self._sock = None
        if self._process is not None:
            self._process.kill()
        return found

    def close(self) -> None:
        """Let it write what is left, within a limit, and end it."""
        for launch_id in list(self._pipes):
            self.forget(launch_id)
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            try:
                self._process.wait(LAST_S + 1.0)
            except subprocess.TimeoutExpired:  # a disk that hangs
                self._process.kill()


def _finish(launch_id: str) -> bytes:
    return json.dumps({"do": "finish", "id": launch_id}).encode()
