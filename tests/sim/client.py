"""A client: the real machine, its three threads in small, and a user who asks for all sorts of things."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from spoke.client import instructions as i
from spoke.client import machine as m
from spoke.errors import ClientClosed, LeaseLost, SpokeError
from spoke.events.model import ActorSpec, Member
from spoke.events.queueing import QueuePolicy, Quota
from spoke.events.supervision import ExitHook, HealthCheck, Restart, RestartPolicy, Supervision
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from spoke.protocol.keys import client_lease
from spoke.protocol.replies import decode_message
from spoke.protocol.requests import Envelope, encode_request
from tests.builders import gang
from tests.sim.server import Server
from tests.sim.world import Connection, Process, SimulationFailed, World

LEASE_MS = 5_000


class SimClient:
    """One session, from its connect to its close, loss or kill."""

    def __init__(self, world: World, server: Server, client_id: str) -> None:
        self.world, self.server, self.client_id = world, server, client_id
        self.machine = m.Machine(outstanding_max=200)
        self.done: dict[int, str] = {}
        self.asked: set[int] = set()
        self.alive = True
        self.closing = False
        self._goodbye = 0
        self.quiet = False
        self._queue: deque[int] = deque()
        self._refill = False
        self._wakes: Callable[[Any], None] | None = None
        self._connections: list[Connection] = []
        self.processes = [
            Process(world, f"{client_id}/{what}", main)
            for what, main in (("sender", self._send), ("reader", self._read), ("vitals", self._vitals))
        ]
        self.ask(r.ConnectClient(LEASE_MS))

    @property
    def over(self) -> bool:
        return not self.alive or self.machine.over is not None

    def kill(self) -> None:
        """kill -9: nobody says goodbye."""
        self.alive = False
        for process in self.processes:
            process.kill()
        for connection in self._connections:
            self.server.connections.remove(connection)
        self._connections = []

    def pause(self, seconds: float) -> None:
        """SIGSTOP."""
        for process in self.processes:
            process.paused_until_s = self.world.now_s + seconds

    # --- the user ---

    def ask(self, request: r.Request) -> None:
        try:
            seq = self.machine.ask(request, self.world.now_s)
        except SpokeError:
            return
        self.asked.add(seq)
        self.world.count("requests")
        self._queue.append(seq)
        self._kick()

    def close(self) -> None:
        if not self.closing and not self.over:
            self.closing = True
            self._goodbye = self.machine._next_seq
            self.ask(r.CloseClient())

    def _end(self) -> None:
        """What the session does after its goodbye."""
        self._do(self.machine.end(ClientClosed("closed")))
        for process in self.processes:
            process.kill()

    def act(self, others: list[str]) -> None:
        """Something that a user may do."""
        if self.over or self.closing or self.quiet or not self.machine.connected:
            return
        dice, tickets = self.world.dice, list(self.machine.tickets.values())
        what = dice.random()
        if what < 0.35 and len(self.machine.outstanding) < 20:
            shape = (dice.randint(1, 3), dice.randint(1, 2), dice.choice([0, 1, 1, 2]))
            spec = gang(
                *shape,
                strict_pack=dice.random() < 0.5,
                detached=dice.random() < 0.05,
                on_failure=dice.choice(["release", "report"]),
                grace_s=dice.choice([0.0, 0.5, 2.0]),
                terms=Terms(
                    priority=dice.choice([0, 0, 1, 2]),
                    project=dice.choice(["", "x", "y"]),
                    expected_ms=dice.choice([0, 0, 2_000]),
                    max_ms=dice.choice([0, 0, 0, 4_000]),
                    preemptible=dice.random() < 0.3,
                    reservation=dice.choice(["", "", "", "", "", "r-1", "r-2"]),
                ),
            )
            self.ask(r.AllocateGang(spec, dice.choice([0, 1_000, 8_000, None])))
        elif what < 0.6 and tickets:
            ticket = dice.choice(tickets)
            ranks = range(len(ticket.slots)) if dice.random() < 0.8 else [dice.randrange(len(ticket.slots))]
            members = tuple(Member(rank, f"a{rank}") for rank in ranks)
            self.ask(r.LaunchActors(ticket.ticket_id, self._spec(), members))
        elif what < 0.8 and tickets:
            self.ask(r.ReleaseGang(dice.choice(tickets).ticket_id))
        elif what < 0.85 and tickets:
            ticket = dice.choice(tickets)
            self.ask(r.StopActor(ticket.ticket_id, dice.randrange(len(ticket.slots))))
        elif what < 0.9 and self.machine.outstanding:
            self._do(self.machine.withdraw(dice.choice(list(self.machine.outstanding)), self.world.now_s))
        elif what < 0.93 and others:
            self.ask(r.AttachGang(dice.choice(others)))
        elif what < 0.96 and tickets:
            ticket = dice.choice(tickets)
            ticket.dropped = True
            self._do(self.machine.drop(ticket, self.world.now_s))
        elif what >= 0.96:
            self.ask(self._setting(others))

    def _spec(self) -> ActorSpec:
        """What to run: half of it is looked after."""
        dice = self.world.dice
        if dice.random() < 0.5:
            return ActorSpec("Worker")
        policy: RestartPolicy = dice.choice(["on_failure", "gang"])
        restart = Restart(policy, dice.choice([0, 1, 3]), dice.choice([0.0, 0.5]), 2.0, dice.choice([0.0, 3.0]))
        is_command = dice.random() < 0.3
        health = HealthCheck(0.5, 0.5, 2, ("check",) if is_command else ())
        care = Supervision(
            restart if dice.random() < 0.8 else None,
            dice.choice([0.0, 2.0]),
            health if dice.random() < 0.5 else None,
            ExitHook(("clean", "up"), 1.0) if dice.random() < 0.3 else None,
        )
        return ActorSpec(argv=("x",), supervision=care) if is_command else ActorSpec("Worker", supervision=care)

    def _setting(self, others: list[str]) -> r.Request:
        """Something that an operator of the queue may do."""
        dice = self.world.dice
        order = dice.choice(["fifo", "priority", "fair"])
        policy = QueuePolicy(order, dice.random() < 0.7, dice.random() < 0.7, 5_000, dice.choice([0, 500]), 16)
        requests: list[r.Request] = [
            r.SetQueuePolicy(policy),
            r.SetQuota(Quota(dice.choice("xy"), dice.choice([1_000, 2_000]), borrow=dice.random() < 0.5)),
            r.RemoveQuota(dice.choice("xy")),
            r.CreateReservation(1, 1, dice.choice([1_000, 5_000])),
            r.CancelReservation(dice.choice(["r-1", "r-2", "r-3"])),
            r.PrioritizeGang(dice.choice(others or ["t-1"]), dice.randint(0, 3)),
            r.MoveGang(dice.choice(others or ["t-1"]), dice.choice(["head", "tail"])),
        ]
        return dice.choice(requests)

    # --- the session ---

    def _do(self, outputs: list[i.Instruction]) -> None:
        for output in outputs:
            if isinstance(output, i.Transmit):
                self.asked.add(output.seq)
                self._queue.append(output.seq)
                self._kick()
            elif isinstance(output, i.Resolve):
                self._answered(output.seq, output.message.TYPE)
                if self.closing and output.seq == self._goodbye:
                    self._end()
            elif isinstance(output, i.Fail):
                self._answered(output.seq, f"{output.error.code}: {output.error}"[:150])
            elif isinstance(output, i.Lost):
                self.world.say(self.client_id, f"session over: {output.error}"[:150])

    def _answered(self, seq: int, how: str) -> None:
        if seq in self.done:
            raise SimulationFailed(
                f"I5: request {seq} of {self.client_id} was answered {self.done[seq]!r}, and now {how!r}"
            )
        self.done[seq] = how
        self.world.count("answers")
        self.world.say(self.client_id, f"request {seq}: {how}")

    def _kick(self) -> None:
        if self._wakes is not None:
            self._wakes(None)

    def _connection(self, process: Process, timeout_s: float = 5.0) -> Connection:
        connection = Connection(process, self.server, self.client_id, timeout_s)
        self.server.connections.append(connection)
        self._connections.append(connection)
        return connection

    def _send(self, process: Process) -> None:
        connection = self._connection(process)
        while True:
            if self._refill:
                self._refill = False
                self._queue = deque(self.machine.resend())
            if not self._queue:

                def arm(wake: Callable[[Any], None]) -> None:
                    self._wakes = wake

                process.wait(arm)
                self._wakes = None
                continue
            seqs = [self._queue.popleft() for _ in range(min(16, len(self._queue)))]
            batch = self.machine.take(seqs)
            raw = [encode_request(Envelope(one.request, self.client_id, one.seq)) for one in batch]
            try:
                if raw:
                    connection.call(self.server.xadd(self.server.keys.requests, *raw))
            except (RedisError, OSError):
                self.machine.sending_unclear([one.seq for one in batch])
                self._refill = True
                process.sleep(self.world.dice.uniform(0.05, 0.5))
                continue
            if raw and self.world.chance(self.world.faults.duplicate):
                self.world.count("duplicates")
                again = raw[-1]
                self.world.after(
                    self.world.dice.uniform(0, 5),
                    lambda late=again: self.server.down or self._late(late),  # type: ignore[misc]
                )

    def _late(self, raw: Any) -> None:
        self.server.xadd(self.server.keys.requests, raw)(lambda answer: None)

    def _read(self, process: Process) -> None:
        connection = self._connection(process)
        key, cursor, away = self.server.keys.reply(self.client_id), b"0-0", False
        while True:
            try:
                entries = connection.call(self.server.xread(key, cursor, 2_000, 64), 2.0)
            except (RedisError, OSError):
                away = True
                process.sleep(self.world.dice.uniform(0.05, 0.5))
                continue
            if away:
                away, self._refill = False, True
                self._kick()
            for entry_id, flat in entries:
                cursor = entry_id
                for seq, told in zip(flat[::2], flat[1::2], strict=True):
                    self._do(self.machine.receive(int(seq), decode_message(told), self.world.now_s))

    def _vitals(self, process: Process) -> None:
        connection = self._connection(process, LEASE_MS / 3000)
        renew_at_s = 0.0
        while True:
            process.sleep(LEASE_MS / 6000)
            if not self.machine.connected or self.machine.over is not None or self.world.now_s < renew_at_s:
                continue
            begun_s = self.world.now_s
            try:
                held = connection.call(self.server.renew(client_lease(self.client_id), LEASE_MS))
            except (RedisError, OSError):
                continue
            if not held and self.machine.over is None:
                self._do(self.machine.end(LeaseLost("the lease ran out before it was renewed")))
            renew_at_s = begun_s + LEASE_MS / 3000
