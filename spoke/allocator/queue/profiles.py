"""What will be free on every node of a pool, and when: as columns, so that a plan need not look at each node.

The literature of backfill calls it the availability profile. That of one node is its ``Timeline``. Here all of them
stand in the rows of the placement's table, and follow the pool: before they are read, those that changed are worked out
anew. From when on a gang of some shape fits on each node is kept as well, so that planning it again costs only what
changed since. All of it follows from the state and the time; made anew, it is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spoke.allocator.placement.table import Ints, NodeTable, table_of
from spoke.allocator.queue.timeline import Timeline, timeline_of
from spoke.events.model import GPU_MILLI, GangSpec, Resources
from spoke.events.state import PoolState

NOWHERE = 1 << 62
"""The time when a gang fits on a node that cannot hold it even with everything free."""
SHAPES_MAX = 256
"""For so many shapes it is kept when they fit where: 80 KB each for 10,000 nodes."""
_STEPS_AT_FIRST = 4
_AMOUNT_MAX = 1 << 62


class Shape(NamedTuple):
    """What must fit on a node: so many members, alike, of one gang."""

    resources: Resources
    members: int
    gpu_ids: tuple[int, ...] | None
    models: tuple[str, ...]


@dataclass(slots=True)
class _Kept:
    """From when on a shape fits on each node, as of some turn."""

    times: Ints
    turn: int = -1


class Profiles:
    """For each row of the table the times from which more is free there, and what is free from then on.

    ``times[row, step]``: the first is 0, which means now; NOWHERE behind the last. ``younger[:, row]``: the event that
    began the youngest ticket there of which no end is known, by the two numbers of its id; zeros if there is none.
    """

    def __init__(self, table: NodeTable) -> None:
        self.table = table
        self._layout, self._seen, self._now_ms, self._turn = -1, 0, 0, 0
        self._steps, self._gpus = _STEPS_AT_FIRST, 0
        self._going: dict[str, tuple[str, int]] = {}
        self._kept: OrderedDict[Shape, _Kept] = OrderedDict()
        self._lines: dict[int, Timeline] = {}

    def _make(self) -> None:
        if self._gpus:
            self._gpus = len(self.table.rests)
        rows, steps = len(self.table.usable), self._steps
        self._layout = self.table.layout
        self._kept.clear()
        self._lines.clear()
        self.times: Ints = np.full((rows, steps), NOWHERE, np.int64)
        self._whole: Ints = np.zeros((rows, steps), np.int64)
        self._cpu: Ints = np.zeros((rows, steps), np.int64)
        self._memory: Ints = np.zeros((rows, steps), np.int64)
        self._rests: npt.NDArray[np.int16] = np.zeros((rows, steps, self._gpus), np.int16)
        self.younger: Ints = np.zeros((2, rows), np.int64)
        self._good_until: Ints = np.full(rows, NOWHERE, np.int64)
        self._changed: Ints = np.full(rows, -1, np.int64)

    # --- following the pool ----------------------------------------------------------------------------------------

    def follow(self, state: PoolState, now_ms: int) -> None:
        """Work out anew what has changed, by an event or because of the time."""
        rows = self._stale(state, now_ms)
        self._now_ms, self._seen = now_ms, self.table.changes_from + len(self.table.changes)
        self._turn += 1
        for row in rows:
            self._changed[row] = self._turn
            if not self._enter(state, row, now_ms):  # there are more steps than fit
                self._layout = -1
                self.follow(state, now_ms)
                return

    def _stale(self, state: PoolState, now_ms: int) -> list[int]:
        """The rows that are not as they were."""
        table, everything = self.table, list(range(len(self.table.ids)))
        those = [state.tickets[ticket_id] for ticket_id in (*state.releasing, *state.preempting)]
        going = {ticket.ticket_id: (ticket.since, ticket.preempt_ms) for ticket in those}
        moved = [ticket_id for ticket_id, _ in going.items() ^ self._going.items()]
        self._going = going
        if self._layout != table.layout:
            self._make()
            return everything
        changed = table.changed_since(self._seen)
        if changed is None or now_ms < self._now_ms:
            return everything
        found = set(changed)
        found.update(np.flatnonzero(self._good_until <= now_ms).tolist())
        for ticket_id in moved:
            if ticket_id in state.tickets:
                found.update(table.rows_of(state.tickets[ticket_id].held).tolist())
        return list(found)

    def _enter(self, state: PoolState, row: int, now_ms: int) -> bool:
        """Work out one row; False, and more room from now on, if it has more steps than there is room for."""
        self._lines.pop(row, None)
        self.times[row] = self._good_until[row] = NOWHERE
        if not self.table.usable[row]:
            return True
        node = state.nodes[self.table.ids[row]]
        line = timeline_of(state, node, now_ms)
        steps = line.steps
        if len(steps) > self._steps:
            self._steps = len(steps) + len(steps) // 2
            return False
        count = len(steps)
        self.times[row, :count] = [at_ms for at_ms, _ in steps]
        self._whole[row, :count] = [room.whole.bit_count() for _, room in steps]
        self._cpu[row, :count] = [room.cpu_milli for _, room in steps]
        self._memory[row, :count] = [room.memory for _, room in steps]
        if self._gpus:
            self._rests[row, :count, : len(node.spec.gpus)] = [
                [room.milli(gpu.index) for gpu in node.spec.gpus] for _, room in steps
            ]
        self.younger[:, row] = line.youngest
        self._good_until[row] = line.good_until_ms
        return True

    # --- reading ---------------------------------------------------------------------------------------------------

    def line(self, state: PoolState, node_id: str) -> Timeline:
        """The profile of one node, to claim places on it."""
        row = self.table.row_of[node_id]
        if row not in self._lines:
            self._lines[row] = timeline_of(state, state.nodes[node_id], self._now_ms)
        return self._lines[row].unclaimed()

    def earliest(self, state: PoolState, spec: GangSpec, count: int) -> Ints:
        """By the row, from when on ``count`` members fit there; NOWHERE where they never do. Not to be changed."""
        shape = Shape(spec.resources, count, spec.gpu_ids, spec.gpu_models)
        self._look_into_gpus(state, spec)
        kept = self._kept.get(shape)
        if kept is None:
            kept = self._kept[shape] = _Kept(np.full(len(self.times), NOWHERE, np.int64))
            if len(self._kept) > SHAPES_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shape)
        rows = np.flatnonzero(self._changed > kept.turn)
        if len(rows):
            kept.times[rows] = self._first(state, spec, count, rows)
        kept.turn = self._turn
        return kept.times

    def _first(self, state: PoolState, spec: GangSpec, count: int, rows: Ints) -> Ints:
        fits = self.members(state, spec, count, rows) >= count
        found: Ints = np.where(fits, self.times[rows], NOWHERE).min(axis=1)
        return found

    def members(self, state: PoolState, spec: GangSpec, at_most: int, rows: Ints) -> Ints:
        """By row and step, how many members of a gang fit there."""
        self._look_into_gpus(state, spec)
        need = spec.resources
        found = np.full((len(rows), self._steps), at_most, np.int64)
        amounts = ((self._cpu, need.cpu_milli), (self._memory, need.memory_bytes), (self._whole, need.gpu_count))
        for amount, needed in amounts:
            if needed:
                np.minimum(found, amount[rows] // min(needed, _AMOUNT_MAX), out=found)
        if need.is_share:
            np.minimum(found, self._shares(need, rows), out=found)
        if spec.gpu_ids:
            found = np.where(self._has_free(state, spec.gpu_ids, rows), found, 0)
        if spec.gpu_models:
            found[~self.table.has_models(spec.gpu_models)[rows]] = 0
        found[self.times[rows] == NOWHERE] = 0
        return found

    def _shares(self, need: Resources, rows: Ints) -> Ints:
        """By row and step, for how many members the GPUs have room."""
        by_size = np.array([need.share_of(memory) or GPU_MILLI + 1 for memory in self.table.gpu_memories], np.int16)
        share = by_size[self.table.sizes[: self._gpus, rows].T]
        found: Ints = (self._rests[rows] // share[:, None, :]).sum(axis=2, dtype=np.int64)
        return found

    def _has_free(self, state: PoolState, gpu_ids: tuple[int, ...], rows: Ints) -> npt.NDArray[np.bool_]:
        """By row and step, whether the GPUs of these ids are there and free."""
        found = np.zeros((len(rows), self._steps), np.bool_)
        for at, row in enumerate(rows):
            node = state.nodes.get(self.table.ids[row])
            places = [place for place, gpu in enumerate(node.spec.gpus) if gpu.index in gpu_ids] if node else []
            if len(places) == len(gpu_ids):
                found[at] = (self._rests[row][:, places] == GPU_MILLI).all(axis=1)
        return found

    def _look_into_gpus(self, state: PoolState, spec: GangSpec) -> None:
        """What is free of each single GPU is entered as soon as somebody asks for that."""
        if (spec.resources.is_share or spec.gpu_ids) and self._gpus < len(self.table.rests):
            self._gpus = len(self.table.rests)
            self._layout = -1
            self.follow(state, self._now_ms)


def profiles_of(state: PoolState, now_ms: int) -> Profiles:
    """The state's profiles, in step with it."""
    table = table_of(state)
    found: Profiles | None = state.derived.get(Profiles)
    if found is None:
        found = state.derived[Profiles] = Profiles(table)
    found.follow(state, now_ms)
    return found
