"""The agent's smaller parts: inventory, ports, environment, registered classes, claims."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spoke.agent import claim, inventory, procfs
from spoke.agent import instructions as i
from spoke.agent.actor import Actor, register_actor, registered_actors
from spoke.agent.claim import NodeClaim, NodeNotClean, NodeTaken, mark_prefix
from spoke.agent.conversation import Conversation, Outage
from spoke.agent.launching import Site, prepare
from spoke.agent.ports import HeldPorts, NoFreePorts, bind, ephemeral_ports
from spoke.errors import InvalidRequest, SpokeError
from spoke.events.codec import DecodeError
from spoke.events.model import ActorSpec
from spoke.protocol.keys import Keys
from spoke.protocol.launch import LaunchBlob, encode_blob
from tests.unit.test_agent_machine import a_start

# --- inventory -----------------------------------------------------------------------------------------------------


class FakeNvml(SimpleNamespace):
    """NVML with two GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, fails: str = "") -> None:
        super().__init__(calls=[])
        self._fails = fails

    def nvmlInit(self) -> None:
        if self._fails:
            raise self.NVMLError(self._fails)

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{'ab'[handle]}000"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA Test"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(total=1 << 36)


def test_logical_gpus_have_the_same_uuids_every_time() -> None:
    assert [gpu.uuid for gpu in inventory.find_gpus(2, "n7")] == ["logical-n7-0", "logical-n7-1"]
    assert inventory.find_gpus(0, "n7") == ()


@pytest.mark.parametrize("bad", [-1, 10**9, 1.5, True])
def test_numbers_of_gpus_out_of_range_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidRequest, match="gpus must be"):
        inventory.find_gpus(bad, "n7")


def test_auto_asks_nvml() -> None:
    nvml = FakeNvml()
    found = inventory.find_gpus("auto", "n7", load_nvml=lambda _: nvml, env={})
    assert [(g.index, g.uuid, g.model, g.memory) for g in found] == [
        (0, "GPU-a000", "NVIDIA Test", 1 << 36),
        (1, "GPU-b000", "NVIDIA Test", 0),
    ]
    assert nvml.calls == ["shutdown"]


@pytest.mark.parametrize(("visible", "indices"), [("1", [1]), ("GPU-a", [0]), ("", []), ("0, 1", [0, 1])])
def test_auto_offers_only_what_the_agent_was_given_itself(visible: str, indices: list[int]) -> None:
    env = {"CUDA_VISIBLE_DEVICES": visible}
    found = inventory.find_gpus("auto", "n7", load_nvml=lambda _: FakeNvml(), env=env)
    assert [gpu.index for gpu in found] == indices


def test_no_driver_and_no_package_are_told_apart() -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    with pytest.raises(inventory.NoGpuDriver, match="pynvml is not installed"):
        inventory.find_gpus("auto", "n7", load_nvml=missing)
    with pytest.raises(inventory.NoGpuDriver, match=r"Driver Not Loaded.*--gpus N"):
        inventory.find_gpus("auto", "n7", load_nvml=lambda _: FakeNvml(fails="Driver Not Loaded"))


def test_the_machine_id_tells_boots_and_host_names_apart(tmp_path: Path) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("b1\n")
    first = inventory.machine_id(boot, "h1")
    assert first == inventory.machine_id(boot, "h1")
    assert first != inventory.machine_id(boot, "h2")
    boot.write_text("b2\n")
    assert first != inventory.machine_id(boot, "h1")


def test_the_address_is_the_loopback_where_the_server_is() -> None:
    assert inventory.routable_address("redis://127.0.0.1:6379") == "127.0.0.1"
    assert inventory.routable_address("redis://localhost") == "127.0.0.1"
    assert inventory.routable_address("unix:///tmp/s.sock") == "127.0.0.1"
    assert inventory.routable_address("redis://no-such-host.invalid") == "127.0.0.1"


def test_two_names_of_one_server_are_one_place() -> None:
    place = inventory.server_place("redis://127.0.0.1:6379")
    assert place == inventory.server_place("redis://localhost/0") == inventory.server_place("redis://u:p@127.0.0.1")
    assert place != inventory.server_place("redis://127.0.0.1:6380")
    assert place != inventory.server_place("redis://127.0.0.1:6379/1")


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    assert inventory.memory_bytes(limit) == 1 << 20
    limit.write_text("max\n")
    assert inventory.memory_bytes(limit) == inventory.memory_bytes(tmp_path / "none") > 1 << 20


# --- ports ---------------------------------------------------------------------------------------------------------


class FakeSocket:
    def __init__(self, taken: set[int], port: int) -> None:
        self._taken, self._port = taken, port
        taken.add(port)

    def close(self) -> None:
        self._taken.discard(self._port)


