"""What a request may ask of the nodes: strategies, labels, neighbours, exclusive use, groups, fewer nodes, NICs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spoke.allocator.placement.general import never_fits
from spoke.client.plans import Way, gang_plan
from spoke.client.spec import gang_spec
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.model import ActorSpec, GangSpec, Member, Nic, Resources, Slot
from spoke.events.rules import Group, Rules
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec


def pool_of(*nodes: dict[str, str] | int, gpus: int = 4, nics: int = 0) -> MemoryPool:
    """Nodes n0, n1, … with these labels, or so many GPUs."""
    pool = MemoryPool()
    for number, one in enumerate(nodes):
        spec = node_spec(f"n{number}", one if isinstance(one, int) else gpus)
        ports = tuple(Nic(f"mlx5_{at}:1", numa_node=at % 2) for at in range(nics))
        pool.register(replace(spec, labels={} if isinstance(one, int) else one, nics=ports))
    pool.connect()
    return pool


def asking(num_nodes: int = 1, actors_per_node: int = 1, gpus: float = 1, **options: Any) -> GangSpec:
    """A gang as a client's user asks for it."""
    defaults: dict[str, Any] = dict.fromkeys(("strategy", "where", "where_not", "near", "same", "prefer_same"))
    defaults |= {"min_nodes": None, "preferred_node": None, "gpu_ids": None, "min_gpu_memory": 0, "exclusive": False}
    defaults |= {"groups": (), "gpu_models": (), "detached": False, "on_failure": "report", "grace_s": 5.0, "name": ""}
    resources = options.pop("resources", Resources(gpus=gpus) if gpus else Resources())
    strict_pack = options.pop("strict_pack", None)
    return gang_spec(num_nodes, actors_per_node, resources, strict_pack, **{**defaults, **options})


def granted(pool: MemoryPool, spec: GangSpec, client: str = "c") -> p.Granted:
    answer = pool.allocate(client, spec)
    assert isinstance(answer, p.Granted), answer
    pool.check()
    pool.check_replay(len(pool.log) // 2)
    return answer


def refused(pool: MemoryPool, spec: GangSpec) -> str:
    answer = pool.allocate("c", spec)
    assert isinstance(answer, p.Failed), answer
    return answer.reason


def counts(answer: p.Granted) -> dict[str, int]:
    found: dict[str, int] = {}
    for slot in answer.slots:
        found[slot.node_id] = found.get(slot.node_id, 0) + 1
    return found


# --- strategies ------------------------------------------------------------------------------------------------------


def test_strategies_move_single_actors_as_rays_words_say() -> None:
    assert counts(granted(pool_of(4, 4, 4), asking(4, 1, strategy="pack"))) == {"n0": 4}
    assert counts(granted(pool_of(4, 4, 4), asking(4, 1, strategy="spread"))) == {"n0": 2, "n1": 1, "n2": 1}
    assert counts(granted(pool_of(2, 4, 4), asking(4, 1, strategy="strict_pack"))) == {"n1": 4}
    assert counts(granted(pool_of(4, 4, 4), asking(3, 1, strategy="strict_spread"))) == {"n0": 1, "n1": 1, "n2": 1}


def test_strict_strategies_refuse_where_the_others_give_way() -> None:
    pool = pool_of(2, 2)
    assert "one node with room for 3 actors" in refused(pool, asking(3, 1, strategy="strict_pack"))
    assert "the roomiest of the 2 nodes" in refused(pool, asking(3, 1, strategy="strict_pack"))
    assert "a node each for 3 actors" in refused(pool, asking(3, 1, strategy="strict_spread"))
    assert counts(granted(pool, asking(3, 1, strategy="spread"))) == {"n0": 2, "n1": 1}


def test_with_strict_pack_a_strategy_moves_whole_groups() -> None:
    pool = pool_of(2, 4, 4)
    assert counts(granted(pool, asking(1, 2, strategy="spread", strict_pack=True))) == {"n1": 2}
    assert counts(granted(pool, asking(1, 2))) == {"n0": 2}


def test_spread_goes_from_rack_to_rack() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "a"}, {"rack": "b"})
    assert set(counts(granted(pool, asking(2, 1, strategy="strict_spread")))) == {"n0", "n2"}


