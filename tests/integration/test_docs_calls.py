"""The examples of "Calls and data" run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import spoke
from spoke.cli.embedded import EmbeddedServer
from tests.fakes import real_allocator
from tests.integration.agent_harness import pool_at

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/calls.md"


def test_the_examples_run(shared_server: EmbeddedServer, pool: str, tmp_path: Path, capsys: object) -> None:
    actor, *examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    module = tmp_path / "pipeline.py"
    module.write_text(actor)
    with real_allocator(shared_server.url, pool), pool_at(shared_server.url, pool, tmp_path) as agents:
        agents.start_agent("n0", imports=[str(module)])
        with spoke.Client(shared_server.url, pool=pool) as client:
            gang = client.gang_allocate(1, 3, timeout=30).result(40)
            names = {"spoke": spoke, "np": np, "gang": gang, "actors": gang.launch("Worker").result(40)}
            for example in examples:
                exec(compile(example, str(PAGE), "exec"), names)
    assert len(examples) == 5
    told = capsys.readouterr().out.splitlines()  # type: ignore[attr-defined]
    assert told[0] == "1000.0"
    assert told[1:5] == ["token 0", "token 1", "token 2", "token 0"]
    assert told[5] == "1 {'step': 7}"
    assert told[-1] == "1000.0"
