"""What a placement costs in GPUs that become hard to use: the score by which pools with shares are packed.

Four charges, in millionths of a GPU. *Stranded*: free GPUs for which their node has too little CPU or memory left,
measured by what granted members usually had for each GPU. *Cut*: what the rest of a shared GPU loses in worth
(``worth.py``). *Opened*: a thousandth for each whole GPU that is free on the node, so that between equals the one with
fewer is taken. *Scarce*: what the GPUs are worth to gangs that are limited to their model (``scarcity.py``). The node
with the least is chosen; between equals the one with less CPU free, then by the node's id.

The aim is that of fragmentation gradient descent (Weng et al., "Beware of Fragmentation", USENIX ATC 2023): take the
node that loses the least. That work counts, for each of a sample of typical tasks, the GPUs that it could not use.

All nodes are scored in a few steps over arrays. A shape that was asked for before costs only the nodes that changed
since: its costs are kept with the state's table, which holds for as long as ``usual`` stays the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from spoke.allocator.placement.scarcity import prices_of
from spoke.allocator.placement.table import Bools, Ints, NodeTable, table_of
from spoke.allocator.placement.worth import MICRO, worth_of_rests
from spoke.events.capacity import Amount
from spoke.events.demand import Usual
from spoke.events.model import GPU_MILLI, GangSpec, Resources
from spoke.events.state import PoolState, need_of

POLICY = "stranding/3"
SHAPES_MAX = 128
"""The costs of so many shapes are kept, those asked for last; for 10,000 nodes 160 KB each."""
NEVER = 1 << 62
NO_ROOM = 1 << 32
_CPU_BITS = 28
_PER_MILLI = MICRO // GPU_MILLI
_NEED_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class Shape:
    """What tells one member from others for placement: its resources, the models, and how much a node must hold.

    ``many``: the gang may take several nodes, or several shares on one. Else only nodes that can host rank 0 count.
    """

    resources: Resources
    need: Amount
    models: tuple[str, ...]
    many: bool


class Costs:
    """What a member of one shape costs on each node, kept in step with the table.

    ``keys[row]`` orders the nodes, the best first; NEVER where it does not fit. The prices of models change with every
    grant, and are not in it: see ``charged``. ``counts[row]``: how many members of this shape fit on the node (or 1
    for any number, if that is enough to know).
    """

    def __init__(self, shape: Shape, usual: Usual) -> None:
        self.usual = usual
        self._shape = shape
        self._resources = shape.resources
        self._cpu = min(shape.need.cpu_milli, _NEED_MAX)
        self._memory = min(shape.need.memory, _NEED_MAX)
        self._memory_mib = self._memory >> 20
        self._worth = worth_of_rests(usual.shares)
        self._layout = self._seen = -1
        self._losses: Ints = np.zeros((0, GPU_MILLI + 1), np.int64)
        self._fits: Ints = self._losses
        self._shares: Ints = np.zeros(0, np.int64)
        self.keys: Ints = np.zeros(0, np.int64)
        self.counts: Ints = np.zeros(0, np.int64)

    def follow(self, table: NodeTable) -> None:
        """Score the nodes that changed since the last time."""
        rows = table.changed_since(self._seen) if self._layout == table.layout else None
        if rows is None:
            self.keys, self.counts = self._score(table, slice(None))
        elif rows:
            at = np.array(rows, np.int64)
            self.keys[at], self.counts[at] = self._score(table, at)
        self._layout, self._seen = table.layout, table.changes_from + len(table.changes)

    def charged(self, table: NodeTable) -> Ints:
        """The keys, with the price of the models that a member takes (a share by memory: of the node's first GPU)."""
        if not self.usual.models:
            return self.keys
        prices = prices_of(table, self.usual)
        if self._resources.is_share:
            milli = self._shares[0] if len(self._shares) == 1 else self._shares[table.sizes[0]]
        else:
            milli = self._shape.need.gpus * GPU_MILLI
        charged: Ints = self.keys + ((prices[table.models] * milli // GPU_MILLI) << _CPU_BITS)
        return charged

    def _score(self, table: NodeTable, rows: slice | Ints) -> tuple[Ints, Ints]:
        cpu, memory, whole, free = table.cpu[rows], table.memory[rows], table.whole[rows], table.free[rows]
        fits = table.usable[rows] & (cpu >= self._cpu) & (memory >= self._memory)
        if self._shape.models:
            fits &= self._allowed(table)[table.models[rows]]
        if self._resources.is_share:
            cut, taken, counts = self._cut(table, rows)
            fits &= cut < NO_ROOM
            if self._shape.many:
                for amount, need in ((cpu, self._cpu), (memory, self._memory)):
                    if need:
                        counts = np.minimum(counts, amount // need)
            cost = cut + _PER_MILLI * (self._stranded(free, cpu, memory, taken) + whole)
        else:
            gpus = self._shape.need.gpus
            fits &= whole >= gpus
            counts = np.ones(len(cpu), np.int64)
            cost = _PER_MILLI * self._stranded(free, cpu, memory, gpus * GPU_MILLI)
            cost += _PER_MILLI * whole if gpus else free  # who needs none goes where no GPUs are free
        keys = (cost << _CPU_BITS) + np.minimum(cpu, (1 << _CPU_BITS) - 1)
        counts = np.where(fits, counts, 0)
        return np.where(fits if self._shape.many else fits & table.port[rows], keys, NEVER), counts

    def _stranded(self, free: Ints, cpu: Ints, memory: Ints, taken: Ints | int) -> Ints:
        """How much more is stranded when so many thousandths of GPUs are taken, and the CPU and memory with them."""
        before = free - self._usable(cpu, memory >> 20)
        after = free - taken - self._usable(cpu - self._cpu, (memory >> 20) - self._memory_mib)
        stranded: Ints = np.maximum(after, 0) - np.maximum(before, 0)
        return stranded

    def _usable(self, cpu: Ints, memory_mib: Ints) -> Ints:
        """For how many thousandths of GPUs there is CPU and memory, as they are usually needed."""
        enough = np.full(len(cpu), NEVER >> 1, np.int64)
        for amount, per_gpu in ((cpu, self.usual.cpu_milli), (memory_mib, self.usual.memory_mib)):
            if per_gpu:
                enough = np.minimum(enough, amount * GPU_MILLI // per_gpu)
        return enough

    def _cut(self, table: NodeTable, rows: slice | Ints) -> tuple[Ints, Ints | int, Ints]:
        """The least loss of worth on each node's GPUs, the share that it takes there, and how many members fit."""
        self._learn_sizes(table)
        rests = table.rests[:, rows]
        one = np.ones(rests.shape[1], np.int64)
        if len(self._shares) == 1:
            counts = self._fits[0].take(rests).sum(axis=0) if self._shape.many else one
            return self._losses[0].take(rests).min(axis=0), int(self._shares[0]), counts
        sizes = table.sizes[:, rows]
        losses = self._losses[sizes, rests]
        best = losses.argmin(axis=0)[None]
        taken = self._shares[np.take_along_axis(sizes, best, 0)[0]]
        counts = self._fits[sizes, rests].sum(axis=0) if self._shape.many else one
        return np.take_along_axis(losses, best, 0)[0], taken, counts

    def _learn_sizes(self, table: NodeTable) -> None:
        """A row of losses for each amount of memory that a GPU has; one if the share does not depend on it."""
        memories = list(table.gpu_memories) if self._resources.gpu_memory else [0]
        if len(memories) == len(self._shares):
            return
        shares = [
            self._resources.share_of(memory) if self._resources.gpu_memory else self._resources.gpu_milli
            for memory in memories
        ]
        self._shares = np.array(shares, np.int64)
        self._losses = np.array([losses_of(self._worth, share) for share in shares])
        rests = np.arange(GPU_MILLI + 1, dtype=np.int64)
        self._fits = np.array([rests // share if share else rests * 0 for share in shares])

    def _allowed(self, table: NodeTable) -> Bools:
        allowed = set(self._shape.models)
        return np.array([models <= allowed for models in table.model_sets], np.bool_)


def losses_of(worth: Ints, share: int) -> Ints:
    """By the free thousandths of a GPU: what it loses in worth when the share is taken; a lot if it is not free."""
    losses = np.full(GPU_MILLI + 1, NO_ROOM, np.int64)
    if share:
        losses[share:] = worth[share:] - worth[: GPU_MILLI + 1 - share]
    return losses


def costs_of(state: PoolState, spec: GangSpec, need: Amount) -> tuple[NodeTable, Ints, Ints]:
    """The state's table, and the ``keys`` and ``counts`` of a gang's members on each node: not to be changed."""
    table, usual = table_of(state), state.demand.usual
    kept: OrderedDict[Shape, Costs] = state.derived.setdefault(Costs, OrderedDict())
    shape = Shape(spec.resources, need, spec.gpu_models, spec.resources.is_share and spec.size > 1)
    costs = kept.get(shape)
    if costs is None or costs.usual is not usual:
        costs = kept[shape] = Costs(shape, usual)
    kept.move_to_end(shape)
    if len(kept) > SHAPES_MAX:
        kept.popitem(last=False)
    costs.follow(table)
    if not state.capacity.shut:
        return table, costs.charged(table), costs.counts
    keys, counts, shut = costs.charged(table).copy(), costs.counts.copy(), table.rows_of(state.capacity.shut)
    keys[shut], counts[shut] = NEVER, 0
    return table, keys, counts


def first_of(table: NodeTable, keys: Ints) -> int:
    """The row with the least key, between equals the first by its node's id; -1 if nothing fits."""
    least = keys.min()
    if least >= NEVER:
        return -1
    rows = np.flatnonzero(keys == least)
    return int(rows[0] if len(rows) == 1 else rows[table.order[rows].argmin()])


def best_node(state: PoolState, spec: GangSpec) -> str:
    """The node for a gang of whole GPUs or none, all on one node; empty if no node fits."""
    table, keys, _ = costs_of(state, spec, need_of(spec).times(spec.actors_per_node))
    row = first_of(table, keys)
    return table.ids[row] if row >= 0 else ""
