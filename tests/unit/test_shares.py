"""Shares of a GPU: what can be asked for, where it goes, and that sums are exact."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.cli.views import needs, status_of_state
from spoke.errors import InvalidRequest
from spoke.events.demand import MEMBERS_MAX, Usual
from spoke.events.model import GangSpec, Resources
from spoke.protocol import replies as p
from tests.builders import MemoryPool, gang, node_spec


def pool_of(*nodes: int, **options: object) -> MemoryPool:
    pool = MemoryPool()
    for number, gpus in enumerate(nodes):
        pool.register(node_spec(f"n{number}", gpus, **options))  # type: ignore[arg-type]
    pool.connect()
    return pool


def places(answer: object) -> list[tuple[str, tuple[int, ...], int]]:
    assert isinstance(answer, p.Granted), answer
    return [(slot.node_id, slot.gpu_ids, slot.gpu_milli) for slot in answer.slots]


@pytest.mark.parametrize(
    ("asked", "milli"), [(0.25, 250), (0.29, 290), (1 / 3, 333), (1 / 6, 166), (0.001, 1), (0.9999, 999)]
)
def test_a_fraction_is_counted_in_thousandths_rounded_down(asked: float, milli: int) -> None:
    assert Resources(gpus=asked).gpu_milli == milli


@pytest.mark.parametrize("asked", [1.5, 0.0001, -0.5, float("nan"), True, "1"])
def test_gpus_are_whole_or_a_share_of_one(asked: object) -> None:
    with pytest.raises(InvalidRequest, match="gpus|GPUs"):
        Resources(gpus=asked)  # type: ignore[arg-type]


def test_a_whole_number_written_as_a_float_is_whole() -> None:
    assert Resources(gpus=2.0) == Resources(gpus=2)
    assert not Resources(gpus=2.0).is_share


def test_gpu_memory_and_whole_gpus_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="gpu_memory"):
        Resources(gpus=1, gpu_memory="10GiB")


def test_gpu_memory_becomes_a_share_of_the_gpu_it_lands_on_rounded_up() -> None:
    resources = Resources(gpu_memory="10GiB")
    assert [resources.share_of(size << 30) for size in (80, 24, 10, 9, 0)] == [125, 417, 1000, 0, 0]
    assert Resources(gpus=0.5, gpu_memory="10GiB").share_of(80 << 30) == 500


def test_shares_fill_one_gpu_before_they_open_another() -> None:
    pool = pool_of(2)
    found = [places(pool.allocate("c", gang(gpus=0.25)))[0] for _ in range(5)]
    assert found == [("n0", (0,), 250)] * 4 + [("n0", (1,), 250)]
    pool.check()


def test_shares_go_where_the_rest_is_smallest() -> None:
    pool = pool_of(2)
    places(pool.allocate("c", gang(gpus=0.5)))
    assert places(pool.allocate("c", gang(gpus=0.7))) == [("n0", (1,), 700)]
    assert places(pool.allocate("c", gang(gpus=0.3))) == [("n0", (1,), 300)]
    assert places(pool.allocate("c", gang(gpus=0.5))) == [("n0", (0,), 500)]
    assert isinstance(pool.allocate("c", gang(gpus=0.001)), p.Failed)


def test_a_shared_gpu_is_not_handed_out_whole_until_its_last_share_is_back() -> None:
    pool = pool_of(1)
    first, second = (pool.allocate("c", gang(gpus=0.4)) for _ in range(2))
    assert isinstance(first, p.Granted)
    assert isinstance(second, p.Granted)
    assert isinstance(pool.allocate("c", gang(gpus=1)), p.Failed)
    pool.ask("c", _release(first.ticket_id))
    assert isinstance(pool.allocate("c", gang(gpus=1)), p.Failed)
    pool.ask("c", _release(second.ticket_id))
    assert places(pool.allocate("c", gang(gpus=1))) == [("n0", (0,), 0)]


def test_a_gang_of_shares_is_placed_together_and_the_reason_says_what_is_missing() -> None:
    pool = pool_of(1, 1)
    assert places(pool.allocate("c", gang(2, 2, 0.5))) == [
        ("n0", (0,), 500),
        ("n0", (0,), 500),
        ("n1", (0,), 500),
        ("n1", (0,), 500),
    ]
    refused = pool.allocate("c", gang(1, 1, 0.5))
    assert isinstance(refused, p.Failed)
    assert "needs 1 node with room for 1 actor with 0.5 of a GPU; 0 of 2 nodes qualify" in refused.reason
    never = pool.allocate("c", gang(1, 3, 0.5))
    assert isinstance(never, p.Failed)
    assert "even with everything free" in never.reason


def test_the_views_show_what_is_left_of_a_shared_gpu() -> None:
    pool = pool_of(2)
    pool.allocate("c", gang(gpus=0.25))
    node = status_of_state(pool.state, "p").nodes[0]
    assert (node.gpus_free, dict(node.gpus_shared)) == ((1,), {"0": 0.75})


def test_a_need_is_told_as_it_was_asked_for() -> None:
    assert needs(0.25, 0, 0) == "0.25 GPU"
    assert needs(2.0, 0, 0) == "2 GPUs"
    assert needs(0, 0, 0, 10 << 30) == "10 GiB of a GPU's memory"


@settings(deadline=None)  # the machine may be busy
@given(
    gpus=st.integers(1, 3),
    taken=st.lists(st.integers(1, 999), max_size=6),
    milli=st.integers(1, 999),
    actors=st.integers(1, 8),
    strict=st.booleans(),
)
def test_shares_are_placed_exactly_when_they_fit(
    gpus: int, taken: list[int], milli: int, actors: int, strict: bool
) -> None:
    """Against a count by hand: all members are alike, so a GPU holds as many as its free thousandths do."""
    pool = pool_of(gpus, gpus)
    for share in taken:
        pool.allocate("c", gang(gpus=share / 1000))
    rooms = [sum(node.free_milli(gpu.index) // milli for gpu in node.spec.gpus) for node in pool.state.nodes.values()]
    fits = max(rooms) >= actors if strict else sum(rooms) >= actors
    answer = pool.allocate("c", gang(1, actors, milli / 1000, strict_pack=strict))
    assert isinstance(answer, p.Granted) == fits
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_a_gpu_goes_where_the_cpu_for_the_others_is_not_missed() -> None:
    """Best fit by GPUs alone would fill the node that is short of CPU and strand its second GPU."""
    pool = MemoryPool()
    pool.register(node_spec("rich", 4, cpus=64))
    pool.register(node_spec("poor", 2, cpus=16))
    pool.connect()
    places(pool.allocate("c", gang(gpus=0.5, cpus=4, gpu_models=("H100",))))  # what is usual: 8 CPUs for a GPU
    answer = pool.allocate("c", gang(gpus=1, cpus=16))
    assert places(answer) == [("rich", (0,), 0)]
    event = pool.log[-1].event
    assert event.policy == "stranding/3"  # type: ignore[attr-defined]


def test_a_pool_without_shares_packs_as_ever() -> None:
    pool = pool_of(2, 4)
    pool.allocate("c", gang(gpus=1))
    assert pool.log[-1].event.policy == "pack/1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", [gang(gpus=1), gang(gpus=0.5), gang(1, 2, 1, strict_pack=False), gang(2, 1, 1)])
def test_a_gang_goes_only_to_the_models_it_allows(spec: GangSpec) -> None:
    pool = pool_of(4, 4)
    only = dataclasses.replace(spec, gpu_models=("A100",))
    refused = pool.allocate("c", only)
    assert isinstance(refused, p.Failed)
    assert "even with everything free" in refused.reason
    either = dataclasses.replace(spec, gpu_models=("A100", "H100"))
    assert isinstance(pool.allocate("c", either), p.Granted)


def test_what_was_learned_survives_a_snapshot_and_fades() -> None:
    pool = pool_of(4)
    pool.allocate("c", gang(gpus=0.5, cpus=3))
    demand = pool.state.demand
    assert (demand.members, demand.cpu_milli, demand.gpu_milli, demand.shares) == (1, 3000, 500, {500: 1})
    assert demand.usual == Usual()
    for _ in range(3):
        pool.allocate("c", gang(gpus=0.5, cpus=3))
    assert demand.usual == Usual(6000, 0, ((500, 4),))
    pool.check_replay(len(pool.log))
    demand.members, demand.next_at = MEMBERS_MAX - 1, MEMBERS_MAX
    demand.shares[250] = 1
    pool.allocate("c", gang(gpus=0.5, cpus=3))
    assert demand.members == MEMBERS_MAX // 2
    assert (demand.shares, demand.gpu_milli) == ({500: 2}, 1250)
    assert demand.next_at == MEMBERS_MAX


def _release(ticket_id: str):  # type: ignore[no-untyped-def]
    from spoke.protocol.requests import ReleaseGang

    return ReleaseGang(ticket_id)
