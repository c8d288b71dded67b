"""A real agent in a process of its own, and a test that plays the allocator for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from spoke.agent import procfs
from spoke.agent.claim import mark_prefix
from spoke.agent.inventory import server_place
from spoke.events.model import ActorSpec
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys, node_lease
from spoke.protocol.launch import LaunchBlob, encode_blob
from spoke.protocol.server import connect
from spoke.transport import pack

SECRET = b"s" * 32
ACTORS = Path(__file__).with_name("agent_actors.py")
WAIT_S = 20.0
_MAIN = """
import json, logging, sys
from pathlib import Path
from spoke.agent.config import AgentConfig
from spoke.agent.service import run_agent
from spoke.errors import SpokeError
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
settings = json.loads(sys.argv[1])
for name in {"log_dir", "run_dir", "topology"} & settings.keys():
    settings[name] = Path(settings[name])
settings["imports"] = tuple(settings["imports"])
try:
    run_agent(AgentConfig(**settings))
except SpokeError as error:
    sys.exit(f"{error.code}: {error}")
"""
_T = TypeVar("_T")


def wait_until(found: Callable[[], _T | None], what: str, timeout_s: float = WAIT_S) -> _T:
    """The first result of ``found`` that is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = found()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)


@dataclass
class Pool:
    """The allocator's part, played by the test."""

    url: str
    name: str
    tmp: Path
    lease_ms: int = 10_000
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    requests: list[r.Envelope] = field(default_factory=list)
    incarnation: dict[str, str] = field(default_factory=dict)
    welcoming: bool = True
    _cursor: str = "0"
    _launches: int = 0

    def __post_init__(self) -> None:
        self.keys = Keys(self.name)
        self.client = connect(self.url)

    # --- agents ---

    def start_agent(self, name: str = "n0", **settings: Any) -> subprocess.Popen[bytes]:
        """Start an agent, without waiting for it."""
        config = {
            "url": self.url,
            "pool": self.name,
            "node_id": name,
            "gpus": 4,
            "imports": [str(ACTORS)],
            "lease_ms": self.lease_ms,
            "log_dir": str(self.tmp / "logs"),
            "run_dir": str(self.tmp / "run"),
            "ports": 8,
            "allow_commands": True,
            **settings,
        }
        with open(self.agent_log(name), "ab") as out:
            agent = subprocess.Popen(
                [sys.executable, "-c", _MAIN, json.dumps(config)], stdout=out, stderr=out, start_new_session=True
            )
        self.agents.append(agent)
        return agent

    def agent_log(self, node_id: str = "n0") -> Path:
        return self.tmp / f"agent-{node_id}.log"

    def join(self, node_id: str = "n0", **settings: Any) -> subprocess.Popen[bytes]:
        """Start an agent and wait until it is registered."""
        before = self.incarnation.get(node_id)
        agent = self.start_agent(node_id, **settings)
        try:
            wait_until(lambda: self.pump().get(node_id) not in (None, before), f"{node_id} registers")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.agent_log(node_id).read_text()}") from None
        return agent

    def mark(self, node_id: str = "n0") -> str:
        return mark_prefix(server_place(self.url), self.name, node_id)

    def processes(self, node_id: str = "n0") -> list[int]:
        """What is alive of the node: its keeper and its actors' processes."""
        return [pid for pid in procfs.marked(self.mark(node_id)) if procfs.is_alive(pid)]

    def keeper(self, node_id: str = "n0") -> int:
        mine = f"{self.mark(node_id)}keeper"
        return next(pid for pid in procfs.marked(mine) if procfs.mark_of(pid) == mine)

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGCONT)
                agent.kill()
            agent.wait()
        nodes = {"n0", "n1", *self.incarnation}
        for node_id in nodes:
            left = procfs.kill_until_gone(lambda node_id=node_id: self.processes(node_id), WAIT_S)
            assert not left
        with contextlib.suppress(Exception):
            self.client.close()

    # --- the allocator ---

    def pump(self) -> dict[str, str]:
        """Read new requests and welcome who registers; returns the incarnations of the nodes."""
        for entry_id, fields in self._read():
            self._cursor = entry_id.decode()
            asked = r.decode_request(fields)
            assert isinstance(asked, r.Envelope), asked
            self.requests.append(asked)
            if not isinstance(asked.request, r.RegisterNode) or not self.welcoming:
                continue
            if self.incarnation.get(asked.node_id) != asked.incarnation:
                self.incarnation[asked.node_id] = asked.incarnation
                self.grant(asked.node_id, asked.request.lease_ms)
                self.order(o.Welcome(asked.request.lease_ms), asked.node_id)
        return self.incarnation

    def _read(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: Any = self.client.xrange(self.keys.requests, min=f"({self._cursor}")
        return found

    def grant(self, node_id: str, lease_ms: int) -> None:
        seconds, micros = self.client.time()  # type: ignore[misc]
        holder = node_lease(node_id, self.incarnation[node_id])
        self.client.zadd(self.keys.leases, {holder: seconds * 1000 + micros // 1000 + lease_ms})

    def lease_left_ms(self, holder: str) -> float:
        seconds, micros = self.client.time()  # type: ignore[misc]
        deadline = self.client.zscore(self.keys.leases, holder)
        assert isinstance(deadline, float)
        return deadline - (seconds * 1000 + micros / 1000)

    def order(self, order: o.Order, node_id: str = "n0", blob: bytes = b"") -> None:
        delivery = o.Delivery(self.incarnation[node_id], order, blob)
        self.client.xadd(self.keys.node(node_id), o.encode_order(delivery))  # type: ignore[arg-type]

    def start(
        self,
        spec: ActorSpec,
        *,
        ticket: str = "t1",
        rank: int = 0,
        node_id: str = "n0",
        args: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        gpu_ids: tuple[int, ...] = (),
        master_port: int = 0,
        grace_s: float = 5.0,
    ) -> o.StartActor:
        """Order an actor's start."""
        self._launches += 1
        start = o.StartActor(
            ticket_id=ticket,
            launch_id=f"{self._launches}-0",
            actor_id=f"a{self._launches}",
            spec=spec,
            rank=rank,
            local_rank=rank,
            group_rank=0,
            world_size=2,
            local_world_size=2,
            num_nodes=1,
            gpu_ids=gpu_ids,
            gpu_uuids=tuple(f"logical-{node_id}-{index}" for index in gpu_ids),
            master_addr="127.0.0.1",
            master_port=master_port,
            grace_s=grace_s,
        )
        self.order(start, node_id, encode_blob(LaunchBlob(SECRET, pack(args or {}), env or {})))
        return start

    def stop(self, start: o.StartActor, grace_s: float = 5.0) -> None:
        self.order(o.StopActor(start.ticket_id, start.rank, start.launch_id, grace_s))

    def reports(self, start: o.StartActor) -> list[Any]:
        self.pump()
        return [e.request for e in self.requests if getattr(e.request, "launch_id", None) == start.launch_id]

    def report(self, start: o.StartActor, kind: type[_T], timeout_s: float = WAIT_S) -> _T:
        """Wait for a report of this kind about a launch."""

        def look() -> _T | None:
            return next((found for found in self.reports(start) if isinstance(found, kind)), None)

        try:
            return wait_until(look, f"{kind.__name__} of {start.launch_id}", timeout_s)
        except AssertionError as error:
            log = self.log_of(start)
            text = log.read_text() if log.exists() else ""
            raise AssertionError(
                f"{error}; got {self.reports(start)}; agent: {self.agent_log().read_text()[-3000:]}; actor: {text}"
            ) from None

    def log_of(self, start: o.StartActor) -> Path:
        return self.tmp / "logs" / start.ticket_id / f"{start.rank}-{start.actor_id}.log"


@contextlib.contextmanager
def pool_at(url: str, name: str, tmp: Path, **settings: Any) -> Iterator[Pool]:
    """A pool to play the allocator of; ends its agents and all their processes."""
    pool = Pool(url, name, tmp, **settings)
    try:
        yield pool
    finally:
        pool.close()


def command(script: str) -> ActorSpec:
    """A Python script as a command."""
    return ActorSpec(argv=(sys.executable, "-c", script))


def shell(script: str) -> ActorSpec:
    """A shell script as a command."""
    return ActorSpec(argv=("/bin/sh", "-c", script))


def alive(pid: int) -> bool:
    return procfs.is_alive(pid)


def pid_in(path: Path) -> int:
    """The process id that a script writes into a file."""
    text = wait_until(lambda: path.exists() and path.read_text().strip(), f"a pid in {path}")
    return int(text)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
