"""A plan over columns is the plan that comes of looking at every node, in whatever way the pool came to be as it is."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.allocator.placement.assign import assign
from spoke.allocator.placement.choose import place
from spoke.allocator.placement.pack import Placement, allows
from spoke.allocator.queue import reserve
from spoke.allocator.queue.backfill import FOR_EVER_MS, Plan
from spoke.allocator.queue.timeline import NEVER, Timeline, timeline_of
from spoke.events.model import GangSpec
from spoke.events.queueing import QueuePolicy
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec

EXAMPLES = int(os.environ.get("SPOKE_PROPERTY_EXAMPLES", "400")) // 4
some = settings(max_examples=max(10, EXAMPLES), deadline=None)


class ByHand:
    """A plan that looks at every node, one after the other."""

    def __init__(self, pool: MemoryPool, more: Any) -> None:
        self.state, self.now_ms = pool.state, pool.now_ms
        self.lines = [
            timeline_of(self.state, node, self.now_ms, more)
            for node in self.state.nodes.values()
            if node.phase == "up" and node.confirmed and not node.exclusive
        ]

    def add(self, spec: GangSpec) -> tuple[int, dict[str, int]]:
        usable = [line for line in self.lines if allows(spec, line.node)]
        start_ms, parts = (self.strict if spec.strict_pack else self.dense)(spec, usable)
        for line, count in parts:
            line.claim(start_ms, spec, count)
        return start_ms, {line.node.spec.node_id: count for line, count in parts}

    def strict(self, spec: GangSpec, usable: list[Timeline]) -> tuple[int, list[tuple[Timeline, int]]]:
        length_ms, count = spec.terms.length_ms or FOR_EVER_MS, spec.actors_per_node
        found = []
        for line in usable:
            at_ms = line.earliest(spec, count, length_ms, self.now_ms)
            if at_ms is not None:
                node_id = line.node.spec.node_id
                at_ms = min(NEVER, reserve.opens_ms(self.state, node_id, at_ms, length_ms))
                found.append((at_ms, line.youngest, node_id, line))
        if len(found) < spec.num_nodes:
            return NEVER, []
        chosen = sorted(found, key=lambda one: one[:3])[: spec.num_nodes]
        return chosen[-1][0], [(line, count) for *_, line in chosen]

    def dense(self, spec: GangSpec, usable: list[Timeline]) -> tuple[int, list[tuple[Timeline, int]]]:
        length_ms = spec.terms.length_ms or FOR_EVER_MS
        times = {max(time_ms, self.now_ms) for line in usable for time_ms, _ in line.steps}
        times.update(one.end_ms for one in self.state.queueing.reservations.values() if one.end_ms > self.now_ms)
        for at_ms in sorted(times):
            rooms = []
            for line in usable:
                node_id = line.node.spec.node_id
                claimed = any(claim.start_ms < at_ms + length_ms for claim in line.claims)
                if not claimed and reserve.opens_ms(self.state, node_id, at_ms, length_ms) <= at_ms:
                    room = line.room(at_ms, spec, spec.size)
                    if room:
                        rooms.append((-room, line.youngest, node_id, line))
            if -sum(room for room, *_ in rooms) >= spec.size:
                parts, left = [], spec.size
                for room, _, _, line in sorted(rooms, key=lambda one: one[:3]):
                    parts.append((line, min(left, -room)))
                    left -= parts[-1][1]
                    if not left:
                        break
                return at_ms, parts
        return NEVER, []


lengths = st.sampled_from([0, 0, 1_000, 5_000, 20_000])
specs = st.one_of(
    st.builds(
        lambda nodes, actors, gpus, cpus, strict, ms: gang(
            nodes, actors, gpus, cpus=cpus, strict_pack=strict, terms=Terms(expected_ms=ms, preemptible=ms == 1_000)
        ),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([0, 1, 2, 0.25, 0.6]),
        st.sampled_from([0, 4, 20]),
        st.booleans(),
        lengths,
    ),
    st.builds(lambda ms: gang(1, 2, 0, gpu_memory="10GiB", terms=Terms(expected_ms=ms)), lengths),
    st.builds(lambda ms: gang(2, 1, 2, gpu_ids=(0, 2), terms=Terms(expected_ms=ms)), lengths),
    st.builds(lambda ms: gang(2, 1, 1, gpu_models=("H100",), terms=Terms(expected_ms=ms)), lengths),
)
steps = st.one_of(
    st.tuples(st.just("allocate"), specs),
    st.tuples(st.just("allocate"), specs),
    st.tuples(st.just("pass"), st.sampled_from([1_000, 5_000, 20_000])),
    st.tuples(st.just("launch"), st.integers(0, 9)),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("deliver"), st.integers(0, 4)),
    st.tuples(st.just("cordon"), st.integers(0, 4)),
    st.tuples(st.just("uncordon"), st.integers(0, 4)),
    st.tuples(st.just("leave"), st.integers(0, 4)),
    st.tuples(st.just("join"), st.integers(0, 9)),
    st.tuples(st.just("reserve"), st.integers(0, 9_000)),
    st.tuples(st.just("urgent"), st.integers(1, 2)),
    st.tuples(st.just("pass"), st.integers(1, 8_000)),
)


def take(pool: MemoryPool, what: str, arg: Any) -> None:
    """One step of a pool's history."""
    ids = sorted(t for t, ticket in pool.state.tickets.items() if ticket.phase in ("allocated", "active"))
    names = sorted(pool.agents)
    name = names[arg % len(names)] if isinstance(arg, int) else ""
    match what:
        case "allocate":
            pool.allocate("c", arg, None)
        case "urgent":
            pool.allocate("c", gang(arg, 1, 3, terms=Terms(priority=9, expected_ms=3_000)), 60_000)
        case "launch" if ids:
            pool.launch("c", ids[arg % len(ids)], (0,))
        case "release" if ids:
            pool.ask("c", r.ReleaseGang(ids[arg % len(ids)]))
        case "deliver":
            pool.deliver(pool.agents[name])
        case "cordon":
            pool.ask("c", r.CordonNode(name))
        case "uncordon":
            pool.ask("c", r.UncordonNode(name))
        case "leave":
            pool.ask("c", r.RemoveNode(name))
        case "join":
            pool.register(
                node_spec(f"n{arg}", 2 + arg, cpus=16 + 8 * (arg % 3), gpu_memory=(40 + 40 * (arg % 2)) << 30)
            )
        case "reserve":
            pool.ask("c", r.CreateReservation(1, 1, 4_000, pool.now_ms + arg))
        case "pass":
            pool.pass_time(arg)


