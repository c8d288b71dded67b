"""The storm's processes: a server, two allocators, agents and clients, each on a machine of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from spoke.agent import procfs
from spoke.cli.embedded import server_binary
from spoke.protocol.server import Redis, connect
from tests.chaos.storm.network import Network

ROOT = Path(__file__).parents[3]
ALLOCATORS = ("a1", "a2")
AGENTS = ("n1", "n2", "n3")
CLIENTS = ("c1", "c2", "c3")
MACHINES = ("server", *ALLOCATORS, *AGENTS, *CLIENTS)
GPUS = 4
LEASE_S = 3.0
PORT = 6379
START_S = 30.0
END_S = 20.0
KEEPER = "/keeper"
RESTART_S = 2.0


class Machines:
    """Starts each process by its machine's name, and again after it was killed. Use it as a context manager."""

    def __init__(self, network: Network, directory: Path, pool: str, seed: int) -> None:
        self.network, self.directory, self.pool, self.seed = network, directory, pool, seed
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.killed_clients: set[str] = set()
        self.ended: list[str] = []
        """What ended by itself, which nothing should."""
        self._runs: Counter[str] = Counter()
        self._started_s: dict[str, float] = {}
        self._socket = str(directory / "s")
        self.admin: Redis = connect(f"unix://{self._socket}", timeout_s=5.0)

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *error: object) -> None:
        self.admin.close()
        self.stop([name for name in self.running if name != "server"])
        self.stop(["server"])
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def _mark(self) -> str:
        return f"STORM_DIR={self.directory}"

    def leftovers(self) -> list[int]:
        """All living processes that this storm started, directly or not, and does not wait for."""
        mine = {process.pid for process in self.running.values()}
        return [pid for pid in procfs.all_pids() if pid not in mine and _has(pid, self._mark) and procfs.is_alive(pid)]

    def actors(self) -> list[int]:
        """All living processes of actors, their children included."""
        marks = ((pid, procfs.mark_of(pid)) for pid in procfs.all_pids())
        ours = [pid for pid, mark in marks if f"/{self.pool}/" in mark and not mark.endswith(KEEPER)]
        return [pid for pid in ours if procfs.is_alive(pid)]

    def keeper(self, agent: str) -> int:
        """The process id of an agent's keeper; 0 if it has none now."""
        above = str(self.running[agent].pid)
        pids = (pid for pid in procfs.all_pids() if (procfs.stat_of(pid) or ["", ""])[1] == above)
        return next((pid for pid in pids if procfs.mark_of(pid).endswith(KEEPER)), 0)

    def start(self, name: str) -> None:
        """Start what the machine is for."""
        self._runs[name] += 1
        self._started_s[name] = time.monotonic()
        if name == "server":
            self._spawn(name, self._server())
            self._wait_for_server()
        elif name in CLIENTS:
            run = f"{name}-{self._runs[name]}"
            module = [sys.executable, "-m", "tests.chaos.storm.client"]
            self._spawn(name, [*module, self.url, self.pool, run, f"{self.seed}/{run}"])
        else:
            words = ["allocator"] if name in ALLOCATORS else self._agent(name)
            self._spawn(name, [sys.executable, "-m", "spoke.cli.main", *words, "--url", self.url, "--pool", self.pool])

    @property
    def url(self) -> str:
        return f"redis://{self.network.address('server')}:{PORT}"

    def _server(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        options = {"port": str(PORT), "bind": "* -::*", "protected-mode": "no", "unixsocket": self._socket}
        options |= {"dir": str(data), "save": "", "appendonly": "yes", "appendfsync": "always"}
        return [server_binary(), *(word for key, value in options.items() for word in (f"--{key}", value))]

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(self._socket)
                probe.sendall(b"PING\r\n")
                if probe.recv(100).startswith(b"+PONG"):
                    return
            assert time.monotonic() < deadline, f"the server did not start: see {self.directory}/server.log"
            time.sleep(0.02)

    def _agent(self, name: str) -> list[str]:
        what = ["agent", "--node-id", name, "--gpus", str(GPUS), "--cpus", "64", "--lease", str(LEASE_S)]
        return [
            *what,
            "--allow-commands",
            "--import",
            "tests.chaos.storm.actors",
            "--log-dir",
            f"{self.directory}/logs",
        ]

    def _spawn(self, name: str, command: list[str]) -> None:
        env = {**os.environ, "STORM_DIR": str(self.directory), "PYTHONPATH": str(ROOT)}
        with open(self.directory / f"{name}.log", "ab") as out:
            self.running[name] = subprocess.Popen(
                [*self.network.on(name), *command], stdout=out, stderr=out, start_new_session=True, cwd=ROOT, env=env
            )

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.running.pop(name)
        process.kill()
        process.wait()
        if name in CLIENTS:
            self.killed_clients.add(f"{name}-{self._runs[name]}")

    def stop(self, names: list[str]) -> None:
        """SIGTERM to all, then wait for each; what does not end in time is killed and noted in ``ended``."""
        for name in names:
            if name in self.running:
                self.signal(name, signal.SIGCONT)
                self.running[name].terminate()
        for name in names:
            process = self.running.pop(name, None)
            if process is None:
                continue
            try:
                process.wait(150 if name in CLIENTS else END_S)
            except subprocess.TimeoutExpired:
                self.ended.append(f"{name} did not end within its time after SIGTERM")
                process.kill()
                process.wait()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process of a machine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.running[name].pid, number)

    def revive(self) -> None:
        """Start again what has ended by itself, as systemd would, and note it if it had no reason to."""
        for name, process in tuple(self.running.items()):
            if process.poll() is None:
                continue
            last = ["", *(self.directory / f"{name}.log").read_text(errors="replace").splitlines()][-1]
            if last.startswith("spoke: no server answers"):  # it was started while there was none
                if time.monotonic() - self._started_s[name] < RESTART_S:
                    continue
            else:
                self.ended.append(f"{name} ended by itself with {process.returncode}: {last}")
            self.start(name)


def _has(pid: int, variable: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return variable.encode() in file.read().split(b"\0")
    except OSError:
        return False
