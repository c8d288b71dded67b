"""The agent's end of the keeper: starts it, speaks with it, and clears up when it has died.

All methods but the reading thread's are for the thread that made the link: it must live as long as the agent, since
the keeper asks the kernel for a signal when that thread ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from spoke.agent import procfs
from spoke.agent.datagrams import DATAGRAM_BYTES_MAX
from spoke.agent.launching import ROOT, Prepared
from spoke.errors import SpokeError

SEND_S_MAX = 5.0
CLEAR_S_MAX = 30.0
DEATHS_MAX = 5
DEATHS_WITHIN_S = 10.0
_RUN = f"import sys; sys.path.append({ROOT!r}); from spoke.agent.keeper import main; main()"


class KeeperBroken(SpokeError):
    """The keeper cannot do its work."""

    code = "keeper"


class KeeperLink:
    """One keeper at a time. ``tell`` is called from another thread: with each message, or with None at its death.

    ``keep_fds`` are descriptors that the keeper must hold open. ``mark`` goes into its environment, so that a sweep
    finds a keeper too.
    """

    def __init__(
        self, tell: Callable[[int, dict[str, Any] | None], None], keep_fds: tuple[int, ...], mark: str
    ) -> None:
        self._tell = tell
        self._keep_fds = keep_fds
        self._mark = mark
        self._deaths: list[float] = []
        self.generation = 0
        procfs.become_subreaper()
        self._start()

    def _start(self) -> None:
        self.generation += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._before = {(pid, procfs.started_at(pid)) for pid in procfs.children()}
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *self._keep_fds),
                start_new_session=True,  # a terminal's Ctrl-C is for the agent
                env={**os.environ, procfs.LAUNCH_MARK: self._mark},
            )
        ours.settimeout(SEND_S_MAX)
        self._sock = ours
        self._reader = threading.Thread(
            target=self._read, args=(ours, self.generation), name="spoke-keeper-link", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self._process.pid

    def _read(self, sock: socket.socket, generation: int) -> None:
        while True:
            try:
                raw = sock.recv(DATAGRAM_BYTES_MAX)
            except TimeoutError:
                continue
            except OSError:
                raw = b""
            if not raw:
                self._tell(generation, None)
                return
            self._tell(generation, json.loads(raw))

    def spawn(self, prepared: Prepared) -> None:
        """Start an actor's process."""
        spec = _memory_file(json.dumps(prepared.spec).encode())
        try:
            document = _memory_file(prepared.document)
            try:
                self._send({"do": "spawn"}, [spec, document])
            finally:
                os.close(document)
        finally:
            os.close(spec)

    def stop(self, launch_id: str, grace_s: float) -> None:
        """SIGTERM now, SIGKILL after the grace."""
        self._send({"do": "stop", "id": launch_id, "grace_s": grace_s})

    def ring(self, launch_id: str) -> None:
        """Let an actor that is up know that there are notices for it."""
        self._send({"do": "ring", "id": launch_id})

    def kill_all(self) -> None:
        """SIGKILL every actor."""
        self._send({"do": "kill_all"})

    def extend_lease(self, until_s: float) -> None:
        """Let actors live until then (the keeper's clock)."""
        self._send({"do": "lease", "until_s": until_s})

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self._sock, [json.dumps(message).encode()], fds or [])
        except OSError:  # dead, or it does not read: then it must die, and the reader tells of it
            self.kill()

    def kill(self) -> None:
        """SIGKILL the keeper itself. Its actors die with it; ``revive`` clears up behind it."""
        self._process.kill()

    def revive(self) -> None:
        """After the keeper's death: kill what it left behind, wait until that is gone, start a new one.

        Raises KeeperBroken if something cannot be killed, or if keepers die as fast as they are started.
        """
        now_s = time.monotonic()
        self._deaths = [at_s for at_s in self._deaths if now_s - at_s < DEATHS_WITHIN_S] + [now_s]
        self._clear()
        if len(self._deaths) >= DEATHS_MAX:
            raise KeeperBroken(
                f"the keeper process died {len(self._deaths)} times within {DEATHS_WITHIN_S:g} s "
                f"(last exit status {self._process.returncode}): see the messages before this one"
            )
        self._start()

    def _clear(self) -> None:
        self._process.kill()
        self._process.wait()
        self._sock.close()
        left = procfs.kill_until_gone(self._orphans, CLEAR_S_MAX)
        if left:
            raise KeeperBroken(
                f"processes {', '.join(map(str, left))} of dead actors cannot be killed (state D in ps?)"
            )

    def _orphans(self) -> list[int]:
        """The children that came after the keeper: what it kept has fallen to this process."""
        found = []
        for pid in procfs.children():
            if (pid, procfs.started_at(pid)) in self._before:
                continue
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            found.append(pid)
        return found

    def close(self) -> None:
        """End the keeper, and with it whatever still runs."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(CLEAR_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
        with contextlib.suppress(KeeperBroken):
            self._clear()
        self._reader.join(1.0)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("spoke-launch")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
