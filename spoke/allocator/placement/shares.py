"""Placing shares of GPUs: where the least becomes hard to use.

The score is that of ``stranding``, for one member. How many members go to a node is exact: on each GPU as many as its
free thousandths hold. On a node, each member in turn takes the GPU that loses the least worth.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spoke.allocator.placement.pack import NoFit, Placement, allows, count_nodes, describe
from spoke.allocator.placement.stranding import NEVER, costs_of, first_of
from spoke.allocator.placement.table import Bools, Ints, NodeTable
from spoke.allocator.placement.worth import worth_of_rests
from spoke.events.capacity import Amount
from spoke.events.model import GPU_MILLI, GangSpec, Resources
from spoke.events.state import NodeState, PoolState, need_of


def place_shares(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    """Places for a gang whose members have shares, or why there are none. The state is not changed."""
    table, keys, counts = costs_of(state, spec, need_of(spec))
    rooms = _Rooms(table, keys, counts, spec.preferred_node)
    if spec.size == 1:
        parts = rooms.single()
    else:
        parts = rooms.strict(spec.num_nodes, spec.actors_per_node) if spec.strict_pack else rooms.dense(spec.size)
    if parts:
        return Placement(tuple((table.ids[row], count) for row, count in parts))
    return NoFit(_why_not(spec, counts, len(state.capacity)))


def shares_never_fit(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    need, per_node = need_of(spec), spec.actors_per_node
    nodes = fit = room = 0
    for node in _up(state, spec):
        here = _holds(node, spec.resources, need)
        nodes += 1
        fit += here >= per_node
        room += here
        if fit >= spec.num_nodes if spec.strict_pack else room >= spec.size:
            return ""  # as a rule after a few nodes
    if spec.strict_pack:
        return (
            f"needs {count_nodes(spec.num_nodes)} with room for {per_node} actors with {words(spec)} each; even "
            f"with everything free, {fit} of the {count_nodes(nodes)} registered qualify"
        )
    return (
        f"needs room for {spec.size} actors with {words(spec)} each; even with everything free there is room for "
        f"{room} on the {count_nodes(nodes)} registered"
    )


def share_out(state: PoolState, node: NodeState, resources: Resources, count: int) -> list[tuple[int, int]]:
    """The GPU's index and the share in thousandths of each of ``count`` members on a node that holds them."""
    worth = worth_of_rests(state.demand.usual.shares)
    free = {gpu.index: node.free_milli(gpu.index) for gpu in node.spec.gpus}
    share = {gpu.index: resources.share_of(gpu.memory) for gpu in node.spec.gpus}
    found: list[tuple[int, int]] = []
    for _ in range(count):
        fit = [index for index, milli in share.items() if milli and free[index] >= milli]
        assert fit, "a node was chosen that does not hold what it was chosen for"
        loss = {index: int(worth[free[index]] - worth[free[index] - share[index]]) for index in fit}
        index = min(fit, key=lambda i: (loss[i], free[i], i))
        found.append((index, share[index]))
        free[index] -= share[index]
    return found


def words(spec: GangSpec) -> str:
    """What one member needs, in words."""
    resources = spec.resources
    parts = [f"{resources.gpu_milli / GPU_MILLI:g} of a GPU"] if resources.gpu_milli else []
    if resources.gpu_memory:
        parts.append(f"{int(resources.gpu_memory) / 2**30:.3g} GiB of a GPU's memory")
    rest = need_of(spec)
    return ", ".join(parts + ([describe(rest)] if rest != Amount() else []))


def _up(state: PoolState, spec: GangSpec) -> Iterator[NodeState]:
    return (node for node in state.nodes.values() if node.phase == "up" and allows(spec, node))


