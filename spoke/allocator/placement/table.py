"""The nodes of a pool as columns of numbers, so that all of them can be scored at once.

One table belongs to each state and follows it: before it is read, the nodes that changed since the last time are
entered anew. It holds nothing but what the nodes' records say, so a table made from a snapshot is as good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from spoke.events.rules import ANY
from spoke.events.state import NodeState, PoolState

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_ROWS_AT_FIRST = 64
_NO_GPU_LACKS = (1 << 63) - 1
LABELS_MAX = 64


class LabelColumn:
    """The values of one label: ``codes[row]`` is the place of the node's in ``names``; 0: it has none."""

    def __init__(self, rows: int) -> None:
        self._codes: dict[str, int] = {}
        self.names = [""]
        self.codes: Ints = np.zeros(rows, np.int64)

    def enter(self, row: int, value: str | None) -> None:
        """Note a node's value."""
        code = 0 if value is None else self._codes.get(value, -1)
        if code < 0 and value is not None:
            code = self._codes[value] = len(self.names)
            self.names.append(value)
        self.codes[row] = code

    def code(self, value: str) -> int:
        """The number of a value; 0: no node has it."""
        return self._codes.get(value, 0)

    def having(self, wanted: Sequence[str]) -> Bools:
        """By the number of a value, whether it is a wanted one."""
        found = np.zeros(len(self.names), np.bool_)
        found[list(range(len(self.names)) if ANY in wanted else map(self.code, wanted))] = True
        found[0] = False
        return found


class NodeTable:
    """A column entry for each node. Rows of nodes that left are used again.

    ``usable[row]``: whether the node can take work; if it cannot, the rest of its row says nothing.
    ``rests[g, row]``: the free thousandths of the node's g-th GPU; ``sizes[g, row]``: the number that ``gpu_memories``
    gives to its memory. ``models[row]``: the number that ``model_sets`` gives to the set of its GPUs' models;
    ``free_of`` has by that number the free thousandths of all such nodes.
    ``least_memory[row]``: that of the GPU with the least memory. Columns of labels are made when they are asked for.
    ``changes`` are the rows that changed, in order; before them there were ``changes_from`` more.
    """

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.ids: list[str] = []
        self.gpu_memories: dict[int, int] = {0: 0}
        self.model_sets: dict[frozenset[str], int] = {frozenset(): 0}
        self.free_of: list[int] = [0]
        self.changes: list[int] = []
        self.changes_from = 0
        self.layout = 0
        """Grows when the arrays are made anew, with more rows or GPUs."""
        self._unused: list[int] = []
        self._labels: dict[str, LabelColumn] = {}
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
        self.least_memory: Ints = np.zeros(rows, np.int64)
        self.has_gpus: Bools = np.zeros(rows, np.bool_)
        self.used: Bools = np.zeros(rows, np.bool_)
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
            if state.capacity.free(node_id) is not None:
                self._enter(state.nodes[node_id])
            else:
                self._close(node_id, gone=node_id not in state.nodes)
        extra = len(self.changes) - len(self.ids)
        if extra > len(self.ids):
            del self.changes[:extra]
            self.changes_from += extra

    def rows_of(self, node_ids: Iterable[str]) -> Ints:
        """The rows of these nodes, as far as they have any."""
        return np.array([row for n in node_ids if (row := self.row_of.get(n)) is not None], np.int64)

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

    def label(self, state: PoolState, key: str) -> LabelColumn:
        """The column of a label."""
        column = self._labels.get(key)
        if column is None or len(column.names) > 2 * len(self.ids) + _ROWS_AT_FIRST:  # values of nodes that are gone
            if len(self._labels) >= LABELS_MAX:
                self._labels.pop(next(iter(self._labels)))
            column = self._labels[key] = LabelColumn(len(self.usable))
            for node_id, row in self.row_of.items():
                column.enter(row, state.nodes[node_id].spec.labels.get(key))
        return column

    def has_models(self, models: Sequence[str]) -> Bools:
        """By the row, whether all GPUs are of one of these models."""
        allowed = set(models)
        suited: Bools = np.array([those <= allowed for those in self.model_sets], np.bool_)[self.models]
        return suited

    def _close(self, node_id: str, *, gone: bool) -> None:
        row = self.row_of.get(node_id)
        if row is None:
            return
        self.usable[row] = False
        self.free_of[self.models[row]] -= int(self.free[row])
        self.free[row] = 0
        self.changes.append(row)
        if gone:
            del self.row_of[node_id]
            self.ids[row] = ""
            self._unused.append(row)
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
        known = self.gpu_memories
        self.sizes[: len(rests), row] = [known.setdefault(gpu.memory, len(known)) for gpu in gpus]
        models = frozenset(gpu.model for gpu in gpus)
        self.free_of[self.models[row]] -= int(self.free[row])
        self.models[row] = number = self.model_sets.setdefault(models, len(self.model_sets))
        if number == len(self.free_of):
            self.free_of.append(0)
        self.free[row] = sum(rests)
        self.free_of[number] += sum(rests)
        self.least_memory[row] = min((gpu.memory for gpu in gpus), default=_NO_GPU_LACKS)
        self.has_gpus[row], self.used[row] = bool(gpus), bool(node.tickets)
        for key, column in self._labels.items():
            column.enter(row, node.spec.labels.get(key))
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
        old = self._narrow()
        wide = (self.rests, self.sizes)
        count = len(self.usable)
        self._make(rows + rows // 8 if rows > count else count, gpus)
        for before, after in zip(old, self._narrow(), strict=True):
            after[:count] = before
        for column in self._labels.values():
            column.codes = np.concatenate([column.codes, np.zeros(len(self.usable) - count, np.int64)])
        for before, after in zip(wide, (self.rests, self.sizes), strict=True):
            after[: len(before), :count] = before
        self._order = None

    def _narrow(self) -> tuple[Ints | Bools, ...]:
        numbers = (self.cpu, self.memory, self.whole, self.free, self.models, self.least_memory)
        return (*numbers, self.usable, self.port, self.has_gpus, self.used)


def least(keys: Sequence[Ints], count: int) -> Ints:
    """The rows of the ``count`` least, in order, by the first key, then the next; the last one is no two rows'."""
    pool, left, parts = np.arange(len(keys[0])), count, []
    for key in keys:
        if len(pool) <= left:
            break
        values = key[pool]
        limit = values.min() if left == 1 else np.partition(values, left - 1)[left - 1]
        less = pool[values < limit]
        parts.append(less)
        left -= len(less)
        pool = pool[values == limit]
    chosen = np.concatenate([*parts, pool])
    return chosen[np.lexsort([key[chosen] for key in reversed(keys)])]


def table_of(state: PoolState) -> NodeTable:
    """The state's table, in step with it."""
    table: NodeTable | None = state.derived.get(NodeTable)
    if table is None:
        table = state.derived[NodeTable] = NodeTable()
        state.capacity.changed = None
    table.follow(state)
    return table
