"""Distances between GPUs and NICs: from NVML and sysfs, from a file, and what is done with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoke.agent.inventory import find_gpus
from spoke.agent.launching import Site, environment
from spoke.agent.topology import from_file, from_nvml
from spoke.allocator.placement.topology import gpus_for
from spoke.errors import InvalidRequest
from spoke.events.model import ActorSpec, GangSpec, Gpu, Nic, NodeSpec, Resources
from spoke.events.state import NodeState, mask_of
from spoke.events.topology import Topology, cost
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol.launch import LaunchBlob
from tests.builders import MemoryPool, node_spec

PAIRS = tuple(
    tuple("X" if i == j else "NV4" if i // 2 == j // 2 else "PHB" if i // 4 == j // 4 else "SYS" for j in range(8))
    for i in range(8)
)
"""Eight GPUs: pairs with NVLink, four on each CPU."""
NICS = tuple(Nic(f"mlx5_{at}:1", numa_node=at // 2) for at in range(4))
NIC_LINKS = tuple(
    tuple("PIX" if at // 2 == nic else "PHB" if at // 4 == nic // 2 else "SYS" for nic in range(4)) for at in range(8)
)


def mapped(node_id: str = "n0") -> NodeSpec:
    spec = node_spec(node_id, 8)
    gpus = tuple(replace(gpu, numa_node=gpu.index // 4) for gpu in spec.gpus)
    return replace(spec, gpus=gpus, nics=NICS, topology=Topology(PAIRS, NIC_LINKS))


def node_with_free(*free: int, spec: NodeSpec | None = None) -> NodeState:
    node = NodeState.empty(spec or mapped(), "up", "i")
    node.free_gpus = mask_of(free)
    return node


def test_an_actor_gets_the_best_connected_free_gpus() -> None:
    assert gpus_for(node_with_free(0, 2, 4, 6, 7), 1, 2) == [(6, 7)]
    assert gpus_for(node_with_free(0, 2, 4, 5, 6, 7), 1, 4) == [(4, 5, 6, 7)]
    assert gpus_for(node_with_free(0, 2, 3, 4, 6), 1, 3) == [(0, 2, 3)]


def test_actors_of_a_node_are_near_each_other_and_each_has_the_nearest() -> None:
    assert gpus_for(node_with_free(0, 2, 3, 4, 5, 6, 7), 2, 2) == [(4, 5), (6, 7)]


def test_one_gpu_is_taken_where_its_neighbour_is_gone_so_that_pairs_stay_whole() -> None:
    assert gpus_for(node_with_free(0, 1, 3, 4, 5), 1, 1) == [(3,)]
    assert gpus_for(node_with_free(*range(8)), 1, 1) == [(0,)]


def test_numa_nodes_count_where_links_are_not_known() -> None:
    spec = replace(mapped(), topology=None, nics=())
    assert gpus_for(node_with_free(0, 3, 4, 5, spec=spec), 1, 2) == [(0, 3)]
    assert gpus_for(node_with_free(0, 4, 5, spec=spec), 1, 2) == [(4, 5)]


def test_without_a_topology_the_lowest_gpus_are_taken() -> None:
    assert gpus_for(node_with_free(1, 4, 5, spec=node_spec("n0", 8)), 1, 2) == [(1, 4)]


@given(free=st.sets(st.integers(0, 7), min_size=1), members=st.integers(1, 3), per_member=st.integers(1, 3))
def test_gpus_are_free_distinct_and_no_set_is_better_connected(free: set[int], members: int, per_member: int) -> None:
    if members * per_member > len(free):
        return
    found = gpus_for(node_with_free(*free), members, per_member)
    flat = [gpu for ids in found for gpu in ids]
    assert len(set(flat)) == len(flat) == members * per_member
    assert set(flat) <= free
    assert found == gpus_for(node_with_free(*free), members, per_member)


def test_a_large_node_is_searched_greedily_and_in_time() -> None:
    count = 64
    links = tuple(
        tuple("X" if i == j else "NV2" if i // 16 == j // 16 else "SYS" for j in range(count)) for i in range(count)
    )
    spec = replace(node_spec("big", count), topology=Topology(links))
    taken = gpus_for(node_with_free(*range(5, count), spec=spec), 1, 12)[0]
    assert len({gpu // 16 for gpu in taken}) == 1


def test_the_slots_say_what_they_got_and_nics_are_near_the_gpus() -> None:
    pool = MemoryPool()
    pool.register(mapped())
    pool.connect()
    answer = pool.allocate("c", GangSpec(1, 2, Resources(gpus=2, nics=1)))
    assert isinstance(answer, p.Granted)
    assert [(s.gpu_ids, s.link, s.numa_node, s.nics) for s in answer.slots] == [
        ((0, 1), "NV4", 0, ("mlx5_0:1",)),
        ((2, 3), "NV4", 0, ("mlx5_1:1",)),
    ]
    wide = pool.allocate("c", GangSpec(1, 1, Resources(gpus=3)))
    assert isinstance(wide, p.Granted)
    assert (wide.slots[0].link, wide.slots[0].numa_node) == ("PHB", 1)
    pool.check()
    pool.check_replay(2)


def test_an_actor_finds_its_nics_group_and_numa_node_in_its_environment() -> None:
    order = o.StartActor(
        "t-1", "1-1", "a", ActorSpec("W"), 0, 0, 0, 1, 1, 1, (0,), ("u",), "h", 1, 5.0,
        nics=("mlx5_0:1", "mlx5_1:1"), numa_node=1, group="worker", rank_in_group=3, group_size=8,
    )  # fmt: skip
    site = Site("default", "n0", "mark", "h", (), Path(), "/")
    mine = LaunchBlob(b"", env={"NCCL_IB_HCA": "mine"})
    env = environment(order, mine, site, {})
    assert env["SPOKE_NICS"] == "mlx5_0:1,mlx5_1:1"
    assert env["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_1:1"
    assert (env["SPOKE_NUMA_NODE"], env["SPOKE_GROUP"], env["SPOKE_RANK_IN_GROUP"], env["SPOKE_GROUP_SIZE"]) == (
        "1",
        "worker",
        "3",
        "8",
    )
    bare = environment(replace(order, nics=(), numa_node=-1, group=""), mine, site, {})
    assert bare["NCCL_IB_HCA"] == "mine"
    assert not {"SPOKE_NICS", "SPOKE_GROUP", "SPOKE_NUMA_NODE"} & bare.keys()


# --- the sources -----------------------------------------------------------------------------------------------------


class FakeNvml:
    """Four GPUs: 0 and 1 with four NVLinks between them, 2 and 3 on a switch; bus ids as NVML writes them."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid[-1])

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=f"00000000:{0x10 + handle:02X}:00.0".encode())

    def nvmlDeviceGetTopologyCommonAncestor(self, one: int, other: int) -> int:
        return 50 if (one < 2) != (other < 2) else 20

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        if link >= 4:
            raise self.NVMLError("no such link")
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: int, link: int) -> int:
        return 0 if handle < 2 else 2

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, link: int) -> Any:
        return self.nvmlDeviceGetPciInfo(1 - handle)


