"""A log of any length, made up fast: gangs come and go on a steady pool, as an allocator would have recorded it.

Nothing is decided here: places are taken from free lists, so that ten million events take minutes. ``audit verify``
finds nothing wrong with such a log.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from spoke.events import types as e
from spoke.events.chain import FIELD, Chain
from spoke.events.codec import event_args
from spoke.events.model import ActorSpec, GangSpec, Gpu, NodeSpec, PortRange, Resources, Slot

START_MS = 1_760_000_000_000
STEP_MS = 20
"""Between two events."""
GPUS = 8
USERS = 20
GANGS = ((1, 1), (1, 1), (1, 2), (1, 4), (1, 8), (2, 4), (2, 8))
"""Nodes and actors on each; an actor has one GPU."""


@dataclass(slots=True)
class _Gang:
    ticket_id: str
    client: int
    slots: tuple[Slot, ...]


class _Maker:
    def __init__(self, nodes: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes = [f"node-{n:04d}" for n in range(nodes)]
        self.free = {node: list(range(GPUS)) for node in self.nodes}
        self.live: deque[_Gang] = deque()
        self.seqs = [0] * USERS
        self.tickets = 0
        self.pids = 1000
        self.specs = {
            (n, a, u): GangSpec(n, a, Resources(gpus=1, cpus=4.0, memory=16 << 30), name=f"job-{u % 7}")
            for n, a in set(GANGS)
            for u in range(7)
        }
        self.command = [ActorSpec("", ("python", "train.py", f"--model={u}"), "/srv/job") for u in range(7)]

    def seq(self, client: int) -> int:
        self.seqs[client] += 1
        return self.seqs[client]

    def begin(self) -> Iterator[e.Event]:
        yield e.AllocatorElected("synthetic", 1)
        for node in self.nodes:
            gpus = tuple(Gpu(i, f"GPU-{node}-{i}", "H100", 80 << 30) for i in range(GPUS))
            spec = NodeSpec(node, f"host-{node}", "10.0.0.1", "m", gpus, 128_000, 1 << 40, PortRange(20_000, 16))
            yield e.NodeRegistered(node, "i1", 10_000, spec)
        for client in range(USERS):
            yield e.ClientConnected(f"c-{client}", self.seq(client), 10_000, "login", 7, f"user-{client}")

    def grant(self) -> Iterator[e.Event]:
        nodes, actors = self.random.choice(GANGS)
        places = []
        for node in self.random.sample(self.nodes, min(len(self.nodes), 12)):
            if len(self.free[node]) >= actors:
                places.append(node)
                if len(places) == nodes:
                    break
        else:
            yield from self.end()
            return
        client = self.random.randrange(USERS)
        self.tickets += 1
        slots, rank = [], 0
        for group, node in enumerate(places):
            for local in range(actors):
                gpu = self.free[node].pop()
                slots.append(Slot(rank, local, group, node, f"host-{node}", (gpu,), (f"GPU-{node}-{gpu}",)))
                rank += 1
        gang = _Gang(f"t-{self.tickets}", client, tuple(slots))
        spec, name = self.specs[nodes, actors, client % 7], f"c-{client}"
        yield e.GangAllocated(gang.ticket_id, name, self.seq(client), spec, gang.slots, "10.0.0.1", 0, "pack/1")
        seq = self.seq(client)
        for s in slots:
            actor = f"worker-{s.global_rank}"
            yield e.ActorLaunchRequested(
                gang.ticket_id, s.global_rank, actor, s.node_id, name, seq, self.command[client % 7]
            )
        for s in slots:
            self.pids += 1
            yield e.ActorStarted(gang.ticket_id, s.global_rank, f"worker-{s.global_rank}", s.node_id, self.pids, "")
        self.live.append(gang)

    def end(self) -> Iterator[e.Event]:
        if not self.live:
            return
        self.live.rotate(-self.random.randrange(min(8, len(self.live))))
        gang = self.live.popleft()
        for s in gang.slots:
            code = int(self.random.random() < 0.02)
            yield e.ActorExited(gang.ticket_id, s.global_rank, f"worker-{s.global_rank}", s.node_id, code)
        yield e.GangReleasing(gang.ticket_id, f"c-{gang.client}", self.seq(gang.client), "its client released it")
        nodes = tuple(dict.fromkeys(s.node_id for s in gang.slots))
        yield e.GangReleased(gang.ticket_id, nodes, True)
        for s in gang.slots:
            self.free[s.node_id].append(s.gpu_ids[0])


def events(count: int, nodes: int = 100, seed: int = 1) -> Iterator[e.Recorded]:
    """``count`` events of a pool with so many nodes of 8 GPUs, some milliseconds apart."""
    maker = _Maker(nodes, seed)

    def forever() -> Iterator[e.Event]:
        yield from maker.begin()
        while True:
            yield from maker.grant()

    for step, event in enumerate(islice(forever(), count)):
        yield e.Recorded(f"{START_MS + step * STEP_MS}-0", event)


def chained(log: Iterable[e.Recorded]) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    """The events as they stand in a stream, with their hashes."""
    chain = Chain()
    for recorded in log:
        args = event_args(recorded.event)
        link = chain.link(recorded.id, args)
        raw = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        yield recorded.id, {**dict(zip(raw[::2], raw[1::2], strict=True)), FIELD: link.encode()}
