"""Sentinels and clusters of real processes on the loopback."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisError

from spoke.cli.embedded import free_port
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.fakes import eventually
from tests.servers import Process

WAIT_S = 60.0
CONFIGURATIONS = Path(__file__).resolve().parents[1] / "deploy"
SERVER = ("--appendonly", "yes", "--save", "", "--repl-diskless-sync-delay", "0", "--repl-timeout", "10")


def ask(port: int, *words: str) -> Any:
    """One command to a server of this machine."""
    with contextlib.closing(connect(f"redis://127.0.0.1:{port}", timeout_s=5.0)) as client:
        return client.execute_command(*words)


def role(port: int) -> str:
    """``master``, or ``slave:`` and the state of its link; empty while the server cannot say."""
    try:
        found = ask(port, "ROLE")
    except (RedisError, OSError):
        return ""
    kind = found[0].decode()
    return kind if kind == "master" else f"{kind}:{found[3].decode()}"


class SentinelSetup:
    """A primary, a replica, three sentinels with deploy/sentinel.conf, impatient for the test's sake."""

    def __init__(self, directory: Path) -> None:
        self.servers = [Process(directory / f"server-{i}", *SERVER) for i in range(2)]
        self.sentinels = [self._sentinel(directory / f"sentinel-{i}") for i in range(3)]
        self._stack = contextlib.ExitStack()

    def _sentinel(self, directory: Path) -> Process:
        directory.mkdir(parents=True)
        text = (CONFIGURATIONS / "sentinel.conf").read_text()
        text = text.replace("spoke 127.0.0.1 6379 2", f"spoke 127.0.0.1 {self.servers[0].port} 2")
        text = text.replace("down-after-milliseconds spoke 3000", "down-after-milliseconds spoke 1000")
        text = text.replace("failover-timeout spoke 15000", "failover-timeout spoke 4000")
        port = free_port()
        text = text.replace("port 26379", f"port {port}")
        (directory / "sentinel.conf").write_text(text)
        return Process(directory, str(directory / "sentinel.conf"), "--sentinel", port=port)

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/spoke"

    def primary(self) -> int:
        """The port of the primary, as the first sentinel knows it."""
        return int(ask(self.sentinels[0].port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "spoke")[1])

    def __enter__(self) -> SentinelSetup:
        for process in self.servers:
            self._stack.enter_context(process)
        ask(self.servers[1].port, "REPLICAOF", "127.0.0.1", str(self.servers[0].port))
        for process in self.sentinels:
            self._stack.enter_context(process)
        eventually(self._ready, "the sentinels know each other and the replica", WAIT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _ready(self) -> bool:
        for sentinel in self.sentinels:
            master = ask(sentinel.port, "SENTINEL", "MASTER", "spoke")
            found = {k.decode() if isinstance(k, bytes) else k: v for k, v in master.items()}
            if int(found["num-other-sentinels"]) != 2 or int(found["num-slaves"]) != 1:
                return False
        return role(self.servers[1].port) == "slave:connected"


class ClusterSetup:
    """Three primaries, each with a replica, with deploy/cluster.conf, impatient for the test's sake."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        text = (CONFIGURATIONS / "cluster.conf").read_text()
        (directory / "cluster.conf").write_text(text.replace("cluster-node-timeout 3000", "cluster-node-timeout 2000"))
        self.nodes = [
            Process(
                directory / f"node-{i}", str(directory / "cluster.conf"), *SERVER, "--cluster-port", str(free_port())
            )
            for i in range(6)
        ]
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Names two of the nodes only."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port},127.0.0.1:{self.nodes[4].port}"

    def owner(self, pool: str) -> Process:
        """The primary of a pool's slot, as a node that lives says."""
        slot = key_slot(Keys(pool).events.encode())
        for node in self.nodes:
            with contextlib.suppress(Exception):
                for first, last, primary, *_ in ask(node.port, "CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == primary[1])
        raise AssertionError("no node answers")

    def __enter__(self) -> ClusterSetup:
        for node in self.nodes:
            self._stack.enter_context(node)
        ids = [ask(node.port, "CLUSTER", "MYID").decode() for node in self.nodes]
        for at, (first, last) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            ask(self.nodes[at].port, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
        for at, node in enumerate(self.nodes):
            ask(node.port, "CLUSTER", "SET-CONFIG-EPOCH", str(at + 1))
        for node in self.nodes[1:]:
            bus = node.words[node.words.index("--cluster-port") + 1]
            ask(self.nodes[0].port, "CLUSTER", "MEET", "127.0.0.1", str(node.port), bus)
        for at, node in enumerate(self.nodes[3:]):
            eventually(lambda at=at, node=node: _knows(node, ids[at]), "the replica knows its primary", WAIT_S)
            ask(node.port, "CLUSTER", "REPLICATE", ids[at])
        eventually(self._ready, "the cluster is whole", WAIT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _ready(self) -> bool:
        for node in self.nodes:
            slots = ask(node.port, "CLUSTER", "SLOTS")
            if len(slots) != 3 or any(len(entry) != 4 for entry in slots):
                return False
        linked = all(role(node.port) == "slave:connected" for node in self.nodes[3:])
        return linked and all(b"cluster_state:ok" in _info(node) for node in self.nodes)


def _info(node: Process) -> bytes:
    found = ask(node.port, "CLUSTER", "INFO")
    return found if isinstance(found, bytes) else str(found).encode().replace(b"': '", b":")


def _knows(node: Process, other: str) -> bool:
    return other in str(ask(node.port, "CLUSTER", "NODES"))
