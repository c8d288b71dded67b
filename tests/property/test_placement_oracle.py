"""Strategies against brute force on small pools: places are found exactly when there are any, and rules always hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.allocator.placement.choose import never_fits, place
from spoke.allocator.placement.pack import NoFit
from spoke.events.model import GangSpec, NodeSpec, PortRange, Resources
from spoke.events.rules import Group, Rules, matches
from spoke.events.state import PoolState
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.builders import MemoryPool, node_spec

RACKS = ("r1", "r2")


@st.composite
def pools(draw: st.DrawFn) -> MemoryPool:
    """Up to five nodes of at most four GPUs, some of whose GPUs are taken."""
    pool = MemoryPool()
    pool.connect()
    for number in range(draw(st.integers(1, 5))):
        spec = node_spec(
            f"n{number}", draw(st.integers(0, 4)), cpus=8, gpu_memory=draw(st.sampled_from([40, 80])) << 30
        )
        labels = {"rack": draw(st.sampled_from(RACKS))} if draw(st.booleans()) else {}
        ports = PortRange(20_000, 1) if draw(st.integers(0, 5)) else PortRange(0, 0)
        pool.register(replace(spec, labels=labels, ports=ports))
    for node_id in sorted(pool.state.nodes):
        taken = draw(st.integers(0, 3))
        exclusive = draw(st.integers(0, 4)) == 0
        if taken:
            rules = Rules(where={}, exclusive=True) if exclusive else None
            spec = GangSpec(1, 1, Resources(gpus=taken), preferred_node=node_id, rules=rules)
            pool.allocate("c", spec)
    return pool


@st.composite
def rules(draw: st.DrawFn) -> Rules | None:
    if draw(st.booleans()):
        return None
    rack = st.sampled_from(RACKS)
    return Rules(
        strategy=draw(st.sampled_from(["pack", "spread", "strict_pack", "strict_spread"])),
        where={"rack": draw(rack)} if draw(st.integers(0, 3)) == 0 else {},
        where_not={"rack": draw(rack)} if draw(st.integers(0, 3)) == 0 else {},
        min_gpu_memory=draw(st.sampled_from([0, 0, 60 << 30])),
        near=draw(st.sampled_from(["", "", "n0"])),
        exclusive=draw(st.integers(0, 3)) == 0,
        same=draw(st.sampled_from(["", "", "rack"])),
        prefer_same=draw(st.sampled_from([None, ""])),
    )


@st.composite
def gangs(draw: st.DrawFn) -> GangSpec:
    """A gang of like members with whole GPUs or none."""
    asked, num_nodes = draw(rules()), draw(st.integers(1, 4))
    strict = draw(st.booleans()) and not (asked is not None and asked.strategy == "strict_pack" and num_nodes > 1)
    return GangSpec(
        num_nodes,
        draw(st.integers(1, 3)),
        Resources(gpus=draw(st.integers(0, 3)), cpus=draw(st.sampled_from([0.0, 1.0, 3.0]))),
        strict_pack=strict,
        rules=asked,
    )


def suitable(node: NodeSpec, spec: GangSpec) -> bool:
    asked = spec.rules or Rules()
    return (
        all(matches(node.labels, key, wanted) for key, wanted in asked.where.items())
        and not any(matches(node.labels, key, unwanted) for key, unwanted in asked.where_not.items())
        and all(gpu.memory >= asked.gpu_memory_min for gpu in node.gpus)
        and (not asked.same or asked.same in node.labels)
    )


def free_of(state: PoolState, spec: GangSpec) -> dict[str, tuple[int, int]]:
    """GPUs and mCPU that the gang may have, by node."""
    asked, found = spec.rules or Rules(), {}
    for node_id, node in state.nodes.items():
        theirs = [state.tickets[t] for t in node.tickets]
        taken = any(t.exclusive for t in theirs) or (asked.exclusive and theirs)
        if suitable(node.spec, spec) and not taken:
            found[node_id] = (node.free_gpus.bit_count(), node.free_cpu_milli)
    return found


def spreads(members: int, nodes: int) -> Iterator[tuple[int, ...]]:
    """All ways to put members on nodes."""
    if nodes == 0:
        if members == 0:
            yield ()
        return
    for here in range(members + 1):
        for rest in spreads(members - here, nodes - 1):
            yield (here, *rest)


def oracle(state: PoolState, spec: GangSpec) -> bool:
    """Whether any way to place the gang keeps all its rules; by trying them all."""
    asked, free = spec.rules or Rules(), free_of(state, spec)
    ids = sorted(free)
    need_gpus, need_cpus = spec.resources.gpu_count, spec.resources.cpu_milli

    def allowed(counts: dict[str, int]) -> bool:
        if any(free[n][0] < c * need_gpus or free[n][1] < c * need_cpus for n, c in counts.items()):
            return False
        if asked.same and len({state.nodes[n].spec.labels[asked.same] for n in counts}) > 1:
            return False
        ports = (state.nodes[n] for n in counts)
        return any(node.free_ports or not node.spec.ports.count for node in ports)

    if spec.strict_pack:
        shapes = [dict.fromkeys(chosen, spec.actors_per_node) for chosen in combinations(ids, spec.num_nodes)]
    else:
        most = {"strict_spread": 1}.get(asked.strategy, spec.size)
        shapes = []
        for counts in spreads(spec.size, len(ids)):
            used = {n: c for n, c in zip(ids, counts, strict=True) if c}
            if max(used.values(), default=0) <= most and not (asked.strategy == "strict_pack" and len(used) > 1):
                shapes.append(used)
    return any(map(allowed, shapes))


@settings(max_examples=400, deadline=None)
@given(pool=pools(), spec=gangs())
def test_places_are_found_exactly_when_there_are_any(pool: MemoryPool, spec: GangSpec) -> None:
    possible = oracle(pool.state, spec)
    found, policy = place(pool.state, spec)
    assert isinstance(found, NoFit) != possible, found
    if possible:
        assert not never_fits(pool.state, spec)
    answer = pool.allocate("c", spec)
    assert isinstance(answer, p.Granted) == possible
    if isinstance(answer, p.Granted):
        check_rules(pool.state, answer, spec)
        assert pool.state.tickets[answer.ticket_id].policy == policy
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def check_rules(state: PoolState, granted: p.Granted, spec: GangSpec) -> None:
    asked = spec.rules or Rules()
    nodes = [state.nodes[slot.node_id] for slot in granted.slots]
    assert all(suitable(node.spec, spec) for node in nodes)
    if asked.same:
        assert len({node.spec.labels[asked.same] for node in nodes}) == 1
    if asked.exclusive:
        assert all(node.tickets == {granted.ticket_id} for node in nodes)
    for node in nodes:
        assert all(not state.tickets[t].exclusive for t in node.tickets if t != granted.ticket_id)


@st.composite
def mixed(draw: st.DrawFn) -> GangSpec:
    names = ["a", "b", "c"][: draw(st.integers(2, 3))]
    groups = tuple(
        Group(
            name,
            draw(st.integers(1, 2)),
            draw(st.integers(1, 2)),
            Resources(gpus=draw(st.sampled_from([0, 1, 2, 0.5])), cpus=draw(st.sampled_from([0.0, 1.0]))),
            strict_pack=draw(st.sampled_from([None, False])),
            where={"rack": "r1"} if draw(st.integers(0, 5)) == 0 else {},
        )
        for name in names
    )
    asked = draw(rules())
    asked = None if asked is None else replace(asked, strategy="pack")
    return GangSpec(sum(g.num_nodes for g in groups), 1, groups=groups, rules=asked)


@settings(max_examples=200, deadline=None)
@given(pool=pools(), spec=mixed())
def test_a_mixed_gang_gets_all_its_groups_or_nothing(pool: MemoryPool, spec: GangSpec) -> None:
    before = sum(node.free_gpus.bit_count() for node in pool.state.nodes.values())
    answer = pool.allocate("c", spec, None)
    if isinstance(answer, p.Granted):
        assert [slot.group for slot in answer.slots] == [g.name for g in spec.groups for _ in range(g.size)]
        assert [slot.global_rank for slot in answer.slots] == list(range(spec.size))
        for group in spec.groups:
            members = [slot for slot in answer.slots if slot.group == group.name]
            assert [slot.rank_in_group for slot in members] == list(range(group.size))
            part = spec.part(group)
            check_rules(pool.state, p.Granted(answer.ticket_id, tuple(members), "", 0), part)
            if group.shaped:
                assert len({slot.node_id for slot in members}) == group.num_nodes
        if spec.rules is not None and spec.rules.same:
            assert len({pool.state.nodes[s.node_id].spec.labels["rack"] for s in answer.slots}) == 1
        pool.ask("c", r.ReleaseGang(answer.ticket_id))
    else:
        assert answer is None
        assert len(pool.state.queue) == 1
    assert sum(node.free_gpus.bit_count() for node in pool.state.nodes.values()) == before
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def mixed_oracle(state: PoolState, spec: GangSpec) -> bool:
    """Whether any way to place all groups beside each other keeps all rules; by trying them all."""
    asked, free = spec.rules or Rules(), free_of(state, spec)
    nodes = [state.nodes[node_id] for node_id in sorted(free)]

    def shapes(part: GangSpec) -> Iterator[tuple[int, ...]]:
        for counts in spreads(part.size, len(nodes)):
            used = [count for count in counts if count]
            whole = not part.strict_pack or (set(used) == {part.actors_per_node} and len(used) == part.num_nodes)
            alone = part.strategy != "strict_spread" or max(used) == 1
            one = part.strategy != "strict_pack" or len(used) == 1
            suited = all(suitable(node.spec, part) for node, count in zip(nodes, counts, strict=True) if count)
            if suited and ((part.strict_pack and whole) or (not part.strict_pack and alone and one)):
                yield counts

    def placed(parts: list[GangSpec], left: list[tuple[int, int]], used: set[int], first: bool) -> bool:
        if not parts:
            return not asked.same or len({nodes[at].spec.labels[asked.same] for at in used}) == 1
        need = parts[0].resources
        for counts in shapes(parts[0]):
            after = [
                (gpus - count * need.gpu_count, cpu - count * need.cpu_milli)
                for (gpus, cpu), count in zip(left, counts, strict=True)
            ]
            here = {at for at, count in enumerate(counts) if count}
            port = not first or any(nodes[at].free_ports or not nodes[at].spec.ports.count for at in here)
            if port and all(min(rest) >= 0 for rest in after) and placed(parts[1:], after, used | here, False):
                return True
        return False

    return placed(list(spec.parts), [free[node.spec.node_id] for node in nodes], set(), True)


@st.composite
def mixed_of_whole_gpus(draw: st.DrawFn) -> GangSpec:
    """Groups that get into each other's way: labels, strategies, sizes that only fit in one order."""
    groups = tuple(
        Group(
            name,
            draw(st.integers(1, 2)),
            draw(st.integers(1, 2)),
            Resources(gpus=draw(st.integers(0, 3)), cpus=draw(st.sampled_from([0.0, 2.0, 5.0]))),
            strategy=draw(st.sampled_from([None, None, "pack", "spread", "strict_spread"])),
            where={"rack": draw(st.sampled_from(RACKS))} if draw(st.integers(0, 2)) == 0 else {},
        )
        for name in ["a", "b", "c"][: draw(st.integers(2, 3))]
    )
    asked = Rules(same=draw(st.sampled_from(["", "rack"])), exclusive=draw(st.integers(0, 4)) == 0)
    return GangSpec(sum(g.num_nodes for g in groups), 1, groups=groups, rules=None if asked == Rules() else asked)


