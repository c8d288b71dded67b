"""The program of "Traces" as it stands, with daemons that trace: one trace goes through client, allocator and agent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.daemons import Daemons
from tests.fakes import eventually

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/how-to/tracing.md"
TO_CONSOLE = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "200"}


def spans_in(text: str) -> list[dict[str, Any]]:
    """The spans that the console's exporter has written between other lines."""
    found: list[dict[str, Any]] = []
    for match in re.finditer(r"^\{$", text, re.MULTILINE):
        try:
            document, _ = json.JSONDecoder().raw_decode(text, match.start())
        except json.JSONDecodeError:  # cut off: it is still being written
            continue
        found.append(document)
    return found


def commands() -> list[list[str]]:
    (block,) = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line.split()[2:] for line in block.splitlines() if line.startswith("$ spoke ")]


@pytest.fixture
def daemons(shared_server: EmbeddedServer, pool: str, tmp_path: Path) -> Any:
    with Daemons(tmp_path, pool, cwd=tmp_path) as found:
        allocator, agent = commands()
        assert (allocator, agent) == (["allocator", "--trace"], ["agent", "--trace"])
        found.spawn(shared_server.url, *allocator, env=TO_CONSOLE)
        where = ("--node-id", "n0", "--gpus", "2", "--allow-commands", "--log-dir", str(tmp_path / "logs"))
        found.spawn(shared_server.url, *agent, *where, env=TO_CONSOLE)
        with spoke.Client(shared_server.url, pool=pool) as client:
            eventually(lambda: client.status().gpus_free == 2, "the node", 40)
        yield found


def test_one_trace_goes_from_the_request_to_actors_that_are_up(
    daemons: Daemons, shared_server: EmbeddedServer, pool: str, tmp_path: Path
) -> None:
    program = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    env = {**os.environ, "SPOKE_URL": shared_server.url, "SPOKE_POOL": pool}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    mine = spans_in(done.stdout)
    wanted = {"spoke.decide": 1, "spoke.agent.launch": 2, "spoke.actor.start": 2}

    def theirs() -> list[dict[str, Any]]:
        found = spans_in(daemons.said())
        return found if all(sum(s["name"] == name for s in found) == n for name, n in wanted.items()) else []

    spans = mine + eventually(theirs, "the daemons send their spans")
    by_name = {span["name"]: span for span in spans}
    assert set(by_name) == {"experiment", "spoke.gang_allocate", "spoke.launch", *wanted}
    assert len({span["context"]["trace_id"] for span in spans}) == 1, "one trace"
    ids = {name: span["context"]["span_id"] for name, span in by_name.items()}
    launches, processes = (
        [s for s in spans if s["name"] == name] for name in ("spoke.agent.launch", "spoke.actor.start")
    )
    assert {s["parent_id"] for s in processes} == {s["context"]["span_id"] for s in launches}
    parents = {name: span["parent_id"] for name, span in by_name.items() if name != "spoke.actor.start"}
    assert parents == {
        "experiment": None,
        "spoke.gang_allocate": ids["experiment"],
        "spoke.decide": ids["spoke.gang_allocate"],
        "spoke.launch": ids["experiment"],
        "spoke.agent.launch": ids["spoke.launch"],
    }
    decide = by_name["spoke.decide"]
    assert decide["attributes"]["spoke.event"] == "gang.allocated"
    assert decide["resource"]["attributes"]["service.name"] == "spoke-allocator"
    assert all(s["attributes"]["spoke.pid"] > 0 for s in processes)
    contexts = {(tmp_path / f"{rank}.trace").read_text().split("-")[2] for rank in (0, 1)}
    assert contexts == {ids["spoke.launch"].removeprefix("0x")}, "what the actors are given"


def test_who_does_not_trace_is_not_made_to_import_it() -> None:
    at_once = [
        path.name
        for path in sorted(ROOT.glob("spoke/**/*.py"))
        if re.search(r"^(import|from) opentelemetry", path.read_text(), re.MULTILINE)
    ]
    assert at_once == []
    code = "import spoke.client.sync.client\nfrom spoke.protocol.tracing import in_use\nprint(in_use())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None\n"


def test_the_second_program_goes_on_with_the_trace() -> None:
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    line = re.findall(r"extract\((.*)\)$", PAGE.read_text(), re.MULTILINE)[0]
    assert line == '{"traceparent": os.environ["TRACEPARENT"]}'
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    span = get_current_span(TraceContextTextMapPropagator().extract(carrier))
    assert span.get_span_context().span_id == 0xB7AD6B7169203331