def test_the_policy_is_recorded_by_name_and_version() -> None:
    pool = pool_of(4, 4)
    for strategy, policy in (("spread", "spread-where/1"), ("strict_pack", "strict-pack-where/1")):
        ticket = granted(pool, asking(2, 1, strategy=strategy))
        assert pool.state.tickets[ticket.ticket_id].policy == policy
    assert pool.state.tickets[granted(pool, asking()).ticket_id].policy == "pack/1"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strategy": "scatter"}, "there are pack, spread"),
        ({"strategy": "strict_pack", "strict_pack": True, "num_nodes": 2}, "leave strict_pack out"),
        ({"where": {"": "x"}}, "label"),
        ({"where": {"rack": []}}, "give text"),
        ({"where": "rack=r1"}, "must be a dict"),
        ({"same": "rack", "prefer_same": "block"}, "give one"),
        ({"near": "no/name"}, "near"),
        ({"min_nodes": 3}, "min_nodes"),
        ({"min_gpu_memory": "much"}, "not a size"),
        ({"exclusive": "yes"}, "exclusive"),
        ({"groups": [Group("a")], "num_nodes": 2}, "into the groups"),
        ({"groups": [Group("a"), Group("a")], "gpus": 0}, "different names"),
        ({"groups": ["a"], "gpus": 0}, "spoke.Group"),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_client(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        asking(**options)


# --- selectors -------------------------------------------------------------------------------------------------------


def test_labels_select_and_exclude_nodes() -> None:
    pool = pool_of({"rack": "r1", "zone": "a"}, {"rack": "r2", "zone": "b"}, {"rack": "r3"})
    assert counts(granted(pool, asking(where={"rack": "r2"}))) == {"n1": 1}
    assert counts(granted(pool, asking(where={"rack": ["r2", "r3"]}, where_not={"zone": "b"}))) == {"n2": 1}
    assert counts(granted(pool, asking(where_not={"zone": "*"}))) == {"n2": 1}
    assert counts(granted(pool, asking(where={"zone": "*"}, where_not={"rack": "r1"}))) == {"n1": 1}


def test_a_label_that_no_node_has_never_fits_and_the_reason_says_what_there_is() -> None:
    pool = pool_of({"rack": "r1"}, {"rack": "r2", "log_dir": "/tmp"})
    reason = refused(pool, asking(where={"rack": "r9"}))
    assert "no registered node has label rack=r9; labels seen: rack=r1, rack=r2" in reason
    assert "labels seen: rack=r1, rack=r2 (" in refused(pool, asking(where={"zone": "a"}))
    assert "every registered node has label rack (any value)" in refused(pool, asking(where_not={"rack": "*"}))


def test_a_gang_that_waits_for_labelled_nodes_is_told_which_nodes_do_not_count() -> None:
    pool = pool_of({"rack": "r1"}, {"rack": "r2"})
    granted(pool, asking(gpus=4, where={"rack": "r1"}))
    reason = refused(pool, asking(gpus=2, where={"rack": "r1"}))
    assert "needs 1 node with 2 GPUs free (label rack=r1); 0 of the 1 node that it may use qualify" in reason
    assert "ruled out: 1 with no label rack=r1" in reason


def test_min_gpu_memory_rules_out_nodes_with_smaller_gpus() -> None:
    pool = MemoryPool()
    pool.register(node_spec("small", 4, gpu_memory=24 << 30))
    pool.register(node_spec("large", 8, gpu_memory=80 << 30))
    pool.connect()
    assert counts(granted(pool, asking(min_gpu_memory="40GiB"))) == {"large": 1}
    assert "the most is 80 GiB" in refused(pool, asking(min_gpu_memory="100GiB"))


# --- neighbours and domains ------------------------------------------------------------------------------------------


def test_near_a_ticket_or_a_node_is_beside_it_or_in_its_rack() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "b"}, {"rack": "a"})
    first = granted(pool, asking(gpus=4, where={"rack": "b"}))
    (at,) = counts(first)
    other = {"n1": "n2", "n2": "n1"}[at]
    assert counts(granted(pool, asking(near=first.ticket_id))) == {other: 1}
    assert counts(granted(pool, asking(near="n3"))) == {"n3": 1}
    assert counts(granted(pool, asking(gpus=4, near="n3"))) == {"n0": 1}


def test_near_nothing_that_is_there_is_refused() -> None:
    assert "near='t-9' was asked for" in refused(pool_of(4), asking(near="t-9"))


def test_same_requires_one_value_of_a_label() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "b"}, {})
    assert set(counts(granted(pool, asking(2, 1, same="rack")))) == {"n1", "n2"}
    reason = refused(pool, asking(3, 1, same="rack"))
    assert "all of one rack" in reason
    assert "even with everything free" in reason
    assert "no registered node has a label zone" in refused(pool, asking(2, 1, same="zone"))