@settings(max_examples=300, deadline=None)
@given(pool=pools(), spec=mixed_of_whole_gpus())
def test_a_mixed_gang_is_placed_exactly_when_it_can_be(pool: MemoryPool, spec: GangSpec) -> None:
    possible = mixed_oracle(pool.state, spec)
    assert isinstance(place(pool.state, spec)[0], NoFit) != possible
    if possible:
        assert not never_fits(pool.state, spec)
    assert isinstance(pool.allocate("c", spec), p.Granted) == possible
    pool.check()


@settings(max_examples=150, deadline=None)
@given(pool=pools(), spec=gangs(), fewer=st.integers(1, 4))
def test_an_elastic_gang_gets_as_many_nodes_as_fit(pool: MemoryPool, spec: GangSpec, fewer: int) -> None:
    least = min(fewer, spec.num_nodes)
    fits = [n for n in range(least, spec.num_nodes + 1) if oracle(pool.state, replace(spec, num_nodes=n))]
    answer = pool.allocate("c", replace(spec, min_nodes=least))
    if not fits:
        assert isinstance(answer, p.Failed)
    else:
        assert isinstance(answer, p.Granted)
        assert len(answer.slots) == max(fits) * spec.actors_per_node
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_a_mixed_gang_is_placed_though_each_group_by_itself_would_take_what_another_one_needs() -> None:
    pool = MemoryPool()
    pool.connect()
    for name in ("n0", "n1"):
        pool.register(node_spec(name, 4, cpus=4))
    needs = {"a": Resources(gpus=2, cpus=1), "b": Resources(gpus=1, cpus=2), "c": Resources(gpus=1, cpus=1)}
    groups = tuple(Group(name, 2, 1, need, strategy="pack") for name, need in needs.items())
    answer = pool.allocate("c", GangSpec(6, 1, groups=groups))  # it fits if each node has one of each, in no other way
    assert isinstance(answer, p.Granted)
    for name in needs:
        assert {slot.node_id for slot in answer.slots if slot.group == name} == {"n0", "n1"}
    pool.check()
