"""The language: codec, life cycles, snapshots, sizes and names."""

from __future__ import annotations

import pytest

from spoke.errors import InvalidRequest, InvalidTransition, UnknownEvent, from_code
from spoke.events import fold as folding
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.codec import DecodeError, decode_event, encode_event
from spoke.events.fold import fold
from spoke.events.model import GangSpec, Resources, parse_bytes
from spoke.events.state import PoolState
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec


def raw(fields: dict[str, str | bytes | int]) -> dict[bytes, bytes]:
    return {key.encode(): value if isinstance(value, bytes) else str(value).encode() for key, value in fields.items()}


def test_every_event_type_has_its_own_name_and_a_version() -> None:
    for name, cls in e.EVENT_TYPES.items():
        assert name == cls.TYPE
        assert cls.VERSION >= 1
        assert name.count(".") == 1


def test_every_event_is_folded() -> None:
    assert set(folding._HANDLERS) == set(e.EVENT_TYPES.values())


def test_an_event_survives_the_stream() -> None:
    event = e.NodeRegistered("n1", "i1", 10_000, node_spec("n1"))
    assert decode_event("1-0", raw(encode_event(event))) == e.Recorded("1-0", event)


def test_an_unknown_type_and_a_newer_version_are_named() -> None:
    with pytest.raises(UnknownEvent, match="unknown type 'gang.teleported'"):
        decode_event("7-0", {b"type": b"gang.teleported", b"v": b"1"})
    newer = raw(encode_event(e.ClientLost("c", "gone"))) | {b"v": b"2"}
    with pytest.raises(UnknownEvent, match="version 2; this release reads version 1"):
        decode_event("7-0", newer)


def test_a_broken_field_is_named() -> None:
    fields = raw(encode_event(e.ClientConnected("c", 1, 10_000))) | {b"lease_ms": b"soon"}
    with pytest.raises(DecodeError, match=r"7-0 \(client.connected\)"):
        decode_event("7-0", fields)


def test_an_event_that_cannot_follow_is_refused_with_its_story() -> None:
    with pytest.raises(InvalidTransition, match="event 9-0 .* about ticket t-1, which is not there"):
        fold(PoolState(), e.Recorded("9-0", e.GangReleasing("t-1", "c", 1, "because")))
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    with pytest.raises(InvalidTransition, match="n1, which is up; possible now"):
        fold(pool.state, e.Recorded("9999999-0", e.NodeDrained("n1")))


def test_a_gpu_that_is_handed_out_twice_is_caught_by_the_fold() -> None:
    pool = MemoryPool()
    pool.register(node_spec("n1"))
    pool.connect()
    pool.allocate("c", gang())
    granted = next(x.event for x in pool.log if isinstance(x.event, e.GangAllocated))
    stolen = e.GangAllocated("t-2", "c", 9, granted.spec, granted.slots, "127.0.0.1", 0, "pack/1")
    with pytest.raises(InvalidTransition, match="handed out twice"):
        fold(pool.state, e.Recorded("9999999-0", stolen))


def test_a_snapshot_that_is_none_or_too_new_is_refused() -> None:
    with pytest.raises(snapshot.BadSnapshot, match="cannot be read"):
        snapshot.decode(b"\x93nonsense")
    assert snapshot.decode(snapshot.encode(PoolState())) == PoolState()


@pytest.mark.parametrize(
    ("text", "size"), [("10GiB", 10 << 30), ("512MB", 512_000_000), ("2G", 2 << 30), ("7", 7), ("1.5KiB", 1536)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "make",
    [
        lambda: GangSpec(0, 1),
        lambda: GangSpec(1, -1),
        lambda: GangSpec(10**9, 1),
        lambda: GangSpec(1000, 1000),
        lambda: GangSpec(1, 1, name="a\x00b"),
        lambda: GangSpec(1, 1, name="x" * 10_000_000),
        lambda: GangSpec(1, 1, Resources(gpus=2), gpu_ids=(1,)),
        lambda: GangSpec(1, 1, Resources(gpus=1), strict_pack=False, gpu_ids=(1,)),
        lambda: Resources(gpus=-1),
        lambda: Resources(gpus=1.5),  # type: ignore[arg-type]
        lambda: Resources(cpus=float("nan")),
        lambda: Resources(memory="10 parsecs"),
    ],
)
def test_nonsense_is_refused_in_words(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert 20 < len(str(caught.value)) < 400


def test_errors_find_their_class_by_code() -> None:
    assert type(from_code("unknown_ticket", "x")).__name__ == "UnknownTicket"
    assert str(from_code("unknown_ticket", "t-9 is not there")) == "t-9 is not there"
    assert type(from_code("from_the_future", "x")).__name__ == "SpokeError"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"type": b"gang.allocate"},
        {b"type": b"gang.allocate", b"v": b"9", b"client_id": b"c", b"seq": b"1"},
        {b"type": b"gang.allocate", b"v": b"1", b"client_id": b"c", b"seq": b"-1", b"body": b"{}"},
        {b"type": b"gang.allocate", b"v": b"1", b"client_id": b"c", b"seq": b"1", b"body": b"{\x00"},
        {b"type": b"gang.allocate", b"v": b"1", b"client_id": b"c", b"seq": b"1", b"body": b"[" * 100_000},
        {
            b"type": b"gang.allocate",
            b"v": b"1",
            b"client_id": b"c",
            b"seq": b"1",
            b"body": b'{"spec":{"num_nodes":1e9}}',
        },
        {
            b"type": b"gang.release",
            b"v": b"1",
            b"client_id": b"c",
            b"seq": b"1",
            b"node_id": b"n",
            b"incarnation": b"i",
        },
        {b"type": b"\xff" * 5000, b"v": b"1"},
        {b"type": b"gang.allocate", b"v": b"1", b"client_id": b"c", b"seq": b"1", b"body": b"x" * (5 << 20)},
    ],
)
def test_garbage_is_refused_recorded_and_stops_nothing(fields: dict[bytes, bytes]) -> None:
    found = r.decode_request(fields)
    assert isinstance(found, r.Garbage)
    assert len(found.reason) < 1_000
    pool = MemoryPool()
    pool.handle(found)
    assert isinstance(pool.log[-1].event, e.RequestRefused)
    pool.register(node_spec("n1"))
    assert pool.state.nodes["n1"].phase == "up"
