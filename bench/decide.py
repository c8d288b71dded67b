"""What one decision costs in the pure core: decide and fold of a gang and of its release, by the size of the pool.

Nodes have 8 GPUs and are half full, in pieces of different sizes. The floor is the same on the smallest pool, so the
ratio is how the cost grows. "New shape": what is asked for was never asked for before. "Does not fit": a gang that
needs every node, and is refused. "Rules": a pool of racks of 40 nodes, with labels and two models of GPUs; "again" is
another look at a waiting gang that does not fit. "Pauses": the longest decisions while tickets pile up, with Python's
garbage collector as it is and as an allocator's process has it. Times are CPU time, since a decision waits for nothing.
Memory is what Python's allocator counts, for each node and each ticket.

    python bench/decide.py [--json] [--rounds 300]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from spoke.allocator.collector import Collector
from spoke.allocator.decide import decide
from spoke.allocator.placement.choose import place
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import GangSpec, Gpu, NodeSpec, Resources
from spoke.events.rules import Group, Rules
from spoke.events.state import PoolState
from spoke.protocol import requests as r

SIZES = (10, 100, 1_000, 10_000)
ONE_GPU = Resources(gpus=1, cpus=2)
SHAPES = {
    "pack": (Resources(gpus=1, cpus=8), (1, 2, 3)),
    "share": (Resources(gpus=0.25, cpus=2), (1, 0.5, 0.3, 2)),
}


RULES: dict[str, Callable[[], GangSpec]] = {
    "labels": lambda: GangSpec(2, 4, ONE_GPU, rules=Rules(where={"disk": "ssd"})),
    "model": lambda: GangSpec(2, 4, ONE_GPU, gpu_models=("H200",)),
    "GPU memory": lambda: GangSpec(2, 4, ONE_GPU, rules=Rules(min_gpu_memory="100GiB")),
    "one rack": lambda: GangSpec(4, 4, ONE_GPU, rules=Rules(same="rack")),
    "a rack if it can be": lambda: GangSpec(4, 4, ONE_GPU),
    "near": lambda: GangSpec(2, 4, ONE_GPU, rules=Rules(near="n77")),
    "spread": lambda: GangSpec(8, 1, ONE_GPU, False, rules=Rules(strategy="spread")),
    "strict spread": lambda: GangSpec(8, 1, ONE_GPU, False, rules=Rules(strategy="strict_spread")),
    "strict pack": lambda: GangSpec(1, 6, ONE_GPU, False, rules=Rules(strategy="strict_pack")),
    "exclusive": lambda: GangSpec(1, 1, ONE_GPU, rules=Rules(exclusive=True)),
    "gpu_ids": lambda: GangSpec(1, 2, ONE_GPU, gpu_ids=(2, 3)),
    "mixed": lambda: GangSpec(5, 1, groups=(Group("head", 1, 1), Group("worker", 4, 4, ONE_GPU))),
    "no label": lambda: GangSpec(1_500, 8, ONE_GPU, rules=Rules(where={"disk": "ssd"})),
    "no rack": lambda: GangSpec(41, 4, ONE_GPU, rules=Rules(same="rack")),
}
"""What is asked for in a pool with racks; the last two fit nowhere now."""


class Pool:
    """A pool in memory."""

    def __init__(self) -> None:
        self.state, self.step, self.seq = PoolState(), 0, 0

    def handle(self, asked: r.Envelope) -> list[e.Event]:
        """Decide and fold."""
        events = decide(self.state, asked, self.step)
        for event in events:
            self.step += 1
            fold(self.state, e.Recorded(f"{self.step}-0", event))
        return events

    def ask(self, request: r.Request) -> list[e.Event]:
        """A client's request."""
        self.seq += 1
        return self.handle(r.Envelope(request, "bench", self.seq))

    def fill(self, nodes: int, pieces: tuple[float, ...]) -> int:
        """Half of the GPUs in use, and every other piece given back: fragmented. Returns the live tickets."""
        rng = random.Random(nodes)
        granted, taken = [], 0.0
        while taken < 8 * nodes * 0.75:
            gpus = rng.choice(pieces)
            event = self.ask(r.AllocateGang(GangSpec(1, 1, Resources(gpus=gpus, cpus=rng.choice((2, 4, 8)))), 0))[0]
            if not isinstance(event, e.GangAllocated):
                break
            granted.append((event.ticket_id, gpus))
            taken += gpus
        rng.shuffle(granted)
        while taken > 8 * nodes * 0.5:
            ticket_id, gpus = granted.pop()
            self.ask(r.ReleaseGang(ticket_id))
            taken -= gpus
        return len(granted)


