"""What is found over columns is what looking at every node finds: the same nodes, in the same order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st

from spoke.allocator.placement import general, reasons, screen
from spoke.events.model import GangSpec, PortRange, Resources
from spoke.events.rules import Group, Rules
from spoke.protocol import requests as r
from tests.builders import MemoryPool, node_spec

LABELS = {"rack": ("r1", "r2", "r3", ""), "block": ("b1", "b2"), "zone": ("z1", "z2"), "disk": ("ssd", "hdd")}
MODELS = ("A", "B")


@st.composite
def pools(draw: st.DrawFn) -> MemoryPool:
    """Up to fourteen nodes in racks and blocks, unlike each other, partly used, some without a port left."""
    pool = MemoryPool()
    pool.connect()
    for number in range(draw(st.integers(1, 14))):
        spec = node_spec(
            f"n{number}", draw(st.sampled_from([0, 2, 4, 4])), cpus=draw(st.sampled_from([8, 8, 16])),
            gpu_memory=draw(st.sampled_from([40, 80])) << 30,
        )  # fmt: skip
        model = draw(st.sampled_from(MODELS))
        labels = {key: draw(st.sampled_from(values)) for key, values in LABELS.items() if draw(st.integers(0, 3))}
        ports = PortRange(20_000, draw(st.sampled_from([0, 1, 2])))
        gpus = tuple(replace(gpu, model=model) for gpu in spec.gpus)
        pool.register(replace(spec, labels=labels, ports=ports, gpus=gpus))
    for node_id in sorted(pool.state.nodes):
        for _ in range(draw(st.integers(0, 2))):
            need = Resources(gpus=draw(st.sampled_from([0, 1, 2, 0.5])), cpus=draw(st.sampled_from([0.0, 1.0])))
            rules = Rules(exclusive=True) if draw(st.integers(0, 9)) == 0 else None
            pool.allocate("c", GangSpec(1, 1, need, preferred_node=node_id, rules=rules))
    if draw(st.integers(0, 4)) == 0:
        pool.ask("c", r.CordonNode("n0"))
    return pool


@st.composite
def gangs(draw: st.DrawFn) -> GangSpec:
    """A gang of like members with whole GPUs or none, and many rules."""
    rare, rack = st.integers(0, 4).map(lambda n: n == 0), st.sampled_from(LABELS["rack"])
    rules = None
    if draw(st.integers(0, 3)):
        same = draw(st.sampled_from(["", "", "rack", "block", "disk"]))
        rules = Rules(
            strategy=draw(st.sampled_from(["pack", "pack", "spread", "strict_pack", "strict_spread"])),
            where={"rack": draw(st.sampled_from([["r1", "r2"], ["*"], ["r3", ""]]))} if draw(rare) else {},
            where_not={"rack": draw(rack)} if draw(rare) else {},
            min_gpu_memory=draw(st.sampled_from([0, 0, 0, 60 << 30])),
            near=draw(st.sampled_from(["", "", "n0", "n3", "t-2"])),
            exclusive=draw(rare),
            same=same,
            prefer_same=None if same else draw(st.sampled_from([None, None, "", "block"])),
        )
    nodes = draw(st.integers(1, 5))
    strict = draw(st.booleans()) and not (rules is not None and rules.strategy == "strict_pack" and nodes > 1)
    return GangSpec(
        nodes,
        draw(st.integers(1, 3)),
        Resources(gpus=draw(st.sampled_from([0, 1, 1, 2])), cpus=draw(st.sampled_from([0.0, 1.0, 3.0]))),
        strict_pack=strict,
        gpu_models=draw(st.sampled_from([(), (), ("A",), ("A", "B")])),
        preferred_node=draw(st.sampled_from([None, None, "n0", "n5"])),
        rules=rules,
    )


@settings(max_examples=1_500, deadline=None)
@given(pool=pools(), asked=st.lists(gangs(), min_size=1, max_size=6))
def test_the_same_nodes_are_found_in_the_same_order(pool: MemoryPool, asked: list[GangSpec]) -> None:
    for spec in asked:
        assert screen.applies(spec)
        assert reasons.why_not(pool.state, spec) == general.why_not_of_all(pool.state, spec)
        whole = general.look_at_all(pool.state, spec)
        places = screen.find(pool.state, spec)
        event("placed" if places is not None else "no places")
        found = None if places is None else [(node.spec.node_id, count) for node, count in places]
        expected = None if whole is None else [(node.spec.node_id, count) for node, count in whole[0][1]]
        assert found == expected
        pool.allocate("c", spec)  # so that the table must follow


@st.composite
def mixed(draw: st.DrawFn) -> GangSpec:
    """A gang of two or three groups, with rules of its own and of its groups."""
    rules = draw(gangs()).rules
    whole = None if rules is None else replace(rules, strategy="pack", where={})
    parts = []
    for number in range(draw(st.integers(2, 3))):
        gpus, gpu_memory = draw(st.sampled_from([(0, 0), (1, 0), (2, 0), (0.5, 0), (0, 10 << 30)]))
        need = Resources(gpus=gpus, gpu_memory=gpu_memory, cpus=draw(st.sampled_from([0.0, 2.0])))
        where = draw(st.sampled_from([{}, {}, {"disk": ["ssd"]}]))
        parts.append(Group(f"g{number}", draw(st.integers(1, 2)), draw(st.integers(1, 2)), need, where=where))
    return GangSpec(sum(part.num_nodes for part in parts), 1, groups=tuple(parts), rules=whole)


@settings(max_examples=600, deadline=None)
@given(pool=pools(), asked=st.lists(mixed(), min_size=1, max_size=4))
def test_mixed_gangs_get_the_same_places(pool: MemoryPool, asked: list[GangSpec]) -> None:
    for spec in asked:
        found = general.look_where_it_can_be(pool.state, spec)
        event("placed" if found is not None else "no places")
        assert found == general.look_at_all(pool.state, spec)
        pool.allocate("c", spec)
