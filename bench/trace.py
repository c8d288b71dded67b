"""The published experiment on a trace of tasks, repeated ("Beware of Fragmentation", USENIX ATC 2023).

Tasks arrive one by one in shuffled order until they would ask for more than 130 % of the GPUs; nothing departs, and a
task that fits nowhere is dropped. Every task goes through the allocator's own decide and fold; with the policies to
compare with (``pack``, ``fgd``: see ``policies``) they decide in its place, and fold checks them. Figures: the
allocated GPUs in percent of all, when tasks for 100, 110, 120 and 130 % have arrived; the mean over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import policies

from spoke.allocator.decide import decide
from spoke.allocator.queue.grant import allocated as granted
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import GangSpec, Gpu, NodeSpec, Resources
from spoke.events.state import PoolState
from spoke.protocol import requests as r

MARKS = (100, 110, 120, 130)
WORKLOADS = ("default", "multigpu50", "gpushare100")
POLICIES = ("default", *policies.POLICIES)
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def node_spec(row: Row) -> NodeSpec:
    gpus = tuple(Gpu(index, f"{row['sn']}-{index}", row["model"]) for index in range(int(row["gpu"])))
    memory = int(row["memory_mib"]) << 20
    return NodeSpec(row["sn"], row["sn"], "127.0.0.1", "m", gpus, int(row["cpu_milli"]), memory)


def gang_spec(row: Row) -> GangSpec:
    count, milli = int(row["num_gpu"]), int(row["gpu_milli"])
    gpus = milli / 1000 if count == 1 and milli < 1000 else count
    need = Resources(gpus, int(row["cpu_milli"]) / 1000, int(row["memory_mib"]) << 20)
    models = tuple(model for model in (row.get("gpu_spec") or "").split("|") if model)
    return GangSpec(1, 1, need, gpu_models=models)


def gpu_milli(spec: GangSpec) -> int:
    return spec.resources.gpu_milli if spec.resources.is_share else 1000 * spec.resources.gpu_count


def run(nodes_path: Path, tasks_path: Path, policy: str, seed: int) -> list[float]:
    """The allocated GPUs in percent at each mark, for one seed."""
    state, step = PoolState(), 0

    def handle(asked: r.Envelope) -> list[e.Event]:
        nonlocal step
        other = place(asked.request.spec) if place is not None and isinstance(asked.request, r.AllocateGang) else None
        if other is not None:
            named = (f"t-{state.next_ticket}", "bench", asked.seq, asked.request.spec)  # type: ignore[attr-defined]
            events: list[e.Event] = [granted((other, policy, state), *named, order="", borrowed=False)]
        elif place is not None and isinstance(asked.request, r.AllocateGang):
            events = []
        else:
            events = decide(state, asked, step)
        for event in events:
            step += 1
            fold(state, e.Recorded(f"{step}-0", event))
        return events

    place: policies.Policy | None = None
    nodes = [node_spec(row) for row in read(nodes_path)]
    for spec in nodes:
        handle(r.Envelope(r.RegisterNode(spec, 10_000), node_id=spec.node_id, incarnation="i"))
    handle(r.Envelope(r.ConnectClient(10_000), "bench", 1))
    total = sum(1000 * len(spec.gpus) for spec in nodes)
    original = [gang_spec(row) for row in read(tasks_path)]
    if policy != "default":
        place = policies.POLICIES[policy](nodes, original)
    rng = random.Random(seed)
    tasks = original.copy()
    rng.shuffle(tasks)
    arrived = allocated = seq = 0
    marks: list[float] = []
    while True:
        task = tasks[seq] if seq < len(tasks) else rng.choice(original)
        arrived += gpu_milli(task)
        if arrived * 100 > total * MARKS[-1]:
            break
        seq += 1
        found = handle(r.Envelope(r.AllocateGang(task, 0), "bench", seq + 1))
        if found and isinstance(found[0], e.GangAllocated):
            allocated += gpu_milli(task)
        if len(marks) < len(MARKS) and arrived * 100 >= total * MARKS[len(marks)]:
            marks.append(100 * allocated / total)
    return marks + [100 * allocated / total] * (len(MARKS) - len(marks))


def measure(nodes: Path, tasks: Path, policy: str, seeds: list[int]) -> dict[str, float]:
    """The mean over the seeds, each in a process of its own."""
    with ProcessPoolExecutor(min(len(seeds), os.cpu_count() or 1)) as pool:
        runs = list(pool.map(run, repeat(nodes), repeat(tasks), repeat(policy), seeds))
    return {str(mark): round(sum(one[at] for one in runs) / len(runs), 2) for at, mark in enumerate(MARKS)}


def seed_range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=Path, help="nodes.csv")
    parser.add_argument(
        "--tasks", type=Path, help="tasks.csv; without it, all workloads of --data beside the published ones"
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SPOKE_TRACE", "traces/alibaba-gpu-2023")))
    parser.add_argument("--policy", choices=POLICIES, action="append")
    parser.add_argument("--seeds", type=seed_range, default=seed_range("42-51"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    nodes = args.nodes or args.data / "nodes.csv"
    workloads = {args.tasks.stem: args.tasks} if args.tasks else {w: args.data / f"pods-{w}.csv" for w in WORKLOADS}
    missing = [str(path) for path in (nodes, *workloads.values()) if not path.is_file()]
    if missing:
        parser.error(f"{', '.join(missing)}: no such file; name the trace's folder with --data")
    for workload, tasks in workloads.items():
        if not args.tasks and not args.json:
            for row in read(args.data / "published-allocation.csv"):
                if row["workload"] == workload:
                    print(f"{workload:12} {row['policy']:14}", *(f"{row[f'alloc_pct_at_{m}']:>7}" for m in MARKS))
        for policy in args.policy or POLICIES[:1]:
            found = measure(nodes, tasks, policy, args.seeds)
            if args.json:
                one = {"policy": policy, "seeds": args.seeds, "allocated_pct": found}
                print(json.dumps(one if args.tasks else {"workload": workload, **one}), flush=True)
            else:
                print(f"{workload:12} {'spoke ' + policy:14}", *(f"{found[str(m)]:7.2f}" for m in MARKS), flush=True)


if __name__ == "__main__":
    main()
