"""What a long queue costs: a step of the queue, a release with the grant that follows, and a request, by its length.

A full pool of 8-GPU nodes, and so many gangs that wait, of ten projects and five priorities. ``look`` is a step that
also looks for gangs that may overtake; the allocator gives that a tenth of its time. The floor is the same with ten
gangs that wait.

    python bench/queue_length.py [--json] [--nodes 100]
"""

from __future__ import annotations

import argparse
import json
import time

from decide import Pool, node

from spoke.allocator.decide import tick
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import GangSpec, Resources
from spoke.events.queueing import QueuePolicy
from spoke.events.terms import Terms
from spoke.protocol import requests as r

LENGTHS = (10, 100, 1_000, 10_000)
ORDERS = ("fifo", "priority", "fair")


def measure(order: str, nodes: int, waiting: int, rounds: int) -> dict[str, float]:
    """Means in µs."""
    pool = Pool()
    for number in range(nodes):
        spec = node(number)
        pool.handle(r.Envelope(r.RegisterNode(spec, 10_000), node_id=spec.node_id, incarnation="i"))
    pool.ask(r.ConnectClient(10_000))
    pool.ask(r.SetQueuePolicy(QueuePolicy(order, preempt=False)))  # type: ignore[arg-type]
    live = [f"t-{n}" for n in range(1, 2 * nodes + 1)]
    for _ in live:
        pool.ask(r.AllocateGang(GangSpec(1, 4, Resources(gpus=1), terms=Terms(project="p0", expected_ms=60_000)), 0))

    def wait(number: int) -> None:
        terms = Terms(priority=number % 5, project=f"p{number % 10}", expected_ms=10_000 * (1 + number % 20))
        pool.ask(r.AllocateGang(GangSpec(1 + number % 3, 4, Resources(gpus=1), terms=terms), None))

    for number in range(waiting):
        wait(number)
    sums = {"step": 0.0, "look": 0.0, "release and grant": 0.0, "request": 0.0}
    for number in range(rounds):
        began = time.perf_counter()
        tick(pool.state, pool.step, overtake=False)
        sums["step"] += time.perf_counter() - began
        if number < max(5, rounds // 20):
            began = time.perf_counter()
            tick(pool.state, pool.step)
            sums["look"] += (time.perf_counter() - began) * rounds / max(5, rounds // 20)
        began = time.perf_counter()
        pool.ask(r.ReleaseGang(live.pop(0)))
        while events := tick(pool.state, pool.step, overtake=False):
            for event in events:
                pool.step += 1
                fold(pool.state, e.Recorded(f"{pool.step}-0", event))
                if isinstance(event, e.GangAllocated):
                    live.append(event.ticket_id)
        sums["release and grant"] += time.perf_counter() - began
        began = time.perf_counter()
        wait(number)
        sums["request"] += time.perf_counter() - began
    return {name: total / rounds * 1e6 for name, total in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=150)
    args = parser.parse_args()
    for order in ORDERS:
        floors: dict[str, float] = {}
        for waiting in LENGTHS:
            for name, value in measure(order, args.nodes, waiting, args.rounds).items():
                floor = floors.setdefault(name, value)
                figure = f"{order}, {waiting:,} wait: {name}"
                if args.json:
                    row = {"figure": figure, "value": round(value, 1), "unit": "µs", "floor": round(floor, 1)}
                    print(json.dumps({**row, "ratio": round(value / floor, 2)}), flush=True)
                else:
                    print(f"{figure:44} {value:12,.1f} µs {floor:12,.1f} {value / floor:8.2f} x", flush=True)


if __name__ == "__main__":
    main()