def node(number: int, labelled: bool = False) -> NodeSpec:
    """A node of 8 GPUs; labelled ones stand in racks, some have other GPUs and disks."""
    model, memory = ("H200", 141 << 30) if labelled and number % 7 == 0 else ("H100", 80 << 30)
    gpus = tuple(Gpu(index, f"n{number}-{index}", model, memory) for index in range(8))
    labels = {"rack": f"r{number // 40}", "disk": "ssd" if number % 5 == 0 else "hdd"} if labelled else {}
    return NodeSpec(f"n{number}", f"n{number}", "127.0.0.1", "m", gpus, 128_000, 1 << 40, labels=labels)


def rules_us(nodes: int, rounds: int) -> dict[str, float]:
    """Mean and p99 of decisions by rules, in µs."""
    pool = Pool()
    for number in range(nodes):
        known = node(number, labelled=True)
        pool.handle(r.Envelope(r.RegisterNode(known, 10_000), node_id=known.node_id, incarnation="i"))
    pool.ask(r.ConnectClient(10_000))
    pool.fill(nodes, (1, 2, 3))
    found: dict[str, float] = {}

    def note(name: str, took: list[float]) -> None:
        took.sort()
        found.update({f"{name}, mean": sum(took) / len(took), f"{name}, p99": took[int(len(took) * 0.99)]})

    for name, make in RULES.items():
        spec = make()
        decision_us(pool, spec)
        note(name, [decision_us(pool, spec) for _ in range(rounds)])
        if name.startswith("no "):
            note(f"{name}, again", [look_us(pool, spec) for _ in range(rounds)])
    return found


def pauses_us(nodes: int, rounds: int) -> dict[str, float]:
    """The longest of many decisions while tickets pile up, with the collector as it is and as the daemon has it."""
    found: dict[str, float] = {}
    for name in ("as it is", "in rests"):
        pool, collector = Pool(), Collector() if name == "in rests" else None
        for number in range(nodes):
            known = node(number)
            pool.handle(r.Envelope(r.RegisterNode(known, 10_000), node_id=known.node_id, incarnation="i"))
        pool.ask(r.ConnectClient(10_000))
        pool.fill(nodes, (1, 2, 3))
        ask_us(pool, GangSpec(1, 1, Resources(cpus=0.01)))
        if collector is not None:
            collector.begin()
        took = []
        for number in range(20 * rounds):
            took += [decision_us(pool, GangSpec(1, 1, ONE_GPU)), ask_us(pool, GangSpec(1, 1, Resources(cpus=0.01)))]
            if collector is not None:
                collector.rest() if number % 1_000 == 0 else collector.work()
        took.sort()
        found |= {f"{name}, {part}": took[int(len(took) * at)] for part, at in (("p99", 0.99), ("p99.9", 0.999))}
        found[f"{name}, max"] = took[-1]
        if collector is not None:
            collector.end()
        gc.collect()
    return found


def ask_us(pool: Pool, spec: GangSpec) -> float:
    """One decision and its fold; what is granted stays."""
    began = time.thread_time()
    pool.ask(r.AllocateGang(spec, 0))
    return (time.thread_time() - began) * 1e6


def look_us(pool: Pool, spec: GangSpec) -> float:
    """A look at whether a waiting gang fits by now, after a node has changed."""
    decision_us(pool, GangSpec(1, 1, ONE_GPU))
    began = time.thread_time()
    place(pool.state, spec)
    return (time.thread_time() - began) * 1e6


