"""Placement against brute force on small pools, and what is kept between decisions against none of it.

``SPOKE_PROPERTY_EXAMPLES`` raises the effort; the default fits into CI.
"""

from __future__ import annotations

import os
from itertools import product

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spoke.allocator.placement.choose import never_fits, place
from spoke.allocator.placement.pack import NoFit, Placement
from spoke.allocator.placement.stranding import POLICY
from spoke.allocator.placement.worth import MICRO, worth_of_rests
from spoke.events import snapshot
from spoke.events.model import GPU_MILLI, GangSpec, Gpu, NodeSpec, PortRange, Resources
from spoke.events.state import NodeState, PoolState, need_of
from spoke.protocol import requests as r
from tests.builders import MemoryPool

EXAMPLES = int(os.environ.get("SPOKE_PROPERTY_EXAMPLES", "300"))
MODELS = ("A100", "H100")
pool_settings = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def node_specs(draw: st.DrawFn, node_id: str) -> NodeSpec:
    model, memory = draw(st.sampled_from([("A100", 40), ("H100", 80), ("H100", 80)]))
    gpus = tuple(Gpu(i, f"{node_id}-{i}", model, memory << 30) for i in range(draw(st.integers(0, 3))))
    ports = PortRange(20_000, draw(st.sampled_from([0, 1, 2])))
    cpus, gib = draw(st.sampled_from([2, 4, 64])), draw(st.sampled_from([4, 64]))
    return NodeSpec(node_id, node_id, "127.0.0.1", "m", gpus, 1000 * cpus, gib << 30, ports)


@st.composite
def resources(draw: st.DrawFn) -> Resources:
    gpus: float = draw(st.sampled_from([0, 1, 1, 2, 0.2, 0.3, 0.5, 0.7, 0.81]))
    memory = draw(st.sampled_from([0, "10GiB", "40GiB"])) if gpus in (0, 0.3) else 0
    return Resources(gpus, draw(st.sampled_from([0, 0.5, 1, 2])), draw(st.sampled_from([0, "1GiB"])), memory)


@st.composite
def gangs(draw: st.DrawFn) -> GangSpec:
    return GangSpec(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(resources()),
        strict_pack=draw(st.booleans()),
        preferred_node=draw(st.sampled_from([None, None, "n1", "gone"])),
        gpu_models=draw(st.sampled_from([(), (), ("A100",), MODELS])),
    )


@st.composite
def pools(draw: st.DrawFn) -> MemoryPool:
    """Up to four nodes, on which gangs have come and gone."""
    pool = MemoryPool()
    for number in range(draw(st.integers(1, 4))):
        pool.register(draw(node_specs(f"n{number}")))
    pool.connect()
    for spec in draw(st.lists(gangs(), max_size=6)):
        pool.allocate("c", spec)
    for ticket_id in draw(st.lists(st.sampled_from(sorted(pool.state.tickets) or ["t-1"]), max_size=3, unique=True)):
        pool.ask("c", r.ReleaseGang(ticket_id))
    return pool


def holds(node: NodeState, spec: GangSpec, count: int) -> bool:
    """Whether so many members go on the node: tries every GPU for each in turn."""
    need = need_of(spec)
    if node.free_cpu_milli < count * need.cpu_milli or node.free_memory < count * need.memory:
        return False
    if spec.gpu_models and any(gpu.model not in spec.gpu_models for gpu in node.spec.gpus):
        return False
    if not spec.resources.is_share:
        return node.free_gpus.bit_count() >= count * need.gpus

    def go(rests: list[int], left: int) -> bool:
        if not left:
            return True
        for at, gpu in enumerate(node.spec.gpus):
            share = spec.resources.share_of(gpu.memory)
            if share and rests[at] >= share and go([*rests[:at], rests[at] - share, *rests[at + 1 :]], left - 1):
                return True
        return False

    return go([node.free_milli(gpu.index) for gpu in node.spec.gpus], count)


def can_be_placed(state: PoolState, spec: GangSpec) -> bool:
    """By trying every number of members on every node."""
    nodes = [node for node in state.nodes.values() if node.phase == "up" and node.confirmed]
    per_node = range(spec.size + 1) if not spec.strict_pack else (0, spec.actors_per_node)
    for counts in product(per_node, repeat=len(nodes)):
        if sum(counts) == spec.size:
            used = [(node, count) for node, count in zip(nodes, counts, strict=True) if count]
            if all(holds(node, spec, count) for node, count in used) and any(
                node.free_ports or not node.spec.ports.count for node, _ in used
            ):
                return True
    return False


