"""An allocator process: the real Term, a simulated wire."""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from spoke.allocator.gate import Gate
from spoke.allocator.leader import Elected
from spoke.allocator.limits import Limits
from spoke.allocator.quarantine import Quarantine
from spoke.allocator.term import Term
from spoke.allocator.wire import RawRequests
from spoke.errors import Fenced
from tests.sim.server import Server, SlowClient
from tests.sim.world import Connection, Process, World

LEADER_MS = 3_000


class SimWire:
    """What ``spoke.allocator.wire.Wire`` is, on a simulated connection."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server, self._connection = server, connection
        self._block_s: list[float] = []
        self.server_id = connection.call(server.read(lambda: server.run_id))

    def send_commit(self, keys: list[str], args: list[Any]) -> None:
        self._block_s.append(0.0)
        self._connection.send(self._server.commit(keys, args))

    def take_commit(self) -> tuple[int, list[str]]:
        try:
            found = self._connection.take(self._block_s.pop(0))
        except RedisError as error:
            if "FENCED" in str(error) or "DIVERGED" in str(error):
                raise Fenced(str(error)) from error
            raise
        return int(found[0]), [holder.decode() for holder in found[1:]]

    def send_read(self, stream: str, after: str, *, block_ms: int | None, count: int) -> None:
        self._block_s.append((block_ms or 0) / 1000)
        self._connection.send(self._server.xread(stream, after, block_ms, count))

    def flush(self) -> None:
        pass

    def take_read(self) -> RawRequests:
        found = self._connection.take(self._block_s.pop(0))
        return [(one.decode(), dict(zip(flat[::2], flat[1::2], strict=True))) for one, flat in found]


class SimScripts(SlowClient):
    """The client that a term gets: reads, and the end of leadership."""

    def register_script(self, script: str) -> Any:
        def run(keys: list[str], args: list[Any]) -> Any:
            return self._connection.call(self._server.resign(*args))

        return run


class SimAllocator:
    """Stands by or leads, like ``Allocator.run``; may be killed, paused and started again."""

    def __init__(self, world: World, server: Server, number: int) -> None:
        self.world, self.server = world, server
        self.name = f"alloc-{number}"
        self._lives = 0
        self.process: Process = None  # type: ignore[assignment]
        self.term: Term | None = None
        self.start()

    def start(self) -> None:
        if self.process is not None and self.process.alive:
            return
        self._lives += 1
        self.holder = f"{self.name}.{self._lives}"
        self._seen = "0-0"
        self.stopping = False
        self.process = Process(self.world, self.holder, self._main)

    def kill(self) -> None:
        self.term = None
        self.process.kill()

    def _main(self, process: Process) -> None:
        connection = self._connect(process)
        while not self.stopping:
            try:
                self._turn(process, connection)
            except (RedisError, OSError, Fenced) as error:
                self.world.say(self.holder, f"its term or try ended: {type(error).__name__} {error}")
                process.sleep(self.world.dice.uniform(0.05, 0.5))
            finally:
                if self.term is not None:
                    self._seen = self.term.committed_id
                self.term = None

    def _connect(self, process: Process) -> Connection:
        connection = Connection(process, self.server, self.name)
        self.server.connections.append(connection)
        return connection

    def _turn(self, process: Process, connection: Connection) -> None:
        found = connection.call(self.server.elect(self.holder, LEADER_MS))
        if not found[0]:
            process.sleep(min(0.2, int(found[1]) / 1000 + 0.01))
            return
        elected = Elected(found[0], found[1].decode(), int(found[2]))
        self.world.say(self.holder, f"elected in epoch {elected.epoch}")
        wire_connection = self._connect(process)
        try:
            wire: Any = SimWire(self.server, wire_connection)
            client: Any = SimScripts(self.server, connection)
            self.term = Term(
                client,
                wire,
                self.server.keys,
                self.holder,
                elected,
                leader_ms=LEADER_MS,
                snapshot_every=40,
                keep=150,
                gate=Gate(self.server.keys.pool),
                limits=Limits(),
                clock=lambda: self.world.now_s,
                seen=self._seen,
                quarantine=Quarantine(),
            )
            while not self.stopping:
                self.term.turn()
            self.term.close()
        finally:
            self.server.connections.remove(wire_connection)
