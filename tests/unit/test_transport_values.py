"""Values survive packing, what is no data is refused by its path, and no bytes crash the reader."""

from __future__ import annotations

import contextlib
import enum
import math
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoke.errors import MalformedData, NotSerializable
from spoke.transport.values import DEPTH_MAX, FAR_BYTES_MIN, pack, pack_apart, unpack

keys = st.one_of(st.text(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.booleans(), st.none())
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.just(b"x" * FAR_BYTES_MIN),
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=30)
dtypes = st.sampled_from(
    ["?", "i1", "<u2", ">i4", "<i8", "<f2", "<f4", ">f8", "<c16", "S3", "<U5", "<M8[ns]", "<m8[25s]"]
)


@settings(deadline=None)
@given(values)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert unpack(pack(value)) == value
    header, buffers = pack_apart(value)
    assert unpack(header, buffers) == value


@settings(deadline=None)
@given(dtypes, st.lists(st.integers(0, 5), max_size=4), st.booleans(), st.booleans())
def test_arrays_come_back_with_type_shape_and_content(dtype: str, shape: list[int], large: bool, turned: bool) -> None:
    full = [*shape[:1], FAR_BYTES_MIN] if large else shape
    raw = np.random.default_rng(1).integers(0, 100, math.prod(full) * np.dtype(dtype).itemsize)
    array = (raw % 2 if dtype == "?" else raw).astype("u1")
    array = np.zeros(full, dtype) if dtype.startswith("<U") else array.view(dtype).reshape(full)
    if turned:
        array = array.T
    for found in (unpack(pack(array)), unpack(*pack_apart(array))):
        assert type(found) is np.ndarray
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.float64(2.5), np.int64(-3), np.bool_(True), np.str_("é")])
def test_numpy_scalars_stay_numpy_scalars(scalar: Any) -> None:
    found = unpack(pack([scalar]))[0]
    assert type(found) is type(scalar)
    assert found == scalar


def test_large_buffers_travel_apart_and_arrays_are_views_of_them() -> None:
    array = np.arange(FAR_BYTES_MIN, dtype="u1")
    header, buffers = pack_apart({"weights": [array], "raw": bytes(FAR_BYTES_MIN)})
    assert len(header) < 200
    assert [len(buffer) for buffer in buffers] == [FAR_BYTES_MIN, FAR_BYTES_MIN]
    received = [memoryview(bytearray(buffer)) for buffer in buffers]
    found = unpack(header, received)
    received[0][0] = 77
    assert found["weights"][0][0] == 77
    found["weights"][0][1] = 1  # a received array can be written
    assert found["raw"] == bytes(FAR_BYTES_MIN)


def test_subclasses_of_plain_types_are_sent_as_the_plain_types() -> None:
    class Colour(enum.IntEnum):
        RED = 3

    point = namedtuple("point", "x y")(1, 2)
    assert unpack(pack([Colour.RED, point, OrderedDict(a=1), (1, (2,))])) == [3, [1, 2], {"a": 1}, [1, [2]]]
    assert unpack(pack([bytearray(b"ab"), memoryview(b"abcd")[::2]])) == [b"ab", b"ac"]


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        ({1}, "value cannot", "set"),
        ({"a": [1, {"b": print}]}, "value['a'][1]['b'] cannot", "builtin_function"),
        ([1, object()], "value[1] cannot", "object"),
        ({"x": {(1, 2): 3}}, "value['x'] cannot", "tuple"),
        ([2**64], "value[0] cannot", "65 bits"),
        ({"t": "\ud800"}, "value['t'] cannot", "not Unicode"),
        ([np.array([None])], "value[0] cannot", "dtype object"),
        ([np.ma.array([1])], "value[0] cannot", "MaskedArray"),
        ([1j], "value[0] cannot", "complex"),
    ],
)
def test_what_is_no_data_is_refused_by_path_and_type(value: Any, path: str, kind: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        pack(value)
    assert path in str(caught.value)
    assert kind in str(caught.value)


def test_a_value_that_contains_itself_or_is_too_deep_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotSerializable, match=f"deeper than {DEPTH_MAX}"):
        pack(loop)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_a_value_or_malformed_data(data: bytes) -> None:
    with contextlib.suppress(MalformedData):
        unpack(data)


@given(st.integers(0, 127), st.binary(max_size=60))
def test_arbitrary_extensions_give_a_value_or_malformed_data(code: int, data: bytes) -> None:
    with contextlib.suppress(MalformedData):
        unpack(b"\xc7" + bytes([len(data), code]) + data, [memoryview(b"12345678")])


@settings(deadline=None)
@given(values, st.data())
def test_a_flipped_byte_never_crashes_the_reader(value: Any, data: st.DataObject) -> None:
    raw = bytearray(pack([value, np.arange(3), np.float32(1)]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedData):
        unpack(raw)


def test_an_array_whose_shape_lies_is_refused() -> None:
    for shape in ([2**40], [-1], [0, 2**62], ["a"], [1] * 40):
        import msgpack

        raw = msgpack.packb(msgpack.ExtType(1, msgpack.packb(["<f8", shape, b"12345678"])))
        with pytest.raises(MalformedData):
            unpack(raw)


def test_the_way_to_what_is_nested_too_deep_is_told_in_short() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(NotSerializable, match=r"value(\[0\]){4}…(\[0\]){4} cannot be sent: it is nested"):
        pack(deep)