@pool_settings
@given(pool=pools(), spec=gangs())
def test_a_gang_is_placed_exactly_when_it_can_be(pool: MemoryPool, spec: GangSpec) -> None:
    found, _ = place(pool.state, spec)
    assert isinstance(found, Placement) == can_be_placed(pool.state, spec), found
    if isinstance(found, Placement):
        assert sum(count for _, count in found.parts) == spec.size
        assert never_fits(pool.state, spec) == ""
        pool.allocate("c", spec)
        assert pool.state.tickets, "what was placed could be granted"
    pool.check()


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, object]]:
    """A history: gangs, releases, nodes that are lost, come, or come back as other ones."""
    one = st.one_of(
        st.tuples(st.just("allocate"), gangs()),
        st.tuples(st.just("allocate"), gangs()),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("lose"), st.integers(0, 5)),
        st.integers(0, 5).flatmap(lambda n: st.tuples(st.just("register"), node_specs(f"n{n}"))),
    )
    return draw(st.lists(one, min_size=5, max_size=40))


@pool_settings
@given(history=steps(), shapes=st.lists(gangs(), min_size=1, max_size=4))
def test_what_is_kept_between_decisions_changes_none(history: list[tuple[str, object]], shapes: list[GangSpec]) -> None:
    """At every moment a state that has decided all along, and one just read from a snapshot, say the same."""
    pool = MemoryPool()
    pool.connect()
    for what, value in [*history, ("end", None)]:
        fresh = snapshot.copy(pool.state)
        for spec in shapes:
            assert place(pool.state, spec) == place(fresh, spec)
            assert never_fits(pool.state, spec) == never_fits(fresh, spec)
        if isinstance(value, GangSpec):
            assert place(pool.state, value) == place(fresh, value)
            pool.allocate("c", value)
        elif isinstance(value, NodeSpec):
            known = pool.state.nodes.get(value.node_id)
            if known is None or known.phase == "lost":
                pool.register(value)
        elif what == "release":
            pool.ask("c", r.ReleaseGang(f"t-{value}"))
        elif what == "lose" and f"n{value}" in pool.agents and pool.state.nodes[f"n{value}"].phase == "up":
            pool.expire_node(f"n{value}")
    pool.check()


def price_by_hand(state: PoolState, node: NodeState) -> int:
    """What a GPU there is worth to gangs that name models, as ``scarcity`` describes it; millionths of a GPU."""

    def free_of(allowed: set[str]) -> int:
        return sum(one.free_gpu_milli for one in usable if models_of(one) <= allowed)

    def models_of(one: NodeState) -> set[str]:
        return {gpu.model for gpu in one.spec.gpus}

    usable = [one for node_id, one in state.nodes.items() if state.capacity.free(node_id) is not None]
    total, own = sum(one.free_gpu_milli for one in usable), models_of(node)
    wanted = [(set(models), part) for models, part in state.demand.usual.models if own and own <= set(models)]
    return min(MICRO, sum(total * part // free for allowed, part in wanted if (free := free_of(allowed))))


def by_hand(state: PoolState, spec: GangSpec) -> str:
    """The node that loses the least, one after the other, as ``stranding`` describes it; empty if none fits."""
    need, usual, worth = need_of(spec), state.demand.usual, worth_of_rests(state.demand.usual.shares)
    found = []
    for node in state.nodes.values():
        if not holds(node, spec, 1) or node.phase != "up" or not (node.free_ports or not node.spec.ports.count):
            continue
        rests = [node.free_milli(gpu.index) for gpu in node.spec.gpus]
        cut, taken = 0, need.gpus * GPU_MILLI
        if spec.resources.is_share:
            shares = [spec.resources.share_of(gpu.memory) for gpu in node.spec.gpus]
            cut, _, taken = min(
                (int(worth[rest] - worth[rest - share]), at, share)
                for at, (rest, share) in enumerate(zip(rests, shares, strict=True))
                if 0 < share <= rest
            )
        free, whole = sum(rests), node.free_gpus.bit_count()

        def stranded(free: int, cpu: int, memory: int) -> int:
            enough = [
                amount * GPU_MILLI // per_gpu
                for amount, per_gpu in ((cpu, usual.cpu_milli), (memory, usual.memory_mib))
                if per_gpu
            ]
            return max(0, free - min(enough, default=free))

        cpu, memory = node.free_cpu_milli, node.free_memory >> 20
        more = stranded(free - taken, cpu - need.cpu_milli, memory - (need.memory >> 20)) - stranded(free, cpu, memory)
        cost = cut + 1000 * more + (1000 * whole if taken else free)
        if spec.resources.gpu_memory:  # a share of the node's first GPU stands for all of them
            taken = shares[0]
        cost += price_by_hand(state, node) * taken // GPU_MILLI
        found.append((cost, cpu, node.spec.node_id))
    return min(found)[2] if found else ""


@pool_settings
@given(pool=pools(), need=resources())
def test_a_single_member_goes_where_the_least_is_lost(pool: MemoryPool, need: Resources) -> None:
    spec = GangSpec(1, 1, need)
    found, policy = place(pool.state, spec)
    if policy == POLICY:
        expected = by_hand(pool.state, spec)
        assert (found.parts[0][0] if isinstance(found, Placement) else "") == expected
    else:
        assert not pool.state.demand.shares_granted or isinstance(found, NoFit)
