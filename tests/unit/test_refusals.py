"""Found by the fuzz suite: what used to end in an error that nobody expects, and is named now."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoke.errors import InvalidTransition
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.archive import Archive, BadSegment
from spoke.events.codec import DecodeError, decode_event
from spoke.events.fold import fold
from spoke.events.model import ActorSpec, Slot
from spoke.events.snapshot import BadSnapshot
from spoke.events.state import PoolState
from spoke.protocol import requests as r
from spoke.protocol.launch import decode_blob, unpack_blobs
from spoke.protocol.orders import decode_order
from spoke.protocol.replies import decode_message
from spoke.protocol.requests import decode_request
from tests.builders import MemoryPool, gang, node_spec

DEEP = b'{"a":' * 100_000
DEEP_MSGPACK = b"\x81\xa1a" * 100_000


@pytest.mark.parametrize(
    "read",
    [
        lambda: decode_order({b"type": b"node.welcome", b"body": DEEP}),
        lambda: decode_message(b"done " + DEEP),
        lambda: decode_blob(DEEP_MSGPACK),
        lambda: decode_blob(b"\x81\xa6secret\xa1\xff"),
        lambda: unpack_blobs(DEEP_MSGPACK, 1),
        lambda: decode_event("1-0", {b"type": b"node.registered", b"v": b"1", b"node_id": b"n", b"spec": DEEP}),
    ],
)
def test_what_is_nested_too_deep_is_unreadable(read: Callable[[], Any]) -> None:
    with pytest.raises(DecodeError):
        read()


@pytest.fixture
def pool() -> MemoryPool:
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.register(node_spec("n2"))
    pool.connect("c")
    pool.allocate("c", gang(1, 2))
    return pool


def test_an_actor_does_not_end_on_another_node_than_it_was_launched_on(pool: MemoryPool) -> None:
    pool.launch("c", "t-1", (0,))
    node_id = pool.state.tickets["t-1"].slots[0].node_id
    other = "n2" if node_id == "n1" else "n1"
    with pytest.raises(InvalidTransition, match=f"on node {other}, but it was launched on {node_id}"):
        fold(pool.state, e.Recorded("9000000-0", e.ActorExited("t-1", 0, "actor-0", other, 0, 0)))


def test_an_actor_is_launched_in_its_place_only(pool: MemoryPool) -> None:
    event = e.ActorLaunchRequested("t-1", 0, "a", "elsewhere", "c", 9, ActorSpec("Worker"))
    with pytest.raises(InvalidTransition, match="on node elsewhere, but its place is on"):
        fold(pool.state, e.Recorded("9000000-0", event))


def test_a_node_is_registered_under_its_own_name_only(pool: MemoryPool) -> None:
    with pytest.raises(InvalidTransition, match="registers node n3 as n4"):
        fold(pool.state, e.Recorded("9000000-0", e.NodeRegistered("n3", "i", 1_000, node_spec("n4"))))


@pytest.mark.parametrize(
    ("gpu_ids", "milli"), [((2**40,), 0), ((-1,), 0), ((2**63 - 1,), 500), ((), 500), ((0,), -500), ((2, 3), 500)]
)
def test_a_place_on_gpus_that_cannot_be_is_refused_and_costs_no_memory(
    pool: MemoryPool, gpu_ids: tuple[int, ...], milli: int
) -> None:
    slot = Slot(0, 0, 0, "n2", "host", gpu_ids, (), milli)
    event = e.GangAllocated("t-2", "c", 2, gang(1, 1), (slot,), "127.0.0.1", 20_000, "pack/1")
    with pytest.raises(InvalidTransition, match="handed out twice"):
        fold(snapshot.copy(pool.state), e.Recorded("9000000-0", event))
    ticket = pool.state.tickets["t-1"]
    ticket.slots = (msgspec.structs.replace(slot, node_id=ticket.slots[0].node_id), *ticket.slots[1:])
    with pytest.raises(BadSnapshot, match="not there or taken twice"):
        snapshot.copy(pool.state)


def test_a_snapshot_whose_queue_names_no_ticket_is_refused() -> None:
    state = PoolState(queue=["t-2"])
    with pytest.raises(BadSnapshot, match="does not hold together"):
        snapshot.decode(snapshot.encode(state))


@pytest.mark.parametrize("name", ["0_", "x_1-0", "1-0_x", "1-0_2-0_3-0"])
def test_a_file_whose_name_names_no_events_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.jsonl.gz").touch()
    with pytest.raises(BadSegment, match=name):
        list(Archive(tmp_path, "p").raw())
    with pytest.raises(BadSegment, match=name):
        Archive(tmp_path, "p").last_id()


def test_an_archived_line_without_an_events_id_is_named(tmp_path: Path) -> None:
    line = {"ids": ["1-x"], "order": [0], "blocks": [{"names": ["type"], "columns": [["x"]]}], "h": "0" * 32, "odd": []}
    lines = [{"spoke": "segment", "version": 3, "pool": "p", "h": "", "state": None}, line]
    raw = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    (tmp_path / "1-0_1-0.jsonl.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(BadSegment, match="ids that are none"):
        list(Archive(tmp_path, "p").raw())


def test_a_node_whose_topology_has_rows_of_unlike_lengths_is_refused() -> None:
    """It raised IndexError, which ended every allocator that read the request."""
    spec = json.loads(msgspec.json.encode(node_spec("n1", 3)))
    spec["topology"] = {"links": [["X", "NV4", "NV4"], ["NV4", "X", "NV4"], ["NV4"]]}
    body = json.dumps({"spec": spec, "lease_ms": 10_000}).encode()
    raw = {b"type": b"node.register", b"v": b"1", b"node_id": b"n1", b"incarnation": b"i", b"body": body}
    asked = decode_request(raw)
    assert isinstance(asked, r.Garbage)
    assert "levels" in asked.reason
