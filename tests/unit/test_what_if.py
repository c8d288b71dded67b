"""What-if: the same policy decides as it was recorded; another one is carried through, and its figures are right."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from spoke.allocator.what_if.compare import Comparison, what_if
from spoke.allocator.what_if.policy import RECORDED, Trial, trial
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.queueing import QueuePolicy
from spoke.events.state import PoolState
from spoke.events.terms import Terms
from spoke.events.usage import Ledger
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec
from tests.golden import END, HOUR, START, golden_pool
from tests.histories import Varied, busy_pool
from tests.unit.test_audit_tools import ALL, Golden, golden, log

__all__ = ["golden", "log"]


def run(log: Iterable[e.Recorded], names: str = RECORDED, end_ms: int = END, **flags: bool) -> Comparison:
    found = list(log)
    return what_if(lambda only: found, PoolState(), trial(names, **flags), end_ms)


def same(result: Comparison) -> bool:
    assert result.first_difference == ""
    assert result.passed_over == 0
    assert result.happened == result.would
    return True


# --- the same policy ---------------------------------------------------------------------------------------------


def test_the_same_policy_makes_the_recorded_decisions_again(log: list[e.Recorded]) -> None:
    result = run(log)
    assert same(result)
    waits = [0, 0, HOUR + 2, 0, 0, 0, 30_004]
    assert list(result.happened.waits.ms) == waits
    assert (result.happened.refused, result.happened.cancelled, result.happened.preempted) == (3, 1, 1)
    assert result.would.milli_ms == ALL, "as usage counts it"
    assert result.decisions == 7 + 3 + 4 + 1 + 2, "grants, refusals, those that waited, a notice, and what came of it"


@pytest.mark.parametrize("names", ["priority", "priority,pack"])
def test_the_policy_that_it_was_by_another_name_is_the_same(names: str) -> None:
    first = [x for x in golden_pool().log if x.ms < START + HOUR]
    assert same(run(first, names))


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_random_histories_are_decided_again_as_they_were(seed: int, shares: bool) -> None:
    pool = busy_pool(seed, shares)
    result = run(pool.log, end_ms=pool.now_ms)
    assert same(result)
    assert len(result.happened.waits.ms) > 50


@pytest.mark.parametrize("seed", range(12))
def test_preemption_quotas_reservations_and_all_else_are_decided_again_as_they_were(seed: int) -> None:
    pool = Varied(seed).pool
    result = run(pool.log, end_ms=pool.now_ms)
    assert same(result)
    assert result.decisions > 50


def test_a_decision_that_nobody_made_is_found(log: list[e.Recorded]) -> None:
    at, event = next((at, x.event) for at, x in enumerate(log) if isinstance(x.event, e.GangAllocated))
    other = (replace(event.slots[0], gpu_ids=(3,), gpu_uuids=("n1-gpu-3",)), *event.slots[1:])
    log = [*log[:at], replace(log[at], event=replace(event, slots=other)), *log[at + 1 :]]
    result = run(log)
    assert result.differs_at == log[at].id
    assert "gang.allocated of t-1" in result.first_difference


def test_a_grant_that_was_due_and_did_not_come_is_found(log: list[e.Recorded]) -> None:
    at = next(at for at, x in enumerate(log) if isinstance(x.event, e.GangAllocated) and x.event.ticket_id == "t-3")
    cut = [x for x in log[:at] if x.ms < START + 4 * HOUR]
    later = e.Recorded(f"{cut[-1].ms + 60_000}-0", e.ClientConnected("late", 1, 10_000))
    result = run([*cut, later])
    assert result.differs_at == later.id
    assert "gang.allocated of t-3 on n1 would have been decided before" in result.first_difference


def test_gpu_time_is_that_of_usage() -> None:
    pool = Varied(3).pool
    ledger = Ledger("user", 0, pool.now_ms)
    list(ledger.rows(PoolState(), pool.log))
    assert run(pool.log, end_ms=pool.now_ms).happened.milli_ms == ledger.total.milli_ms


# --- another policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ("pack", {}),
        ("stranding", {}),
        ("fifo", {}),
        ("fair", {}),
        ("fair,stranding", {"backfill": False}),
        ("priority", {"preempt": False}),
        (RECORDED, {"backfill": True, "preempt": True}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_another_policy_is_carried_through(seed: int, names: str, flags: dict[str, bool]) -> None:
    pool = Varied(seed).pool
    result = run(pool.log, names, pool.now_ms, **flags)
    recorded = run(pool.log, end_ms=pool.now_ms)
    assert result.happened == recorded.happened
    assert result.capacity_milli_ms >= recorded.capacity_milli_ms * 0.8
    asked = len(result.happened.waits.ms) + result.happened.refused + result.happened.cancelled
    would = len(result.would.waits.ms) + result.would.refused + result.would.cancelled + len(result.would.waiting)
    assert would + len(result.happened.waiting) >= asked
    assert len(result.would.waits.ms) > 20
    assert 0 < result.utilisation(result.would) <= 1


def convoy() -> MemoryPool:
    """One node with 4 GPUs. A small gang holds one; a large one waits for all four; then small short ones come."""
    pool = MemoryPool()
    pool.register(node_spec("n1", 4))
    pool.connect("c")
    pool.ask("c", r.SetQueuePolicy(QueuePolicy("fifo", backfill=False)))
    pool.now_ms = 2_000_000
    pool.allocate("c", gang(terms=Terms(expected_ms=100_000)))
    pool.allocate("c", gang(1, 4, terms=Terms(expected_ms=10_000)), None)
    for _ in range(3):
        pool.allocate("c", gang(terms=Terms(expected_ms=20_000)), None)
    pool.now_ms = 2_100_000
    pool.ask("c", r.ReleaseGang("t-1"))
    pool.now_ms += 10_000
    pool.ask("c", r.ReleaseGang("t-2"))
    pool.now_ms += 20_000
    for number in (3, 4, 5):
        pool.ask("c", r.ReleaseGang(f"t-{number}"))
    pool.now_ms += 1_000
    return pool


def test_backfill_would_have_let_the_small_ones_pass() -> None:
    pool = convoy()
    assert same(run(pool.log, end_ms=pool.now_ms))
    result = run(pool.log, end_ms=pool.now_ms, backfill=True)
    assert "gang.allocated of t-3" in result.first_difference
    happened, would = result.happened, result.would
    assert would.by_size["2 to 8"].at(1) <= happened.by_size["2 to 8"].at(1), "the large one waits no longer"
    assert max(would.by_size["up to 1"].ms) <= 2
    assert sum(ms > 100_000 for ms in happened.by_size["up to 1"].ms) == 3
    assert abs(would.milli_ms - happened.milli_ms) <= 10_000, "they hold what they held, at another time"
    assert result.capacity_milli_ms == 4_000 * (pool.now_ms - pool.log[1].ms)


def test_priorities_would_have_changed_the_order() -> None:
    pool = MemoryPool()
    pool.register(node_spec("n1", 1))
    pool.connect("c")
    pool.ask("c", r.SetQueuePolicy(QueuePolicy("fifo", preempt=False)))
    pool.now_ms = 2_000_000
    pool.allocate("c", gang())
    for priority in (0, 0, 7):
        pool.allocate("c", gang(terms=Terms(priority=priority)), None)
    for number in (1, 2, 3, 4):
        pool.now_ms += 60_000
        pool.ask("c", r.ReleaseGang(f"t-{number}"))
    result = run(pool.log, "priority", end_ms=pool.now_ms)
    assert (
        result.first_difference
        == "gang.allocated of t-2 on n1 was decided, and gang.allocated of t-4 on n1 would have been"
    )
    assert [round(ms / 60_000) for ms in result.happened.waits.ms] == [0, 1, 2, 3]
    assert [round(ms / 60_000) for ms in result.would.waits.ms] == [0, 1, 2, 3], "another gang each time, but as long"
    assert run(pool.log, "priority", end_ms=pool.now_ms, preempt=True).would.preempted == 0, "none is preemptible"


def preempted() -> MemoryPool:
    """A preemptible gang, and one of higher priority that waits for its GPU."""
    pool = MemoryPool()
    pool.register(node_spec("n1", 1))
    pool.connect("c")
    pool.ask("c", r.SetQueuePolicy(QueuePolicy(preempt=False, notice_ms=1_000)))
    pool.now_ms = 2_000_000
    pool.allocate("c", gang(terms=Terms(preemptible=True, expected_ms=60_000)))
    pool.allocate("c", gang(terms=Terms(priority=5)), None)
    pool.now_ms = 2_060_000
    pool.ask("c", r.ReleaseGang("t-1"))
    pool.now_ms = 2_070_000
    pool.ask("c", r.ReleaseGang("t-2"))
    return pool


def test_preemption_would_have_made_room() -> None:
    pool = preempted()
    result = run(pool.log, end_ms=pool.now_ms, preempt=True)
    assert "ticket.preempting of t-1" in result.first_difference
    assert (result.happened.preempted, result.would.preempted) == (0, 1)
    assert 1_000 <= max(result.would.waits.ms) <= 1_010
    assert max(result.happened.waits.ms) > 59_000


def test_without_preemption_one_that_was_preempted_lasts_as_long_as_it_said(log: list[e.Recorded]) -> None:
    result = run(log, preempt=False)
    assert "ticket.preempting of t-6" in result.first_difference
    assert (result.happened.preempted, result.would.preempted) == (1, 0)
    assert result.would.waits.at(1)[0] >= result.happened.waits.at(1)[0]


def test_what_is_no_policy_is_refused() -> None:
    for names in ("luck", "fifo,fair", "pack,stranding", "recorded,fifo"):
        with pytest.raises(InvalidRequest, match="cannot be tried"):
            trial(names)
    assert trial("fair , stranding", backfill=False) == Trial("fair", "stranding", False)
    assert trial("recorded").name == RECORDED


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offline", [False, True])
def test_a_what_if_is_shown(golden: Golden, offline: bool) -> None:
    document = json.loads(golden.spoke("what-if", "--json", offline=offline).stdout)
    assert document["first_difference"] == ""
    assert document["happened"] == document["would"]
    assert document["happened"]["by_gpus"]["2 to 8"]["granted"] == 5
    shown = golden.spoke("what-if", "--policy", "fair,stranding", "--no-preempt", offline=offline).stdout
    for words in ("utilisation", "fair,stranding,no-preempt", "2 to 8 GPUs: wait p99", "ticket.preempting of t-6"):
        assert words in shown
    assert "every one as it was recorded" in golden.spoke("what-if", offline=offline).stdout
    assert golden.spoke("what-if", "--policy", "luck").exit_code == 2
