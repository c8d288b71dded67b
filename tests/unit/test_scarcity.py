"""GPU models that some gangs name: the others leave them alone while they can."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spoke.allocator.placement.scarcity import prices_of
from spoke.allocator.placement.table import table_of
from spoke.allocator.placement.worth import MICRO
from spoke.events.demand import FIRST_AT, MEMBERS_MAX, MODELS_MAX, Demand, Usual
from spoke.events.model import GangSpec, Resources, Slot
from spoke.protocol import replies as p
from spoke.protocol.requests import ReleaseGang
from tests.builders import MemoryPool, gang, node_spec


def pool_of(**models: tuple[int, ...]) -> MemoryPool:
    """For each model, the numbers of GPUs of its nodes."""
    pool = MemoryPool()
    for model, sizes in models.items():
        for number, gpus in enumerate(sizes):
            spec = node_spec(f"{model}-{number}", gpus)
            pool.register(dataclasses.replace(spec, gpus=tuple(dataclasses.replace(g, model=model) for g in spec.gpus)))
    pool.connect()
    return pool


def models_of(pool: MemoryPool, spec: GangSpec) -> list[str]:
    answer = pool.allocate("c", spec)
    assert isinstance(answer, p.Granted), answer
    return [slot.node_id.partition("-")[0] for slot in answer.slots]


def teach(pool: MemoryPool, *models: str) -> None:
    """Let it be usual to name these models."""
    for _ in range(FIRST_AT):
        answer = pool.allocate("c", gang(gpus=0.25, gpu_models=models))
        assert isinstance(answer, p.Granted)
        pool.ask("c", ReleaseGang(answer.ticket_id))


def test_who_may_use_any_model_leaves_the_scarce_one_alone() -> None:
    pool = pool_of(T4=(2,), A100=(8,))
    teach(pool, "T4")
    assert [models_of(pool, gang(gpus=1))[0] for _ in range(8)] == ["A100"] * 8
    assert models_of(pool, gang(gpus=1, gpu_models=("T4",))) == ["T4"]
    assert models_of(pool, gang(gpus=1)) == ["T4"]  # nothing else is left: nobody waits for it


def test_shares_and_gangs_of_shares_leave_it_alone_too() -> None:
    pool = pool_of(T4=(2,), A100=(8,))
    teach(pool, "T4")
    assert models_of(pool, gang(gpus=0.5)) == ["A100"]
    assert models_of(pool, gang(1, 2, 0.5)) == ["A100"] * 2
    assert models_of(pool, gang(2, 1, 0.5, strict_pack=False)) == ["A100"] * 2
    assert models_of(pool, gang(gpus=0, gpu_memory="8GiB")) == ["A100"]


def test_in_a_pool_where_nobody_names_models_the_tightest_node_is_taken() -> None:
    pool = pool_of(T4=(2,), A100=(8,))
    assert models_of(pool, gang(gpus=1)) == ["T4"]


def test_of_several_models_that_a_gang_may_use_it_takes_the_one_that_others_need_less() -> None:
    pool = pool_of(T4=(2,), V100=(4,), A100=(8,))
    teach(pool, "T4")
    assert models_of(pool, gang(gpus=1, gpu_models=("T4", "V100"))) == ["V100"]


def by_model(pool: MemoryPool, numbers: Sequence[int]) -> dict[str, int]:
    return {min(models): int(numbers[at]) for models, at in table_of(pool.state).model_sets.items() if models}


def test_a_price_is_the_part_that_would_go_to_those_who_name_the_model() -> None:
    pool = pool_of(T4=(2,), V100=(2,), A100=(8,))
    usual = Usual(models=((("H100",), 500_000), (("T4",), 50_000), (("T4", "V100"), 100_000)))
    # Of 12 free GPUs, 0.6 would be asked for as T4, and 1.2 as either, of which half would be T4.
    assert by_model(pool, prices_of(table_of(pool.state), usual)) == {"T4": 600_000, "V100": 300_000, "A100": 0}
    models_of(pool, gang(gpus=1, gpu_models=("T4",)))
    # Of 11: 0.55 as T4, and 1.1 as either, for 3 GPUs.
    assert by_model(pool, prices_of(table_of(pool.state), usual)) == {"T4": 916_666, "V100": 366_666, "A100": 0}
    models_of(pool, gang(gpus=1, gpu_models=("T4",)))
    assert by_model(pool, prices_of(table_of(pool.state), usual)) == {"T4": 500_000, "V100": 500_000, "A100": 0}


def test_a_price_is_never_more_than_the_gpu() -> None:
    pool = pool_of(T4=(1,), A100=(8,))
    usual = Usual(models=((("T4",), 500_000),))
    assert by_model(pool, prices_of(table_of(pool.state), usual)) == {"T4": MICRO, "A100": 0}


def test_the_sums_of_free_gpus_follow_nodes_that_change_and_go() -> None:
    pool = pool_of(T4=(2, 2), A100=(8, 4))
    assert by_model(pool, table_of(pool.state).free_of) == {"T4": 4_000, "A100": 12_000}
    models_of(pool, gang(gpus=0.25, gpu_models=("T4",)))
    pool.expire_node("A100-1")
    assert by_model(pool, table_of(pool.state).free_of) == {"T4": 3_750, "A100": 8_000}
    pool.expire_node("A100-0")
    assert by_model(pool, table_of(pool.state).free_of) == {"T4": 3_750, "A100": 0}


def test_wishes_are_counted_in_bounded_memory_and_fade() -> None:
    demand = Demand()
    slots = (Slot(0, 0, 0, "n", "h", (0,)),)
    for _ in range(MODELS_MAX):
        demand.learn(Resources(gpus=1), ("T4", "V100", "T4"), slots)
    for number in range(2 * MODELS_MAX):
        demand.learn(Resources(gpus=1), (f"odd-{number}",), slots)
    assert len(demand.models) == MODELS_MAX
    assert demand.models["T4", "V100"] == 1_000 * MODELS_MAX
    demand.next_at, demand.members = MEMBERS_MAX, MEMBERS_MAX - 1
    demand.learn(Resources(gpus=1), ("T4", "V100"), slots)
    assert demand.models["T4", "V100"] == 500 * (MODELS_MAX + 1)
