"""What ``--json`` writes: keys may be added, and none is taken away or gets another type, since programs read them.

The shapes stand in ``tests/data/cli-json.json``: for each command the paths of its keys, with the types of the values.
A command that says more than before has its new keys recorded by ``SPOKE_RECORD=1 pytest tests/unit/test_cli_json.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spoke.cli.main import app
from tests.golden import HOUR, START
from tests.unit.test_audit_tools import Golden, golden, log

__all__ = ["golden", "log"]
RECORDED = Path(__file__).parents[1] / "data" / "cli-json.json"
MAPS = ("gpus_shared", "gpus_unhealthy", "labels", "counts", "by_gpus", "events")
"""Keys whose value is a map: its own keys are data."""
LATE = ("--until", str(START + 8 * HOUR + HOUR // 2))
AUDIT = {
    "audit replay": ("replay", *LATE),
    "audit replay --diff": ("replay", "--diff", str(START + HOUR), LATE[1]),
    "audit verify": ("verify", "--jobs", "1"),
    "audit history": ("history", "node", "n1"),
    "audit usage --by user": ("usage", "--by", "user"),
    "audit usage --by ticket": ("usage", "--by", "ticket"),
    "audit what-if": ("what-if",),
}
LIVE = {
    "log": ("log",),
    "explain": ("explain", "t-3", "--at", str(START + 3 * HOUR - 1)),
    "queue show": ("queue", "show"),
    "doctor": ("doctor",),
}


def shape(value: Any, path: str = "") -> dict[str, set[str]]:
    """The paths of all keys in a document, with the types that their values have."""
    match value:
        case dict():
            is_map = path.rpartition(".")[2] in MAPS
            parts = [(f"{path}.*" if is_map else f"{path}.{key}", part) for key, part in value.items()]
        case list():
            parts = [(f"{path}[]", part) for part in value]
        case _:
            kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
            return {path: {kind}}
    found: dict[str, set[str]] = {path: {type(value).__name__}} if path else {}
    for name, part in parts:
        for at, kinds in shape(part, name).items():
            found.setdefault(at, set()).update(kinds)
    return found


def documents(text: str) -> list[Any]:
    """One document, or one a line."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def shown(golden: Golden, name: str) -> str:
    if name in AUDIT:
        return golden.spoke(*AUDIT[name], "--json", offline=True).stdout
    words = [*LIVE[name], "--json", "--url", golden.url, "--pool", golden.pool]
    return CliRunner().invoke(app, words, env={"SPOKE_URL": "", "SPOKE_POOL": ""}).stdout


@pytest.mark.parametrize("name", [*AUDIT, *LIVE])
def test_no_key_is_taken_away_or_gets_another_type(golden: Golden, name: str) -> None:
    now = shape(documents(shown(golden, name)))
    assert now
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("SPOKE_RECORD"):
        recorded[name] = {path: "|".join(sorted(kinds)) for path, kinds in sorted(now.items())}
        RECORDED.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")
    for path, kinds in recorded[name].items():
        assert now.get(path, set()) >= set(kinds.split("|")) - {"NoneType"}, f"{name} --json: {path} was {kinds}"