@some
@given(history=st.lists(steps, min_size=5, max_size=25), planned=st.lists(specs, min_size=1, max_size=6), granted=specs)
def test_a_plan_is_that_of_looking_at_every_node(history: Any, planned: Any, granted: Any) -> None:
    pool = MemoryPool()
    for number in range(4):
        pool.register(node_spec(f"n{number}", 2 + number, cpus=32))
    pool.connect()
    pool.ask("c", r.SetQueuePolicy(QueuePolicy("priority", notice_ms=2_000)))
    for what, arg in history:
        take(pool, what, arg)
        check(pool, planned, None)
    found, _ = place(pool.state, granted)
    if isinstance(found, Placement):
        length_ms = granted.terms.length_ms
        end_ms = pool.now_ms + length_ms if length_ms else NEVER
        check(pool, planned, (granted, assign(pool.state, granted, found).slots, end_ms))


def check(pool: MemoryPool, planned: list[GangSpec], more: Any) -> None:
    """Compare the plans of these gangs, as if they waited in this order."""
    plan, by_hand = Plan(pool.state, pool.now_ms, more), ByHand(pool, more)
    for spec in planned:
        start_ms, parts = (plan._strict if spec.strict_pack else plan._dense)(spec)
        for node_id, count in parts:
            plan._line(node_id).claim(start_ms, spec, count)
        assert (start_ms, dict(parts)) == by_hand.add(spec), spec
