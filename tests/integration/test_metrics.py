"""Allocator and agent as processes, scraped over HTTP."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.daemons import Daemons
from tests.fakes import eventually


def scrape(port: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(number) for name, number in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_figures_are_served(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> None:
    with Daemons(tmp_path, pool) as daemons, spoke.Client(shared_server.url, pool=pool) as client:
        daemons.allocator(shared_server.url, "--metrics", "0")
        daemons.agent(shared_server.url, "node-0", "--metrics", "0")
        eventually(lambda: "node node-0 is up" in daemons.said())
        gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=30).result(40)
        gang.launch_command(["sh", "-c", "exit 3"]).result(30)
        gang.wait(30).result(40)
        ports = re.findall(r"http://127.0.0.1:(\d+)/metrics", daemons.said())
        assert list(gang.logs()) == []
        both = scrape(ports[0]) | scrape(ports[1])
        label = f'pool="{pool}"'
        assert both[f"spoke_leading{{{label}}}"] == 1
        assert both[f'spoke_gpus{{{label},state="held"}}'] == 2
        assert both[f'spoke_events_total{{{label},type="gang.allocated"}}'] == 1
        assert both[f'spoke_agent_exits_total{{how="failure",node="node-0",{label}}}'] == 2
        assert both[f'spoke_agent_log_asks_total{{node="node-0",{label},result="answered"}}'] >= 1
        assert 0 < both[f'spoke_agent_lease_left_seconds{{node="node-0",{label}}}'] <= 10
