"""`spoke doctor`: what each check makes of what it finds, and that every trouble comes with its remedy."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spoke.cli.checks import gpu, machine, rdma, server
from spoke.cli.checks import pool as of_pool
from spoke.cli.checks.cgroup import Limits, read_limits
from spoke.cli.checks.finding import ABSENT, BROKEN, OK, WARNING, Finding
from spoke.cli.checks.rights import check_rights, rights
from spoke.cli.checks.stale import check_stale
from spoke.cli.embedded import EmbeddedServer, free_port
from spoke.cli.main import app
from spoke.client.status import NodeStatus
from spoke.errors import SpokeError
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect
from spoke.protocol.version import PROTOCOL

ACL = Path(__file__).resolve().parents[2] / "deploy/users.acl"
NOW = 1_700_000_000_000


def doctor(*words: str, url: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *words], env={"SPOKE_URL": url, "SPOKE_POOL": "", "COLUMNS": "200"})
    return result.exit_code, result.stdout


def expect(finding: Finding, level: str, *said: str) -> None:
    """The level is this, these words are in it, and a trouble has a remedy."""
    assert finding.level == level, finding
    for text in said:
        assert text in f"{finding.found} {finding.remedy}", finding
    assert bool(finding.remedy) == (level in (WARNING, BROKEN)) or level == ABSENT, finding


@pytest.fixture
def redis(shared_server: EmbeddedServer) -> Iterator[Redis]:
    with contextlib.closing(connect(shared_server.url)) as client:
        yield client


# --- the command ---


def test_without_a_server_it_says_what_to_do_and_ends_with_1() -> None:
    code, text = doctor("--json", url=f"redis://127.0.0.1:{free_port()}")
    found = {finding["check"]: finding for finding in json.loads(text)}
    assert code == 1
    assert found["server"]["level"] == BROKEN
    assert "spoke up" in found["server"]["remedy"]
    assert {"ports", "shared memory", "locked memory", "open files", "cgroup", "GPUs", "RDMA ports", "RDMA"} <= set(
        found
    )


def test_a_url_that_cannot_be_read_is_broken_too() -> None:
    code, text = doctor("--json", url="redis+sentinel://host")
    assert code == 1
    assert "service" in json.loads(text)[0]["found"]


def test_with_a_server_nothing_is_broken_and_every_trouble_has_a_remedy(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server_:
        code, text = doctor(url=server_.url)
        found = json.loads(doctor("--json", url=server_.url)[1])
    assert code == 0, text
    assert "0 broken" in text
    assert "Valkey" in text or "Redis" in text
    assert [one["check"] for one in found if one["level"] == WARNING and not one["remedy"]] == []
    assert not [one for one in found if "the check failed" in one["found"]]
    assert {"allocator", "inbox", "agents", "releases", "log", "stale keys", "rights"} <= {
        one["check"] for one in found
    }


def test_a_user_who_may_not_look_is_told_so(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as one, contextlib.closing(connect(one.url)) as admin:
        may = "on >pw %R~x +hello +auth +ping +info +time +client|setname +client|setinfo"
        admin.execute_command("ACL", "SETUSER", "bob", *may.split())  # type: ignore[no-untyped-call]
        code, text = doctor("--json", url=one.url.replace("//", "//bob:pw@"))
    found = {finding["check"]: finding for finding in json.loads(text)}
    assert code == 1
    assert found["rights"]["level"] == BROKEN
    assert found["agents"]["level"] == found["log"]["level"] == ABSENT
    assert "may not" in found["log"]["found"]


# --- the server ---


def test_the_servers_version() -> None:
    expect(server.version({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "x"), OK, "Valkey 9.1.2 at x")
    expect(server.version({"redis_version": "7.4.0"}, "x"), OK, "Redis 7.4.0")
    expect(server.version({"redis_version": "6.2.1"}, "x"), WARNING, "6.2.1", "upgrade")


@pytest.mark.parametrize(
    ("policy", "maxmemory", "level"),
    [
        ("noeviction", 0, OK),
        ("allkeys-lru", 1 << 30, BROKEN),
        ("allkeys-lru", 0, WARNING),
        ("volatile-ttl", 1, WARNING),
    ],
)
def test_a_server_that_may_drop_the_log(policy: str, maxmemory: int, level: str) -> None:
    expect(server.eviction(policy, maxmemory), level)


@pytest.mark.parametrize(("used", "level"), [(10, OK), (85, WARNING), (99, BROKEN)])
def test_a_server_that_is_nearly_full(used: int, level: str) -> None:
    expect(server.memory({"used_memory": used << 20, "maxmemory": 100 << 20}), level, f"{used} MiB of 100 MiB")
    expect(server.memory({"used_memory": used << 20, "maxmemory": 0}), OK, "no maxmemory")


def test_a_log_that_is_not_on_disk() -> None:
    expect(server.persistence({"aof_enabled": 1}), OK)
    expect(server.persistence({"aof_enabled": 1}, "always"), OK, "fsync always")
    expect(server.persistence({"aof_enabled": 1}, "everysec"), OK, "loses about one")
    expect(server.persistence({"aof_enabled": 1}, "no"), WARNING, "appendfsync")
    expect(server.persistence({"aof_enabled": 0}), WARNING, "appendonly yes")
    expect(server.persistence({"aof_enabled": 1, "aof_last_write_status": "err"}), BROKEN, "disk")
    expect(server.persistence({"aof_enabled": 1, "aof_last_bgrewrite_status": "err"}), BROKEN, "rewrite")


def test_replicas_that_lag() -> None:
    def primary(**replica: object) -> dict[str, Any]:
        one = {"ip": "10.0.0.7", "port": 6379, "state": "online", "offset": 1000, "lag": 0, **replica}
        return {"role": "master", "connected_slaves": 1, "master_repl_offset": 1000, "slave0": one}

    expect(server.replication({"role": "master", "connected_slaves": 0}), OK, "none")
    expect(server.replication(primary()), OK, "1 up to date")
    expect(server.replication(primary(lag=60)), WARNING, "10.0.0.7:6379 is 60 s")
    expect(server.replication(primary(offset=1000 - (64 << 20))), WARNING, "64 MiB behind")
    expect(server.replication(primary(state="wait_bgsave")), WARNING, "wait_bgsave")
    replica = {"role": "slave", "master_host": "10.0.0.5", "master_port": 6379}
    expect(server.replication(replica), BROKEN, "replica of 10.0.0.5:6379", "primary's URL")


def test_a_server_that_hangs_up() -> None:
    expect(server.idle("0"), OK)
    expect(server.idle("300"), WARNING, "300 s", "timeout 0")
    expect(server.idle(""), ABSENT)


def test_a_clock_that_is_off_counts_only_beyond_what_the_round_trip_explains() -> None:
    expect(server.skew(0.1, 0.01), OK)
    expect(server.skew(-30.0, 0.01), WARNING, "-30.000 s", "NTP")
    expect(server.skew(3.0, 4.0), OK)


# --- the pool ---


def leader(deadline: float, holder: str = "vm:7:ab12cd") -> dict[str, str]:
    return {"holder": holder, "deadline": str(deadline), "epoch": "3", "cursor": "1-0"}


def test_nobody_decides() -> None:
    expect(of_pool.allocator({}, NOW, "p"), WARNING, "never had one", "spoke allocator --pool p")
    expect(of_pool.allocator(leader(NOW - 90_000), NOW, "p"), BROKEN, "vm:7:ab12cd", "silent for 1m", "start one")
    expect(of_pool.allocator(leader(0), NOW, "p"), BROKEN, "resigned")
    expect(of_pool.allocator(leader(NOW + 2_000), NOW, "p"), OK, "epoch 3", "2.0 s more")


def test_requests_that_nobody_decides() -> None:
    expect(of_pool.inbox(0, "", "", NOW), OK)
    expect(of_pool.inbox(1, f"{NOW - 60_000}-0", f"{NOW - 60_000}-0", NOW), OK, "is decided")
    expect(of_pool.inbox(9, f"{NOW - 100}-0", "", NOW), OK, "are read")
    expect(of_pool.inbox(9, f"{NOW - 60_000}-0", "1-0", NOW), WARNING, "9 requests", "1m")


def test_agents_that_are_lost_late_or_silent() -> None:
    nodes = [NodeStatus("n0", "up"), NodeStatus("n:1", "draining")]
    leases = {
        "node:n0:i1": NOW + 8_000.0,
        "node:n:1:i2": NOW + 6_500.0,
        "client:c": NOW + 1.0,
        "node:n0:old": NOW - 9e6,
    }
    expect(of_pool.agents([], {}, NOW, "p"), ABSENT, "spoke agent --pool p")
    expect(of_pool.agents(nodes, leases, NOW, "p"), OK, "2 nodes", "n:1 has the shortest, 6.5 s")
    expect(of_pool.agents(nodes, {**leases, "node:n0:i1": NOW + 300.0}, NOW, "p"), WARNING, "n0", "--lease")
    expect(of_pool.agents(nodes, {"node:n0:i1": NOW + 8e3}, NOW, "p"), WARNING, "without a lease", "n:1")
    lost = [replace(nodes[0], state="lost"), nodes[1]]
    expect(of_pool.agents(lost, leases, NOW, "p"), WARNING, "lost: n0", "spoke node remove")


def test_agents_and_allocators_of_another_release() -> None:
    here: dict[str, Any] = {"version": "1.0", "protocol": PROTOCOL}
    leader = {"holder": "a", "release": "1.0", "protocol": str(PROTOCOL)}
    expect(of_pool.releases([], {}, "1.0"), OK)
    expect(of_pool.releases([NodeStatus("n0", **here)], leader, "1.0"), OK, "everywhere in the pool")
    mixed = [NodeStatus("n0", **here), NodeStatus("n1", version="0.9", protocol=PROTOCOL), NodeStatus("n2")]
    expect(of_pool.releases(mixed, leader, "1.0"), WARNING, f"0.9 (protocol {PROTOCOL}) on n1", "not told on n2")
    expect(of_pool.releases([], {**leader, "release": "0.9"}, "1.0"), WARNING, "1.0 (protocol", "0.9", "the allocator")
    spoken: dict[str, Any] = {"version": "1.0", "protocol": PROTOCOL + 1}
    found = of_pool.releases([NodeStatus("n1", **spoken)], leader, "1.0")  # the same release's number, of a later build
    expect(found, BROKEN, f"(protocol {PROTOCOL + 1}) on n1", "another version of the protocol")
    expect(of_pool.releases([], {**leader, "protocol": "99"}, "1.0"), BROKEN, "(protocol 99) on the allocator")


def test_a_log_that_lost_its_data_or_grows_for_ever() -> None:
    last, day_ms = f"{NOW}-0", 24 * 3_600_000
    expect(of_pool.log(0, "0-0", "0-0", "", ""), OK, "empty")
    expect(of_pool.log(0, "0-0", "0-0", last, ""), BROKEN, "lost its data", "audit restore")
    expect(of_pool.log(7, last, last, "", ""), OK, "7 events since 2023-11-14", "no snapshot yet")
    expect(of_pool.log(200_000, last, last, "", ""), WARNING, "no snapshot yet", "allocator's log")
    expect(of_pool.log(2_000_000, last, last, last, last), OK, "archived up to")
    expect(of_pool.log(2_000_000, last, last, last, f"{NOW - 3 * day_ms}-0"), WARNING, "3d behind", "audit archive")
    expect(of_pool.log(9_000_000, last, last, last, last), WARNING, "audit archive")
    expect(of_pool.log(9_000_000, last, last, last, ""), WARNING, "trimmed")


def test_keys_of_those_who_are_gone(redis: Redis, pool: str) -> None:
    keys = Keys(pool)
    redis.hset(keys.nodes, "n0", "{}")
    redis.hset(keys.tickets, "t-1", "{}")
    redis.zadd(keys.leases, {"client:c-1": NOW})
    for name in ("n0", "n9"):
        redis.xadd(keys.node(name), {"a": "b"})
        redis.xadd(keys.logs(name), {"a": "b"})
    for client in ("c-1", "c-9"):
        redis.xadd(keys.reply(client), {"a": "b"})
    for ticket in ("t-1", "t-9"):
        redis.hset(keys.ticket(ticket), "state", "active")
        redis.set(keys.secret(ticket, "alice"), "s")
    redis.set(keys.secret("t-8"), "s", ex=60)  # goes by itself
    try:
        finding = check_stale(redis, keys)
        expect(finding, WARNING, "5 keys of nodes, clients or tickets that are gone", keys.node("n9"))
        for key in (
            keys.node("n9"),
            keys.logs("n9"),
            keys.reply("c-9"),
            keys.ticket("t-9"),
            keys.secret("t-9", "alice"),
        ):
            redis.delete(key)
        expect(check_stale(redis, keys), OK, "none of")
    finally:
        redis.delete(*redis.keys(f"spoke:{{{pool}}}:*"))  # type: ignore[misc]


def test_every_role_of_the_access_list_is_recognised_and_changes_nothing(tmp_path: Path, pool: str) -> None:
    roles = ("allocator", "agent", "client", "operator", "auditor")
    with EmbeddedServer(tmp_path) as one, contextlib.closing(connect(one.url)) as admin:
        for line in ACL.read_text().splitlines():
            _, user, _, *rules = line.split()
            if user in roles:
                admin.execute_command("ACL", "SETUSER", user, "on", ">pw", *rules)  # type: ignore[no-untyped-call]
        for role in roles:
            with contextlib.closing(connect(one.url.replace("//", f"//{role}:pw@"))) as client:
                finding = check_rights(client, Keys(pool), role)
                expect(finding, OK, f"user {role} has the rights of")
                assert role in finding.found.partition("rights of: ")[2].split(", "), finding
        alice = "on >pw %R~spoke:{*}:reply:alice.* %RW~spoke:{*}:secret:alice:* -@all +@connection +xread +set"
        admin.execute_command("ACL", "SETUSER", "alice", *alice.split())  # type: ignore[no-untyped-call]
        with contextlib.closing(connect(one.url.replace("//", "//alice:pw@"))) as client:
            lacks = check_rights(client, Keys(pool), "alice").found
        assert "for client it lacks" in lacks
        assert "reply:" not in lacks
        assert "secret:" not in lacks, "what she may do under her own name counts"
        assert admin.dbsize() == 0


def test_a_user_without_the_rights_of_any_role() -> None:
    missing, of = (
        {"client": ["SET x"], "agent": ["XADD y", "SET x"], "auditor": ["ZRANGE z"]},
        {"client": 7, "agent": 5},
    )
    of["auditor"] = 1
    expect(rights("bob", missing, of), BROKEN, "for client it lacks SET x", "deploy/users.acl")
    expect(rights("bob", {**missing, "auditor": []}, of), OK, "auditor")


# --- the machine ---


def test_ports_for_rendezvous_that_are_taken() -> None:
    some, outside = range(20_000, 20_100), range(32_768, 61_000)
    expect(machine.port_range(some, 64, outside, lambda port: True), OK, "100 of 100")
    expect(machine.port_range(some, 64, outside, lambda port: port % 50 > 0), WARNING, "49 of them in a row", "--ports")
    expect(machine.port_range(some, 64, range(1024, 65_536), lambda port: True), WARNING, "ip_local_port_range")


def test_a_small_dev_shm() -> None:
    expect(machine.shm(64 << 20, 64 << 20), WARNING, "64 MiB of 64 MiB", "--shm-size")
    expect(machine.shm(16 << 30, 8 << 30), OK)


def test_limits_of_the_user() -> None:
    expect(machine.open_files(1024, 1 << 20), WARNING, "1,024", "LimitNOFILE")
    expect(machine.open_files(65_536, 65_536), OK)
    expect(machine.open_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY), OK)
    expect(machine.memlock(64 << 10, True), WARNING, "LimitMEMLOCK")
    expect(machine.memlock(64 << 10, False), OK)
    expect(machine.memlock(resource.RLIM_INFINITY, True), OK, "unlimited")


def test_a_control_group_that_gives_less_than_an_agent_would_offer() -> None:
    offers = (64 << 30, 16.0)
    expect(machine.container(None, None, None, offers=offers), OK, "no limit")
    expect(machine.container(64 << 30, 16.0, 1 << 20, offers=offers), OK, "64 GiB of memory")
    expect(machine.container(8 << 30, None, None, offers=offers), WARNING, "8 GiB", "--memory 8GiB")
    expect(machine.container(None, 2.5, None, offers=offers), WARNING, "2.5 cores", "--cpus 2.5")
    expect(machine.container(None, None, 100, offers=offers), WARNING, "100 processes", "pids-limit")


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "fs"
    inner = root / "a" / "b"
    inner.mkdir(parents=True)
    own.write_text("0::/a/b\n")
    for group, name, text in (
        (inner, "memory.max", "max"),
        (root / "a", "memory.max", "1000"),
        (root, "memory.max", "2000"),
        (inner, "cpu.max", "150000 100000"),
        (inner, "pids.max", "77"),
    ):
        (group / name).write_text(text)
    assert read_limits(root, own) == Limits(1000, 1.5, 77)
    own.write_text("9:memory:/x\n8:pids:/\n7:cpu,cpuacct:/\n0::/\n")  # version 1
    for name in ("memory/x", "pids", "cpu"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "memory.max").unlink()
    (root / "memory/x/memory.limit_in_bytes").write_text("500")
    (root / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    (root / "pids/pids.max").write_text("max")
    (root / "cpu/cpu.cfs_quota_us").write_text("-1")
    (root / "cpu/cpu.cfs_period_us").write_text("100000")
    assert read_limits(root, own) == Limits(500, None, None)
    assert read_limits(root, tmp_path / "nothing") is None


# --- GPUs and RDMA ---


class FakeNvml:
    """A library with one GPU, or with an error."""

    class NVMLError(Exception):
        pass

    def __init__(self, problem: str = "", gpus: int = 1) -> None:
        self._problem, self._gpus = problem, gpus

    def nvmlInit(self) -> None:
        if self._problem:
            raise self.NVMLError(self._problem)

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return self._gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        raise self.NVMLError("no")

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "H100"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.54.15"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12_040


def test_gpus_and_their_driver(tmp_path: Path) -> None:
    driver = tmp_path / "nvidiactl"
    driver.touch()

    def missing(name: str) -> object:
        raise ImportError(name)

    expect(gpu.nvml(lambda name: FakeNvml(gpus=8)), OK, "8 x H100; driver 550.54.15, for CUDA up to 12.4")
    expect(gpu.nvml(lambda name: FakeNvml(gpus=0)), WARNING, "reports none")
    expect(gpu.nvml(missing, device="/nonexistent"), ABSENT)
    expect(gpu.nvml(missing, device=str(driver)), WARNING, "pip install")
    mismatch = FakeNvml("Driver/library version mismatch")
    expect(gpu.nvml(lambda name: mismatch, device=str(driver)), WARNING, "updated while it was loaded")
    expect(gpu.nvml(lambda name: FakeNvml("Unknown Error"), device=str(driver)), WARNING, "nvidia-smi")


def test_variables_that_hide_gpus_from_an_agent() -> None:
    expect(gpu.visible(None, None), OK)
    expect(gpu.visible(None, "PCI_BUS_ID"), OK)
    expect(gpu.visible("0,1", None), WARNING, "'0,1'", "unset")
    expect(gpu.visible(None, "FASTEST_FIRST"), WARNING, "FASTEST_FIRST")


def test_every_check_of_this_machine_ends_soon() -> None:
    began = time.monotonic()
    for check in (*machine.CHECKS, *gpu.CHECKS, *rdma.CHECKS):
        assert check().found
    assert time.monotonic() - began < 10


def test_a_server_of_our_own_does_not_take_another_one_at_its_port_for_itself(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "one") as one:
        with pytest.raises(SpokeError, match=f"port {one.port}, where another one answers"):
            EmbeddedServer(tmp_path / "two", port=one.port).start()
        assert one.alive
