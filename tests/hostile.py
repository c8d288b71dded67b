"""Hostile bytes for the fuzz suite: valid values with something wrong in them, at any depth, and noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[Any, ...]

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 0.5, 1e300, 2**31, 2**40, 2**63 - 1, -(2**63), "", "0-0", "n1", "t-1", "\0", "é" * 300]
    ),
    st.sampled_from([[], {}, [[]], [None], {"": {}}, [2**40], [-1], ["n1", "n1"]]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
"""What a field may hold that should hold something else. JSON and msgpack can both say it."""


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """The ways to all values inside a value."""
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*at, key))


@st.composite
def broken(draw: st.DrawFn, seeds: list[Any]) -> Any:
    """One of the values, with up to three of its parts replaced, dropped or doubled."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(value))
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        inside = value
        for key in way:
            inside = inside[key]
        match draw(st.sampled_from(("replace", "drop", "double"))):
            case "replace":
                inside[last] = copy.deepcopy(draw(ODD))  # what is drawn is shared
            case "drop":
                del inside[last]
            case _ if isinstance(inside, list):
                inside.append(copy.deepcopy(inside[last]))
            case _:
                inside[draw(st.text(max_size=5))] = copy.deepcopy(inside[last])
    return value


@st.composite
def spoiled(draw: st.DrawFn, raw: bytes) -> bytes:
    """The bytes cut, with bytes changed, or with noise put in."""
    found = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        match draw(st.sampled_from(("cut", "flip", "insert"))):
            case "cut":
                del found[at:]
            case "flip" if found:
                found[at] ^= draw(st.integers(1, 255))
            case _:
                found[at:at] = draw(st.binary(max_size=8))
    return bytes(found)


def hostile(
    seeds: list[bytes], read: Callable[[bytes], Any], write: Callable[[Any], bytes]
) -> st.SearchStrategy[bytes]:
    """Noise; the seeds spoiled as bytes; and the seeds broken as values. ``read`` and ``write`` are the format's."""
    deep = [b"[" * 100_000, b'{"a":' * 50_000, b"\x91" * 100_000, b"\x81\xa1a" * 50_000]
    lies = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x9f", b"9" * 10_000]
    return st.one_of(
        st.binary(max_size=300),
        st.sampled_from(deep + lies),
        st.sampled_from(seeds).flatmap(spoiled),
        broken([read(raw) for raw in seeds]).map(write),
    )
