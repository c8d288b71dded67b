"""Server processes as tests need them: with any options, users, a TLS front, sentinels, a cluster."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from spoke.cli.embedded import free_port, server_binary

START_S = 20.0


class Process:
    """One server process with a directory of its own; started again with the same options."""

    def __init__(self, directory: Path, *words: str, port: int | None = None, program: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.words, self.port = directory, words, port or free_port()
        self._program = program or server_binary()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        return (self.directory / "out").read_text(errors="replace")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        command = ["redis-server", *self.words, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.directory), "--daemonize", "no"]
        deadline = time.monotonic() + START_S
        self._spawn(command)
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                answer = probe.recv(100)
                if answer and not answer.startswith(b"-LOADING"):
                    return
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
            if self.process.poll() is not None:  # somebody's outgoing connection may have had the port for a moment
                assert "Address already in use" in self.output, self.output
                self._spawn(command)

    def _spawn(self, command: list[str]) -> None:
        with open(self.directory / "out", "ab") as out:
            self._process = subprocess.Popen(
                command, executable=self._program, stdout=out, stderr=out, cwd=self.directory
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Process:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class TlsFront:
    """Ends TLS in front of a server without it, as stunnel would: bytes are passed on as they are."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._to, self._context = port, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> TlsFront:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept, which close does not
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Break every connection."""
        for one in tuple(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            plain.settimeout(10)
            near = self._context.wrap_socket(plain, server_side=True)
            with near, socket.create_connection(("127.0.0.1", self._to), 10) as far:
                self._sockets |= {near, far}
                try:
                    self._pump(near, far)
                finally:
                    self._sockets -= {near, far}

    def _pump(self, near: ssl.SSLSocket, far: socket.socket) -> None:
        near.settimeout(0.02)  # one thread for both directions: an SSL socket is not for two at once
        far.setblocking(False)
        while True:
            try:
                data = near.recv(65536)
                if not data:
                    return
                far.setblocking(True)
                far.sendall(data)
                far.setblocking(False)
            except TimeoutError:
                pass
            with contextlib.suppress(BlockingIOError):
                data = far.recv(1 << 20)
                if not data:
                    return
                near.settimeout(10)
                near.sendall(data)
                near.settimeout(0.02)


@contextlib.contextmanager
def started(processes: Sequence[Process]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        yield
