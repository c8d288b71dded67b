"""A node: the real agent machine, its keeper, and the processes that are truly there."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError

from spoke.agent import instructions as i
from spoke.agent.life import main_of
from spoke.agent.machine import AgentMachine, Settings
from spoke.protocol import orders as o
from spoke.protocol.keys import node_lease
from spoke.protocol.orders import decode_order
from spoke.protocol.requests import encode_request
from tests.builders import node_spec
from tests.sim.server import Server
from tests.sim.world import Connection, Process, SimulationFailed, World

LEASE_MS = 4_000


@dataclass
class Running:
    """A process of an actor; ``part`` is empty for its own, else what runs beside it or after it."""

    order: o.StartActor
    life: int
    restarts: int = 0
    part: str = ""


class SimNode:
    """A machine with GPUs. The agent on it may be killed, paused, cut off; the machine may lose its power."""

    def __init__(self, world: World, server: Server, name: str, gpus: int) -> None:
        self.world, self.server, self.name, self.gpus = world, server, name, gpus
        self.running: dict[str, Running] = {}
        self.boots, self.lives = 0, 0
        self.up = False
        self.drift = 1.0
        self.on_spawn: Callable[[Running], None] = lambda run: None
        self.boot()

    # --- the machine ---

    def boot(self) -> None:
        self.boots += 1
        self.drift = self.world.dice.uniform(0.995, 1.005)
        spec = node_spec(self.name, self.gpus, machine=f"{self.name}-boot{self.boots}", ports=8)
        self.spec = replace(spec, allow_commands=True)
        self.start_agent()

    def power_loss(self, off_s: float) -> None:
        """Everything is gone at once."""
        self.world.say(self.name, "loses its power")
        self._end_agent()
        self.running.clear()
        self.world.after(off_s, self.boot)

    @property
    def launches(self) -> set[str]:
        """The launches of which something runs."""
        return {main_of(process_id)[0] for process_id in self.running}

    def busy_gpus(self, but: str = "") -> set[int]:
        """The GPUs that processes of other tickets than ``but`` run on."""
        return {index for one in self.running.values() if one.order.ticket_id != but for index in one.order.gpu_ids}

    # --- the agent ---

    def start_agent(self) -> None:
        self.lives += 1
        self.up = True
        self.paused_until_s = 0.0
        settings = Settings(self.spec, f"{self.name}.{self.lives}", LEASE_MS, start_limit_s=20.0)
        self.machine = AgentMachine(settings)
        self._unsent: deque[Any] = deque()
        self._renewals: deque[tuple[str, int]] = deque()
        self._sender_wakes: Callable[[Any], None] | None = None
        self._renewer_wakes: Callable[[Any], None] | None = None
        self._fence_s = 0.0
        self._processes = [
            Process(self.world, f"{self.name}/{what}", main)
            for what, main in (("orders", self._read), ("requests", self._send), ("lease", self._renew))
        ]
        self._connections: list[Connection] = []
        self._tick_number = 0

    def _connection(self, process: Process, timeout_s: float) -> Connection:
        connection = Connection(process, self.server, self.name, timeout_s)
        self.server.connections.append(connection)
        self._connections.append(connection)
        return connection

    def _end_agent(self) -> None:
        self.up = False
        self.lives += 1  # nothing that was meant for it arrives any more
        for process in self._processes:
            process.kill()
        for connection in self._connections:
            self.server.connections.remove(connection)
        self._connections = []

    def kill_agent(self) -> None:
        """kill -9 of the agent: the keeper sees it and kills all; a new agent begins when nothing is left."""
        self.world.say(self.name, "its agent is killed")
        self._end_agent()
        self._kill_all(then=lambda: self.world.after(self.world.dice.uniform(0.05, 3.0), self.start_agent))

    def pause_agent(self, seconds: float) -> None:
        """SIGSTOP of the agent, not of its keeper."""
        self.world.say(self.name, f"its agent is paused for {seconds:.1f} s")
        self.paused_until_s = self.world.now_s + seconds
        for process in self._processes:
            process.paused_until_s = self.paused_until_s

    def kill_keeper(self) -> None:
        """The keeper dies, the kernel kills what is below it, the agent starts another."""
        self.world.say(self.name, "its keeper is killed")
        self.running.clear()
        self._feed(self.machine.keeper_lost)

    def fall_ill(self, ill: dict[int, tuple[str, str]]) -> None:
        """The source of health says this from now on."""
        self.world.say(self.name, f"finds unhealthy: {sorted(ill)}")
        self._feed(lambda now_s: self.machine.health(ill))

    def clock_s(self) -> float:
        return self.world.now_s * self.drift

    def _feed(self, act: Callable[[float], list[i.Instruction]], life: int | None = None) -> None:
        """Let something happen to the agent, when it is not paused."""
        life = self.lives if life is None else life
        if life != self.lives or not self.up:
            return
        if self.world.now_s < self.paused_until_s:
            self.world.after(self.paused_until_s - self.world.now_s, lambda: self._feed(act, life))
            return
        self._do(self.machine.tick(self.clock_s()))
        if self.up and self.machine.phase != "left":
            self._do(act(self.clock_s()))
        self._arm()

    def _arm(self) -> None:
        if not self.up or self.machine.phase == "left":
            return
        wake_s = self.machine.wake_at_s()
        self._tick_number += 1
        number, life = self._tick_number, self.lives
        if wake_s is not None:

            def tick() -> None:
                if number == self._tick_number:
                    self._feed(lambda now_s: [], life)

            self.world.after(max(0.0005, (wake_s - self.clock_s()) / self.drift + 0.0005), tick)

    def _do(self, steps: list[i.Instruction]) -> None:
        for step in steps:
            match step:
                case i.Send(envelope):
                    self._unsent.append(envelope)
                    if self._sender_wakes is not None:
                        self._sender_wakes(None)
                case i.DropUnsent():
                    self._unsent.clear()
                case i.Renew(incarnation, lease_ms):
                    self._renewals.append((incarnation, lease_ms))
                    if self._renewer_wakes is not None:
                        self._renewer_wakes(None)
                case i.ExtendLease(until_s):
                    self._extend(until_s)
                case i.Spawn(order, _, restarts):
                    self._spawn(Running(order, self.lives, restarts))
                case i.SpawnHelper(order, _, part, restarts):
                    self._spawn_helper(Running(order, self.lives, restarts, part))
                case i.Probe():
                    self._probe(step)
                case i.StopProcess(launch_id, grace_s):
                    self._stop(launch_id, grace_s)
                case i.KillAll() | i.KillKeeper():
                    self._kill_all()
                case i.Warn(text):
                    self.world.say(self.name, text[:160])
                case i.Quit():
                    self.world.say(self.name, f"its agent quits {step.error[:80]}")
                    self._end_agent()
                    self.world.after(self.world.dice.uniform(0.5, 4.0), self.boot)

    # --- the keeper ---

    def _extend(self, until_s: float) -> None:
        self._fence_s = max(self._fence_s, until_s)
        life = self.lives

        def fence() -> None:
            if life == self.lives and self.running and self.clock_s() >= self._fence_s:
                self.world.say(self.name, "the keeper fences")
                self._kill_all()

        self.world.after(max(0.0, (until_s - self.clock_s()) / self.drift) + 0.002, fence)

    def _check_spawn(self, run: Running, process_id: str) -> None:
        order = run.order
        overlap = self.busy_gpus(order.ticket_id if run.part or run.restarts else "") & set(order.gpu_ids)
        if overlap:
            others = {key: one.order.ticket_id for key, one in self.running.items()}
            raise SimulationFailed(
                f"I4: {order.ticket_id} rank {order.rank} ({process_id}) starts on GPUs {sorted(overlap)} of "
                f"{self.name}, where these run: {others}"
            )
        if self.clock_s() >= self._fence_s:
            raise SimulationFailed(f"I7: {self.name} starts {process_id} without a lease")
        if process_id in self.running:
            raise SimulationFailed(f"I11: {self.name} starts {process_id}, which runs")
        self.on_spawn(run)

    def _spawn(self, run: Running) -> None:
        order, launch_id = run.order, run.order.launch_id
        self._check_spawn(run, launch_id)
        again = f", restart {run.restarts}" * bool(run.restarts)
        self.world.say(self.name, f"starts {order.ticket_id} rank {order.rank} ({launch_id}) on {order.gpu_ids}{again}")
        self.running[launch_id] = run
        dice, restart = self.world.dice, order.spec.restart
        if run.restarts:
            self.world.count("restarts")
        if self.peaceful:
            self.world.after(dice.uniform(0.02, 0.5), lambda: self._ready(run))
            return
        if self.world.chance(0.06 if restart is None else 0.2):
            self.world.after(dice.uniform(0.01, 0.5), lambda: self._ends(launch_id, run, 1, 0))
            return
        self.world.after(dice.uniform(0.02, 0.5), lambda: self._ready(run))
        if self.world.chance(0.3 if restart is None else 0.6):
            code = 1 if self.world.chance(0.3 if restart is None else 0.7) else 0
            after_s = dice.uniform(0.5, 20.0 if restart is None else 5.0)
            self.world.after(after_s, lambda: self._ends(launch_id, run, code, 0))

    @property
    def peaceful(self) -> bool:
        """Whether nothing fails any more."""
        return self.world.faults.slow == 0.0

    def _ready(self, run: Running) -> None:
        launch_id = run.order.launch_id
        if self.running.get(launch_id) is run:
            self._feed(lambda now_s: self.machine.started(launch_id, 4711, "tcp://x:1", now_s), run.life)

    def _spawn_helper(self, run: Running) -> None:
        process_id = f"{run.order.launch_id}+{run.part}"
        self._check_spawn(run, process_id)
        self.world.count(run.part)
        self.running[process_id] = run
        if not self.peaceful and self.world.chance(0.1):
            return  # it hangs
        code = 1 if not self.peaceful and self.world.chance(0.2) else 0
        self.world.after(self.world.dice.uniform(0.01, 1.0), lambda: self._ends(process_id, run, code, 0))

    def _probe(self, step: i.Probe) -> None:
        self.world.count("probes")
        if not self.peaceful and self.world.chance(0.1):
            return  # no answer
        trouble = "sick" if not self.peaceful and self.world.chance(0.2) else ""
        life = self.lives
        self.world.after(
            self.world.dice.uniform(0.001, 0.5),
            lambda: self._feed(lambda now_s: self.machine.probed(step.launch_id, step.number, trouble, now_s), life),
        )

    def _stop(self, process_id: str, grace_s: float) -> None:
        run = self.running.get(process_id)
        if run is not None:
            after_s = self.world.dice.uniform(0.01, min(0.5, grace_s + 0.05))
            self.world.after(after_s, lambda: self._ends(process_id, run, -1, 15))

    def _ends(self, process_id: str, run: Running, code: int, signal: int) -> None:
        if self.running.get(process_id) is run:
            del self.running[process_id]
            self._feed(lambda now_s: self.machine.ended(process_id, code, signal, "", now_s), run.life)

    def _kill_all(self, then: Callable[[], None] | None = None) -> None:
        """SIGKILL to all; dead a moment later, well within the margin."""
        doomed = list(self.running.items())

        def dead() -> None:
            for process_id, run in doomed:
                self._ends(process_id, run, -1, 9)
            if then is not None:
                then()

        self.world.after(self.world.dice.uniform(0.001, 0.3), dead)

    # --- the three conversations ---

    def _read(self, process: Process) -> None:
        connection = self._connection(process, 5.0)
        life, key, cursor = self.lives, self.server.keys.node(self.name), b""
        while True:
            try:
                if not cursor:
                    found = connection.call(
                        self.server.read(lambda: [one for one, _ in self.server._stream(key).entries[-1:]])
                    )
                    cursor = b"%d-%d" % found[0] if found else b"0-0"
                    self._feed(self.machine.start, life)
                entries = connection.call(self.server.xread(key, cursor, 1_000, 64), 1.0)
            except (RedisError, OSError):
                process.sleep(self.world.dice.uniform(0.05, 0.5))
                continue
            for entry_id, flat in entries:
                cursor = entry_id
                delivery = decode_order(dict(zip(flat[::2], flat[1::2], strict=True)))
                self._feed(lambda now_s, it=delivery: self.machine.order(it, now_s), life)  # type: ignore[misc]

    def _send(self, process: Process) -> None:
        connection = self._connection(process, 5.0)
        while True:
            if not self._unsent:

                def arm(wake: Callable[[Any], None]) -> None:
                    self._sender_wakes = wake

                process.wait(arm)
                self._sender_wakes = None
                continue
            batch = list(self._unsent)[:16]
            try:
                connection.call(self.server.xadd(self.server.keys.requests, *map(encode_request, batch)))
            except (RedisError, OSError):
                process.sleep(self.world.dice.uniform(0.05, 0.5))
                continue
            for envelope in batch:
                if self._unsent and self._unsent[0] is envelope:
                    self._unsent.popleft()
            if self.world.chance(self.world.faults.duplicate):
                self.world.count("duplicates")
                again = encode_request(batch[-1])
                self.world.after(
                    self.world.dice.uniform(0, 5),
                    lambda raw=again: self.server.down or self._late(raw),  # type: ignore[misc]
                )

    def _late(self, raw: Any) -> None:
        self.server.xadd(self.server.keys.requests, raw)(lambda answer: None)

    def _renew(self, process: Process) -> None:
        connection = self._connection(process, min(5.0, LEASE_MS / 4000))
        life = self.lives
        while True:
            if not self._renewals:

                def arm(wake: Callable[[Any], None]) -> None:
                    self._renewer_wakes = wake

                process.wait(arm)
                self._renewer_wakes = None
                continue
            incarnation, lease_ms = self._renewals.popleft()
            sent_s = self.clock_s()
            held: bool | None = None
            with contextlib.suppress(RedisError, OSError):
                held = bool(connection.call(self.server.renew(node_lease(self.name, incarnation), lease_ms)))
            self._feed(
                lambda now_s, a=incarnation, b=sent_s, c=held: self.machine.renewed(a, b, c, now_s),  # type: ignore[misc]
                life,
            )
