"""The commands of "Operations" run in the order of the page, and say what it says they do."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from typer.testing import CliRunner

import spoke
from spoke.cli.embedded import EmbeddedServer
from spoke.cli.main import app
from tests.fakes import eventually, real_allocator
from tests.integration.agent_harness import pool_at

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/operations.md"
ACTORS = str(Path(__file__).with_name("peer_actors.py"))


@pytest.fixture
def sick_file(tmp_path: Path) -> Path:
    return tmp_path / "health.json"


@pytest.fixture
def place(shared_server: EmbeddedServer, pool: str, tmp_path: Path, sick_file: Path) -> Iterator[tuple[str, str]]:
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        for node in ("node-0", "node-1"):
            agents.start_agent(node, gpus=2, imports=[ACTORS], health=str(sick_file) if node == "node-1" else "")
        yield shared_server.url, pool


def run(place: tuple[str, str], command: str) -> str:
    words = shlex.split(command)
    assert words[0] == "spoke"
    env = {"SPOKE_URL": place[0], "SPOKE_POOL": place[1], "COLUMNS": "400"}
    result = CliRunner().invoke(app, words[1:], env=env)
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


def test_the_page(place: tuple[str, str]) -> None:
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    with spoke.Client(place[0], pool=place[1]) as client:
        eventually(lambda: client.status().gpus_free == 4, "both nodes")
        gang = client.gang_allocate(1, 1, spoke.Resources(gpus=2), preferred_node="node-1", timeout=30).result(40)
        waiting: list[Future[spoke.Gang]] = []
        for command, said in steps:
            if not waiting and " t-2" in command:  # by then node-0 is removed
                waiting.append(client.gang_allocate(1, 1, spoke.Resources(gpus=2), timeout=300))
                eventually(lambda: len(client.status().tickets) == 2)
            if command == "spoke nodes":  # the views are written behind the answers
                eventually(lambda said=said: all(line in run(place, "spoke nodes") for line in said))  # type: ignore[misc]
            told = run(place, command)
            for line in said:
                assert line in told, f"{command}\n{told}"
        assert gang.slots[0].node_id == "node-1"
        assert waiting


def test_whoever_waits_is_told_why_and_the_past_is_explained(place: tuple[str, str]) -> None:
    with spoke.Client(place[0], pool=place[1]) as client:
        eventually(lambda: client.status().gpus_free == 4, "both nodes")
        gang = client.gang_allocate(2, 1, spoke.Resources(gpus=1), timeout=30).result(40)
        assert "placed by pack/1" in run(place, "spoke explain t-1")
        future = client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=300)
        with pytest.raises(TimeoutError, match=r"not granted within 1 s: t-2 waits: .* held by t-1") as late:
            future.result(1.0)
        assert "node-0: 1 of 2 members fit, 1 GPU missing" in str(late.value)
        with pytest.raises(TimeoutError, match="needs 1 node with 2 GPUs free"):
            future.result(0.01)
        reason = future.pending_reason()  # type: ignore[attr-defined]
        assert isinstance(reason, spoke.PendingReason)
        assert (reason.place, reason.gpus_missing, reason.nodes[0].holders[0].ticket_id) == (1, 1.0, "t-1")
        told = json.loads(run(place, "spoke explain t-2 --json"))
        assert (told["sentence"], told["gpus_missing"]) == (reason.sentence, 1.0)
        with pytest.raises(spoke.AllocationTimeout, match="1 GPU would have to be freed on node-0, held by t-1"):
            client.gang_allocate(1, 2, spoke.Resources(gpus=1), timeout=0.05).result(40)
        at = json.loads(run(place, "spoke log --json --limit 1"))["id"]
        gang.release().result(20)
        future.result(20)
        assert future.pending_reason() is None  # type: ignore[attr-defined]
        assert "t-2 waits" in run(place, f"spoke explain t-2 --at {at}")
        assert "t-1 was released" in run(place, "spoke explain t-1")
        assert "t-3 was refused: did not fit in the time" in run(place, "spoke explain t-3")
        refusal = client.gang_allocate(1, 2, spoke.Resources(gpus=9), timeout=0)
        with pytest.raises(spoke.AllocationError):
            refusal.result(20)
        refused = json.loads(run(place, "spoke log --json --limit 1"))["id"]
        assert "the gang was refused: cannot fit the pool" in run(place, f"spoke explain {refused}")


def test_a_health_file_takes_a_gpu_out_of_service_and_back(place: tuple[str, str], sick_file: Path) -> None:
    told: list[str] = []
    with spoke.Client(place[0], pool=place[1]) as client:
        eventually(lambda: client.status().gpus_free == 4, "both nodes")
        gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), preferred_node="node-1", timeout=30).result(40)
        gang.on_notice(lambda notice: told.append(notice.kind))
        sick_file.write_text('{"1": "its fan rattles"}')
        eventually(lambda: told == ["gpu_unhealthy"])
        gang.release().result(20)
        eventually(lambda: client.status().gpus_free == 3)
        assert [dict(node.gpus_unhealthy) for node in client.status().nodes] == [{}, {"1": "reported: its fan rattles"}]
        sick_file.write_text("{}")
        eventually(lambda: client.status().gpus_free == 4)


def test_client_and_actors_hear_of_a_drain_before_its_end(place: tuple[str, str]) -> None:
    told: list[spoke.Notice] = []
    with spoke.Client(place[0], pool=place[1]) as client, spoke.Client(place[0], pool=place[1]) as operator:
        eventually(lambda: client.status().gpus_free == 4, "both nodes")
        gang = client.gang_allocate(1, 2, spoke.Resources(gpus=1), preferred_node="node-0", timeout=30).result(40)
        gang.on_notice(told.append)
        actors = gang.launch("Listener").result(40)
        drained = operator.drain_node("node-0", deadline=60, reason="new kernel")
        for actor in actors:
            eventually(lambda actor=actor: actor.call("heard").result(20) == ["node_draining"])  # type: ignore[misc]
        (notice,) = eventually(lambda: told)
        assert (notice.node_id, notice.ranks, notice.reason) == (
            "node-0",
            (0, 1),
            "node node-0 is being drained: new kernel",
        )
        assert notice.deadline_ms
        assert gang.notices == (notice,)
        operator.drain_node("node-0", deadline=0, wait=False).result(20)
        assert drained.result(40) is True
        eventually(lambda: gang.released)
        assert [(end.code, end.signal) for end in gang.exits.values()] == [(0, 0)] * 2, "SIGTERM right after a notice"
        eventually(lambda: [node.cordon.state for node in operator.status().nodes if node.cordon] == ["drained"])


def test_a_repaired_member_is_reached_by_client_and_peers(place: tuple[str, str]) -> None:
    with spoke.Client(place[0], pool=place[1]) as client:
        eventually(lambda: client.status().gpus_free == 4, "both nodes")
        gang = client.gang_allocate(2, 1, spoke.Resources(gpus=1), timeout=30).result(40)
        first, second = gang.launch("Listener").result(40)
        assert first.call("rank_of", 1).result(20) == 1
        os.kill(second.pid, signal.SIGKILL)
        gang.wait_for_rank(1, 30).result(40)
        before = gang.slots
        assert f"rank 1 of {gang.ticket_id} has its place on" in run(
            place, f"spoke ticket repair {gang.ticket_id} --rank 1"
        )
        eventually(lambda: gang.slots != before)
        assert gang.slots[0] == before[0]
        assert (gang.slots[1].node_id, gang.slots[1].gpu_ids) == (before[1].node_id, (1,))
        new = client.launch_actor(gang.ticket_id, 1, "Listener", "again").result(40)
        assert new.call("my_rank").result(20) == 1
        assert first.call("rank_of", 1).result(20) == 1
        eventually(lambda: first.call("heard").result(20) == ["member_repaired"])
        with pytest.raises(spoke.AlreadyLaunched):
            gang.repair(1).result(20)
