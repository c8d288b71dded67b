"""Which nodes a gang may use, and why not the others: labels, GPU models and memory, exclusive use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spoke.errors import InvalidRequest
from spoke.events.model import GangSpec
from spoke.events.rules import ANY, NO_RULES, Rules, matches
from spoke.events.state import NodeState, PoolState

SEEN_MAX = 10
IN_USE = "in use, and it asks for nodes of its own"
_OUR_OWN_LABELS = frozenset({"log_dir"})


def unsuitable(spec: GangSpec, node: NodeState) -> str:
    """Why a node never serves the gang, however much of it is free; empty if it does."""
    if spec.gpu_models and not all(gpu.model in spec.gpu_models for gpu in node.spec.gpus):
        return other_models(spec)
    rules = spec.rules
    if rules is None:
        return ""
    labels = node.spec.labels
    for key, wanted in rules.where.items():
        if not matches(labels, key, wanted):
            return no_label(key, wanted)
    for key, unwanted in rules.where_not.items():
        if matches(labels, key, unwanted):
            return has_label(key, labels[key])
    if rules.same and rules.same not in labels:
        return f"no label {rules.same}"
    if rules.min_gpu_memory and any(gpu.memory < rules.gpu_memory_min for gpu in node.spec.gpus):
        return less_memory(rules)
    return ""


def other_models(spec: GangSpec) -> str:
    """That a node has GPUs of other models than the gang asks for."""
    return f"GPUs that are not {' or '.join(spec.gpu_models)}"


def no_label(key: str, wanted: str | Sequence[str]) -> str:
    """That a node has no such label."""
    return f"no label {_label(key, wanted)}"


def has_label(key: str, value: str) -> str:
    """That a node has a label that is not wanted."""
    return f"label {key}={value}"


def less_memory(rules: Rules) -> str:
    """That the GPUs of a node have too little memory."""
    return f"GPUs with less than {_gib(rules.gpu_memory_min)}"


def closed(spec: GangSpec, node: NodeState) -> str:
    """Why a suitable node does not serve the gang now, whatever is free on it; empty if it does."""
    if node.phase != "up":
        return f"{node.phase}"
    if not node.confirmed:
        return "not confirmed since the server changed"
    if node.exclusive:
        return f"exclusively {node.exclusive}'s"
    if spec.rules is not None and spec.rules.exclusive and node.tickets:
        return IN_USE
    return ""


def open_nodes(state: PoolState) -> list[NodeState]:
    """All nodes but those that are passed over."""
    shut = state.capacity.shut
    return [node for node_id, node in state.nodes.items() if node_id not in shut]


def ruled_out(state: PoolState, spec: GangSpec) -> str:
    """How many nodes do not serve the gang, by their reasons, in words; empty if all do."""
    return told(Counter(unsuitable(spec, node) or closed(spec, node) for node in state.nodes.values()))


def told(reasons: Counter[str]) -> str:
    """How many nodes do not serve a gang, by their reasons, in words; those with an empty reason do."""
    counted = [(why, count) for why, count in sorted(reasons.items()) if why and count]
    words = "; ".join(f"{count} with {why}" if _is_trait(why) else f"{count} {why}" for why, count in counted)
    return f"ruled out: {words}" if words else ""


def qualifying(names: Sequence[str], count: int, of: str) -> str:
    """How many nodes qualify, the first few by their names."""
    listed = f": {', '.join(names)}{', …' if count > len(names) else ''}" if names else ""
    return f"{count} {of} {'qualifies' if count == 1 else 'qualify'}{listed}"


def nothing_suits(state: PoolState, spec: GangSpec) -> str:
    """Which of the rules no registered node meets, in words; empty if each of them is met by one."""
    rules, nodes = spec.rules or NO_RULES, [node for node in state.nodes.values() if node.phase == "up"]
    for key, wanted in rules.where.items():
        if not any(matches(node.spec.labels, key, wanted) for node in nodes):
            return f"no registered node has label {_label(key, wanted)}; {_seen(nodes, key)}"
    for key, unwanted in rules.where_not.items():
        if nodes and all(matches(node.spec.labels, key, unwanted) for node in nodes):
            return f"every registered node has label {_label(key, unwanted)}, which where_not rules out"
    if rules.same and not any(rules.same in node.spec.labels for node in nodes):
        return (
            f"no registered node has a label {rules.same}, and all nodes must have the same; {_seen(nodes, rules.same)}"
        )
    if rules.gpu_memory_min and (spec.resources.gpu_count or spec.resources.is_share):
        most = max((min(gpu.memory for gpu in node.spec.gpus) for node in nodes if node.spec.gpus), default=0)
        if most < rules.gpu_memory_min:
            return f"no registered node has GPUs with {_gib(rules.gpu_memory_min)} each; the most is {_gib(most)}"
    return ""


def rules_in_words(spec: GangSpec) -> str:
    """What the gang asks of its nodes, as a phrase that begins with a blank; empty if nothing."""
    rules = spec.rules or NO_RULES
    words = []
    if spec.gpu_models:
        words.append(f"GPUs of model {' or '.join(spec.gpu_models)}")
    if rules.gpu_memory_min:
        words.append(f"{_gib(rules.gpu_memory_min)} on each GPU")
    words += [f"label {_label(key, wanted)}" for key, wanted in rules.where.items()]
    words += [f"not label {_label(key, unwanted)}" for key, unwanted in rules.where_not.items()]
    if rules.exclusive:
        words.append("nobody else on them")
    if rules.same:
        words.append(f"all of one {rules.same}")
    return f" ({', '.join(words)})" if words else ""


def check_near(state: PoolState, spec: GangSpec) -> None:
    """Raise InvalidRequest if ``near`` names nothing that is there."""
    near = spec.rules.near if spec.rules is not None else ""
    if near and near not in state.nodes and not neighbours(state, near):
        raise InvalidRequest(
            f"near={near!r} was asked for; there is no node of that name, and no ticket that has its places: see "
            f"`spoke nodes` and `spoke tickets`"
        )


def neighbours(state: PoolState, near: str) -> Sequence[NodeState]:
    """The nodes that ``near`` names: a node, or those of a ticket; none if it is gone."""
    if near in state.nodes:
        return [state.nodes[near]]
    ticket = state.tickets.get(near)
    names = sorted(ticket.held) if ticket is not None else []
    return [state.nodes[name] for name in names if name in state.nodes]


def _is_trait(why: str) -> bool:
    return why.startswith(("no label", "label", "GPUs"))


def _label(key: str, values: str | Sequence[str]) -> str:
    told = [values] if isinstance(values, str) else list(values)
    return f"{key} (any value)" if ANY in told else f"{key}={' or '.join(told)}"


def _seen(nodes: Sequence[NodeState], key: str) -> str:
    values = sorted({node.spec.labels[key] for node in nodes if key in node.spec.labels})
    if values:
        told = [f"{key}={value}" for value in values]
    else:
        told = sorted({f"{k}={v}" for node in nodes for k, v in node.spec.labels.items() if k not in _OUR_OWN_LABELS})
    more = ", …" if len(told) > SEEN_MAX else ""
    return f"labels seen: {', '.join(told[:SEEN_MAX])}{more}" if told else "no labels are there at all"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
