"""Which few of many nodes can matter to a gang: found over the columns of the table, all nodes at once.

``spread`` orders nodes and takes the first ones. Here the same order is worked out over columns, and only as far as it
is needed, for gangs of like members that ask for whole GPUs or none: so a selector, one rack, or a spread over ten
thousand nodes costs about as much as over a hundred. The answers are those of looking at every node (``general``),
which the property tests compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spoke.allocator.placement.domains import Trial, preferred_levels
from spoke.allocator.placement.pack import has_port
from spoke.allocator.placement.rooms import Room
from spoke.allocator.placement.select import neighbours
from spoke.allocator.placement.spread import Parts, fill, take
from spoke.allocator.placement.table import Bools, Ints, NodeTable, least, table_of
from spoke.events.model import GPU_MILLI, GangSpec, Resources
from spoke.events.rules import ANY, DOMAINS, NO_RULES, Rules
from spoke.events.state import NodeState, PoolState, need_of

_CPU_BITS = 41  # a node has less than 2**40 thousandths of a core, and its GPUs less than 2**21 thousandths
_MANY = 64


def applies(spec: GangSpec) -> bool:
    """Whether the table knows all that the gang asks for."""
    return not (spec.groups or spec.gpu_ids or spec.resources.is_share or spec.resources.nics)


def find(state: PoolState, spec: GangSpec) -> Parts | None:
    """How many members go to which node, in the first set of nodes that has places for all."""
    rooms, rules = _rooms(state, table_of(state), spec), spec.rules or NO_RULES
    if not len(rooms.rows):
        return None
    if spec.strategy == "pack" and not spec.strict_pack and not (spec.preferred_node or rules.near):
        places = rooms.where(rooms.holds >= spec.size).fill(spec, "")
        if places is not None:  # one node is nearer than any rack
            return places
    for part, prefer in _trials(rooms, spec):
        places = part.fill(spec, prefer)
        if places is not None:
            return places
    return None


def has_room_for_each(state: PoolState, parts: Iterable[GangSpec]) -> bool:
    """Whether each of these gangs, were it alone, may have places: False only if one has none."""
    table = table_of(state)
    for part in filter(applies, parts):
        least_here, count = _needs(part)
        found = holds(table, part)[suits(state, table, part)]
        found = found[found >= least_here]
        if len(found) < count or int(found.sum()) < part.size:
            return False
    return True


def trials(state: PoolState, spec: GangSpec) -> Iterator[Trial]:
    """The sets of nodes in which a mixed gang is tried, as in ``domains``; those with too few GPUs are left out."""
    table = table_of(state)
    rows = np.flatnonzero(open_to(state, table, spec))
    everything = Rooms(state, table, rows, np.ones(len(rows), np.int64), True)
    for rooms, prefer in _trials(everything, spec):
        yield Trial([state.nodes[table.ids[row]] for row in rooms.rows], prefer)


@dataclass(frozen=True, slots=True)
class Rooms:
    """Nodes on which at least one member fits: their rows in the table, and how many each ``holds``."""

    state: PoolState
    table: NodeTable
    rows: Ints
    holds: Ints
    wants_gpus: bool

    def where(self, chosen: Bools) -> Rooms:
        """Some of them."""
        return Rooms(self.state, self.table, self.rows[chosen], self.holds[chosen], self.wants_gpus)

    def codes(self, label: str) -> Ints:
        """The numbers of their values of a label; 0: none."""
        return self.table.label(self.state, label).codes[self.rows]

    def fill(self, spec: GangSpec, prefer: str) -> Parts | None:
        """Places for the whole gang on these nodes; ``prefer`` is a label of which few values are to be used."""
        fewest, count = _needs(spec)
        rooms = self.where(self.holds >= fewest)
        if len(rooms.rows) < count or int(rooms.holds.sum()) < spec.size:
            return None
        packs_members = spec.strategy == "pack" and not spec.strict_pack
        if packs_members and int(rooms.holds.min()) < spec.size:  # how many there are on each depends on the others
            return fill(rooms._listed(range(len(rooms.rows))), spec, has_port)
        if spec.strategy in ("spread", "strict_spread"):
            chosen = rooms._from_rack_to_rack(spec.num_nodes if spec.strict_pack else spec.size)
        elif prefer and spec.strict_pack:
            chosen = rooms._in_few_domains(prefer, count)
        else:
            chosen = least(rooms._keys(1), count)
        port = rooms.table.port[rooms.rows]
        if not port[chosen].any():  # as a rule ports are left
            everything = rooms._listed(range(len(rooms.rows)))
            return fill(everything, spec, has_port, prefer) if port.any() else None
        wanted = rooms.table.row_of.get(spec.preferred_node, -1) if spec.preferred_node else -1
        also = np.setdiff1d(np.flatnonzero(rooms.rows == wanted), chosen)
        return take(rooms._listed([*chosen, *also]), spec, has_port)

    def _listed(self, places: Iterable[int]) -> list[Room]:
        ids, nodes, rows, holds = self.table.ids, self.state.nodes, self.rows, self.holds
        return [Room(nodes[ids[rows[at]]], int(holds[at]), self.wants_gpus) for at in places]

    def _keys(self, sign: int) -> list[Ints]:
        """What orders them, the least first: the fullest (``sign`` 1) or the emptiest (-1), then by their ids."""
        table, rows = self.table, self.rows
        cpu, memory = sign * table.cpu[rows], sign * table.memory[rows]
        if self.wants_gpus:
            first = sign * (table.free[rows] << _CPU_BITS) + cpu
        else:  # nodes without GPUs come before all
            first = (table.has_gpus[rows].astype(np.int64) << _CPU_BITS) + cpu
        return [first, memory, table.order[rows]]

    def _from_rack_to_rack(self, count: int) -> Ints:
        """The emptiest of each rack, then the next of each: as many as are needed, in that order."""
        racks, keys = self._merged("rack"), self._keys(-1)
        if not racks.any():
            return least(keys, count)
        look = max(_MANY, 4 * count)
        while look < len(racks):  # as a rule the emptiest of the racks are among the emptiest of all
            top = least(keys, look)
            begins = np.unique(racks[top], return_index=True)[1]
            if len(begins) >= count:
                chosen: Ints = top[np.sort(begins)[:count]]
                return chosen
            look *= 4
        order = np.lexsort(keys[::-1])
        _, begins, rack, sizes = np.unique(racks[order], return_index=True, return_inverse=True, return_counts=True)
        in_rack = np.empty(len(order), np.int64)
        in_rack[np.argsort(rack, kind="stable")] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[np.lexsort([begins[rack], in_rack])][:count]

    def _in_few_domains(self, label: str, count: int) -> Ints:
        """The fullest nodes of the largest domain, then of the next: as many as are needed."""
        codes, names = self._merged(label), self.table.label(self.state, label).names
        sizes = np.bincount(codes, minlength=len(names))
        rank = np.empty(len(names), np.int64)
        rank[sorted(range(len(names)), key=lambda code: (-sizes[code], names[code] or ""))] = np.arange(len(names))
        return least([rank[codes], *self._keys(1)], count)

    def _merged(self, label: str) -> Ints:
        """As ``codes``; an empty value is as good as none."""
        codes = self.codes(label)
        return np.where(codes == self.table.label(self.state, label).code(""), 0, codes)

    def could_be_in(self, codes: Ints, spec: GangSpec) -> Ints:
        """The codes of domains that have room enough; for a mixed gang, that have GPUs enough."""
        if spec.groups:
            needed = sum(part.size * _gpu_milli_min(part.resources) for part in spec.parts)
            enough: Ints = np.flatnonzero(np.bincount(codes, weights=self.table.free[self.rows]) >= needed)
            return enough[enough > 0]
        fewest, count = _needs(spec)
        chosen = self.holds >= fewest
        nodes = np.bincount(codes[chosen])
        members = np.bincount(codes[chosen], weights=self.holds[chosen])
        found: Ints = np.flatnonzero((nodes >= count) & (members >= spec.size))
        return found[found > 0]


def _gpu_milli_min(resources: Resources) -> int:
    """What a member takes of GPUs at the least: a share by memory depends on the GPU."""
    return resources.gpu_milli if resources.is_share else GPU_MILLI * resources.gpu_count


def _needs(spec: GangSpec) -> tuple[int, int]:
    """How many members stay together on a node, and how many such nodes are needed at least."""
    if spec.strict_pack:
        return spec.actors_per_node, spec.num_nodes
    if spec.strategy == "strict_pack":
        return spec.size, 1
    return 1, spec.size if spec.strategy == "strict_spread" else 1


def _rooms(state: PoolState, table: NodeTable, spec: GangSpec) -> Rooms:
    """The nodes on which at least one member fits now."""
    fits = suits(state, table, spec) & open_to(state, table, spec)
    room = holds(table, spec)
    enough = spec.actors_per_node if spec.strict_pack and spec.rules is None else 1  # others do not count at all
    rows = np.flatnonzero(fits & (room >= enough))
    return Rooms(state, table, rows, room[rows], bool(need_of(spec).gpus))


def open_to(state: PoolState, table: NodeTable, spec: GangSpec) -> Bools:
    """By the row, whether the node takes work now; for a gang that wants nodes for itself, only if nobody is on it."""
    found = table.usable.copy()
    if spec.rules is not None and spec.rules.exclusive:
        found &= ~table.used
    if state.capacity.shut:
        found[table.rows_of(state.capacity.shut)] = False
    return found


def suits(state: PoolState, table: NodeTable, spec: GangSpec) -> Bools:
    """By the row, whether the node takes work, and serves the gang as far as room is free on it."""
    fits = table.usable.copy()
    for key, among, wanted in _labels(spec.rules or NO_RULES):
        column = table.label(state, key)
        fits &= column.having(wanted)[column.codes] == among
    if spec.gpu_models:
        fits &= table.has_models(spec.gpu_models)
    if spec.rules is not None and spec.rules.gpu_memory_min:
        fits &= table.least_memory >= spec.rules.gpu_memory_min
    return fits


def holds(table: NodeTable, spec: GangSpec) -> Ints:
    """By the row, for how many members there is room, at most all of them."""
    need, found = need_of(spec), np.full(len(table.usable), spec.size, np.int64)
    for amount, needed in ((table.whole, need.gpus), (table.cpu, need.cpu_milli), (table.memory, need.memory)):
        if needed:
            np.minimum(found, amount // needed, out=found)
    return found


def _labels(rules: Rules) -> Iterator[tuple[str, bool, Sequence[str]]]:
    """The labels that count: key, whether the node must have one of the values (else none), the values."""
    for key, wanted in rules.where.items():
        yield key, True, wanted
    for key, unwanted in rules.where_not.items():
        yield key, False, unwanted
    if rules.same:
        yield rules.same, True, (ANY,)


def _trials(rooms: Rooms, spec: GangSpec) -> Iterator[tuple[Rooms, str]]:
    """The sets of nodes in which the gang is tried, as in ``domains``; those that cannot do are left out."""
    state, rules = rooms.state, spec.rules or NO_RULES
    far = _distances(rooms, neighbours(state, rules.near)) if rules.near else None
    levels = (rules.same,) if rules.same else preferred_levels(state, spec)
    wanted = rooms.table.row_of.get(spec.preferred_node, -1) if spec.preferred_node and not rules.same else -1
    for level in levels:
        codes = rooms.codes(level)
        possible = rooms.could_be_in(codes, spec)
        here = codes[rooms.rows == wanted]
        if len(here):  # a node that is asked for by name counts for more
            possible = possible[possible == here[0]]
        for code in _in_order(rooms, level, codes, possible, far):
            chosen = codes == code
            yield from _nearest(rooms.where(chosen), far[chosen] if far is not None else None, "")
    if not rules.same:
        yield from _nearest(rooms, far, levels[0] if levels else "")


def _in_order(rooms: Rooms, level: str, codes: Ints, possible: Ints, far: Ints | None) -> list[int]:
    """The domains in the order in which they are tried: the nearest, then the one with the fewest free GPUs."""
    names = rooms.table.label(rooms.state, level).names
    free = np.bincount(codes, weights=rooms.table.free[rooms.rows], minlength=len(names))
    near = np.zeros(len(names), np.int64)
    if far is not None:
        near[:] = len(DOMAINS) + 1
        np.minimum.at(near, codes, far)
    return sorted(map(int, possible), key=lambda code: (near[code], free[code], names[code]))


def _nearest(rooms: Rooms, far: Ints | None, prefer: str) -> Iterator[tuple[Rooms, str]]:
    """What is near, then what is farther with it, in the end all of the nodes."""
    if far is not None:
        for limit in np.unique(far)[:-1]:
            yield rooms.where(far <= limit), ""
    yield rooms, prefer


def _distances(rooms: Rooms, beside: Sequence[NodeState]) -> Ints | None:
    """As ``domains.distance``, for each of the nodes; None if there is nothing to be near to."""
    if not beside:
        return None
    far = np.full(len(rooms.rows), len(DOMAINS) + 1, np.int64)
    for depth, label in reversed(list(enumerate(DOMAINS, start=1))):
        values = {node.spec.labels[label] for node in beside if label in node.spec.labels}
        column = rooms.table.label(rooms.state, label)
        near = np.zeros(len(column.names), np.bool_)
        near[[column.code(value) for value in values]] = True
        near[0] = False
        far[near[column.codes[rooms.rows]]] = depth
    themselves = [row for node in beside if (row := rooms.table.row_of.get(node.spec.node_id)) is not None]
    far[np.isin(rooms.rows, themselves)] = 0
    return far