def test_nvml_and_sysfs_give_links_numa_nodes_and_nic_distances(tmp_path: Path) -> None:
    pci, infiniband = tmp_path / "pci", tmp_path / "infiniband"
    for at in range(4):
        device = tmp_path / f"devices/pci0000:0{at // 2}/0000:0{at // 2}:01.0/0000:{0x10 + at:02x}:00.0"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{at // 2}\n")
        pci.mkdir(exist_ok=True)
        (pci / device.name).symlink_to(device)
    card = tmp_path / "devices/pci0000:00/0000:00:01.0/0000:aa:00.0"
    card.mkdir()
    (infiniband / "mlx5_0").mkdir(parents=True)
    (infiniband / "mlx5_0/device").symlink_to(card)
    gpus = [Gpu(at, f"GPU-{at}") for at in range(4)]
    found = from_nvml(gpus, [Nic("mlx5_0:1", numa_node=0)], FakeNvml(), pci=pci, infiniband=infiniband)
    assert [gpu.numa_node for gpu in found.gpus] == [0, 0, 1, 1]
    assert found.topology is not None
    assert found.topology.links == (
        ("X", "NV4", "SYS", "SYS"),
        ("NV4", "X", "SYS", "SYS"),
        ("SYS", "SYS", "X", "NV4"),
        ("SYS", "SYS", "NV4", "X"),
    )
    assert found.topology.nic_links == (("PIX",), ("PIX",), ("SYS",), ("SYS",))


def test_a_file_says_it_where_there_is_no_hardware(tmp_path: Path) -> None:
    page = tmp_path / "topology.yaml"
    page.write_text(
        "numa: [0, 0, 1, 1]\n"
        "links: |\n  X NV4 SYS SYS\n  NV4 X SYS SYS\n  SYS SYS X NV4\n  SYS SYS NV4 X\n"
        'nics:\n  - {name: "mlx5_0:1", numa: 0, rate_gbps: 400}\n  - "mlx5_1:1"\n'
        "nic_links:\n  - [PIX, SYS]\n  - [PIX, SYS]\n  - [SYS, PIX]\n  - [SYS, PIX]\n"
    )
    found = from_file(page, find_gpus(4, "n0"), ())
    assert [gpu.numa_node for gpu in found.gpus] == [0, 0, 1, 1]
    assert found.topology is not None
    assert found.topology.links[0] == ("X", "NV4", "SYS", "SYS")
    assert found.nics == (Nic("mlx5_0:1", rate_gbps=400.0, numa_node=0), Nic("mlx5_1:1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("numa: [0]", "1 NUMA nodes, and the node has 2 GPUs"),
        ("links: [[X, NV4], [SYS, X]]", "the same both ways"),
        ("links: [[X, NEAR], [NEAR, X]]", "'NEAR' is no distance"),
        ("links: [[X]]", "has 1 GPUs, and the node has 2"),
        ("nics: [a]\nnic_links: [[PIX]]", "NIC links"),
        ("nics: [{numa: 0}]", "does not fit"),
        ("gpu: 1", "with the keys numa"),
        ("[", "no YAML"),
    ],
)
def test_a_file_that_does_not_fit_says_why(tmp_path: Path, text: str, said: str) -> None:
    page = tmp_path / "topology.yaml"
    page.write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        from_file(page, find_gpus(2, "n0"), ())


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        from_file(tmp_path / "none.yaml", (), ())


def test_levels_are_ordered_from_near_to_far() -> None:
    levels = ["X", "NV18", "NV4", "NV1", "PIX", "PXB", "PHB", "NODE", "SYS"]
    assert [cost(level) for level in levels] == sorted({cost(level) for level in levels})
