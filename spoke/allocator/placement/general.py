"""Placing gangs that ask for more than room: strategies, selectors, domains, NICs, groups of unlike members.

A gang is tried in one set of nodes after the other (``domains``). In a set, a gang of like members is placed exactly
(``spread``). The groups of a mixed gang are placed one after the other on what the ones before leave, the most
demanding first, in other orders if that fails, and on few nodes in every way there is (``mixed``): all of them or none.
On many nodes a mixed gang that only fits if a group leaves a node that it likes better to another group may wait though
there were places. Gangs of like members with whole GPUs are found over columns (``screen``), which gives the same
answers; and so is the rack or block for a mixed gang. For the others the cost grows with the number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, permutations

from spoke.allocator.placement import mixed, reasons, screen, select
from spoke.allocator.placement.domains import Trial, neighbours_together, trials
from spoke.allocator.placement.pack import NoFit, Placement, count_nodes, describe, has_port
from spoke.allocator.placement.picks import picks
from spoke.allocator.placement.rooms import rooms
from spoke.allocator.placement.shares import words
from spoke.allocator.placement.spread import HasPort, Parts, fill
from spoke.events.model import GangSpec
from spoke.events.state import NodeState, PoolState, need_of

ORDERS_MAX = 24
"""In so many orders the groups of a mixed gang are tried: all there are of four groups."""
ORDERS_TIMES_NODES_MAX = 4_096
"""On many nodes the groups are tried in fewer orders, so that one gang does not hold up the others."""

Whole = list[tuple[int, Parts]]  # index of the group -> its places, in the order in which they were found


def applies(state: PoolState, spec: GangSpec) -> bool:
    """Whether this is how the gang is placed; else the ways that ask nothing but how much is free are faster."""
    if spec.rules is not None or spec.groups or spec.resources.nics:
        return True
    return bool(state.domains.levels) and (spec.num_nodes > 1 or not spec.strict_pack)


def policy(spec: GangSpec) -> str:
    """The policy's name and version."""
    return "mixed/1" if spec.groups else f"{spec.strategy.replace('_', '-')}-where/1"


