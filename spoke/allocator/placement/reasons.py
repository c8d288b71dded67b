"""Why a gang of like members finds no places, in words: counted over the columns of the table, all nodes at once.

The words are those of looking at every node (``general``), which takes a hundred times as long on many; the property
tests compare them. For the gangs that ``screen`` places.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from spoke.allocator.placement import screen, select
from spoke.allocator.placement.pack import count_nodes
from spoke.allocator.placement.table import Bools, NodeTable, table_of
from spoke.events.model import GangSpec
from spoke.events.rules import NO_RULES
from spoke.events.state import PoolState


def why_not(state: PoolState, spec: GangSpec) -> str:
    """What there is for the gang, and which nodes do not count for what reason."""
    table = table_of(state)
    open_nodes = screen.open_to(state, table, spec)
    out = select.told(_ruled_out(state, table, spec))
    no_port = open_nodes.any() and not (open_nodes & table.port).any()
    ports = "; no port is left on them for rank 0" if no_port else ""
    return _qualify(table, spec, open_nodes & screen.suits(state, table, spec)) + ports + (f"; {out}" if out else "")


def _qualify(table: NodeTable, spec: GangSpec, suited: Bools) -> str:
    holds = np.where(suited, screen.holds(table, spec), 0)
    of = f"of the {count_nodes(int(suited.sum()))} that it may use"
    same = f", not all in one {spec.rules.same}" if spec.rules is not None and spec.rules.same else ""
    if spec.strict_pack:
        rows = np.flatnonzero(holds >= spec.actors_per_node)
        names = [table.ids[row] for row in rows[np.argsort(table.order[rows])[:5]]]
        return select.qualifying(names, len(rows), of) + same
    if spec.strategy == "strict_pack":
        return f"the roomiest {of} has room for {int(holds.max(initial=0))}{same}"
    if spec.strategy == "strict_spread":
        return f"{int((holds > 0).sum())} {of} have room for one{same}"
    return f"there is room for {int(holds.sum())} on the {count_nodes(int(suited.sum()))} that it may use{same}"


def _ruled_out(state: PoolState, table: NodeTable, spec: GangSpec) -> Counter[str]:
    """How many nodes do not serve the gang, by the first reason that each has: in the order of ``select``."""
    rules, left, found = spec.rules or NO_RULES, table.usable.copy(), Counter[str]()

    def rule_out(those: Bools, why: str) -> None:
        found[why] += int((left & those).sum())
        left[those] = False

    if spec.gpu_models:
        rule_out(~table.has_models(spec.gpu_models), select.other_models(spec))
    for key, wanted in rules.where.items():
        column = table.label(state, key)
        rule_out(~column.having(wanted)[column.codes], select.no_label(key, wanted))
    for key, unwanted in rules.where_not.items():
        column = table.label(state, key)
        having = column.having(unwanted)
        for code in np.unique(column.codes[left & having[column.codes]]):
            rule_out(column.codes == code, select.has_label(key, column.names[code]))
    if rules.same:
        rule_out(table.label(state, rules.same).codes == 0, f"no label {rules.same}")
    if rules.gpu_memory_min:
        rule_out(table.least_memory < rules.gpu_memory_min, select.less_memory(rules))
    if rules.exclusive:
        rule_out(table.used, select.IN_USE)
    if int(table.usable.sum()) < len(state.nodes):
        others = [node for node_id, node in state.nodes.items() if state.capacity.free(node_id) is None]
        found.update(select.unsuitable(spec, node) or select.closed(spec, node) for node in others)
    return found
