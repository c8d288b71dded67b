"""Processes of tests, forked from one that has imported everything: imports take seconds in an emulated machine.

    actor = start("tests.integration.transport_actor", ["1000", "4"], env)

The nursery is started with the first and ends with this process, by the end of its socket. It has one thread and opens
nothing before it forks.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_nursery: list[tuple[subprocess.Popen[bytes], socket.socket]] = []


class Process:
    """One forked process; used as a ``subprocess.Popen`` with pipes for stdin and stdout."""

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = os.fdopen(stdout)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        if self._pidfd >= 0:
            self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """End its input, wait until it has ended; what it printed."""
        if self._pidfd < 0:
            return "", None
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.wait(timeout)
        printed = self.stdout.read()
        self.stdout.close()
        os.close(self._pidfd)
        self._pidfd = -1
        return printed, None


def start(module: str, args: list[str], env: dict[str, str]) -> Process:
    """Run the module's ``main`` in a process of its own."""
    process, sock = _nursery[0] if _nursery else _open()
    stdin, to_stdin = os.pipe()
    from_stdout, stdout = os.pipe()
    request = json.dumps([module, args, env]).encode()
    socket.send_fds(sock, [len(request).to_bytes(4, "little")], [stdin, stdout])
    sock.sendall(request)
    os.close(stdin)
    os.close(stdout)
    answer = sock.recv(4)
    if len(answer) < 4:
        raise RuntimeError(f"the nursery has ended: {process.poll()}")
    return Process(int.from_bytes(answer, "little"), to_stdin, from_stdout)


def _open() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.nursery", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    _nursery.append((process, ours))
    atexit.register(_close, process, ours)
    return process, ours


def close() -> None:
    """End the nursery, if there is one; the next ``start`` opens another."""
    while _nursery:
        process, sock = _nursery.pop()
        atexit.unregister(_close)
        _close(process, sock)


def _close(process: subprocess.Popen[bytes], sock: socket.socket) -> None:
    sock.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(sock: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: the kernel reaps
    while True:
        head, fds, _, _ = socket.recv_fds(sock, 4, 2)
        if not head:
            return
        request = sock.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
        module, args, env = json.loads(request)
        importlib.import_module(module)
        pid = os.fork()
        if not pid:
            sock.close()
            _run(module, args, env, fds)
        for fd in fds:
            os.close(fd)
        sock.sendall(pid.to_bytes(4, "little"))


def _run(module: str, args: list[str], env: dict[str, str], fds: list[int]) -> None:
    """In the child; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd, number in zip(fds, (0, 1), strict=True):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [module, *args]
        main: Any = importlib.import_module(module)
        main.main()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    if os.environ.get("SPOKE_TEST_RDMA") == "1":
        importlib.import_module("spoke.transport.rdma.verbs").problem()  # loads pyverbs
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        _serve(sock)


if __name__ == "__main__":
    main()
