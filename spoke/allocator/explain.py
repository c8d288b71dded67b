"""Why a ticket waits, and why one that was granted is where it is. Pure: from the state of one moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from spoke.allocator.forecast import Forecast, expected_end_ms, forecast
from spoke.allocator.placement import select
from spoke.allocator.placement.choose import never_fits, place
from spoke.allocator.placement.elastic import fewest, is_elastic
from spoke.allocator.placement.pack import NoFit, count_nodes, describe
from spoke.allocator.placement.rooms import members_on
from spoke.allocator.placement.shares import words
from spoke.allocator.queue.grant import place_beside
from spoke.allocator.queue.order import in_order
from spoke.allocator.queue.quota import over_reason, standing
from spoke.events.capacity import Amount
from spoke.events.model import GPU_MILLI, GangSpec
from spoke.events.state import NodeState, PoolState, TicketState, indices_of, mask_of, need_of
from spoke.protocol.explanation import Explanation, Holder, NodeReason, amount

ROWS_MAX = 20
NAMES_MAX = 5
MISSING_NODES_MAX = 256
FORECAST_NODES_MAX = 64
FORECAST_TICKETS_MAX = 200
FORECAST_STEPS_MAX = 500
"""The allocator looks ahead no further than this, since others wait for it; `spoke explain` does."""


def explain(state: PoolState, ticket: TicketState, now_ms: int, *, look_ahead: bool = True) -> Explanation:
    """Why a ticket is as it is. ``look_ahead``: work out when a waiting one would start, whatever that costs."""
    if ticket.phase == "queued":
        return _explain_waiting(state, ticket, now_ms, look_ahead=look_ahead)
    return _explain_holding(state, ticket)


def explain_spec(state: PoolState, spec: GangSpec, ticket_id: str, phase: str, reason: str) -> Explanation:
    """Why a gang does not fit, which never waited: ``reason`` is what it was told."""
    shortage = _shortage(state, spec)
    return Explanation(
        ticket_id=ticket_id,
        state=phase,
        sentence=f"{ticket_id or 'the gang'} was {phase}: {reason}",
        needs=needs_of(spec),
        left_out=_first(_left_out(state, spec)),
        **shortage.fields(),
    )


def explain_grant(before: PoolState, ticket: TicketState) -> Explanation:
    """Why a granted ticket is where it is: ``before`` is the state just before the grant."""
    spec, own = ticket.spec, {slot.node_id for slot in ticket.slots}
    rows = tuple(_row_of_grant(before, ticket, node_id) for node_id in dict.fromkeys(s.node_id for s in ticket.slots))
    want = _wanted_on_one(spec)
    fitting = [n for n in _usable(before, spec) if _fits(n, spec, need_of(spec)) >= want]
    rivals = sorted((n for n in fitting if n.spec.node_id not in own), key=lambda n: (n.free_gpu_milli, n.spec.node_id))
    others = f"; {count_nodes(len(fitting))} had room for {_members(want)}"
    if rivals:
        others += f", the tightest that was not taken is {rivals[0].spec.node_id} with {_free_words(rivals[0])} free"
    how = f"placed by {ticket.policy} ({_policy_in_words(ticket.policy)})"
    sentence = f"{ticket.ticket_id} is on {_names(sorted(own))}, {how}{others}"
    return Explanation(ticket.ticket_id, ticket.phase, sentence, needs_of(spec), nodes=rows, policy=ticket.policy)


def needs_of(spec: GangSpec) -> str:
    """What the gang asks for, in words."""
    if spec.groups:
        return " and ".join(needs_of(part) for part in spec.parts)
    each = words(spec) if spec.resources.is_share else describe(need_of(spec), None)
    each += f", {spec.resources.nics} NICs of its own" if spec.resources.nics else ""
    rules = select.rules_in_words(spec)
    if not spec.strict_pack:
        return f"{_members(spec.size)} with {each} each, {_SPREAD[spec.strategy]}{rules}"
    named = f", GPUs {list(spec.gpu_ids)}" if spec.gpu_ids else ""
    least = f"{spec.min_nodes} to " if is_elastic(spec) else ""
    return f"{least}{count_nodes(spec.num_nodes)} with {_members(spec.actors_per_node)}, {each} each{named}{rules}"


_SPREAD = {
    "pack": "on as few nodes as possible",
    "spread": "on as many nodes as possible",
    "strict_pack": "all on one node",
    "strict_spread": "no two on one node",
}


# --- waiting -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shortage:
    """What is missing: on these nodes it takes the least to make room. ``lacking``: how many nodes, or members."""

    lacking: int
    rows: tuple[NodeReason, ...]

    def words(self) -> str:
        """What would have to be freed, on which nodes, and who holds it."""
        rows = self.rows
        gpus, cpus = sum(row.gpus_missing for row in rows), sum(row.cpus_missing for row in rows)
        what = amount(round(gpus, 3), round(cpus, 3), sum(row.memory_missing for row in rows))
        holders = dict.fromkeys(f"{one.ticket_id} ({one.user})" for row in rows for one in row.holders)
        held = f", held by {_names(holders)}" if holders else ""
        return f"{what} would have to be freed on {_names(row.node_id for row in rows)}{held}"

    def fields(self) -> dict[str, Any]:
        """As the fields of an explanation."""
        return {
            "gpus_missing": round(sum(row.gpus_missing for row in self.rows), 3),
            "cpus_missing": round(sum(row.cpus_missing for row in self.rows), 3),
            "memory_missing": sum(row.memory_missing for row in self.rows),
            "nodes": self.rows[:ROWS_MAX],
        }


def _explain_waiting(state: PoolState, ticket: TicketState, now_ms: int, *, look_ahead: bool) -> Explanation:
    spec, ticket_id = ticket.spec, ticket.ticket_id
    order = [one.ticket.ticket_id for one in in_order(state, now_ms)]
    at = order.index(ticket_id) if ticket_id in order else state.queue.index(ticket_id)
    behind = tuple(order[: min(at, ROWS_MAX)]) if ticket_id in order else ()
    never, found = never_fits(state, spec), place(state, spec)[0]
    shortage = _shortage(state, spec) if isinstance(found, NoFit) or never else _Shortage(0, ())
    small = len(state.nodes) <= FORECAST_NODES_MAX and len(state.tickets) <= FORECAST_TICKETS_MAX
    if never:
        start = Forecast(0, "never, with the nodes that are registered and in service")
    elif look_ahead:
        start = forecast(state, ticket_id, now_ms)
    elif small:
        start = forecast(state, ticket_id, now_ms, steps_max=FORECAST_STEPS_MAX)
    else:
        start = Forecast(0, "unknown: the pool is large, ask `spoke explain`")
    sentence = _sentence(ticket_id, found, never, shortage, behind, spec)
    if not never and standing(state, ticket.project, spec) == "over":
        sentence = f"{ticket_id} waits: it {over_reason(state, ticket.project, spec)}"
    elif not never and spec.terms.reservation:
        apart = place_beside(state, spec, now_ms)
        sentence = f"{ticket_id} waits: it {apart.reason}" if isinstance(apart, NoFit) else sentence
    when = f"in {_span(start.starts_ms - now_ms)}, {start.words}" if start.starts_ms else start.words
    return Explanation(
        ticket_id=ticket_id,
        state=ticket.phase,
        sentence=f"{sentence}. Start: {when}",
        needs=needs_of(spec),
        place=at + 1,
        waiting=len(state.queue),
        behind=behind,
        left_out=_first(_left_out(state, spec)),
        starts_ms=start.starts_ms,
        starts=when,
        **shortage.fields(),
    )


def _sentence(
    ticket_id: str, found: object, never: str, shortage: _Shortage, behind: tuple[str, ...], spec: GangSpec
) -> str:
    if never:
        return f"{ticket_id} cannot fit the pool as it is registered: {never}"
    first = f" behind {_names(behind)}" if behind else ""
    if not isinstance(found, NoFit):
        if not behind:
            return f"{ticket_id} fits now, and is granted in a moment"
        came = "comes" if len(behind) == 1 else "come"
        return f"{ticket_id} would fit now, but waits{first}, which {came} first in line"
    if not shortage.rows:
        return f"{ticket_id} waits{first}: it {found.reason}"
    what = (
        f"{shortage.lacking} more of {count_nodes(spec.num_nodes)}" if spec.strict_pack else _members(shortage.lacking)
    )
    return f"{ticket_id} waits{first}: it needs {needs_of(spec)}, and {what} cannot be placed; {shortage.words()}"


def missing(state: PoolState, spec: GangSpec) -> str:
    """What would have to be freed, on which nodes, and who holds it; empty if that is not what is missing.

    Empty in a large pool, too: refusals are frequent, and must not cost a look at every node.
    """
    if len(state.nodes) > MISSING_NODES_MAX:
        return ""
    shortage = _shortage(state, spec)
    return shortage.words() if shortage.rows else ""


def _shortage(state: PoolState, spec: GangSpec) -> _Shortage:
    """The nodes on which it takes the least to make room for what cannot be placed."""
    spec = fewest(spec)
    if spec.groups:
        alone = (_shortage(state, part) for part in spec.parts)
        return next((short for short in alone if short.rows), _Shortage(0, ()))
    need, want = need_of(spec), _wanted_on_one(spec)
    nodes = [(node, _fits(node, spec, need)) for node in _usable(state, spec)]
    if spec.strict_pack or spec.strategy in ("strict_pack", "strict_spread"):
        lacking = spec.size // want - sum(fits >= want for _, fits in nodes)
        short = [
            _row(state, spec, node, fits, want) for node, fits in nodes if fits < want <= _capacity(node, spec, need)
        ]
        return _Shortage(lacking, tuple(sorted(short, key=_effort)[: max(0, lacking)]))
    lacking = spec.size - sum(fits for _, fits in nodes)
    rows: list[NodeReason] = []
    left = lacking
    spare = [(_capacity(node, spec, need) - fits, node, fits) for node, fits in nodes]
    for room, node, fits in sorted(spare, key=lambda one: (-one[0], one[1].spec.node_id)):
        if left <= 0 or room <= 0:
            break
        more = min(room, left)
        rows.append(_row(state, spec, node, fits, fits + more))
        left -= more
    return _Shortage(lacking, tuple(rows))


def _effort(row: NodeReason) -> tuple[float, float, int, float, str]:
    """What it takes to make room on a node; of equals, the one whose holders end first, as far as they say."""
    ends_ms = max((one.ends_ms or float("inf") for one in row.holders), default=0.0)
    return (row.gpus_missing, row.cpus_missing, row.memory_missing, ends_ms, row.node_id)


def _row(state: PoolState, spec: GangSpec, node: NodeState, fits: int, wanted: int) -> NodeReason:
    need, resources = need_of(spec), spec.resources
    whole = need.times(wanted)
    if resources.is_share:
        share = max((resources.share_of(gpu.memory) for gpu in node.spec.gpus), default=0)
        gpus = max(0, wanted - _gpu_members(node, spec)) * share / GPU_MILLI
    elif spec.gpu_ids:
        gpus = float((mask_of(spec.gpu_ids) & ~node.free_gpus).bit_count())
    else:
        gpus = float(max(0, whole.gpus - node.free_gpus.bit_count()))
    return NodeReason(
        node_id=node.spec.node_id,
        fits=fits,
        wanted=wanted,
        gpus_free=node.free_gpu_milli / GPU_MILLI,
        cpus_free=node.free_cpu_milli / 1000,
        memory_free=node.free_memory,
        gpus_missing=gpus,
        cpus_missing=max(0, whole.cpu_milli - node.free_cpu_milli) / 1000,
        memory_missing=max(0, whole.memory - node.free_memory),
        holders=tuple(_holders(state, node)),
    )


def _holders(state: PoolState, node: NodeState) -> Iterator[Holder]:
    for ticket_id in sorted(node.tickets, key=lambda t: (len(t), t)):
        ticket = state.tickets[ticket_id]
        slots = [slot for slot in ticket.slots if slot.node_id == node.spec.node_id]
        milli = sum(slot.gpu_milli or GPU_MILLI * len(slot.gpu_ids) for slot in slots)
        needs = [ticket.need_of(slot) for slot in slots]
        cpus, memory = sum(need.cpu_milli for need in needs) / 1000, sum(need.memory for need in needs)
        user = state.user_of(ticket.client_id)
        ends_ms = expected_end_ms(ticket) or 0
        yield Holder(ticket_id, ticket.spec.name, user, milli / GPU_MILLI, cpus, memory, ends_ms)


def _usable(state: PoolState, spec: GangSpec) -> list[NodeState]:
    return [n for n in state.nodes.values() if n.phase == "up" and n.confirmed and not select.unsuitable(spec, n)]


def _left_out(state: PoolState, spec: GangSpec) -> Iterator[str]:
    """Which nodes and GPUs do not count."""
    for node_id, node in sorted(state.nodes.items()):
        if node.phase != "up":
            yield f"node {node_id} is {node.phase}"
        elif not node.confirmed:
            yield f"node {node_id} has yet to say what runs there, after a change of servers"
        elif all(select.unsuitable(part, node) for part in spec.parts):
            yield f"node {node_id} is not of the kind that was asked for: {select.unsuitable(spec.parts[0], node)}"
        elif any(select.closed(part, node) for part in spec.parts):
            yield f"node {node_id} is {select.closed(spec.parts[0], node)}"
        elif node.unhealthy:
            yield f"node {node_id} has unhealthy GPUs: {', '.join(map(str, indices_of(node.unhealthy)))}"


# --- how many fit ------------------------------------------------------------------------------------------------


def _fits(node: NodeState, spec: GangSpec, need: Amount) -> int:
    """How many members fit on a node now."""
    return 0 if select.closed(spec, node) else members_on(node, spec, need, empty=False)


def _gpu_members(node: NodeState, spec: GangSpec) -> int:
    """How many members with shares the node's GPUs have room for."""
    resources = spec.resources
    shares = ((node.free_milli(gpu.index), resources.share_of(gpu.memory)) for gpu in node.spec.gpus)
    return sum(free // share for free, share in shares if share)


def _capacity(node: NodeState, spec: GangSpec, need: Amount) -> int:
    """How many members would fit on a node with everything free."""
    return members_on(node, spec, need, empty=True)


def _wanted_on_one(spec: GangSpec) -> int:
    """How many members go to one node together, at the least."""
    if spec.strict_pack:
        return spec.actors_per_node
    return spec.size if spec.strategy == "strict_pack" else 1


# --- holding -----------------------------------------------------------------------------------------------------


def _explain_holding(state: PoolState, ticket: TicketState) -> Explanation:
    own = list(dict.fromkeys(slot.node_id for slot in ticket.slots))
    why = f": {ticket.reason}" if ticket.reason else ""
    sentence = f"{ticket.ticket_id} is {ticket.phase} on {_names(sorted(own))}, placed by {ticket.policy}{why}"
    rows = tuple(_row_of_grant(state, ticket, node_id) for node_id in own if node_id in state.nodes)
    return Explanation(
        ticket.ticket_id, ticket.phase, sentence, needs_of(ticket.spec), nodes=rows, policy=ticket.policy
    )


def _row_of_grant(state: PoolState, ticket: TicketState, node_id: str) -> NodeReason:
    node = state.nodes[node_id]
    members = sum(slot.node_id == node_id for slot in ticket.slots)
    others = tuple(one for one in _holders(state, node) if one.ticket_id != ticket.ticket_id)
    free = node.free_gpu_milli / GPU_MILLI
    cpus = node.free_cpu_milli / 1000
    return NodeReason(node_id, members, members, free, cpus, node.free_memory, holders=others)


def _policy_in_words(policy: str) -> str:
    return {
        "pack": "the tightest nodes that fit, so that large gaps stay large",
        "stranding": "where the least GPU capacity becomes hard to use, by what is usually asked for",
        "pack-where": "the fullest of the nodes that it may use, in one rack or block if that does",
        "spread-where": "the emptiest nodes, from rack to rack, evenly",
        "strict-pack-where": "the fullest node that holds all",
        "strict-spread-where": "the emptiest nodes, no two members on one",
        "mixed": "group by group, the most demanding first",
        "repair": "another place for a failed member",
    }.get(policy.partition("/")[0], "see the design page")


# --- words -------------------------------------------------------------------------------------------------------


def _members(number: int) -> str:
    return f"{number} member{'' if number == 1 else 's'}"


def _first(texts: Iterable[str]) -> tuple[str, ...]:
    """The first texts, and that there are more."""
    found = tuple(islice(texts, ROWS_MAX + 1))
    return found if len(found) <= ROWS_MAX else (*found[:ROWS_MAX], "and more")


def _names(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:NAMES_MAX]) + (f" and {len(known) - NAMES_MAX} more" if len(known) > NAMES_MAX else "")


def _free_words(node: NodeState) -> str:
    return amount(node.free_gpu_milli / GPU_MILLI, node.free_cpu_milli / 1000, node.free_memory)


def _span(ms: int) -> str:
    seconds = max(0, ms) // 1000
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"
