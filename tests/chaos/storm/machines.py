"""The storm's processes: a server and its replica on one machine, and allocators, agents and clients on one each."""

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

from redis.exceptions import RedisError

from spoke.agent import procfs
from spoke.cli.embedded import server_binary
from spoke.protocol.server import Redis, connect
from tests.chaos.storm.network import Network

ROOT = Path(__file__).parents[3]
ALLOCATORS = ("a1", "a2")
AGENTS = ("n1", "n2", "n3")
CLIENTS = ("c1", "c2", "c3")
SERVERS = ("server", "replica")
MACHINES = ("server", *ALLOCATORS, *AGENTS, *CLIENTS)
GPUS = 4
LEASE_S = 3.0
PORT = 6379
REPLICA = "replica"
REPLICA_PORT = 6380
SPARE_PORT = 6381
FAILOVER_S = 3.0
START_S = 30.0
END_S = 20.0
KEEPER = "/keeper"
SCRIBE = "/scribe"
RESTART_S = 2.0


class Machines:
    """Starts each process by its machine's name, and again after it was killed. Use it as a context manager."""

    def __init__(self, network: Network, directory: Path, pool: str, seed: int, planted: str = "") -> None:
        self.network, self.directory, self.pool, self.seed = network, directory, pool, seed
        self._planted = planted
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.killed_clients: set[str] = set()
        self.ended: list[str] = []
        """What ended by itself, which nothing should."""
        self._runs: Counter[str] = Counter()
        self._started_s: dict[str, float] = {}
        self._primary = 0
        """Which of the two servers is the primary."""
        self._admins = [connect(f"unix://{self._socket(number)}", timeout_s=5.0) for number in (0, 1)]

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *error: object) -> None:
        for admin in self._admins:
            admin.close()
        self.stop([name for name in self.running if name not in SERVERS])
        self.stop([*SERVERS])
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def admin(self) -> Redis:
        """The way to the primary that no fault is on."""
        return self._admins[self._primary]

    def _socket(self, number: int) -> str:
        return f"{self.directory}/s{number}"

    @property
    def _mark(self) -> str:
        return f"STORM_DIR={self.directory}"

    def leftovers(self) -> list[int]:
        """All living processes that this storm started, directly or not, and does not wait for."""
        mine = {process.pid for process in self.running.values()}
        return [pid for pid in procfs.all_pids() if pid not in mine and _has(pid, self._mark) and procfs.is_alive(pid)]

    def actors(self) -> list[int]:
        """All living processes of actors, their children included; and scribes that have lost their keeper."""
        marks = {pid: mark for pid in procfs.all_pids() if f"/{self.pool}/" in (mark := procfs.mark_of(pid))}
        keepers = {str(pid) for pid, mark in marks.items() if mark.endswith(KEEPER)}

        def belongs(pid: int, mark: str) -> bool:
            above = (procfs.stat_of(pid) or ["", ""])[1]
            return mark.endswith(KEEPER) or (mark.endswith(SCRIBE) and above in keepers)

        return [pid for pid, mark in marks.items() if not belongs(pid, mark) and procfs.is_alive(pid)]

    def keeper(self, agent: str) -> int:
        """The process id of an agent's keeper; 0 if it has none now."""
        above = str(self.running[agent].pid)
        pids = (pid for pid in procfs.all_pids() if (procfs.stat_of(pid) or ["", ""])[1] == above)
        return next((pid for pid in pids if procfs.mark_of(pid).endswith(KEEPER)), 0)

    def start(self, name: str) -> None:
        """Start what the machine is for."""
        self._runs[name] += 1
        self._started_s[name] = time.monotonic()
        if name in SERVERS:
            number = self._primary if name == "server" else 1 - self._primary
            self._spawn(name, self._server(name, number), on="server")
            self._wait_for_server(number)
        elif name in CLIENTS:
            run = f"{name}-{self._runs[name]}"
            module = [sys.executable, "-m", "tests.chaos.storm.client"]
            self._spawn(name, [*module, self.url, self.pool, run, f"{self.seed}/{run}"])
        else:
            words = ["allocator"] if name in ALLOCATORS else self._agent(name)
            program = ["spoke.cli.main"]
            if name in ALLOCATORS and self._planted:
                program = ["tests.chaos.storm.planted", self._planted]
            self._spawn(name, [sys.executable, "-m", *program, *words, "--url", self.url, "--pool", self.pool])

    @property
    def url(self) -> str:
        return f"redis://{self.network.address('server')}:{PORT}"

    def _server(self, name: str, number: int) -> list[str]:
        data = self.directory / f"data-{number}"
        data.mkdir(exist_ok=True)
        port = PORT if name == "server" else REPLICA_PORT
        options = {"port": str(port), "bind": "* -::*", "protected-mode": "no", "unixsocket": self._socket(number)}
        options |= {"dir": str(data), "save": "", "appendonly": "yes", "appendfsync": "always"}
        options |= {"repl-diskless-sync-delay": "0", "repl-timeout": "5"}
        if name == REPLICA:
            options["replicaof"] = f"127.0.0.1 {PORT}"
        return [server_binary(), *(word for key, value in options.items() for word in (f"--{key}", value))]

    def fail_over(self) -> bool:
        """Promote the replica in order, so that nothing is lost, and let it take over the primary's port.

        False if that could not be, for instance since the replica has not caught up.
        """
        old, new = self._admins[self._primary], self._admins[1 - self._primary]
        deadline = time.monotonic() + FAILOVER_S
        try:
            while new.info("replication")["master_link_status"] != "up":
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
            old.execute_command(
                "FAILOVER", "TO", "127.0.0.1", str(REPLICA_PORT), "TIMEOUT", str(int(FAILOVER_S * 1000))
            )
            deadline = time.monotonic() + FAILOVER_S + 2.0
            while old.info("replication")["master_failover_state"] != "no-failover":
                assert time.monotonic() < deadline, "a failover does not end"
                time.sleep(0.02)
            if old.info("replication")["role"] != "slave":
                return False
        except RedisError:
            return False
        old.config_set("port", SPARE_PORT)
        new.config_set("port", PORT)
        old.config_set("port", REPLICA_PORT)
        old.replicaof("127.0.0.1", str(PORT))
        old.client_kill_filter(_type="normal", skipme=True)
        self._primary = 1 - self._primary
        self.running["server"], self.running[REPLICA] = self.running[REPLICA], self.running["server"]
        return True

    def _wait_for_server(self, number: int) -> None:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(self._socket(number))
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

    def _spawn(self, name: str, command: list[str], on: str = "") -> None:
        env = {**os.environ, "STORM_DIR": str(self.directory), "PYTHONPATH": str(ROOT)}
        with open(self.directory / f"{name}.log", "ab") as out:
            self.running[name] = subprocess.Popen(
                [*self.network.on(on or name), *command],
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=ROOT,
                env=env,
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