def _holds(node: NodeState, resources: Resources, need: Amount) -> int:
    """How many members the node holds with everything free: exact, since all of them are alike."""
    limit = node.total.holds(need)
    if not limit:
        return 0
    shares = (resources.share_of(gpu.memory) for gpu in node.spec.gpus if not node.is_unhealthy(gpu.index))
    return min(limit, sum(GPU_MILLI // share for share in shares if share))


def _why_not(spec: GangSpec, counts: Ints, nodes: int) -> str:
    if not spec.strict_pack:
        room = int(counts.sum())
        if room >= spec.size:
            return "needs a free port for rank 0; no port is left on the nodes with room"
        return (
            f"needs room for {spec.size} actors with {words(spec)} each; there is room for {room} on "
            f"{count_nodes(nodes)} that can take work"
        )
    fit = int((counts >= spec.actors_per_node).sum())
    needs = (
        f"needs {count_nodes(spec.num_nodes)} with room for {spec.actors_per_node} actor"
        f"{'s' * (spec.actors_per_node > 1)} with {words(spec)}"
    )
    if fit < spec.num_nodes:
        return f"{needs}; {fit} of {count_nodes(nodes)} qualify"
    return f"{needs}, one of them with a free port for rank 0; {fit} fit but have no port left"


_Parts = list[tuple[int, int]]


class _Rooms:
    """The nodes with room, as rows of the table. Rank 0 comes first, on a node with a free port."""

    def __init__(self, table: NodeTable, keys: Ints, counts: Ints, preferred: str | None) -> None:
        self._table, self._keys, self._counts = table, keys, counts
        row = table.row_of.get(preferred, -1) if preferred else -1
        self._preferred = row if row >= 0 and table.port[row] else -1

    def single(self) -> _Parts:
        """One member; the keys are those of hosts."""
        row = self._preferred
        if row < 0 or self._keys[row] >= NEVER:
            row = first_of(self._table, self._keys)
        return [(row, 1)] if row >= 0 else []

    def _best(self, among: Bools) -> int:
        return first_of(self._table, np.where(among, self._keys, NEVER))

    def strict(self, nodes: int, per_node: int) -> _Parts:
        """So many members on each of so many nodes; empty if that is not possible."""
        fit = self._counts >= per_node
        if int(fit.sum()) < nodes:
            return []
        chosen = self._preferred
        if chosen < 0 or not fit[chosen]:
            chosen = self._best(fit & self._table.port)
        if chosen < 0:
            return []
        parts = [(chosen, per_node)]
        if nodes > 1:
            fit[chosen] = False
            parts += [(row, per_node) for row in self._in_order(np.flatnonzero(fit), nodes - 1)]
        return parts

    def _in_order(self, rows: Ints, count: int) -> list[int]:
        if len(rows) > count:
            keys = self._keys[rows]
            rows = rows[keys <= np.partition(keys, count - 1)[count - 1]]
        ordered = rows[np.lexsort((self._table.order[rows], self._keys[rows]))]
        return [int(row) for row in ordered[:count]]

    def dense(self, size: int) -> _Parts:
        """So many members on few nodes; empty if that is not possible."""
        if int(self._counts.sum()) < size:
            return []
        if self._preferred >= 0 and self._counts[self._preferred]:
            return self._fill(size, self._preferred)
        parts = self._fill(size, -1)
        first = next((at for at, (row, _) in enumerate(parts) if self._table.port[row]), None)
        if first is not None:
            return [parts[first], *parts[:first], *parts[first + 1 :]]
        host = self._best((self._counts > 0) & self._table.port)
        return self._fill(size, host) if host >= 0 else []

    def _fill(self, size: int, host: int) -> _Parts:
        """The best node where all that is left fits, else as much as goes on the roomiest one; ``host`` comes first."""
        parts: _Parts = []
        counts = self._counts.copy()
        if host >= 0:
            parts.append((host, min(size, int(counts[host]))))
            size -= parts[0][1]
            counts[host] = 0
        if size and not (counts >= size).any():
            rows = np.flatnonzero(counts)
            for row in rows[np.lexsort((self._table.order[rows], self._keys[rows], -counts[rows]))]:
                if counts[row] >= size:
                    break
                parts.append((int(row), int(counts[row])))
                size -= parts[-1][1]
                counts[row] = 0
        if size:
            parts.append((self._best(counts >= size), size))
        return parts
