"""Placement policies to compare with, as plainly as their authors describe them: best fit, and FGD.

``pack`` is best fit: the node with the fewest free GPUs, then CPUs, that holds the task; for a share the GPU with the
least room that is enough. ``fgd`` is fragmentation gradient descent (Weng et al., "Beware of Fragmentation", USENIX ATC
2023): a node's fragmentation for a task is all of its free GPUs if it cannot run the task, else those of them that are
too small for it; expected over the typical tasks (those that make up 95 % of the workload, which it knows beforehand).
A task goes where that grows the least. Neither is part of the product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from spoke.allocator.placement.pack import Pick, Placement
from spoke.events.model import GPU_MILLI, GangSpec, NodeSpec

Numbers = npt.NDArray[np.int64]
TYPICAL = 0.95
NONE = 1 << 60


class Nodes:
    """What is free on the nodes: ``rests[node, gpu]`` in thousandths, -1 where there is no such GPU."""

    def __init__(self, specs: Sequence[NodeSpec]) -> None:
        most = max(len(spec.gpus) for spec in specs)
        self.specs = specs
        self.rests = np.full((len(specs), most), -1, np.int64)
        for at, spec in enumerate(specs):
            self.rests[at, : len(spec.gpus)] = GPU_MILLI
        self.cpu = np.array([spec.cpu_milli for spec in specs], np.int64)
        self.memory = np.array([spec.memory for spec in specs], np.int64)
        self._models = [{gpu.model for gpu in spec.gpus} for spec in specs]
        self._allowed: dict[tuple[str, ...], npt.NDArray[np.bool_]] = {}

    def allowed(self, models: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """The nodes whose GPUs are all of these models; all nodes for none."""
        if models not in self._allowed:
            fits = [not models or own <= set(models) for own in self._models]
            self._allowed[models] = np.array(fits, np.bool_)
        return self._allowed[models]

    def holding(self, task: GangSpec, rows: Numbers) -> npt.NDArray[np.bool_]:
        """Which of the nodes can run a task."""
        fits = self.allowed(task.gpu_models)[rows]
        return fits & _holds(task, self.rests[rows], self.cpu[rows], self.memory[rows])

    def take(self, task: GangSpec, node: int, gpus: Sequence[int]) -> Placement:
        """Give a task its place."""
        milli = task.resources.gpu_milli if task.resources.is_share else 0
        self.rests[node, list(gpus)] -= milli or GPU_MILLI
        self.cpu[node] -= task.resources.cpu_milli
        self.memory[node] -= task.resources.memory_bytes
        picks = ((Pick(tuple(gpus), milli),),)
        return Placement(((self.specs[node].node_id, 1),), picks=picks)

    def whole(self, task: GangSpec, node: int) -> list[int]:
        """The first free GPUs of a node, as many as a task needs."""
        return [int(gpu) for gpu in np.flatnonzero(self.rests[node] == GPU_MILLI)[: task.resources.gpu_count]]


def _holds(task: GangSpec, rests: Numbers, cpu: Numbers, memory: Numbers) -> npt.NDArray[np.bool_]:
    need = task.resources
    fits = (cpu >= need.cpu_milli) & (memory >= need.memory_bytes)
    room = rests.max(axis=1) >= need.gpu_milli if need.is_share else (rests == GPU_MILLI).sum(axis=1) >= need.gpu_count
    holds: npt.NDArray[np.bool_] = fits & room
    return holds


Policy = Callable[[GangSpec], Placement | None]


def pack(specs: Sequence[NodeSpec], tasks: Sequence[GangSpec]) -> Policy:
    """Best fit."""
    nodes = Nodes(specs)
    everywhere = np.arange(len(specs))

    def place(task: GangSpec) -> Placement | None:
        rows = np.flatnonzero(nodes.holding(task, everywhere))
        if not len(rows):
            return None
        free = np.maximum(nodes.rests[rows], 0).sum(axis=1)
        node = int(rows[np.lexsort((nodes.cpu[rows], free))[0]])
        if not task.resources.is_share:
            return nodes.take(task, node, nodes.whole(task, node))
        rests = nodes.rests[node]
        gpu = int(np.where(rests >= task.resources.gpu_milli, rests, NONE).argmin())
        return nodes.take(task, node, [gpu])

    return place


class Fgd:
    """Fragmentation gradient descent. What a task would cost on a node is kept until the node changes."""

    def __init__(self, specs: Sequence[NodeSpec], tasks: Sequence[GangSpec]) -> None:
        self._nodes = Nodes(specs)
        self._typical = _typical(tasks)
        self._changes: list[int] = []
        self._kept: dict[GangSpec, tuple[npt.NDArray[np.float64], Numbers, int]] = {}

    def __call__(self, task: GangSpec) -> Placement | None:
        """The place where fragmentation grows the least."""
        nodes, changes = self._nodes, self._changes
        costs, gpus, seen = self._kept.get(task) or (np.full(len(nodes.specs), np.inf), np.zeros(0, np.int64), -1)
        rows = np.arange(len(costs)) if seen < 0 else np.array(sorted(set(changes[seen:])), np.int64)
        if seen < 0:
            gpus = np.zeros(len(costs), np.int64)
        if len(rows):
            costs[rows], gpus[rows] = self._costs(task, rows)
        self._kept[task] = costs, gpus, len(changes)
        node = int(costs.argmin())
        if costs[node] == np.inf:
            return None
        changes.append(node)
        chosen = [int(gpus[node])] if task.resources.is_share else nodes.whole(task, node)
        return nodes.take(task, node, chosen)

    def _costs(self, task: GangSpec, rows: Numbers) -> tuple[npt.NDArray[np.float64], Numbers]:
        """By how much the fragmentation of each node grows with a task, and the best GPU for a share."""
        nodes, need = self._nodes, task.resources
        costs, gpus = np.full(len(rows), np.inf), np.zeros(len(rows), np.int64)
        at = np.flatnonzero(nodes.holding(task, rows))
        if not len(at):
            return costs, gpus
        here = rows[at]
        before = self._fragmentation(here, nodes.rests[here], nodes.cpu[here], nodes.memory[here])
        cpu, memory = nodes.cpu[here] - need.cpu_milli, nodes.memory[here] - need.memory_bytes
        if need.is_share:
            for gpu in range(nodes.rests.shape[1]):
                fits = nodes.rests[here, gpu] >= need.gpu_milli
                if fits.any():
                    rests = nodes.rests[here[fits]].copy()
                    rests[:, gpu] -= need.gpu_milli
                    grown = self._fragmentation(here[fits], rests, cpu[fits], memory[fits]) - before[fits]
                    better = grown < costs[at[fits]]
                    costs[at[fits][better]], gpus[at[fits][better]] = grown[better], gpu
        else:
            rests = nodes.rests[here].copy()
            taken = (rests == GPU_MILLI) & ((rests == GPU_MILLI).cumsum(axis=1) <= need.gpu_count)
            rests[taken] = 0
            costs[at] = self._fragmentation(here, rests, cpu, memory) - before
        return costs, gpus

    def _fragmentation(self, rows: Numbers, rests: Numbers, cpu: Numbers, memory: Numbers) -> npt.NDArray[np.float64]:
        """The thousandths of GPUs that a typical task cannot use, as expected."""
        found = np.zeros(len(rows))
        free = np.maximum(rests, 0)
        total = free.sum(axis=1)
        for task, weight in self._typical:
            need = task.resources
            runs = self._nodes.allowed(task.gpu_models)[rows] & _holds(task, rests, cpu, memory)
            least = need.gpu_milli if need.is_share else GPU_MILLI * (need.gpu_count > 0)
            found += weight * np.where(runs, np.where(free < least, free, 0).sum(axis=1), total)
        return found


def _typical(tasks: Sequence[GangSpec]) -> list[tuple[GangSpec, float]]:
    found, left = [], TYPICAL * len(tasks)
    for task, count in Counter(tasks).most_common():
        if left <= 0:
            break
        found.append((task, count / len(tasks)))
        left -= count
    return found


POLICIES: dict[str, Callable[[Sequence[NodeSpec], Sequence[GangSpec]], Policy]] = {"pack": pack, "fgd": Fgd}