def test_a_gang_prefers_one_rack_and_the_rack_with_the_least_room() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "a"}, {"rack": "b"}, {"rack": "a"})
    assert set(counts(granted(pool, asking(2, 1, gpus=4)))) == {"n1", "n3"}
    assert set(counts(granted(pool, asking(3, 1, gpus=4)))) == {"n0", "n2", "n4"}


def test_a_gang_larger_than_a_rack_keeps_its_ranks_together_by_rack() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "a"}, {"rack": "b"})
    racks = [pool.state.nodes[slot.node_id].spec.labels["rack"] for slot in granted(pool, asking(4, 1)).slots]
    assert racks in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


def test_one_node_is_preferred_to_one_rack() -> None:
    pool = MemoryPool()
    for node_id, gpus, rack in (("a0", 2, "a"), ("a1", 2, "a"), ("b0", 8, "b")):
        pool.register(replace(node_spec(node_id, gpus), labels={"rack": rack}))
    pool.connect()
    assert counts(granted(pool, asking(4, 1, strategy="pack"))) == {"b0": 4}


def test_a_node_asked_for_by_name_counts_for_more_than_one_rack() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "b"}, {"rack": "a"})
    assert list(counts(granted(pool, asking(2, 1, gpus=3, preferred_node="n2")))) == ["n2", "n1"]
    assert next(iter(counts(granted(pool, asking(2, 1, gpus=1, preferred_node="n3"))))) == "n3"
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "b"})
    assert next(iter(counts(granted(pool, asking(2, 1, gpus=4, preferred_node="n0"))))) == "n0"


def test_specific_gpus_can_be_had_in_one_rack() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"}, {"rack": "b"})
    answer = granted(pool, asking(2, 2, gpu_ids=[1, 3]))
    assert [(slot.node_id, slot.gpu_ids) for slot in answer.slots] == [
        ("n1", (1,)),
        ("n1", (3,)),
        ("n2", (1,)),
        ("n2", (3,)),
    ]


def test_prefer_same_takes_another_label_or_none() -> None:
    labels = [{"rack": "a", "row": "1"}, {"rack": "a", "row": "2"}, {"rack": "b", "row": "2"}]
    assert set(counts(granted(pool_of(*labels), asking(2, 1, prefer_same="row")))) == {"n1", "n2"}
    assert set(counts(granted(pool_of(*labels), asking(2, 1, prefer_same="")))) == {"n0", "n1"}


def test_a_node_that_registers_again_with_other_labels_counts_by_them() -> None:
    pool = pool_of({"rack": "a"}, {"rack": "b"})
    pool.expire_node("n0")
    pool.register(replace(node_spec("n0", 4), labels={"rack": "b"}))
    assert set(counts(granted(pool, asking(2, 1, same="rack")))) == {"n0", "n1"}
    assert pool.state.domains.levels == ("rack",)


# --- exclusive use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [asking(), asking(gpus=0), asking(gpus=0.5), asking(1, 1, strategy="spread")])
def test_nobody_joins_an_exclusive_gang_however_he_asks(later: GangSpec) -> None:
    pool = pool_of(4)
    mine = granted(pool, asking(exclusive=True))
    assert pool.state.nodes["n0"].exclusive == mine.ticket_id
    waits = pool.request("c", r.AllocateGang(later, None))
    assert pool.answer("c", waits) is None
    assert not never_fits(pool.state, later)
    pool.check()
    pool.ask("c", r.ReleaseGang(mine.ticket_id))
    assert isinstance(pool.answer("c", waits), p.Granted)
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_an_exclusive_gang_takes_empty_nodes_only() -> None:
    pool = pool_of(4, 4)
    granted(pool, asking())
    assert counts(granted(pool, asking(exclusive=True))) == {"n1": 1}
    assert "1 exclusively t-2's; 1 in use" in refused(pool, asking(exclusive=True))


def test_a_log_that_places_a_gang_beside_an_exclusive_one_is_refused() -> None:
    from spoke.errors import InvalidTransition
    from spoke.events.fold import fold

    pool = pool_of(4)
    granted(pool, asking(exclusive=True))
    slot = Slot(0, 0, 0, "n0", "127.0.0.1", (3,), ("n0-gpu-3",))
    event = e.GangAllocated("t-2", "c", 9, gang(), (slot,), "127.0.0.1", 0, "pack/1")
    with pytest.raises(InvalidTransition, match="for itself"):
        fold(pool.state, e.Recorded("9999999-0", event))


def test_an_unconfirmed_node_gets_no_shares() -> None:
    pool = pool_of(1)
    pool.record([e.ServerChanged("b", "a", "")])
    assert not pool.state.nodes["n0"].confirmed
    refused(pool, asking(gpus=0.5))


# --- groups ----------------------------------------------------------------------------------------------------------

