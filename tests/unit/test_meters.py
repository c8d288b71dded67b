"""What allocator and agent count for Prometheus."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from spoke.agent import instructions as i
from spoke.agent.meters import Meters as AgentMeters
from spoke.allocator.meters import Meters, figures
from spoke.cli.metrics import parse_listen, serving
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.model import ActorSpec
from spoke.protocol import orders as o
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def pool_of(nodes: int) -> MemoryPool:
    pool = MemoryPool()
    for at in range(nodes):
        pool.register(node_spec(f"n{at}"))
    pool.connect("c")
    return pool


def test_a_pool_is_summed_up() -> None:
    pool = pool_of(2)
    pool.allocate("c", gang(1, 3))
    pool.allocate("c", gang(1, 1, gpus=0.25))
    pool.allocate("c", gang(4, 4), timeout_ms=None)
    found = figures(pool.state, pool.now_ms + 5_000)
    assert found.nodes == {"up": 2}
    assert sum(found.gpus.values()) == 8
    assert (found.gpus["held"], found.gpus["shared"], found.gpus["free"]) == (3, 1, 4)
    assert found.shared_free_milli == 750
    assert found.tickets == {"allocated": 2, "queued": 1}
    assert (found.clients, found.queue) == (1, 1)
    assert found.oldest_wait_s >= 5


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"pool": "p", **labels})


def test_an_allocator_answers_a_scrape_from_its_own_thread() -> None:
    pool, meters = pool_of(2), Meters("p")
    assert value(meters.registry, "spoke_leading") == 0
    assert value(meters.registry, "spoke_clients") is None  # a standby knows nothing of the pool
    meters.begin_term()
    meters.event(e.ClientLost("c", "gone"), pool.state, 0)
    meters.commit_sent()
    meters.commit_ended()
    ended = threading.Event()

    def lead() -> None:
        while not ended.wait(0.001):
            meters.answer(pool.state, pool.now_ms)

    thread = threading.Thread(target=lead)
    thread.start()
    try:
        assert value(meters.registry, "spoke_nodes", phase="up") == 2
        assert value(meters.registry, "spoke_events_total", type="client.lost") == 1
        assert value(meters.registry, "spoke_commit_seconds_count") == 1
    finally:
        ended.set()
        thread.join()


def test_a_wait_is_measured_from_the_request_to_the_grant() -> None:
    pool, meters = pool_of(1), Meters("p")
    pool.allocate("c", gang(2, 1), timeout_ms=None)
    (ticket,) = pool.state.queue
    since_ms = int(pool.state.tickets[ticket].since.partition("-")[0])
    granted = e.GangAllocated(ticket, "c", 1, gang(2, 1), (), "", 0, "pack/1")
    meters.event(granted, pool.state, since_ms + 2_500)
    assert value(meters.registry, "spoke_gang_wait_seconds_sum") == 2.5


def test_restarts_are_counted_by_their_policy() -> None:
    pool, meters = pool_of(1), Meters("p")
    meters.event(e.ActorRestarting("t-1", 0, "a", "n0", 1, 3, 0, "", 100), pool.state, 0)
    meters.event(e.GangRestarting("t-1", 1, 0, 3, 0, "", (0, 1, 2), 1, 100), pool.state, 0)
    meters.event(e.GangRestarted("t-1", 1, (0, 1, 2), 100), pool.state, 0)
    assert value(meters.registry, "spoke_actor_restarts_total", policy="on_failure") == 1
    assert value(meters.registry, "spoke_actor_restarts_total", policy="gang") == 3


def test_an_agent_counts_what_it_does() -> None:
    now = [10.0]
    meters = AgentMeters("p", "n", clock=lambda: now[0])
    order = o.StartActor("t-1", "l-1", "a", ActorSpec(argv=("true",)), 0, 0, 0, 1, 1, 1, (), (), "", 0, 1.0)
    meters.watch(i.ExtendLease(17.0))
    meters.watch(i.Joined())
    meters.watch(i.Spawn(order, b""))
    now[0] += 0.5
    meters.watch(i.Send(r.Envelope(r.ReportStarted("t-1", 0, "l-1", 7), node_id="n", incarnation="i")))
    assert value(meters.registry, "spoke_agent_up", node="n") == 1
    assert value(meters.registry, "spoke_agent_actors", node="n") == 1
    assert value(meters.registry, "spoke_agent_lease_left_seconds", node="n") == 6.5
    assert value(meters.registry, "spoke_agent_start_seconds_sum", node="n") == 0.5
    meters.watch(i.Send(r.Envelope(r.ReportExited("t-1", 0, "l-1", 0, 9), node_id="n", incarnation="i")))
    assert value(meters.registry, "spoke_agent_exits_total", node="n", how="signal") == 1
    assert value(meters.registry, "spoke_agent_actors", node="n") == 0
    assert value(meters.registry, "spoke_agent_restarts_total", node="n") == 0
    meters.watch(i.Spawn(order, b"", 1))
    assert value(meters.registry, "spoke_agent_restarts_total", node="n") == 1
    meters.watch(i.KillAll())
    assert value(meters.registry, "spoke_agent_fences_total", node="n") == 1
    assert value(meters.registry, "spoke_agent_up", node="n") == 0


def test_an_agent_counts_what_is_read_of_its_actors_output() -> None:
    meters = AgentMeters("p", "n")
    meters.answered(1_000)
    meters.answered(0)
    meters.refused("forbidden")
    meters.stored(5_000)
    assert value(meters.registry, "spoke_agent_log_bytes_total", node="n") == 1_000
    assert value(meters.registry, "spoke_agent_log_asks_total", node="n", result="answered") == 2
    assert value(meters.registry, "spoke_agent_log_asks_total", node="n", result="forbidden") == 1
    assert value(meters.registry, "spoke_agent_log_asks_total", node="n", result="limit") == 0
    assert value(meters.registry, "spoke_agent_log_stored_bytes", node="n") == 5_000


@pytest.mark.parametrize("text", ["", "x", "70000", "::1:80", "host:", "-1"])
def test_an_address_that_cannot_be_read_is_said(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--metrics"):
        parse_listen(text)


def test_a_port_that_is_taken_is_said() -> None:
    meters = Meters("p")
    with serving("127.0.0.1:0", meters):
        pass
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InvalidRequest, match="choose another port"), serving(where, meters):
            pass


def exported() -> set[str]:
    """The names of all series that allocator and agent may show."""
    pool, meters = pool_of(1), Meters("p")
    meters.begin_term()
    meters.answer = lambda *_: None  # type: ignore[method-assign]
    meters._ask = lambda: figures(pool.state, pool.now_ms)  # type: ignore[method-assign]
    registries = (meters.registry, AgentMeters("p", "n").registry)
    names = {family.name for registry in registries for family in registry.collect()}
    return {f"{name}{end}" for name in names for end in ("", "_total", "_bucket", "_sum", "_count")}


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"spoke_[a-z_]+", expression))


def test_the_dashboard_and_the_alerts_name_what_is_exported() -> None:
    known = exported()
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 8
    for rule in alerts:
        assert names_in(rule["expr"])
        assert names_in(rule["expr"]) <= known, rule["alert"]
        assert rule["annotations"]["summary"]
    dashboard = json.loads((DEPLOY / "prometheus" / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert names_in(target["expr"])
            assert names_in(target["expr"]) <= known, panel["title"]
