"""The commands of "Who goes first" run in the order of the page, and say what it says they do; and notices arrive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at
from tests.integration.test_docs_operations import run

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/queue.md"


@pytest.fixture
def place(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        agents.start_agent("node-0", gpus=2)
        yield shared_server.url, pool


def test_the_page(place: tuple[str, str]) -> None:
    with spoke.Client(place[0], pool=place[1]) as client:
        eventually(lambda: client.status().gpus_free == 2, "the node")
        for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
            told = ""
            for line in block.splitlines():
                if line.startswith("$ "):
                    if " list" in line or " show" in line:
                        command = line[2:]
                        eventually(lambda command=command: json.loads(run(place, f"{command} --json")))  # type: ignore[misc]
                    told = run(place, line[2:])
                else:
                    assert line in told, f"{line!r} is not in {told}"


def test_a_preempted_ticket_is_told_and_an_urgent_one_gets_its_place(place: tuple[str, str]) -> None:
    with spoke.Client(place[0], pool=place[1], project="vision") as client:
        eventually(lambda: client.status().gpus_free == 2, "the node")
        client.set_queue_policy(notice=0.5).result(30)
        eventually(lambda: client.queue_status().policy.notice_ms == 500)
        assert client.set_quota("vision", gpus=2, weight=3).result(30)
        low = client.gang_allocate(1, 2, spoke.Resources(gpus=1), preemptible=True, timeout=30).result(40)
        told: list[spoke.Notice] = []
        low.on_notice(told.append)
        waiting = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=60)
        eventually(lambda: client.queue_status().waiting == 1)
        urgent = client.gang_allocate(1, 2, spoke.Resources(gpus=1), priority=3, max_duration=3600, timeout=60).result(
            60
        )
        eventually(lambda: [notice.kind for notice in told] == ["preempting"])
        assert low.releasing.startswith(f"makes room for {urgent.ticket_id}: priority 3 goes before 0")

        def mine() -> object:  # the views are written behind the answers
            (one,) = [one for one in client.status().tickets if one.ticket_id == urgent.ticket_id]
            return one.project, one.priority, one.ends_ms > 0

        eventually(lambda: mine() == ("vision", 3, True))
        assert not waiting.done()
        urgent.release().result(60)
        waiting.result(60)
        eventually(lambda: [(held.project, held.gpus) for held in client.queue_status().projects] == [("vision", 2.0)])
