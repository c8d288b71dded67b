"""The queue's policies under the load of a real cluster: utilisation, waiting times, fragmentation, starvation.

The tasks of the trace come with their own arrivals, sizes and durations, in simulated time, through the allocator's
own decide and fold. The cluster of the trace was nearly empty, so the time between arrivals is compressed: they come so
much faster that the GPU time asked for is ``load`` times what there is. Durations stay. All tasks together would keep
the whole cluster busy for half an hour, less than many of them take, so there are two ways to fill it for long enough:
a part of the cluster (every ``--every``-th node), or the whole one and ``--copies`` tasks where the trace has one: the
one itself, the one ``STRIDE`` places before it, the one before that by as much, and so on, spread evenly until the next
arrival. Either way the arrivals have the trace's own peaks.

Tasks of long-running services count as one of higher priority (LS in the trace); projects are four, by the task's
number, since the trace names none. With backfill each task says its true duration.

    python bench/queue_trace.py [--every 20 | --every 1 --copies 20] [--json] [--plots docs/figures]
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from trace import Row, gang_spec, node_spec, read
from typing import Any

from plots import line_chart

from spoke.allocator.decide import decide, tick
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import GangSpec
from spoke.events.queueing import QueuePolicy, Quota, demand_of
from spoke.events.state import PoolState
from spoke.events.terms import Terms
from spoke.protocol import requests as r

POLICIES: dict[str, QueuePolicy] = {
    "fifo": QueuePolicy("fifo", backfill=False, preempt=False),
    "priority": QueuePolicy("priority", backfill=False, preempt=False),
    "fair": QueuePolicy("fair", backfill=False, preempt=False, half_life_ms=6 * 3600 * 1000),
    "backfill": QueuePolicy("fifo", preempt=False),
    "fair+backfill": QueuePolicy("fair", preempt=False, half_life_ms=6 * 3600 * 1000),
}
LOADS = (0.6, 0.8, 1.0, 1.3)
WEIGHTS = {"p0": 4, "p1": 2, "p2": 1, "p3": 1}
SIZES = ("shares and CPU", "1 GPU", "2-8 GPUs")
LOOK_EVERY_MS = 30_000
"""How often backfill is tried in simulated time; the allocator, which gives it a tenth of its time, does it at once."""
BUSY_SECONDS_MIN, LONGEST_S = 1, 12 * 3600
"""Tasks that last longer are left out: services, which would fill the pool once and never leave."""
FROM_S = 10_192_225
"""Before this second of the trace hardly anything arrives."""
STRIDE = 37


@dataclass
class Task:
    """A gang of the trace."""

    at_ms: int
    spec: GangSpec
    length_ms: int
    size: str
    project: str
    granted_ms: int = -1


@dataclass
class Sums:
    """What is measured, weighted by time."""

    span_ms: int = 0
    used: int = 0
    queue_max: int = 0
    waiting_ms: int = 0
    idle_while_waiting: int = 0
    projects: dict[str, int] = field(default_factory=dict)


def tasks_of(rows: list[Row], copies: int, gpus_max: int) -> list[Task]:
    """The tasks in the order of their arrival, in the trace's own time, each so many times."""
    found = []
    for row in rows:
        at_s, ends_s = int(row["creation_time"]), int(row["deletion_time"])
        length_s = ends_s - int(row["scheduled_time"] or at_s)
        if at_s < FROM_S or not BUSY_SECONDS_MIN <= length_s <= LONGEST_S:
            continue
        spec = gang_spec({**row, "gpu_spec": ""})
        gpus = spec.resources.gpu_count
        size = SIZES[0] if gpus == 0 else SIZES[1] if gpus == 1 else SIZES[2]
        if gpus <= gpus_max:
            found.append((at_s * 1000, length_s * 1000, size, int(row["qos"] == "LS"), spec.resources))
    found.sort(key=lambda one: one[0])
    tasks: list[Task] = []
    for number, (at_ms, *_) in enumerate(found):
        gap_ms = found[min(number + 1, len(found) - 1)][0] - at_ms
        for copy in range(copies):
            _, length_ms, size, priority, resources = found[number - copy * STRIDE]
            project = f"p{len(tasks) % len(WEIGHTS)}"
            spec = GangSpec(1, 1, resources, terms=Terms(priority, project, length_ms))
            tasks.append(Task(at_ms + gap_ms * copy // copies, spec, length_ms, size, project))
    return tasks


class Simulation:
    """One pool, one policy, one load."""

    def __init__(self, nodes: list[Row], tasks: list[Task], policy: QueuePolicy, load: float) -> None:
        self.state, self.now_ms, self.seq, self.step = PoolState(), 1_000_000, 0, 0
        self.backfills, self.looked_ms = policy.backfill, 0
        specs = [node_spec(row) for row in nodes]
        for spec in specs:
            self.handle(r.Envelope(r.RegisterNode(spec, 10_000), node_id=spec.node_id, incarnation="i"))
        self.ask(r.ConnectClient(10_000))
        self.ask(r.SetQueuePolicy(policy))
        if policy.order == "fair":
            for project, weight in WEIGHTS.items():
                self.ask(r.SetQuota(Quota(project, weight=weight)))
        self.gpu_milli = sum(1000 * len(spec.gpus) for spec in specs)
        asked = sum(demand_of(task.spec)[0] * task.length_ms for task in tasks)
        span = tasks[-1].at_ms - tasks[0].at_ms
        factor = asked / (load * self.gpu_milli) / span
        self.tasks = [
            Task(self.now_ms + int((t.at_ms - tasks[0].at_ms) * factor), t.spec, t.length_ms, t.size, t.project)
            for t in tasks
        ]
        self.ids: dict[str, Task] = {}
        self.ends: list[tuple[int, str]] = []
        self.sums = Sums()

    def handle(self, asked: r.Envelope) -> None:
        """Decide and fold."""
        self.record(decide(self.state, asked, self.now_ms))

    def ask(self, request: r.Request) -> None:
        """A client's request."""
        self.seq += 1
        self.handle(r.Envelope(request, "bench", self.seq))

    def record(self, events: list[e.Event]) -> None:
        """Fold events; a gang that is granted will end."""
        for event in events:
            self.step += 1
            fold(self.state, e.Recorded(f"{self.now_ms}-{self.step}", event))
            if isinstance(event, e.GangAllocated) and event.ticket_id in self.ids:
                task = self.ids[event.ticket_id]
                task.granted_ms = self.now_ms
                heapq.heappush(self.ends, (self.now_ms + task.length_ms, event.ticket_id))

    def pass_to(self, at_ms: int, measured: bool) -> None:
        """Let time pass; what is held meanwhile counts."""
        span = at_ms - self.now_ms
        if measured and span > 0:
            held = {name: account.held[0] for name, account in self.state.queueing.accounts.items()}
            used = sum(held.values())
            self.sums.span_ms += span
            self.sums.used += used * span
            if self.state.queue:
                self.sums.waiting_ms += span
                self.sums.idle_while_waiting += (self.gpu_milli - used) * span
                for name, milli in held.items():
                    self.sums.projects[name] = self.sums.projects.get(name, 0) + milli * span
        self.now_ms = max(self.now_ms, at_ms)

    def run(self) -> dict[str, Any]:
        """All of it: until the last has ended. Figures are of the time from a fifth of the arrivals to the last."""
        first_ms, last_ms = self.tasks[len(self.tasks) // 5].at_ms, self.tasks[-1].at_ms
        arrivals = iter(self.tasks)
        task = next(arrivals, None)
        while task is not None or self.ends:
            if task is not None and (not self.ends or task.at_ms <= self.ends[0][0]):
                self.pass_to(task.at_ms, first_ms <= self.now_ms <= last_ms)
                ticket_id = f"t-{self.state.next_ticket}"
                self.ids[ticket_id] = task
                self.ask(r.AllocateGang(task.spec, None))
                self.sums.queue_max = max(self.sums.queue_max, len(self.state.queue))
                task = next(arrivals, None)
            else:
                at_ms, ticket_id = heapq.heappop(self.ends)
                self.pass_to(at_ms, first_ms <= self.now_ms <= last_ms)
                self.ask(r.ReleaseGang(ticket_id))
            look = self.backfills and self.now_ms - self.looked_ms >= LOOK_EVERY_MS
            if look:
                self.looked_ms = self.now_ms
            while events := tick(self.state, self.now_ms, overtake=look):
                self.record(events)
        return self.figures(first_ms)

    def figures(self, first_ms: int) -> dict[str, Any]:
        """What came of it, for the tasks from ``first_ms`` on."""
        counted = [task for task in self.tasks if task.at_ms >= first_ms]
        never = sum(task.granted_ms < 0 for task in counted)
        waits = {
            size: sorted((t.granted_ms - t.at_ms) / 1000 for t in counted if t.granted_ms >= 0 and t.size == size)
            for size in SIZES
        }
        every = sorted(wait for those in waits.values() for wait in those)
        sums = self.sums
        parts = sum(sums.projects.values())
        weights = sum(WEIGHTS.values())
        unfair = (
            sum(abs(sums.projects.get(p, 0) / parts - w / weights) for p, w in WEIGHTS.items()) / 2 if parts else 0.0
        )
        return {
            "utilisation_pct": round(100 * sums.used / (sums.span_ms * self.gpu_milli), 1),
            "idle_while_waiting_pct": round(
                100 * sums.idle_while_waiting / (sums.waiting_ms * self.gpu_milli) if sums.waiting_ms else 0.0, 1
            ),
            "wait_median_s": round(at(every, 0.5)),
            "wait_mean_s": round(sum(every) / len(every)),
            "wait_p99_s": round(at(every, 0.99)),
            "wait_max_s": round(every[-1]),
            "by_size": {
                size: {"n": len(w), "median_s": round(at(w, 0.5)), "p99_s": round(at(w, 0.99)), "max_s": round(w[-1])}
                for size, w in waits.items()
                if w
            },
            "off_the_weights_pct": round(100 * unfair, 1),
            "queue_max": sums.queue_max,
            "arrivals_h": round((self.tasks[-1].at_ms - self.tasks[0].at_ms) / 3_600_000, 1),
            "never_granted": never,
        }


def at(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def one(data: Path, every: int, copies: int, depth: int, policy: str, load: float) -> dict[str, Any]:
    """The figures of one policy at one load."""
    nodes, began_s = read(data / "nodes.csv")[::every], time.process_time()
    tasks = tasks_of(read(data / "pods-default.csv"), copies, max(int(row["gpu"]) for row in nodes))
    simulation = Simulation(nodes, tasks, replace(POLICIES[policy], depth=depth), load)
    found = simulation.run()
    of = {"nodes": len(nodes), "gpus": simulation.gpu_milli // 1000, "tasks": len(tasks), "depth": depth}
    return {"policy": policy, "load": load, **of, **found, "cpu_s": round(time.process_time() - began_s, 1)}


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw the figures, a line for each policy."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw(name: str, title: str, unit: str, value: Any, *, log: bool = False) -> None:
        lines = {p: [(row["load"], value(row)) for row in rows if row["policy"] == p] for p in POLICIES}
        (folder / f"queue-{name}.svg").write_text(line_chart(title, "load", unit, lines, log=log))

    draw("utilisation", "GPUs in use", "%", lambda row: row["utilisation_pct"])
    draw("idle", "GPUs idle while gangs wait", "%", lambda row: row["idle_while_waiting_pct"])
    draw("wait-median", "Wait, median", "s", lambda row: row["wait_median_s"], log=True)
    draw("wait-p99", "Wait, p99", "s", lambda row: row["wait_p99_s"], log=True)
    large = SIZES[2]
    draw("wait-large", "Longest wait of 2-8 GPUs", "s", lambda row: row["by_size"][large]["max_s"], log=True)
    draw("weights", "Off the projects' weights while gangs wait", "%", lambda row: row["off_the_weights_pct"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SPOKE_TRACE", "traces/alibaba-gpu-2023")))
    parser.add_argument("--every", type=int, default=20, help="every so many nodes of the cluster")
    parser.add_argument("--copies", type=int, default=1, help="so many tasks come where the trace has one")
    parser.add_argument("--depth", type=int, default=32, help="so many waiting gangs are looked at for backfill")
    parser.add_argument("--policy", choices=POLICIES, action="append")
    parser.add_argument("--load", type=float, action="append")
    parser.add_argument("--plots", type=Path, help="write SVG plots into this folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.data / "nodes.csv").is_file():
        parser.error(f"{args.data}: no trace there; name its folder with --data")
    jobs = [(policy, load) for load in args.load or LOADS for policy in args.policy or POLICIES]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [pool.submit(one, args.data, args.every, args.copies, args.depth, *job) for job in jobs]
        rows = []
        for done in found:
            row = done.result()
            rows.append(row)
            if args.json:
                print(json.dumps(row), flush=True)
            else:
                sizes = row["by_size"].items()
                waits = " ".join(f"{size}: {w['median_s']}/{w['p99_s']}/{w['max_s']}" for size, w in sizes)
                print(
                    f"load {row['load']:.1f} {row['policy']:9} used {row['utilisation_pct']:5.1f} % "
                    f"idle while waiting {row['idle_while_waiting_pct']:5.1f} % wait s median {row['wait_median_s']:7} "
                    f"p99 {row['wait_p99_s']:7} max {row['wait_max_s']:7} | median/p99/max {waits} | "
                    f"off the weights {row['off_the_weights_pct']:4.1f} %",
                    flush=True,
                )
    if args.plots:
        plot(rows, args.plots)


if __name__ == "__main__":
    main()