def place(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    """Places for the whole gang, or why there are none. The state is not changed."""
    if screen.applies(spec):
        places = screen.find(state, spec)
        found = [(0, places)] if places is not None else None
    elif spec.groups:
        found = look_where_it_can_be(state, spec)
    else:
        found = look_at_all(state, spec)
    return _placement(state, spec, found) if found is not None else NoFit(lambda: _why_not(state, spec))


def look_at_all(state: PoolState, spec: GangSpec) -> Whole | None:
    """Places for the whole gang, looked for on every node."""
    return _find(state, spec, _candidates(state, spec), has_port)


def look_where_it_can_be(state: PoolState, spec: GangSpec) -> Whole | None:
    """Places for a mixed gang: the same, without a look at racks and blocks that have not enough free for it."""
    if not screen.has_room_for_each(state, spec.parts):
        return None
    tried = (_in_trial(state, spec, trial, has_port, empty=False) for trial in screen.trials(state, spec))
    return next((whole for whole in tried if whole is not None), None)


def never_fits(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    for part in spec.parts:
        missing = select.nothing_suits(state, part)
        if missing:
            return missing
    nodes = [node for node in state.nodes.values() if node.phase == "up"]
    if _find(state, spec, nodes, _anywhere, empty=True) is not None:
        return ""
    return f"{_needs(spec)}; even with everything free, {_qualify(spec, nodes, empty=True)}"


def _candidates(state: PoolState, spec: GangSpec) -> list[NodeState]:
    if spec.rules is None and not spec.groups and not spec.resources.is_share:
        need = need_of(spec)
        if spec.strict_pack:
            need = need.times(spec.actors_per_node)
        return [state.nodes[node_id] for node_id in state.capacity.fitting(need)]
    return [node for node in select.open_nodes(state) if not select.closed(spec, node)]


def _anywhere(node: NodeState) -> bool:
    return True


def _find(
    state: PoolState, spec: GangSpec, nodes: Iterable[NodeState], port: HasPort, *, empty: bool = False
) -> Whole | None:
    """Places in the first set of nodes that has them; ``empty``: if everything on the nodes were free."""
    if spec.groups:
        tried = (_in_trial(state, spec, trial, port, empty=empty) for trial in trials(state, spec, list(nodes)))
        return next((whole for whole in tried if whole is not None), None)
    found = rooms((node for node in nodes if not select.unsuitable(spec, node)), spec, empty=empty)
    beside = spec.preferred_node or (spec.rules is not None and spec.rules.near)
    if spec.strategy == "pack" and not spec.strict_pack and not beside:
        places = fill([room for room in found if room.holds >= spec.size], spec, port)
        if places is not None:  # one node is nearer than any rack
            return [(0, places)]
    at = {room.node.spec.node_id: room for room in found}
    for trial in trials(state, spec, [room.node for room in found]):
        places = fill([at[node.spec.node_id] for node in trial.nodes], spec, port, trial.prefer)
        if places is not None:
            return [(0, places)]
    return None


def _in_trial(state: PoolState, spec: GangSpec, trial: Trial, port: HasPort, *, empty: bool) -> Whole | None:
    """Places for a mixed gang in one set of nodes."""
    parts = spec.parts
    for order in _orders(parts, len(trial.nodes)):
        whole = _place_groups(state, trial, parts, order, port, empty=empty)
        if whole is not None:
            return whole
    left = [_emptied(node) if empty else node for node in trial.nodes]
    return mixed.search(left, parts, next(_orders(parts, 1)), port)


def _orders(parts: Sequence[GangSpec], nodes: int) -> Iterator[tuple[int, ...]]:
    """The orders in which the groups are tried: what needs most on one node goes first."""

    def demand(at: int) -> tuple[int, int, int, int]:
        part, need = parts[at], need_of(parts[at])
        count = part.actors_per_node if part.strict_pack else 1
        return -need.gpus * count, -need.cpu_milli * count, -need.memory * count, at

    most = max(1, min(ORDERS_MAX, ORDERS_TIMES_NODES_MAX // max(1, nodes)))
    return islice(permutations(sorted(range(len(parts)), key=demand)), most)


def _place_groups(
    state: PoolState,
    trial: Trial,
    parts: Sequence[GangSpec],
    order: Iterable[int],
    port: HasPort,
    *,
    empty: bool,
) -> Whole | None:
    left = {node.spec.node_id: _emptied(node) if empty else node for node in trial.nodes}
    whole: Whole = []
    for at in order:
        part = parts[at]
        suited = (node for node in left.values() if not select.unsuitable(part, node))
        found = fill(rooms(suited, part), part, port if at == 0 else _anywhere, trial.prefer)
        if found is None:
            return None
        whole.append((at, found))
        for node, count in found:
            left[node.spec.node_id] = _without(state, node, part, count)
    return whole


def _emptied(node: NodeState) -> NodeState:
    empty = NodeState.empty(node.spec, node.phase, node.incarnation)
    for gpu in node.spec.gpus:
        if node.is_unhealthy(gpu.index):
            empty.mark_unhealthy(gpu.index)
    return empty


def _without(state: PoolState, node: NodeState, part: GangSpec, count: int) -> NodeState:
    """A copy of a node from which so many members of a group have been taken."""
    copy = replace(node, shared=dict(node.shared))
    need = need_of(part)
    for pick in picks(state, node, part, count):
        nics = sum(1 << at for at in pick.nics)
        booked = copy.book(need, pick.gpu_ids, pick.milli, nics)
        assert booked, "a node was chosen that does not hold what it was chosen for"
    return copy


def _placement(state: PoolState, spec: GangSpec, whole: Whole) -> Placement:
    """The parts in the order of the ranks; for a mixed gang with what each member gets, group by group as found."""
    left: dict[str, NodeState] = {}
    by_group = {}
    for at, found in whole:
        part = spec.parts[at] if spec.groups else spec
        entries = []
        for node, count in found:
            if spec.groups:
                here = left.get(node.spec.node_id, state.nodes[node.spec.node_id])
                entries.append((node.spec.node_id, count, tuple(picks(state, here, part, count))))
                left[node.spec.node_id] = _without(state, here, part, count)
            else:
                entries.append((node.spec.node_id, count, ()))
        by_group[at] = [entries[i] for i in neighbours_together(state, [entry[0] for entry in entries])]
    ranked = [(at, entry) for at in sorted(by_group) for entry in by_group[at]]
    parts = tuple((node_id, count) for _, (node_id, count, _) in ranked)
    if not spec.groups:
        return Placement(parts)
    return Placement(parts, tuple(spec.groups[at].name for at, _ in ranked), tuple(entry[2] for _, entry in ranked))


# --- reasons -------------------------------------------------------------------------------------------------------


def _needs(spec: GangSpec) -> str:
    return "needs " + " and ".join(_needs_of(part) for part in spec.parts)


def _needs_of(part: GangSpec) -> str:
    need = need_of(part)
    nics = f" and {part.resources.nics} NIC{'s' * (part.resources.nics > 1)} of its own" * bool(part.resources.nics)
    rules = select.rules_in_words(part)
    if part.resources.is_share:
        each = words(part)
    else:
        each = describe(need, part.gpu_ids if part.strict_pack and part.actors_per_node == 1 else None)
    if part.strict_pack and not part.resources.is_share and not nics:
        return (
            f"{count_nodes(part.num_nodes)} with {describe(need.times(part.actors_per_node), part.gpu_ids)} free{rules}"
        )
    if part.strict_pack:
        actors = f"{part.actors_per_node} actor{'s' * (part.actors_per_node > 1)}"
        return f"{count_nodes(part.num_nodes)} with room for {actors} with {each}{nics}{rules}"
    where = {
        "strict_pack": "one node with room for ",
        "strict_spread": "a node each for ",
    }.get(part.strategy, "room for ")
    return f"{where}{part.size} actor{'s' * (part.size > 1)} with {each}{nics} each{rules}"


def _why_not(state: PoolState, spec: GangSpec) -> str:
    found = reasons.why_not(state, spec) if screen.applies(spec) else why_not_of_all(state, spec)
    return f"{_needs(spec)}; {found}"


def why_not_of_all(state: PoolState, spec: GangSpec) -> str:
    """What there is for the gang, by a look at every node."""
    nodes = _candidates(state, spec) if spec.rules is not None or spec.groups else select.open_nodes(state)
    nodes = [node for node in nodes if not select.closed(spec, node)]
    out = select.ruled_out(state, spec) if not spec.groups else ""
    ports = "" if any(map(has_port, nodes)) or not nodes else "; no port is left on them for rank 0"
    return _qualify(spec, nodes, empty=False) + ports + (f"; {out}" if out else "")


def _qualify(spec: GangSpec, nodes: Sequence[NodeState], *, empty: bool) -> str:
    """What there is for each group, were it alone."""
    told = []
    for part, group in zip(spec.parts, spec.groups or (None,), strict=True):
        suited = [node for node in nodes if not select.unsuitable(part, node)]
        found = rooms(suited, part, empty=empty)
        named = f"for {group.name} " if group is not None else ""
        of = f"of the {count_nodes(len(suited))} that it may use"
        if part.strict_pack:
            whole = [room.node.spec.node_id for room in found if room.holds >= part.actors_per_node]
            told.append(named + select.qualifying(sorted(whole)[:5], len(whole), of))
        elif part.strategy == "strict_pack":
            told.append(f"{named}the roomiest {of} has room for {max((room.holds for room in found), default=0)}")
        elif part.strategy == "strict_spread":
            told.append(f"{named}{len(found)} {of} have room for one")
        else:
            room_for = sum(room.holds for room in found)
            told.append(f"{named}there is room for {room_for} on the {count_nodes(len(suited))} that it may use")
    same = spec.rules.same if spec.rules is not None else ""
    return ", ".join(told) + (f", not all in one {same}" if same else "")