CONTROLLED = [
    Group("controller", 1, 1, Resources(cpus=2)),
    Group("worker", 2, 4, Resources(gpus=1)),
]


def test_a_mixed_gang_has_its_ranks_group_by_group() -> None:
    pool = pool_of(4, 4, 0)
    answer = granted(pool, asking(gpus=0, groups=CONTROLLED))
    assert [(s.group, s.rank_in_group, len(s.gpu_ids)) for s in answer.slots] == [
        ("controller", 0, 0),
        *(("worker", rank, 1) for rank in range(8)),
    ]
    assert [s.group_rank for s in answer.slots] == [0] + [1] * 4 + [2] * 4
    assert answer.slots[0].node_id == "n2"
    assert pool.state.nodes["n2"].free_cpu_milli == 62_000
    pool.ask("c", r.ReleaseGang(answer.ticket_id))
    assert pool.state.nodes["n2"].free_cpu_milli == 64_000
    pool.check()


def test_a_mixed_gang_waits_as_a_whole_and_says_which_group_lacks_what() -> None:
    pool = pool_of(4, 3)
    reason = refused(pool, asking(gpus=0, groups=CONTROLLED))
    assert "needs 1 node with 2 CPUs free and 2 nodes with 4 GPUs free" in reason
    assert "for worker 1 of the 2 nodes" in reason
    assert all(node.free_cpu_milli == 64_000 for node in pool.state.nodes.values())


def test_groups_leave_each_other_what_they_need() -> None:
    """The small group is asked for first, and would take the only node where the large one fits."""
    pool = pool_of(4, 2)
    groups = [Group("small", 1, 1, Resources(gpus=2), where={"big": "*"}), Group("large", 1, 1, Resources(gpus=4))]
    refused(pool, asking(gpus=0, groups=groups))
    groups = [Group("small", 1, 1, Resources(gpus=2)), Group("large", 1, 1, Resources(gpus=4))]
    assert [s.node_id for s in granted(pool, asking(gpus=0, groups=groups)).slots] == ["n1", "n0"]


def test_shares_of_unlike_groups_go_onto_one_gpu() -> None:
    groups = [
        Group("a", 1, 1, Resources(gpus=0.3)),
        Group("b", 1, 1, Resources(gpus=0.7)),
        Group("c", 1, 1, Resources(gpus=1)),
    ]
    answer = granted(pool_of(2), asking(gpus=0, groups=groups))
    assert [slot.gpu_milli for slot in answer.slots] == [300, 700, 0]
    assert answer.slots[0].gpu_ids == answer.slots[1].gpu_ids != answer.slots[2].gpu_ids


def test_an_exclusive_mixed_gang_may_share_its_own_nodes() -> None:
    pool = pool_of(4)
    groups = [Group("a", 1, 1, Resources(gpus=1)), Group("b", 1, 1, Resources(gpus=1))]
    assert counts(granted(pool, asking(gpus=0, groups=groups, exclusive=True))) == {"n0": 2}


