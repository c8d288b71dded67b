"""The nodes of a pool as columns of numbers, so that all of them can be scored at once.

One table belongs to each state and follows it: before it is read, the nodes that changed since the last time are
entered anew. It holds nothing but what the nodes' records say, so a table made from a snapshot is as good.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import numpy.typing as npt

from spoke.events.state import NodeState, PoolState

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_ROWS_AT_FIRST = 64


class NodeTable:
    """A column entry for each node that can take work. Rows of nodes that left are used again.

    ``rests[g, row]``: the free thousandths of the node's g-th GPU; ``sizes[g, row]``: the number that ``gpu_memories``
    gives to its memory. ``models[row]``: the number that ``model_sets`` gives to the set of its GPUs' models.
    ``changes`` are the rows that changed, in order; before them there were ``changes_from`` more.
    """

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.ids: list[str] = []
        self.gpu_memories: dict[int, int] = {0: 0}
        self.model_sets: dict[frozenset[str], int] = {frozenset(): 0}
        self.changes: list[int] = []
        self.changes_from = 0
        self.layout = 0
        """Grows when the arrays are made anew, with more rows or GPUs."""
        self._unused: list[int] = []
        self._order: Ints | None = None
        self._make(_ROWS_AT_FIRST, 1)

    def _make(self, rows: int, gpus: int) -> None:
        self.usable: Bools = np.zeros(rows, np.bool_)
        self.port: Bools = np.zeros(rows, np.bool_)
        self.cpu: Ints = np.zeros(rows, np.int64)
        self.memory: Ints = np.zeros(rows, np.int64)
        self.whole: Ints = np.zeros(rows, np.int64)
        self.free: Ints = np.zeros(rows, np.int64)
        self.models: Ints = np.zeros(rows, np.int64)
        self.rests: Ints = np.zeros((gpus, rows), np.int64)
        self.sizes: Ints = np.zeros((gpus, rows), np.int64)
        self.layout += 1

    def follow(self, state: PoolState) -> None:
        """Enter what has changed."""
        changed = state.capacity.changed
        if changed is None:
            changed = set(state.nodes)
        state.capacity.changed = set()
        if len(changed) > len(self.usable):
            self._grow(len(self.rests), len(changed))
        for node_id in sorted(changed):
            if state.capacity.free(node_id) is None:
                self._remove(node_id)
            else:
                self._enter(state.nodes[node_id])
        extra = len(self.changes) - len(self.ids)
        if extra > len(self.ids):
            del self.changes[:extra]
            self.changes_from += extra

    def changed_since(self, number: int) -> list[int] | None:
        """The rows that changed since that many changes; None if it is not known any more, or nearly all did."""
        count = self.changes_from + len(self.changes) - number
        if number < self.changes_from or 2 * count > len(self.ids):
            return None
        return list(dict.fromkeys(islice(reversed(self.changes), count)))

    @property
    def order(self) -> Ints:
        """For each row its place in the order of the node ids: the last word between equals."""
        if self._order is None:
            self._order = np.zeros(len(self.usable), np.int64)
            for place, node_id in enumerate(sorted(self.row_of)):
                self._order[self.row_of[node_id]] = place
        return self._order

    def _remove(self, node_id: str) -> None:
        row = self.row_of.pop(node_id, None)
        if row is not None:
            self.usable[row] = False
            self.ids[row] = ""
            self._unused.append(row)
            self.changes.append(row)
            self._order = None

    def _enter(self, node: NodeState) -> None:
        row = self.row_of.get(node.spec.node_id)
        if row is None:
            row = self._new_row(node.spec.node_id)
        gpus = node.spec.gpus
        if len(gpus) > len(self.rests) or row >= len(self.usable):
            self._grow(max(len(gpus), len(self.rests)), len(self.ids))
        self.usable[row] = True
        self.port[row] = node.free_ports != 0 or node.spec.ports.count == 0
        self.cpu[row], self.memory[row] = node.free_cpu_milli, node.free_memory
        rests = [node.free_milli(gpu.index) for gpu in gpus]
        self.rests[:, row] = 0
        self.rests[: len(rests), row] = rests
        self.whole[row] = node.free_gpus.bit_count()
        self.free[row] = sum(rests)
        known = self.gpu_memories
        self.sizes[: len(rests), row] = [known.setdefault(gpu.memory, len(known)) for gpu in gpus]
        models = frozenset(gpu.model for gpu in gpus)
        self.models[row] = self.model_sets.setdefault(models, len(self.model_sets))
        self.changes.append(row)

    def _new_row(self, node_id: str) -> int:
        if self._unused:
            row = self._unused.pop()
            self.ids[row] = node_id
        else:
            row = len(self.ids)
            self.ids.append(node_id)
        self.row_of[node_id] = row
        self._order = None
        return row

    def _grow(self, gpus: int, rows: int) -> None:
        old = (self.usable, self.port, self.cpu, self.memory, self.whole, self.free, self.models)
        wide = (self.rests, self.sizes)
        count = len(self.usable)
        self._make(rows + rows // 8 if rows > count else count, gpus)
        new = (self.usable, self.port, self.cpu, self.memory, self.whole, self.free, self.models)
        for before, after in zip(old, new, strict=True):
            after[:count] = before
        for before, after in zip(wide, (self.rests, self.sizes), strict=True):
            after[: len(before), :count] = before
        self._order = None


def table_of(state: PoolState) -> NodeTable:
    """The state's table, in step with it."""
    table: NodeTable | None = state.derived.get(NodeTable)
    if table is None:
        table = state.derived[NodeTable] = NodeTable()
        state.capacity.changed = None
    table.follow(state)
    return table
