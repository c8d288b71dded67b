"""RDMA ports as the kernel shows them, the choice among them, and the registered pool, without any device."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spoke.agent.inventory import find_nics
from spoke.errors import InvalidRequest, LimitExceeded, MalformedData
from spoke.events.model import Nic, NodeSpec
from spoke.transport.rdma import wire
from spoke.transport.rdma.outgoing import Large, item_of
from spoke.transport.rdma.pool import Pool, block_bytes
from spoke.transport.rdma.ports import Choice, choose, ports


def make_port(
    root: Path,
    name: str,
    *,
    layer: str = "Ethernet",
    rate: str = "100 Gb/sec (4X EDR)",
    state: str = "4: ACTIVE",
    gids: dict[int, tuple[str, str]] | None = None,
) -> None:
    here = root / name / "ports" / "1"
    for part in ("gids", "gid_attrs/types", "gid_attrs/ndevs"):
        (here / part).mkdir(parents=True)
    (root / name / "node_guid").write_text("0011:2233:4455:6677\n")
    for file, text in (("state", state), ("link_layer", layer), ("rate", rate), ("lid", "0x1")):
        (here / file).write_text(text + "\n")
    for index, (gid, kind) in (gids or {}).items():
        (here / "gids" / str(index)).write_text(gid + "\n")
        (here / "gid_attrs" / "types" / str(index)).write_text(kind + "\n")


V4 = "0000:0000:0000:0000:0000:ffff:c000:0201"
LOCAL = "fe80:0000:0000:0000:0011:22ff:fe33:4455"
NONE = "0000:0000:0000:0000:0000:0000:0000:0000"


def test_a_machine_without_rdma_says_so(tmp_path: Path) -> None:
    assert ports(tmp_path / "missing") == []
    assert choose([], {}) == "this machine has no RDMA device"


def test_rocev2_over_ipv4_comes_before_other_addresses(tmp_path: Path) -> None:
    make_port(
        tmp_path,
        "mlx5_0",
        gids={
            0: (LOCAL, "IB/RoCE v1"),
            1: (LOCAL, "RoCE v2"),
            2: (V4, "IB/RoCE v1"),
            3: (V4, "RoCE v2"),
            4: (NONE, ""),
        },
    )
    [port] = ports(tmp_path)
    assert [entry.index for entry in port.gids] == [0, 1, 2, 3]
    choice = choose([port], {})
    assert isinstance(choice, Choice)
    assert choice.gid.index == 3
    assert (port.rate_gbps, port.name, port.active) == (100.0, "mlx5_0:1", True)


def test_the_fastest_active_port_is_taken_unless_configured(tmp_path: Path) -> None:
    make_port(tmp_path, "slow", rate="10 Gb/sec", gids={1: (V4, "RoCE v2")})
    make_port(tmp_path, "fast", rate="400 Gb/sec", gids={1: (V4, "RoCE v2")})
    make_port(tmp_path, "down", rate="800 Gb/sec", state="1: DOWN", gids={1: (V4, "RoCE v2")})
    known = ports(tmp_path)

    def device(**environ: str) -> object:
        choice = choose(known, environ)
        return choice.port.device if isinstance(choice, Choice) else choice

    assert device() == "fast"
    assert device(SPOKE_RDMA_DEVICE="slow:1") == "slow"
    assert device(SPOKE_NICS="slow") == "slow"
    assert device(SPOKE_NICS="slow", SPOKE_RDMA_DEVICE="fast") == "fast"
    assert device(SPOKE_RDMA_DEVICE="down") == "no RDMA port is active: down:1 is DOWN"
    assert "this machine has down:1, fast:1, slow:1" in str(device(SPOKE_RDMA_DEVICE="other"))
    assert "SPOKE_RDMA_GID_INDEX is 9" in str(device(SPOKE_RDMA_GID_INDEX="9"))
    assert "SPOKE_RDMA_MTU is 1500" in str(device(SPOKE_RDMA_MTU="1500"))


def test_infiniband_takes_its_first_address(tmp_path: Path) -> None:
    make_port(tmp_path, "mlx5_0", layer="InfiniBand", gids={0: (LOCAL, "IB/RoCE v1"), 1: (V4, "IB/RoCE v1")})
    choice = choose(ports(tmp_path), {})
    assert isinstance(choice, Choice)
    assert choice.gid.index == 0


def test_import_of_spoke_never_needs_pyverbs() -> None:
    code = "import sys, spoke, spoke.transport.rdma.endpoint; sys.exit('pyverbs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def described(**changes: Any) -> dict[str, Any]:
    base = {"version": 1, "qpn": 17, "psn": 5, "lid": 0, "gid": V4, "link_layer": "Ethernet", "mtu": 1024, "reads": 16,
            "slots": 64, "slot_bytes": 8192, "host": "a"}  # fmt: skip
    return {**base, **changes}


@pytest.mark.parametrize(
    "wrong",
    [None, {}, described(qpn="17"), described(qpn=0), described(mtu=1500), described(reads=0), described(lid=1 << 16)],
)
def test_a_description_that_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(MalformedData):
        wire.check_peer(wrong)


def test_two_ports_that_cannot_reach_each_other_are_told_apart() -> None:
    ours = wire.check_peer(described())
    assert wire.same_fabric(ours, described(gid=V4[:-1] + "9")) is None
    assert "InfiniBand" in str(wire.same_fabric(ours, described(link_layer="InfiniBand")))
    assert "kinds" in str(wire.same_fabric(ours, described(gid=LOCAL)))
    assert "version" in str(wire.same_fabric(ours, described(slots=32)))
    infiniband = described(link_layer="InfiniBand", gid=LOCAL)
    other = described(link_layer="InfiniBand", gid="fec0" + LOCAL[4:])
    assert "subnets" in str(wire.same_fabric(infiniband, other))


class Registered(SimpleNamespace):
    closed = 0

    def close(self) -> None:
        Registered.closed += 1


def test_memory_comes_back_when_the_last_view_is_gone_and_not_before() -> None:
    pool = Pool(lambda address, nbytes: Registered(lkey=1, rkey=2))
    block = pool.take(100_000)
    view = pool.lend(block, 100_000)
    part = view[5:10]
    view.release()
    del view
    gc.collect()
    assert pool.lent_bytes == block.nbytes
    del part
    gc.collect()
    assert pool.lent_bytes == 0
    assert pool.take(100_000) is block
    kept = pool.lend(block, 10)
    pool.close()
    kept[0] = 1  # still there
    del kept


def test_memory_that_cannot_be_registered_names_the_limit() -> None:
    def refuse(address: int, nbytes: int) -> Any:
        raise OSError(12, "Cannot allocate memory")

    with pytest.raises(LimitExceeded, match="ulimit -l"):
        Pool(refuse).take(1)


def test_blocks_waste_little() -> None:
    for nbytes in (1, 65536, 65537, 1 << 20, (1 << 20) + 1, 48 << 20, (64 << 20) + 5):
        assert nbytes <= block_bytes(nbytes) <= max(65536, nbytes * 1.26)


def test_a_large_frame_is_cut_into_chunks_that_hold_its_parts_in_place() -> None:
    from spoke.transport.frames import Kind

    parts = [bytes([number]) * nbytes for number, nbytes in enumerate((3, 70_000, 1, 0, 3 << 20))]
    item = item_of(Kind.CALL, 7, parts[0], [memoryview(part) for part in parts[1:]], 1 << 30)
    assert isinstance(item, Large)
    whole, chunks = bytearray(), deque[int]()
    while item.left_bytes:
        target = memoryview(bytearray(wire.CHUNK_BYTES))
        chunks.append(item.fill(target))
        whole += target[: chunks[-1]]
    assert len(whole) == item.nbytes
    for offset, part in zip(item.offsets, parts, strict=True):
        assert offset % wire.ALIGN == 0
        assert whole[offset : offset + len(part)] == part


def test_the_agent_lists_the_ports_as_nics(tmp_path: Path) -> None:
    make_port(tmp_path, "mlx5_0", gids={3: (V4, "RoCE v2")})
    make_port(tmp_path, "mlx5_1", state="1: DOWN")
    first, second = find_nics(tmp_path)
    assert (first.name, first.link_layer, first.rate_gbps, first.active) == ("mlx5_0:1", "Ethernet", 100.0, True)
    assert (first.gid, first.guid, first.numa_node) == ("::ffff:c000:201", "0011:2233:4455:6677", -1)
    assert (second.name, second.gid, second.active) == ("mlx5_1:1", "", False)
    assert find_nics(tmp_path / "missing") == ()


def test_a_node_with_one_nic_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        NodeSpec("n", "h", "a", nics=(Nic("mlx5_0:1"), Nic("mlx5_0:1")))