def test_each_group_is_launched_as_its_own_type() -> None:
    pool = pool_of(4, 4)
    answer = granted(pool, asking(gpus=0, groups=CONTROLLED))
    plan = gang_plan({"controller": "Controller", "worker": "Worker"}, None, None, Way())
    members, blobs = plan(answer.slots, b"secret")
    assert [m.actor_id for m in members[:2]] == ["Controller-0", "Worker-1"]
    pool.request("c", r.LaunchActors(answer.ticket_id, plan.spec, members, plan.by_group), blobs)
    orders = [d.order for agent in pool.agents.values() for d in agent.orders if isinstance(d.order, o.StartActor)]
    by_rank = {order.rank: order for order in orders}
    assert by_rank[0].spec.type_name == "Controller"
    assert (by_rank[8].spec.type_name, by_rank[8].group, by_rank[8].rank_in_group) == ("Worker", "worker", 7)
    assert (by_rank[8].group_size, by_rank[8].world_size) == (8, 9)
    pool.settle()
    pool.check()
    pool.check_replay(len(pool.log) // 2)


def test_one_group_can_be_launched_before_the_others() -> None:
    answer = granted(pool_of(4, 4), asking(gpus=0, groups=CONTROLLED))
    members, _ = gang_plan({"controller": "Controller"}, None, None, Way())(answer.slots, b"s")
    assert [member.rank for member in members] == [0]
    with pytest.raises(InvalidRequest, match="controller, worker"):
        gang_plan({"boss": "Controller"}, None, None, Way())(answer.slots, b"s")


def test_a_launch_that_says_nothing_for_a_rank_is_refused() -> None:
    pool = pool_of(4, 4)
    answer = granted(pool, asking(gpus=0, groups=CONTROLLED))
    spec = ActorSpec("Controller")
    request = r.LaunchActors(answer.ticket_id, spec, (Member(1, "a"),), {"controller": spec})
    failed = pool.ask("c", request)
    assert isinstance(failed, p.Failed)
    assert "is of group 'worker'" in failed.reason


def test_a_node_that_comes_back_still_holds_what_its_mixed_tickets_need() -> None:
    pool = pool_of(4, 4)
    answer = granted(pool, asking(gpus=0, groups=CONTROLLED))
    node_id = answer.slots[0].node_id
    pool.expire_node(node_id)
    pool.register(node_spec(node_id, 4))
    assert pool.state.tickets[answer.ticket_id].phase == "allocated"
    pool.check()


# --- fewer nodes -----------------------------------------------------------------------------------------------------


def test_an_elastic_gang_takes_what_fits_and_no_less_than_enough() -> None:
    pool = pool_of(4, 4, 2)
    answer = granted(pool, asking(4, 4, min_nodes=2))
    assert counts(answer) == {"n0": 4, "n1": 4}
    waits = pool.allocate("c", asking(4, 4, min_nodes=1), None)
    assert waits is None
    pool.ask("c", r.ReleaseGang(answer.ticket_id))
    assert pool.state.tickets["t-2"].slots[-1].global_rank == 7
    assert "3-" not in pool.state.tickets["t-2"].spec.shape
    pool.check()
    assert "needs 3 nodes" in refused(pool_of(4, 4), asking(4, 4, min_nodes=3))


def test_groups_can_be_elastic() -> None:
    groups = [Group("controller", 1, 1, Resources(cpus=1)), Group("worker", 8, 4, Resources(gpus=1), min_nodes=1)]
    answer = granted(pool_of(4, 4, 2), asking(gpus=0, groups=groups))
    assert len(answer.slots) == 9


# --- NICs ------------------------------------------------------------------------------------------------------------


def test_nics_of_ones_own_are_nobody_elses_until_they_are_given_back() -> None:
    pool = pool_of(4, nics=2)
    nic = Resources(gpus=1, nics=1)
    first, second = granted(pool, asking(resources=nic)), granted(pool, asking(resources=nic))
    assert {first.slots[0].nics, second.slots[0].nics} == {("mlx5_0:1",), ("mlx5_1:1",)}
    reason = refused(pool, asking(resources=nic))
    assert "1 NIC of its own" in reason
    granted(pool, asking())
    pool.ask("c", r.ReleaseGang(first.ticket_id))
    assert granted(pool, asking(resources=nic)).slots[0].nics == first.slots[0].nics


def test_more_nics_than_a_node_has_never_fit_and_broken_ones_do_not_count() -> None:
    pool = pool_of(4, nics=2)
    assert "even with everything free" in refused(pool, asking(resources=Resources(nics=3)))
    broken = tuple(Nic(f"mlx5_{at}:1", active=False) for at in range(2))
    pool.expire_node("n0")
    pool.register(replace(node_spec("n0", 4), nics=broken))
    assert "even with everything free" in refused(pool, asking(resources=Resources(nics=1)))


def test_a_node_that_comes_back_without_its_nics_gives_their_tickets_up() -> None:
    pool = pool_of(4, nics=2)
    answer = granted(pool, asking(resources=Resources(nics=1)))
    pool.expire_node("n0")
    pool.register(node_spec("n0", 4))
    assert answer.ticket_id not in pool.state.tickets
    pool.check()


# --- old logs --------------------------------------------------------------------------------------------------------


def test_logs_from_before_these_fields_decode_and_mean_what_they_meant() -> None:
    from spoke.events.codec import decode_event

    raw = {
        b"type": b"gang.allocated", b"v": b"1", b"ticket_id": b"t-1", b"client_id": b"c", b"seq": b"2",
        b"spec": b'{"num_nodes":1,"actors_per_node":1,"resources":{"gpus":1,"cpus":0.0,"memory":0,"gpu_memory":0}}',
        b"slots": b'[{"global_rank":0,"local_rank":0,"group_rank":0,"node_id":"n0","host":"h","gpu_ids":[0],'
        b'"gpu_uuids":["u"],"gpu_milli":0}]',
        b"master_addr": b"h", b"master_port": b"1", b"policy": b"pack/1",
    }  # fmt: skip
    event = decode_event("1-1", raw).event
    assert isinstance(event, e.GangAllocated)
    assert (event.spec, event.slots[0].nics, event.spec.strategy) == (gang(), (), "pack")
    assert Rules() == Rules(where={}, where_not={})
