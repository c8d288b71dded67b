"""Greedy packing, best fit: the tightest nodes that fit, so that large gaps stay large.

Strict gangs take ``actors_per_node`` places on each of ``num_nodes`` nodes, the tightest ones first. Other gangs take
as few nodes as they can: the tightest node where all that is left fits, else as much as fits on the roomiest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from spoke.events.capacity import Amount
from spoke.events.model import GangSpec
from spoke.events.state import NodeState, PoolState, mask_of, need_of

POLICY = "pack/1"


class Pick(NamedTuple):
    """What one member gets of its node: GPUs by index, the share of the one GPU (0: whole), NICs by their place."""

    gpu_ids: tuple[int, ...] = ()
    milli: int = 0
    nics: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """How many members go to which node, in the order of their ranks.

    For a mixed gang, ``groups`` has the group of each part, and ``picks`` what each of its members gets.
    """

    parts: tuple[tuple[str, int], ...]
    groups: tuple[str, ...] = ()
    picks: tuple[tuple[Pick, ...], ...] = ()


class NoFit:
    """Why a gang does not fit now, in words a user can act on. What takes long is worked out when it is asked for."""

    __slots__ = ("_why",)

    def __init__(self, why: str | Callable[[], str]) -> None:
        self._why = why

    @property
    def reason(self) -> str:
        """The words. The state must still be the one that was looked at."""
        if not isinstance(self._why, str):
            self._why = self._why()
        return self._why

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoFit) and self.reason == other.reason

    def __repr__(self) -> str:
        return f"NoFit({self.reason!r})"

    __hash__ = None  # type: ignore[assignment]


def place(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    """Places for the whole gang, or why there are none. The state is not changed."""
    return _place_strict(state, spec) if spec.strict_pack else _place_dense(state, spec)


def _place_strict(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    per_node = need_of(spec)
    if spec.actors_per_node > 1:
        per_node = per_node.times(spec.actors_per_node)
    wanted = mask_of(spec.gpu_ids) if spec.gpu_ids else 0
    chosen: list[str] = []
    host_of_rank_0 = False
    preferred = spec.preferred_node
    if preferred and _fits(state, spec, preferred, per_node, wanted) and has_port(state.nodes[preferred]):
        chosen.append(preferred)
        host_of_rank_0 = True
    fitting = 0
    for node_id in state.capacity.fitting(per_node):
        if host_of_rank_0 and len(chosen) == spec.num_nodes:
            break
        node = state.nodes[node_id]
        if (chosen and node_id == chosen[0]) or node.free_gpus & wanted != wanted or not allows(spec, node):
            continue
        fitting += 1
        if not host_of_rank_0 and has_port(node):
            host_of_rank_0 = True
            chosen = [node_id, *chosen[: spec.num_nodes - 1]]
        elif len(chosen) < spec.num_nodes:
            chosen.append(node_id)
    if len(chosen) == spec.num_nodes and host_of_rank_0:
        return Placement(tuple((node_id, spec.actors_per_node) for node_id in chosen))
    needs = f"needs {count_nodes(spec.num_nodes)} with {describe(per_node, spec.gpu_ids)}{of_models(spec)} free"
    if len(chosen) == spec.num_nodes:
        return NoFit(f"{needs}, one of them with a free port for rank 0; {fitting} fit but have no port left")
    return NoFit(f"{needs}; {_qualify(chosen, len(state.capacity))}")


def _place_dense(state: PoolState, spec: GangSpec) -> Placement | NoFit:
    need, left = need_of(spec), spec.size
    parts: list[tuple[str, int]] = []
    used: set[str] = set()

    def use(node_id: str, count: int) -> None:
        parts.append((node_id, count))
        used.add(node_id)

    def allowed(node_id: str) -> bool:
        return node_id not in used and allows(spec, state.nodes[node_id])

    preferred = spec.preferred_node
    free = state.capacity.free(preferred) if preferred else None
    if preferred in state.capacity.shut:
        free = None
    if preferred and free is not None and has_port(state.nodes[preferred]) and allowed(preferred):
        count = min(free.holds(need), left)
        if count:
            use(preferred, count)
            left -= count
    roomiest = state.capacity.roomiest(need)
    while left:
        tight = next(filter(allowed, state.capacity.fitting(need.times(left))), None)
        if tight is not None:
            use(tight, left)
            break
        node_id, count = next(((n, c) for n, c in roomiest if allowed(n)), ("", 0))
        if not count:
            return NoFit(
                f"needs room for {spec.size} actors with {describe(need)} each; there is room for {spec.size - left} "
                f"on {count_nodes(len(state.capacity))} that can take work"
            )
        use(node_id, count)
        left -= count
    first = next((at for at, (node_id, _) in enumerate(parts) if has_port(state.nodes[node_id])), None)
    if first is None:
        hosts = (n for n in state.capacity.fitting(need) if has_port(state.nodes[n]) and allows(spec, state.nodes[n]))
        host = next(hosts, None)
        if host is None:
            return NoFit("needs a free port for rank 0; no port is left on the nodes with room")
        return _place_dense(state, replace(spec, preferred_node=host))  # it begins there, and so finds a port
    return Placement((parts[first], *parts[:first], *parts[first + 1 :]))


def never_fits(state: PoolState, spec: GangSpec) -> str:
    """Why the gang does not fit the pool as registered, even with all of it free; empty if it can fit."""
    need = need_of(spec)
    shapes = list(_shapes(state, spec))
    if spec.strict_pack:
        per_node = need.times(spec.actors_per_node)
        fit = sum(count for total, count in shapes if total.holds(per_node))
        if fit < spec.num_nodes:
            return (
                f"needs {count_nodes(spec.num_nodes)} with {describe(per_node, spec.gpu_ids)}; even with everything "
                f"free, {fit} of the {count_nodes(len(state.capacity))} registered qualify"
            )
        return _never_fits_ids(state, spec)
    room = sum(count * total.holds(need) for total, count in shapes)
    if room < spec.size:
        return (
            f"needs room for {spec.size} actors with {describe(need)} each; even with everything free there is room "
            f"for {room} on the {count_nodes(len(state.capacity))} registered"
        )
    return ""


def _shapes(state: PoolState, spec: GangSpec) -> Iterator[tuple[Amount, int]]:
    """The total capacities of the nodes that the gang may use, and how many nodes have each."""
    if not spec.gpu_models:
        return state.capacity.shapes()
    return ((node.total, 1) for node in state.nodes.values() if node.phase == "up" and allows(spec, node))


def _never_fits_ids(state: PoolState, spec: GangSpec) -> str:
    if not spec.gpu_ids:
        return ""
    having = sum(
        set(spec.gpu_ids) <= {gpu.index for gpu in node.spec.gpus if not node.is_unhealthy(gpu.index)}
        for node in state.nodes.values()
        if node.phase == "up"
    )
    if having >= spec.num_nodes:
        return ""
    return f"needs {count_nodes(spec.num_nodes)} with GPUs {list(spec.gpu_ids)}; {having} have GPUs of these ids"


def of_models(spec: GangSpec) -> str:
    """The models that a gang is limited to, in words."""
    return f" of {' or '.join(spec.gpu_models)}" if spec.gpu_models else ""


def allows(spec: GangSpec, node: NodeState) -> bool:
    """Whether the gang may use the node's GPUs, by their model."""
    return not spec.gpu_models or all(gpu.model in spec.gpu_models for gpu in node.spec.gpus)


