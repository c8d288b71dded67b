"""Frames survive any cutting of the stream; what is too large or no frame is refused before memory is reserved."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.errors import LimitExceeded, MalformedData
from spoke.transport.frames import (
    BUFFERS_MAX,
    STAGE_BYTES,
    Frame,
    FrameReader,
    Incoming,
    Kind,
    Oversized,
    encode_frame,
)

sizes = st.one_of(
    st.integers(0, 100), st.sampled_from([STAGE_BYTES - 21, STAGE_BYTES - 20, STAGE_BYTES, STAGE_BYTES + 1, 200_000])
)
frames = st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), sizes, st.lists(sizes, max_size=3))


def feed(reader: FrameReader, data: bytes, cut: int) -> list[Incoming]:
    found: list[Incoming] = []
    view = memoryview(data)
    while view:
        space = reader.space()
        assert len(space) > 0
        take = min(len(space), cut, len(view))
        space[:take] = view[:take]
        found += reader.filled(take)
        view = view[take:]
    return found


def encoded(kind: Kind, call_id: int, header: bytes, buffers: list[bytes]) -> bytes:
    return b"".join(encode_frame(kind, call_id, header, [memoryview(buffer) for buffer in buffers]))


@settings(deadline=None)
@given(st.lists(frames, max_size=5), st.one_of(st.integers(1, 64), st.sampled_from([1000, 65536, 10**6])))
def test_frames_come_back_whatever_pieces_they_come_in(specs: list[Any], cut: int) -> None:
    if sum(spec[2] + sum(spec[3]) for spec in specs) / cut > 20_000:
        cut = 1000
    contents = [
        (kind, call_id, b"h" * header, [bytes([i + 1]) * size for i, size in enumerate(buffers)])
        for kind, call_id, header, buffers in specs
    ]
    reader = FrameReader()
    found = feed(reader, b"".join(encoded(*content) for content in contents), cut)
    assert [(f.kind, f.call_id, f.header, [bytes(b) for b in f.buffers]) for f in found if isinstance(f, Frame)] == (
        contents
    )
    assert not reader.mid_frame


@settings(deadline=None)
@given(sizes, st.lists(sizes, min_size=1, max_size=2), st.sampled_from([1, 7, 1000, 65536]))
def test_an_oversized_frame_is_skipped_and_the_next_one_is_whole(header: int, buffers: list[int], cut: int) -> None:
    nbytes = header + sum(buffers)
    cut = max(cut, nbytes // 10_000 + 1)
    large = encoded(Kind.CALL, 1, b"h" * header, [b"b" * size for size in buffers])
    small = encoded(Kind.CALL, 2, b"", [])
    found = feed(FrameReader(limit_bytes=max(nbytes - 1, 0)), large + small, cut)
    if nbytes:
        assert found[0] == Oversized(Kind.CALL, 1, nbytes, nbytes - 1)
    assert found[1] == Frame(Kind.CALL, 2, b"", [])


def test_no_memory_is_reserved_for_a_length_over_the_limit() -> None:
    head = struct.pack("<4sBBHQI4Q", b"SPK1", 1, 0, 4, 9, 2**32 - 1, *[2**63] * 4)
    reader = FrameReader()
    tracemalloc.start()
    try:
        found = feed(reader, head, 10)
        feed(reader, b"x" * 100_000, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert isinstance(found[0], Oversized)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_wait_for_more(data: bytes) -> None:
    with contextlib.suppress(MalformedData):
        feed(FrameReader(limit_bytes=1 << 20), data, 7)


@settings(deadline=None)
@given(frames, st.integers(0, 27), st.integers(1, 255))
def test_a_flipped_byte_in_the_head_never_crashes_the_reader(spec: Any, position: int, flip: int) -> None:
    kind, call_id, header, buffers = spec
    raw = bytearray(encoded(kind, call_id, b"h" * header, [bytes(size) for size in buffers]))
    raw[min(position, len(raw) - 1)] ^= flip
    with contextlib.suppress(MalformedData):
        feed(FrameReader(limit_bytes=1 << 20), bytes(raw), 65536)


def test_a_frame_over_the_senders_limit_is_not_encoded() -> None:
    with pytest.raises(LimitExceeded, match="over the limit of 10"):
        encode_frame(Kind.CALL, 1, b"123456", [memoryview(b"12345")], limit_bytes=10)
    with pytest.raises(LimitExceeded, match="large buffers"):
        encode_frame(Kind.CALL, 1, b"", [memoryview(b"")] * (BUFFERS_MAX + 1))


def test_buffers_are_handed_over_without_a_copy() -> None:
    buffer = memoryview(bytearray(100_000))
    assert encode_frame(Kind.CALL, 1, b"", [buffer])[1] is buffer
