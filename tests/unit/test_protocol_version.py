"""The version of the protocol: what it stands for does not change unnoticed; who speaks another one stays outside."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoke.allocator.decide import decide
from spoke.errors import ProtocolMismatch
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import orders, replies, requests
from spoke.protocol import requests as r
from spoke.protocol.version import PROTOCOL, check_protocol
from tests.builders import node_spec

RECORD = Path(__file__).resolve().parents[1] / "data" / "protocol.json"


def shapes() -> dict[str, str]:
    """A hash of each message's shape: names and types of all fields, also of the nested ones, and the defaults."""
    kinds = {"request": requests.REQUEST_TYPES, "order": orders.ORDER_TYPES, "reply": replies.MESSAGE_TYPES}
    found = {}
    for kind, types in kinds.items():
        for name, cls in sorted(types.items()):
            (_,), parts = msgspec.json.schema_components([cls])
            text = json.dumps([_plain(parts), getattr(cls, "VERSION", 1)], sort_keys=True)
            found[f"{kind} {name}"] = blake2b(text.encode(), digest_size=8).hexdigest()
    return found


def _plain(value: Any) -> Any:
    """A schema without what is only said in words."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in ("description", "title")}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def test_what_is_said_does_not_change_unnoticed() -> None:
    recorded = json.loads(RECORD.read_text())
    now = shapes()
    changed = sorted(name for name in now | recorded["messages"] if now.get(name) != recorded["messages"].get(name))
    assert (recorded["protocol"], changed) == (PROTOCOL, []), (
        "messages have changed: if an older release would misread or pass over them, raise PROTOCOL in "
        "spoke/protocol/version.py; then record them: python -m tests.unit.test_protocol_version"
    )


def test_who_speaks_another_version_is_not_taken_in() -> None:
    state, spec = PoolState(), node_spec("n0", 4)
    for spoken in (0, PROTOCOL):
        check_protocol("node n0", spoken, "1.0")
    with pytest.raises(ProtocolMismatch, match=r"node n0 \(spoke 9\.0\) speaks version 99 .* same release"):
        check_protocol("node n0", 99, "9.0")
    asked = r.Envelope(r.RegisterNode(replace(spec, protocol=99, version="9.0"), 5_000), node_id="n0", incarnation="i")
    (refused,) = decide(state, asked, 0)
    assert isinstance(refused, e.RequestRefused)
    assert refused.code == ProtocolMismatch.code
    (refused,) = decide(state, r.Envelope(r.ConnectClient(5_000, version="0.1", protocol=99), "c-1", 1), 0)
    assert isinstance(refused, e.RequestRefused)
    assert "client c-1 (spoke 0.1) speaks version 99" in refused.reason


if __name__ == "__main__":
    RECORD.write_text(json.dumps({"protocol": PROTOCOL, "messages": shapes()}, indent=1) + "\n")
