"""What an early release wrote is read as before: its events fold, its snapshot goes on, and the invariants hold.

``data/early-log.jsonl`` was recorded from a real pool of 2026-11-24 (commit 15b93d1): two nodes, a client that was
killed, a gang that waited, a refusal, a command that failed, a detached ticket. ``early-snapshot.msgpack`` is its
snapshot after the first 40 events.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoke.errors import UnknownEvent
from spoke.events import snapshot
from spoke.events.codec import decode_event, event_args
from spoke.events.fold import fold
from spoke.events.invariants import violations
from spoke.events.state import PoolState
from spoke.events.types import Recorded

DATA = Path(__file__).resolve().parents[1] / "data"
SNAPSHOT_AT = 40


def early() -> list[tuple[str, dict[bytes, bytes]]]:
    lines = map(json.loads, (DATA / "early-log.jsonl").read_text().splitlines())
    return [(at, {name.encode(): value.encode() for name, value in fields.items()}) for at, fields in lines]


def events() -> list[Recorded]:
    return [decode_event(at, fields) for at, fields in early()]


def test_the_log_of_an_early_release_folds_and_every_invariant_holds() -> None:
    state = PoolState()
    for recorded in events():
        fold(state, recorded)
        assert violations(state) == []
    assert {ticket_id: ticket.phase for ticket_id, ticket in state.tickets.items()} == {"t-4": "allocated"}
    assert Counter(recorded.event.TYPE for recorded in events())["gang.refused"] == 1


def test_its_snapshot_and_the_events_after_it_give_the_same_state() -> None:
    whole = PoolState()
    for recorded in events():
        fold(whole, recorded)
    later = snapshot.decode((DATA / "early-snapshot.msgpack").read_bytes())
    for recorded in events()[SNAPSHOT_AT:]:
        fold(later, recorded)
    assert kept(later) == kept(whole)
    assert kept(later)["tickets"], "there is something to compare"


def kept(state: PoolState) -> Any:
    """What the early release kept in a snapshot, too: not yet leases' lengths, what was learned, and past use."""
    found = msgspec.msgpack.decode(snapshot.encode(state))
    found["learned"] = None
    found["nodes"] = {node_id: {**node, "lease_ms": 0} for node_id, node in found["nodes"].items()}
    found["queueing"]["accounts"] = {name: {**one, "average": 0} for name, one in found["queueing"]["accounts"].items()}
    return found


def test_no_field_was_taken_away_since() -> None:
    now = {str(name) for recorded in events() for name in event_args(recorded.event)[::2]}
    then = {name.decode() for _, fields in early() for name in fields}
    assert then <= now


@pytest.mark.parametrize(("field", "value"), [(b"type", b"gang.teleported"), (b"v", b"2")])
def test_what_only_a_later_release_knows_is_refused_and_not_guessed(field: bytes, value: bytes) -> None:
    at, fields = early()[-1]
    with pytest.raises(UnknownEvent, match="upgrade spoke"):
        decode_event(at, {**fields, field: value})


def test_a_field_that_only_a_later_release_knows_is_passed_over() -> None:
    at, fields = early()[-1]
    assert decode_event(at, {**fields, b"weather": b"fine"}) == decode_event(at, fields)