def _fits(state: PoolState, spec: GangSpec, node_id: str, need: Amount, wanted_gpus: int) -> bool:
    free, node = state.capacity.free(node_id), state.nodes.get(node_id)
    if free is None or node_id in state.capacity.shut or node is None or not free.holds(need):
        return False
    return node.free_gpus & wanted_gpus == wanted_gpus and allows(spec, node)


def has_port(node: NodeState) -> bool:
    """Whether rank 0 can be here. An agent that keeps no ports leaves the choice to rank 0."""
    return node.free_ports != 0 or node.spec.ports.count == 0


def describe(need: Amount, gpu_ids: tuple[int, ...] | None = None) -> str:
    """An amount in words."""
    words = []
    if gpu_ids:
        words.append(f"GPUs {list(gpu_ids)}")
    elif need.gpus:
        words.append(f"{need.gpus} GPU{'s' if need.gpus > 1 else ''}")
    if need.cpu_milli:
        words.append(f"{need.cpu_milli / 1000:g} CPUs")
    if need.memory:
        words.append(f"{need.memory / 2**30:.3g} GiB of memory")
    return ", ".join(words) or "nothing in particular"


def count_nodes(count: int) -> str:
    """A number of nodes in words."""
    return f"{count} node{'' if count == 1 else 's'}"


def _qualify(chosen: list[str], of: int) -> str:
    verb = "qualifies" if len(chosen) == 1 else "qualify"
    names = ": " + ", ".join(chosen[:5]) + (", …" if len(chosen) > 5 else "") if chosen else ""
    return f"{len(chosen)} of {count_nodes(of)} {verb}{names}"
