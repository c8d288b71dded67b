"""Sentinel and Cluster: kill -9 of the primary under load; everybody finds the new one, and the log verifies."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import free_port
from spoke.errors import InvalidRequest, ServerUnreachable, ServerUnsuitable
from spoke.events.audit import verify
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from spoke.protocol.server import connect
from tests.daemons import Daemons
from tests.fakes import eventually
from tests.ha import ClusterSetup, SentinelSetup, ask, role
from tests.load import Load

pytestmark = pytest.mark.timeout(300)


def check(url: str, pool: str, load: Load) -> None:
    """Every answer was given once, everything came back, and the log says how."""
    assert load.errors == []
    assert len(load.granted) == len(set(load.granted)), "a ticket was granted twice"
    keys = Keys(pool)
    with contextlib.closing(connect(url, pool=pool)) as redis:
        log = EventLog(redis, keys.events, keys.snapshot)

        def whole() -> bool:
            state = log.recover()
            nodes = state.nodes.values()
            return not state.tickets and all(n.phase == "up" and n.free == n.total for n in nodes) and len(nodes) == 1

        eventually(whole, "all tickets gone and all GPUs free", 60)
        report = verify(log)
    assert report.problems == []
    assert report.counts["gang.allocated"] == len(load.granted)
    assert report.counts["client.lost"] == report.counts["node.lost"] == 0


def test_sentinel_names_a_new_primary_and_the_pool_goes_on(tmp_path: Path, pool: str) -> None:
    with SentinelSetup(tmp_path) as setup, Daemons(tmp_path, pool) as daemons:
        daemons.allocator(setup.url)
        daemons.allocator(setup.url)
        daemons.agent(setup.url, "n1", gpus=8, lease_s=60)
        with Load(setup.url, pool) as load:
            load.goes_on()
            killed = setup.servers[0]
            killed.kill()
            load.goes_on()
            assert setup.primary() == setup.servers[1].port
            killed.start()  # it comes back as a replica
            eventually(lambda: role(killed.port) == "slave:connected", "the old primary follows the new one", 60)
            load.goes_on()
            ask(setup.sentinels[1].port, "SENTINEL", "FAILOVER", "spoke")  # and back again, in order
            eventually(lambda: role(killed.port) == "master", "the second failover", 60)
            load.goes_on()
        check(setup.url, pool, load)


def test_cluster_pools_live_on_different_nodes_and_survive_one_of_them(tmp_path: Path, pool: str) -> None:
    with ClusterSetup(tmp_path) as setup, contextlib.ExitStack() as stack:
        first = setup.owner(pool)
        other = next(name for i in range(100) if setup.owner(name := f"{pool}-{i}") is not first)
        loads = {}
        for name in (pool, other):
            directory = tmp_path / name
            directory.mkdir()
            daemons = stack.enter_context(Daemons(directory, name))
            daemons.allocator(setup.url)
            daemons.agent(setup.url, "n1", gpus=8, lease_s=60)
            loads[name] = stack.enter_context(Load(setup.url, name, threads=2))
        for load in loads.values():
            load.goes_on(30)
        first.kill()
        loads[other].goes_on(30)
        loads[pool].goes_on(30)
        assert setup.owner(pool) is not first
        first.start()
        loads[pool].goes_on(30)
        for name, load in loads.items():
            load.stop()
            check(setup.url, name, load)
        with pytest.raises(ServerUnsuitable, match=r"redis\+cluster://"):
            spoke.Client(f"redis://127.0.0.1:{setup.owner(other).port}", pool=pool)


def test_sentinels_that_are_not_there_or_know_no_such_service_are_told(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachable, match="no sentinel"):
        spoke.Client(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/spoke")
    with pytest.raises(ServerUnreachable, match="does not say"):
        spoke.Client(f"redis+cluster://127.0.0.1:{free_port()}")
    with pytest.raises(InvalidRequest, match="service"):
        spoke.Client("redis+sentinel://127.0.0.1:1")
