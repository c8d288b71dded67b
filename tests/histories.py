"""Histories of a pool in memory: random ones from a seed, and logs that were made up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from spoke.events import snapshot
from spoke.events.entries import RawEntry, end_of
from spoke.events.ids import order_of
from spoke.events.log import EventLog
from spoke.events.model import GangSpec, Resources
from spoke.events.queueing import ORDERS, QueuePolicy, Quota
from spoke.events.rules import Group
from spoke.events.state import PoolState
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec

CLIENTS = {"c-a": "blue", "c-b": "red", "c-c": ""}


def busy_pool(seed: int, shares: bool) -> MemoryPool:
    """Gangs that wait, are withdrawn, time out; a node that is lost and comes back."""
    rng, pool, live = random.Random(seed), MemoryPool(), list[str]()
    for n in range(4):
        pool.register(node_spec(f"n{n}", 4))
    pool.connect("c")
    for step in range(300):
        pool.now_ms += rng.randrange(1, 500)
        roll = rng.random()
        if roll < 0.5:
            gpus = rng.choice([1, 2, 0.5, 0.25] if shares else [1, 2, 3, 4])
            pool.allocate("c", gang(rng.choice([1, 1, 2]), 1, gpus), rng.choice([None, 0, 2_000]))
            live = list(pool.state.tickets)
        elif roll < 0.9 and live:
            ticket_id = rng.choice(live)
            if ticket_id in pool.state.tickets:
                pool.ask("c", r.ReleaseGang(ticket_id))
        elif roll < 0.93:
            pool.expire_node("n3")
            pool.register(node_spec("n3", 4))
        pool.advance_line()
        if step % 50 == 0:
            pool.check()
    return pool


class Varied:
    """A pool in which everything happens that the queue has to do with."""

    def __init__(self, seed: int, steps: int = 400) -> None:
        self.rng, self.pool = random.Random(seed), MemoryPool()
        for n in range(5):
            self.pool.register(node_spec(f"n{n}", 4))
        for client_id, project in CLIENTS.items():
            self.pool.ask(client_id, r.ConnectClient(10_000, user=client_id, project=project))
        acts: list[tuple[float, Callable[[], None]]] = [
            *((10, self.allocate), (6, self.release), (3, self.launch), (2, self.fail), (1, self.repair)),
            *((1, self.prioritize), (0.5, self.move), (0.4, self.quota), (0.4, self.reserve), (0.4, self.policy)),
            *((0.5, self.drain), (0.3, self.lose_node), (0.5, self.health), (0.2, self.lose_client)),
        ]
        for _ in range(steps):
            self.pool.now_ms += self.rng.choice([1, 3, 50, 400, 2_500])
            self.pool.advance_line()
            (act,) = self.rng.choices([act for _, act in acts], [weight for weight, _ in acts])
            act()
        self.pool.check()

    def _ticket(self, *phases: str) -> str:
        found = [t.ticket_id for t in self.pool.state.tickets.values() if t.phase in phases]
        return self.rng.choice(found) if found else ""

    def _client_of(self, ticket_id: str) -> str:
        client_id = self.pool.state.tickets[ticket_id].client_id
        return client_id if client_id in self.pool.state.clients else "c-a"

    def allocate(self) -> None:
        rng = self.rng
        terms = Terms(
            priority=rng.choice([0, 0, 0, 5, 9]),
            project=rng.choice(["", "", "green"]),
            expected_ms=rng.choice([0, 3_000, 60_000]),
            max_ms=rng.choice([0, 0, 20_000]),
            preemptible=rng.random() < 0.4,
            reservation=rng.choice(["", "", *self.pool.state.queueing.reservations]) if rng.random() < 0.2 else "",
        )
        roll = rng.random()
        if roll < 0.1:
            groups = (Group("head", 1, 1, Resources(gpus=0)), Group("worker", 1, 2, Resources(gpus=1)))
            spec = GangSpec(2, 1, Resources(gpus=0), groups=groups, terms=terms)
        elif roll < 0.2:
            spec = gang(3, 2, min_nodes=1, terms=terms)
        else:
            size = rng.choice([(1, 1, 1), (1, 1, 0.5), (1, 2, 1), (2, 1, 2), (1, 4, 1), (2, 4, 1), (1, 1, 9)])
            spec = gang(*size, terms=terms, on_failure=rng.choice(["keep", "release"]), detached=rng.random() < 0.1)
        self.pool.allocate(rng.choice(list(CLIENTS)), spec, rng.choice([None, None, 0, 2_000, 30_000]))

    def release(self) -> None:
        ticket_id = self._ticket("queued", "allocated", "active", "active")
        if ticket_id:
            self.pool.ask(self._client_of(ticket_id), r.ReleaseGang(ticket_id))
            if self.rng.random() < 0.7:
                self.pool.settle()

    def launch(self) -> None:
        ticket_id = self._ticket("allocated")
        if ticket_id:
            ranks = tuple(range(len(self.pool.state.tickets[ticket_id].slots)))
            self.pool.launch(self._client_of(ticket_id), ticket_id, ranks)
            self.pool.settle()

    def fail(self) -> None:
        running = [(agent, i) for agent in self.pool.agents.values() for i in agent.processes]
        if running:
            agent, launch_id = self.rng.choice(running)
            self.pool.end(agent, launch_id, code=self.rng.choice([0, 1]))

    def repair(self) -> None:
        ticket_id = self._ticket("active")
        if ticket_id:
            rank = self.rng.randrange(len(self.pool.state.tickets[ticket_id].slots))
            self.pool.ask(self._client_of(ticket_id), r.RepairGang(ticket_id, rank))

    def prioritize(self) -> None:
        ticket_id = self._ticket("queued", "allocated")
        if ticket_id:
            self.pool.ask("c-a", r.PrioritizeGang(ticket_id, self.rng.choice([0, 3, 9])))

    def move(self) -> None:
        ticket_id = self._ticket("queued")
        if ticket_id:
            self.pool.ask("c-a", r.MoveGang(ticket_id, self.rng.choice(["head", "tail"])))

    def quota(self) -> None:
        project = self.rng.choice(["blue", "red", "green"])
        quota = Quota(project, gpu_milli=self.rng.choice([None, 2_000, 6_000]), borrow=self.rng.random() < 0.7)
        self.pool.ask("c-a", self.rng.choice([r.SetQuota(quota), r.SetQuota(quota), r.RemoveQuota(project)]))

    def reserve(self) -> None:
        start_ms = self.pool.now_ms + self.rng.choice([0, 5_000])
        self.pool.ask("c-a", r.CreateReservation(1, 4, self.rng.choice([5_000, 60_000]), start_ms))

    def policy(self) -> None:
        rng = self.rng
        policy = QueuePolicy(rng.choice(ORDERS), rng.random() < 0.7, rng.random() < 0.7, notice_ms=rng.choice([0, 900]))
        self.pool.ask("c-a", r.SetQueuePolicy(policy))

    def drain(self) -> None:
        node_id = self.rng.choice(list(self.pool.state.nodes))
        if node_id in self.pool.state.cordons:
            self.pool.ask("c-a", r.UncordonNode(node_id))
        else:
            self.pool.ask("c-a", r.DrainNode(node_id, self.rng.choice([None, 0, 3_000])))
        self.pool.settle()

    def lose_node(self) -> None:
        if self.pool.state.nodes["n4"].phase != "lost":
            self.pool.expire_node("n4")
        else:
            self.pool.register(node_spec("n4", 4))

    def health(self) -> None:
        agent = self.pool.agents["n0"]
        sick = self.rng.choice(["", "xid"])
        self.pool.report(agent, r.ReportHealth((r.GpuReport(1, "n0-gpu-1", sick, sick),)))

    def lose_client(self) -> None:
        client_id = "c-c"
        if client_id in self.pool.state.clients:
            self.pool.expire_client(client_id)
            self.pool.settle()


class MadeLog(EventLog):
    """A log in memory."""

    has_snapshot = False

    def __init__(self, entries: Iterable[RawEntry], base: PoolState | None = None) -> None:
        super().__init__(None, "", "")
        self.entries, self._base = list(entries), snapshot.encode(base or PoolState())

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        return (entry for entry in self.entries if order_of(after) < order_of(entry[0]) <= end_of(until))

    def last_id(self) -> str:
        return self.entries[-1][0]

    def first_id(self) -> str:
        return self.entries[0][0]

    def base(self) -> PoolState:
        return snapshot.decode(self._base)

    def base_hash(self) -> str:
        return ""