def measure(shape: str, nodes: int, rounds: int) -> dict[str, float]:
    """Mean and p99 of a decision with its fold, in µs; bytes for each node and ticket."""
    need, pieces = SHAPES[shape]
    pool = Pool()
    specs = [node(number) for number in range(nodes)]
    tracemalloc.start()
    for spec in specs:
        pool.handle(r.Envelope(r.RegisterNode(spec, 10_000), node_id=spec.node_id, incarnation="i"))
    node_bytes = tracemalloc.get_traced_memory()[0] / nodes
    tracemalloc.stop()
    pool.ask(r.ConnectClient(10_000))
    live = pool.fill(nodes, pieces)
    found: dict[str, float] = {}
    asked: dict[str, Callable[[int], GangSpec]] = {
        "": lambda _: GangSpec(1, 1, need),
        "new shape, ": lambda at: GangSpec(1, 1, replace(need, cpus=need.cpus + (at + 1) / 1000)),
        "does not fit, ": lambda _: GangSpec(nodes, 1, replace(need, cpus=120)),
    }
    found["first"] = decision_us(pool, GangSpec(1, 1, need))
    for name, make in asked.items():
        took = sorted(decision_us(pool, make(at)) for at in range(rounds))
        found |= {f"{name}mean": sum(took) / len(took), f"{name}p99": took[int(len(took) * 0.99)]}
    decision_us(pool, GangSpec(1, 1, need))  # what is kept for a shape is no ticket's
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    more = sum(isinstance(pool.ask(r.AllocateGang(GangSpec(1, 1, need), 0))[0], e.GangAllocated) for _ in range(20))
    ticket_bytes = (tracemalloc.get_traced_memory()[0] - before) / max(1, more)
    tracemalloc.stop()
    return {**found, "bytes a node": node_bytes, "bytes a ticket": ticket_bytes, "tickets": live}


def decision_us(pool: Pool, spec: GangSpec) -> float:
    """One decision and its fold; what was granted is given back, and so a node changes before the next one."""
    request = r.AllocateGang(spec, 0)
    began = time.thread_time()
    event = pool.ask(request)[0]
    took = (time.thread_time() - began) * 1e6
    if isinstance(event, e.GangAllocated):
        pool.ask(r.ReleaseGang(event.ticket_id))
    else:
        other = pool.ask(r.AllocateGang(GangSpec(1, 1, Resources(gpus=1)), 0))[0]
        assert isinstance(other, e.GangAllocated)
        pool.ask(r.ReleaseGang(other.ticket_id))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--only", choices=[*SHAPES, "rules", "pauses"], action="append")
    parser.add_argument("--nodes", type=int, action="append", help="only pools of these sizes")
    args = parser.parse_args()
    measures: dict[str, Callable[[int, int], dict[str, float]]] = {
        **{shape: partial(measure, shape) for shape in SHAPES},
        "rules": rules_us,
        "pauses": pauses_us,
    }
    for shape in args.only or measures:
        floors: dict[str, float] = {}
        for nodes in args.nodes or SIZES:
            for name, value in measures[shape](nodes, args.rounds).items():
                floor = floors.setdefault(name, value)
                unit = (
                    "µs"
                    if name.endswith(("mean", "p99", "p99.9", "max", "first"))
                    else ""
                    if name == "tickets"
                    else "B"
                )
                figure, ratio = f"{shape}, {nodes:,} nodes: {name}", value / floor if floor else 0.0
                if args.json:
                    row = {"figure": figure, "value": round(value, 1), "unit": unit, "floor": round(floor, 1)}
                    print(json.dumps({**row, "ratio": round(ratio, 2)}), flush=True)
                else:
                    print(f"{figure:42} {value:12,.1f} {unit:3} {floor:12,.1f} {ratio:8.2f} x", flush=True)


if __name__ == "__main__":
    main()
