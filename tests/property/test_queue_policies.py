"""What the queue promises, in random pools: fair shares, no starvation, preemption, quotas, reservations.

Tickets live in simulated time: each ends when it truly ends, which is what it expected, earlier, or (where it said
nothing) anything up to D.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.allocator.placement.choose import place
from spoke.allocator.placement.pack import NoFit
from spoke.allocator.queue.backfill import Plan
from spoke.allocator.queue.grant import without
from spoke.allocator.queue.order import in_order
from spoke.events import types as e
from spoke.events.queueing import QueuePolicy, Quota, amounts_of
from spoke.events.snapshot import copy
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec

EXAMPLES = int(os.environ.get("SPOKE_PROPERTY_EXAMPLES", "400")) // 16
E_MS, D_MS = 20_000, 30_000
few = settings(max_examples=max(5, EXAMPLES), deadline=None)


@dataclass
class Load:
    """A pool whose tickets end by themselves, in simulated time."""

    pool: MemoryPool
    lengths: dict[str, int] = field(default_factory=dict)
    ends: list[tuple[int, str]] = field(default_factory=list)
    seen: int = 0

    def ask(self, shape: tuple[int, int], length_ms: int, client: str = "c", **terms: Any) -> str:
        """Ask for nodes x GPUs; the ticket will truly take ``length_ms``."""
        ticket_id = f"t-{self.pool.state.next_ticket}"
        self.lengths[ticket_id] = length_ms
        self.pool.allocate(client, gang(shape[0], 1, shape[1], terms=Terms(**terms)), None)
        self._note()
        return ticket_id

    def run_to(self, at_ms: int) -> None:
        """Let time pass, and tickets end."""
        while self.ends and self.ends[0][0] <= at_ms:
            end_ms, ticket_id = heapq.heappop(self.ends)
            self.pool.now_ms = max(self.pool.now_ms, end_ms)
            if ticket_id in self.pool.state.tickets:
                self.pool.ask(self.pool.state.tickets[ticket_id].client_id, r.ReleaseGang(ticket_id))
            self._note()
        self.pool.pass_time(max(0, at_ms - self.pool.now_ms))
        self._note()

    def runs(self, ticket_id: str) -> bool:
        ticket = self.pool.state.tickets.get(ticket_id)
        return ticket is not None and ticket.phase in ("allocated", "active")

    def _note(self) -> None:
        for recorded in self.pool.log[self.seen :]:
            if isinstance(recorded.event, e.GangAllocated):
                ticket_id = recorded.event.ticket_id
                heapq.heappush(self.ends, (recorded.ms + self.lengths.get(ticket_id, 1_000), ticket_id))
        self.seen = len(self.pool.log)


def load_of(nodes: list[int], clients: tuple[str, ...] = ("c",), **policy: Any) -> Load:
    pool = MemoryPool()
    for number, gpus in enumerate(nodes):
        pool.register(node_spec(f"n{number}", gpus))
    for client in clients:
        pool.ask(client, r.ConnectClient(10_000, user=client))
    pool.ask(clients[0], r.SetQueuePolicy(QueuePolicy(**policy)))
    return Load(pool)


small = st.tuples(st.integers(1, 2), st.integers(1, 2))
times = st.tuples(st.booleans(), st.integers(1_000, E_MS), st.integers(1_000, D_MS), st.integers(0, 4_000))


@few
@given(
    nodes=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    before=st.lists(st.tuples(small, times), max_size=8),
    stream=st.lists(st.tuples(small, times), min_size=10, max_size=30),
    dense=st.booleans(),
)
def test_a_large_gang_that_is_first_starts_within_d_plus_e(nodes: Any, before: Any, stream: Any, dense: bool) -> None:
    """However many small ones arrive behind it, and whatever they say of themselves."""
    load = load_of(nodes, order="fifo")

    def small_one(one: Any) -> None:
        shape, (says, expected, length, _) = one
        load.ask(shape, min(length, expected) if says else length, expected_ms=expected if says else 0)

    for one in before:
        small_one(one)
        load.run_to(load.pool.now_ms + one[1][3])
    while load.pool.state.queue:
        load.run_to(load.pool.now_ms + 1_000)
    begun_ms = load.pool.now_ms
    size = sum(nodes) if dense else len(nodes)
    large = f"t-{load.pool.state.next_ticket}"
    load.lengths[large] = 1_000
    spec = gang(1, size, 1, strict_pack=False) if dense else gang(size, 1, min(nodes))
    load.pool.allocate("c", spec, None)
    at = 0
    granted = [load.runs(large)]
    while not granted[-1]:
        waited_ms = load.pool.now_ms - begun_ms
        assert waited_ms <= D_MS + E_MS + 10_000, f"it waits for {waited_ms} ms"
        one = stream[at % len(stream)]
        at += 1
        small_one(one)
        load.run_to(load.pool.now_ms + max(500, one[1][3]))
        granted.append(any(getattr(x.event, "slots", ()) and x.event.ticket_id == large for x in load.pool.log))  # type: ignore[attr-defined]


@few
@given(
    nodes=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    asked=st.lists(st.tuples(st.tuples(st.integers(1, 3), st.integers(1, 4)), times), min_size=5, max_size=25),
)
def test_a_gang_that_overtakes_moves_no_planned_start(nodes: Any, asked: Any) -> None:
    load = load_of(nodes, order="fifo")
    pool = load.pool
    record = pool.record

    def starts(ids: list[str], now_ms: int) -> dict[str, int]:
        plan = Plan(pool.state, now_ms)
        return {t: plan.add(pool.state.tickets[t]) for t in ids}

    def watched(events: list[e.Event], blobs: Any = None) -> None:
        event = events[0] if events else None
        if isinstance(event, e.GangAllocated) and "backfill" in event.order:
            waiting = [one.ticket.ticket_id for one in in_order(pool.state, pool.now_ms)]
            granted = [one.ticket_id for one in events if isinstance(one, e.GangAllocated)]
            ahead = [t for t in waiting[: waiting.index(granted[-1])] if t not in granted]
            now_ms, before = pool.now_ms, starts(ahead, pool.now_ms)
            record(events, blobs)
            after = starts(ahead, now_ms)  # at the same time: recording takes some, and may make a ticket overdue
            for one in granted:
                passed = [t for t in waiting[: waiting.index(one)] if t not in granted]
                assert all(after[t] <= before[t] + 2 for t in passed), f"{granted} moves {before} to {after}"
        else:
            record(events, blobs)

    pool.record = watched  # type: ignore[method-assign]
    for shape, (says, expected, length, pause) in asked:
        load.ask(shape, min(length, expected) if says else length, expected_ms=expected if says else 0)
        load.run_to(pool.now_ms + pause)
    load.run_to(pool.now_ms + 20 * D_MS)
    assert not [t for t in pool.state.queue if t not in pool.state.waiting.aside]


@few
@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    sizes=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    half_life_ms=st.sampled_from([5_000, 60_000]),
)
def test_under_saturation_shares_converge_to_the_weights(
    weights: list[int], sizes: list[int], half_life_ms: int
) -> None:
    names = tuple(f"p{number}" for number in range(len(weights)))
    load = load_of([8, 8], names, order="fair", half_life_ms=half_life_ms, backfill=False)
    for name, weight in zip(names, weights, strict=True):
        load.pool.ask(names[0], r.SetQuota(Quota(name, weight=weight)))
    used: Counter[str] = Counter()
    for step in range(100):
        for name, size in zip(names, sizes, strict=False):
            waiting = sum(load.pool.state.tickets[t].project == name for t in load.pool.state.queue)
            for _ in range(max(0, 16 - waiting)):
                load.ask((1, size), 3_000 + 700 * (step % 5), name)
        load.run_to(load.pool.now_ms + 700)
        if step >= 40:
            used.update({name: load.pool.state.queueing.held(name)[0] for name in names})
    total, parts = sum(used.values()), sum(weights)
    for name, weight in zip(names, weights, strict=True):
        assert abs(used[name] / total - weight / parts) < 0.03 + max(sizes) / 32, (weights, used)  # half a gang


tickets = st.lists(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 3), st.booleans(), st.integers(0, 9_000)),
    min_size=1,
    max_size=7,
)


@few
@given(
    nodes=st.lists(st.integers(2, 4), min_size=1, max_size=3), held=tickets, wants=st.tuples(small, st.integers(1, 4))
)
def test_preemption_takes_the_cheapest_set_and_never_of_equal_priority(nodes: Any, held: Any, wants: Any) -> None:
    load = load_of(nodes, backfill=False)
    pool = load.pool
    for count, gpus, priority, preemptible, pause in held:
        pool.allocate("c", gang(count, 1, gpus, terms=Terms(priority=priority, preemptible=preemptible)), 0)
        pool.now_ms += pause
    before = len(pool.log)
    (count, gpus), priority = wants
    spec = gang(count, 1, gpus, terms=Terms(priority=priority))
    state = copy(pool.state)
    pool.allocate("c", spec, None)
    notices = [x.event for x in pool.log[before:] if isinstance(x.event, e.TicketPreempting)]
    chosen = {event.ticket_id for event in notices}
    may = [t for t, one in state.tickets.items() if one.spec.terms.preemptible and one.spec.terms.priority < priority]
    assert chosen <= set(may)

    def fits(gone: Any) -> bool:
        with without(state, [state.tickets[t] for t in gone]):
            return not isinstance(place(state, spec)[0], NoFit)

    enough = [set(s) for size in range(len(may) + 1) for s in combinations(may, size) if fits(s)]
    if not chosen:
        assert not enough or set() in enough
        return
    assert chosen in enough
    assert all(not fits(chosen - {one}) for one in chosen), "more than needed"

    def cost(those: set[str]) -> tuple[int, int]:
        found = [state.tickets[t] for t in those]
        now_ms = notices[0].deadline_ms - pool.state.queueing.policy.notice_ms
        work = sum((1 + amounts_of(t.spec, t.slots)[0]) * (1 + now_ms - t.granted_ms) for t in found)
        lowest = min(state.tickets[t].spec.terms.priority for t in state.preemptible)
        return sum(t.spec.terms.priority - lowest for t in found), work

    assert cost(chosen) == min(cost(s) for s in enough)
    assert fits(()) is False


@few
@given(
    limits=st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans()),
    asked=st.lists(
        st.tuples(st.sampled_from("ab"), st.tuples(st.integers(1, 2), st.integers(1, 3)), st.booleans(), times),
        min_size=5,
        max_size=30,
    ),
    order=st.sampled_from(["fifo", "priority", "fair"]),
)
def test_quotas_are_exceeded_by_borrowing_only_and_their_owner_gets_them_back(
    limits: Any, asked: Any, order: Any
) -> None:
    load = load_of([4, 4], ("a", "b"), order=order, notice_ms=1_000)
    pool = load.pool
    quotas = {"a": Quota("a", limits[0] * 1000, borrow=limits[2]), "b": Quota("b", limits[1] * 1000, borrow=limits[3])}
    for quota in quotas.values():
        pool.ask("a", r.SetQuota(quota))

    def check() -> None:
        for name, quota in quotas.items():
            held = pool.state.queueing.held(name)
            live = [t for t in pool.state.tickets.values() if t.project == name and t.slots]
            assert held[0] == sum(amounts_of(t.spec, t.slots)[0] for t in live)
            right = sum(amounts_of(t.spec, t.slots)[0] for t in live if not t.borrowed)
            assert right <= (quota.gpu_milli or 0)
            assert quota.borrow or not quota.exceeded(held)

    for name, shape, _, (says, expected, length, pause) in asked:
        load.ask(shape, min(length, expected) if says else length, name, expected_ms=expected if says else 0)
        check()
        load.run_to(pool.now_ms + pause)
        check()
    pool.check_replay(len(pool.log) // 2)


@few
@given(
    windows=st.lists(
        st.tuples(st.integers(1, 2), st.integers(0, 60_000), st.integers(2_000, 60_000)), min_size=1, max_size=3
    ),
    asked=st.lists(st.tuples(small, times, st.booleans()), min_size=5, max_size=25),
)
def test_reservations_are_honoured(windows: Any, asked: Any) -> None:
    load = load_of([4, 4, 4])
    pool = load.pool
    for count, after, length in windows:
        pool.ask("c", r.CreateReservation(count, 4, length, pool.now_ms + after))
    made = dict(pool.state.queueing.reservations)
    for shape, (says, expected, length, pause), wants in asked:
        names = sorted(pool.state.queueing.reservations)
        name = names[0] if wants and names else ""
        load.ask(
            shape,
            min(length, expected) if says else length,
            expected_ms=expected if says else 0,
            reservation=name,
        )
        load.run_to(pool.now_ms + pause)
    load.run_to(pool.now_ms + 20 * D_MS)
    lengths = {x.event.ticket_id: x.event.spec.terms for x in pool.log if isinstance(x.event, e.GangAllocated)}
    for recorded in pool.log:
        if not isinstance(recorded.event, e.GangAllocated):
            continue
        terms = lengths[recorded.event.ticket_id]
        nodes = {slot.node_id for slot in recorded.event.slots}
        if terms.reservation:
            assert nodes <= set(made[terms.reservation].nodes)
            assert made[terms.reservation].start_ms <= recorded.ms <= made[terms.reservation].end_ms + 2
            continue
        for one in made.values():
            until_ms = recorded.ms + terms.length_ms if terms.length_ms else 1 << 60
            overlaps = recorded.ms < one.end_ms and one.start_ms < until_ms - 2
            assert not (overlaps and nodes & set(one.nodes)), f"{recorded} is in the way of {one}"
    assert pool.state.queueing.reservations == {}
    pool.check_replay(len(pool.log) // 2)