def _binder(taken: set[int], lingering: set[int]) -> Any:
    def bind(port: int, *, again: bool = False) -> FakeSocket | None:
        if port in taken or (port in lingering and not again):
            return None
        return FakeSocket(taken, port)

    return bind


def test_ports_are_in_a_row_and_outside_the_kernels_own() -> None:
    taken = {20_003}
    ports = HeldPorts(16, bind=_binder(taken, set()), ephemeral=range(21_000, 60_000), chooser=random.Random(1))
    held = range(ports.range.first, ports.range.first + 16)
    assert set(held) <= taken
    assert not set(held) & set(range(21_000, 60_000))
    assert 20_003 not in held
    ports.close()
    assert taken == {20_003}


def test_a_lent_port_is_held_again_though_connections_linger() -> None:
    taken: set[int] = set()
    lingering: set[int] = set()
    ports = HeldPorts(2, bind=_binder(taken, lingering), ephemeral=range(0))
    port = ports.range.first
    ports.lend(port)
    assert port not in taken
    lingering.add(port)
    assert ports.hold_lost()
    assert port not in taken  # lent is not lost
    assert ports.hold(port)
    assert port in taken


def test_a_port_that_is_in_use_is_tried_again_later() -> None:
    taken: set[int] = set()
    ports = HeldPorts(2, bind=_binder(taken, set()), ephemeral=range(0))
    port = ports.range.first
    ports.lend(port)
    taken.add(port)
    assert not ports.hold(port)
    assert not ports.hold_lost()
    taken.discard(port)
    assert ports.hold_lost()
    assert port in taken


def test_no_range_is_told() -> None:
    with pytest.raises(NoFreePorts, match="smaller --ports"):
        HeldPorts(4, bind=lambda port, again=False: None, ephemeral=range(0))


def test_a_held_port_can_be_bound_by_nobody() -> None:
    ports = HeldPorts(1)
    try:
        port = ports.range.first
        assert port not in ephemeral_ports()
        assert bind(port) is None
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
    finally:
        ports.close()


# --- what a process is given ---------------------------------------------------------------------------------------

SITE = Site("p", "n0", "realm/p/n0/", "10.0.0.1", ("mod",), Path("/logs"), "/srv/site")


def test_what_the_launch_adds_overrides_the_agents_environment_but_not_spokes_names() -> None:
    blob = encode_blob(LaunchBlob(b"s" * 32, env={"A": "launch", "RANK": "9", "PYTHONUNBUFFERED": "0"}))
    base = {"A": "agent", "B": "agent", "RANK": "8"}
    env = prepare(i.Spawn(a_start(gpu_ids=(3, 1)), blob), SITE, base).spec["env"]
    assert (env["A"], env["B"], env["RANK"], env["PYTHONUNBUFFERED"]) == ("launch", "agent", "1", "0")
    assert env["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert env[procfs.LAUNCH_MARK] == "realm/p/n0/1-0"
    assert "s" * 32 not in str(env)


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "HOME", "PATH", "NCCL_NET_PLUGIN"])
def test_a_node_that_runs_no_commands_takes_no_code_from_the_environment_either(name: str) -> None:
    step = i.Spawn(a_start(), encode_blob(LaunchBlob(b"s" * 32, env={name: "/tmp/mine", "PYTHONHASHSEED": "0"})))
    with pytest.raises(InvalidRequest, match=f"variable {name} says where code is loaded from.*--allow-commands"):
        prepare(step, SITE, {})
    assert prepare(step, dataclasses.replace(SITE, allow_commands=True), {}).spec["env"][name] == "/tmp/mine"


def test_an_actor_finds_its_share_of_its_gpu_in_its_environment() -> None:
    blob = encode_blob(LaunchBlob(b"s" * 32))
    env = prepare(i.Spawn(a_start(gpu_ids=(2,), gpu_milli=333), blob), SITE, {"SPOKE_GPU_SHARE": "1"}).spec["env"]
    assert (env["CUDA_VISIBLE_DEVICES"], env["SPOKE_GPU_SHARE"]) == ("2", "0.333")


def test_an_actor_without_a_share_has_none_though_its_agent_is_an_actor_with_one_itself() -> None:
    of_the_agent = {"SPOKE_GPU_SHARE": "0.5", "SPOKE_NUMA_NODE": "1", "SPOKE_GROUP": "controller"}
    env = prepare(i.Spawn(a_start(gpu_ids=(2,)), encode_blob(LaunchBlob(b"s" * 32))), SITE, of_the_agent).spec["env"]
    assert not of_the_agent.keys() & env.keys()


def test_the_secret_stands_in_the_document_only() -> None:
    prepared = prepare(i.Spawn(a_start(), encode_blob(LaunchBlob(b"s" * 32))), SITE, {})
    assert "s" * 32 not in str(prepared.spec)
    assert b"s" * 32 in prepared.document
    command = a_start(spec=ActorSpec(argv=("echo", "x")))
    assert prepare(i.Spawn(command, b""), SITE, {}).document == b""


def test_paths_of_a_launch() -> None:
    spec = prepare(i.Spawn(a_start(spec=ActorSpec(argv=("x",), cwd="sub")), b""), SITE, {}).spec
    assert spec["log"] == "/logs/t1/1-a1.log"
    assert spec["cwd"] == "/srv/site/sub"


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_environment_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        prepare(i.Spawn(a_start(), encode_blob(LaunchBlob(b"s" * 32, env={name: "x"}))), SITE, {})


def test_a_blob_that_cannot_be_read_or_has_no_secret_is_refused() -> None:
    with pytest.raises(DecodeError):
        prepare(i.Spawn(a_start(), b"\xff"), SITE, {})
    with pytest.raises(SpokeError, match="no secret"):
        prepare(i.Spawn(a_start(), b""), SITE, {})


# --- classes -------------------------------------------------------------------------------------------------------


def test_names_that_are_none_and_classes_that_are_no_actors_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="not a usable name"):
        register_actor("no spaces")
    with pytest.raises(InvalidRequest, match="needs a name"):
        register_actor(Actor)  # type: ignore[arg-type]  # the decorator without parentheses
    with pytest.raises(InvalidRequest, match="needs a subclass"):
        register_actor("X")(int)  # type: ignore[type-var]


def test_a_name_that_is_taken_is_refused_unless_it_is_the_same_class_again() -> None:
    def define() -> type[Actor]:
        @register_actor("Test-taken")
        class One(Actor):
            pass

        return One

    define()
    again = define()
    assert registered_actors()["Test-taken"] is again
    with pytest.raises(InvalidRequest, match=r"registered twice, by .*One and by .*Other"):

        @register_actor("Test-taken")
        class Other(Actor):
            pass


# --- claims --------------------------------------------------------------------------------------------------------


def test_a_claimed_node_is_taken_until_it_is_released(tmp_path: Path) -> None:
    mark = mark_prefix("somewhere", "p", f"test-{os.getpid()}")
    first = NodeClaim(tmp_path, mark, "p", "n0")
    with pytest.raises(NodeTaken, match=f"pid {os.getpid()}"):
        NodeClaim(tmp_path, mark, "p", "n0")
    other = NodeClaim(tmp_path, mark_prefix("elsewhere", "p", f"test-{os.getpid()}"), "p", "n0")
    assert other.sweep() == 0
    for one in (first, other):
        one.release()
    NodeClaim(tmp_path, mark, "p", "n0").release()
    assert not list(tmp_path.iterdir())


def test_a_claim_that_the_keeper_still_has_is_not_free_when_the_agent_gives_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "LOCK_S_MAX", 0.1)
    first = NodeClaim(tmp_path, "mark", "p", "n0")
    keepers = os.dup(first.fd)
    first.release()
    with pytest.raises(NodeNotClean, match="its keeper still waits"):
        NodeClaim(tmp_path, "mark", "p", "n0")
    os.close(keepers)
    NodeClaim(tmp_path, "mark", "p", "n0").release()
    assert not list(tmp_path.iterdir())


def test_of_many_who_claim_a_node_one_has_it_at_a_time(tmp_path: Path) -> None:
    held = threading.Lock()

    def take_turns() -> int:
        turns = 0
        while turns < 50:
            try:
                mine = NodeClaim(tmp_path, "mark", "p", "n0")
            except NodeTaken:
                continue
            assert held.acquire(blocking=False)
            turns += 1
            held.release()
            mine.release()
        return turns

    with ThreadPoolExecutor(4) as threads:
        assert [done.result(60) for done in [threads.submit(take_turns) for _ in range(4)]] == [50] * 4
    assert not list(tmp_path.iterdir())


def test_children_are_seen_and_so_are_their_ends() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    assert pid in procfs.children()
    assert procfs.is_alive(pid)
    assert procfs.started_at(pid)
    os.close(read)
    os.close(write)
    os.waitpid(pid, 0)
    assert pid not in procfs.children()
    assert not procfs.is_alive(pid)
    assert procfs.mark_of(pid) == ""
    assert procfs.session_of(pid) == 0


def test_a_conversation_whose_connection_is_closed_under_its_feet_ends_quietly_only_if_it_was_told_to() -> None:
    class Cut(Conversation):
        told = True

        def _turn(self) -> bool:
            if self.told:
                self._stopped.set()
            raise TypeError("argument must be an int, or have a fileno() method")  # as hiredis does

    url = "redis://127.0.0.1:1"
    cut = Cut("cut", url, Keys("p"), Outage(url), 1.0)
    cut._main()
    cut.told = False
    cut._stopped.clear()
    with pytest.raises(TypeError):
        cut._main()
