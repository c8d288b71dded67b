"""Values as msgpack, with numpy arrays and scalars; large buffers may stay outside.

What crosses is data: None, bool, int (64 bits), float, str, bytes, lists, dicts with plain keys, numpy arrays and
scalars, torch tensors on the CPU, buffers, handles of buffers. Anything else is refused with its path inside the
value, since guessing would change it silently, and pickle would make data into code. Tuples arrive as lists; what
offers DLPack arrives as a numpy array; bytearray, memoryview and what else offers a buffer arrive as a memoryview.

A value is first *lowered*: what msgpack does not know becomes an extension, and (when asked) buffers of at least
``FAR_BYTES_MIN`` are put on a list and leave a reference behind. Arrays, tensors and memoryviews that travelled this
way are views of the buffer they were received into: nobody copies them (``bytes`` are copied once, as they must be).
Homogeneous lists are checked at the speed of C.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType, NoneType
from typing import Any, Final, NoReturn

import msgpack

from spoke.errors import LimitExceeded, MalformedData, NotSerializable
from spoke.transport.buffers import (
    Refused,
    array_of_dlpack,
    is_tensor,
    lower_tensor,
    lower_view,
    read_tensor,
    read_view,
)
from spoke.transport.handles import BufferHandle, read_handle

FAR_BYTES_MIN: Final = 16 * 1024
VALUE_BYTES_MAX: Final = 1 << 30
DEPTH_MAX: Final = 128
STEPS_SHOWN: Final = 8

_EXT_ARRAY, _EXT_SCALAR, _EXT_FAR_BYTES, _EXT_FAR_ARRAY = 1, 2, 3, 4
_EXT_VIEW, _EXT_FAR_VIEW, _EXT_TENSOR, _EXT_FAR_TENSOR, _EXT_HANDLE = 5, 6, 7, 8, 9
_LEAVES: Final = frozenset({NoneType, bool, int, float, str})
_KEYS: Final = frozenset({NoneType, bool, int, float, str, bytes})
_BUFFERS: Final = frozenset({bytearray, memoryview})
_DTYPE_KINDS: Final = "biufcSUmM"
_DTYPE: Final = re.compile(r"[<>|=][biufcSUmM][0-9]{1,9}(\[[0-9A-Za-z/]{1,16}\])?")
_INDEX: Final = struct.Struct("<I")

Buffers = list[memoryview]


def pack(value: object) -> bytes:
    """The value as bytes, whole; NotSerializable names the path and type of what cannot be sent."""
    return encode(lower(value, None, "value"), "value")


def pack_apart(value: object, name: str = "value") -> tuple[bytes, Buffers]:
    """The value as a small header and the large buffers it refers to, which are views of the caller's memory."""
    far: Buffers = []
    return encode(lower(value, far, name), name), far


def unpack(data: bytes | bytearray | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    """The value that was packed; raises MalformedData for bytes that are none, LimitExceeded above 1 GiB."""
    if len(data) > VALUE_BYTES_MAX:
        raise LimitExceeded(f"a value of {len(data)} bytes was received; the limit is {VALUE_BYTES_MAX}")
    try:
        # unpackb takes the length of the data as its limit for every string, list and map in it: what claims to be
        # longer than the bytes that hold it is refused before memory is reserved.
        return msgpack.unpackb(data, ext_hook=_extension_reader(buffers), strict_map_key=False)
    except MalformedData:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise MalformedData(f"the bytes are no value: {type(error).__name__}: {error}"[:500]) from error


def lower(value: object, far: Buffers | None, name: str) -> Any:
    """The value in what msgpack knows; large buffers go to ``far``, or stay inside where it is None."""
    try:
        return _lower(value, far, 0)
    except Refused as refused:
        _refuse(name, refused)


def encode(lowered: object, name: str) -> bytes:
    """The msgpack of a lowered value; NotSerializable for an int beyond 64 bits or text that is not Unicode."""
    try:
        return bytes(msgpack.packb(lowered))
    except (OverflowError, ValueError, TypeError, RuntimeError) as error:
        try:
            _find_unencodable(lowered)
        except Refused as refused:
            _refuse(name, refused)
        raise NotSerializable(f"{name} cannot be sent: {error}") from error


def _refuse(name: str, refused: Refused) -> NoReturn:
    steps = refused.trail[::-1]
    if len(steps) > STEPS_SHOWN:
        steps = [*steps[: STEPS_SHOWN // 2], "…", *steps[-STEPS_SHOWN // 2 :]]
    path = name + "".join(steps)
    raise NotSerializable(
        f"{path} cannot be sent: it is {refused.reason}. Send None, bool, int, float, str, bytes, list, tuple, dict, "
        "numpy arrays or scalars, torch tensors on the CPU, buffers, or handles of buffers"
    ) from None


def _lower(value: object, far: Buffers | None, depth: int) -> Any:
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is list or kind is tuple:
        return _lower_items(value, far, depth)  # type: ignore[arg-type]
    if kind is dict:
        return _lower_dict(value, far, depth)  # type: ignore[arg-type]
    if kind is bytes:
        return _lower_bytes(value, far)  # type: ignore[arg-type]
    if kind in _BUFFERS:
        return _lower_apart(_EXT_VIEW, *lower_view(memoryview(value)), far)  # type: ignore[arg-type]
    return _lower_rarer(value, far, depth)


def _lower_items(items: Sequence[object], far: Buffers | None, depth: int) -> Sequence[object]:
    if _LEAVES.issuperset(map(type, items)):
        return items
    _check_depth(depth)
    changed: list[object] | None = None
    for position, item in enumerate(items):
        try:
            lowered = _lower(item, far, depth + 1)
        except Refused as refused:
            refused.trail.append(f"[{position}]")
            raise
        if lowered is not item:
            if changed is None:
                changed = list(items)
            changed[position] = lowered
    return items if changed is None else changed


def _lower_dict(items: dict[Any, object], far: Buffers | None, depth: int) -> dict[Any, object]:
    if not _KEYS.issuperset(map(type, items)):
        items = {_lower_key(key): item for key, item in items.items()}
    if _LEAVES.issuperset(map(type, items.values())):
        return items
    _check_depth(depth)
    changed: dict[Any, object] | None = None
    for key, item in items.items():
        try:
            lowered = _lower(item, far, depth + 1)
        except Refused as refused:
            refused.trail.append(f"[{key!r:.80}]")
            raise
        if lowered is not item:
            if changed is None:
                changed = dict(items)
            changed[key] = lowered
    return items if changed is None else changed


def _lower_key(key: object) -> object:
    if key is None or isinstance(key, bool):
        return key
    plain: type[Any]
    for plain in (int, float, str, bytes):
        if isinstance(key, plain):
            return plain(key)
    raise Refused(f"a dict with a key of type {_type_name(key)} ({key!r:.80})")


def _lower_bytes(value: bytes, far: Buffers | None) -> Any:
    if far is None or len(value) < FAR_BYTES_MIN:
        return value
    far.append(memoryview(value))
    return msgpack.ExtType(_EXT_FAR_BYTES, _INDEX.pack(len(far) - 1))


def _lower_apart(near_code: int, raw: memoryview, kind: str, shape: list[int], far: Buffers | None) -> Any:
    """Memory with its kind and shape: inside, or on ``far``."""
    if far is None or len(raw) < FAR_BYTES_MIN:
        return msgpack.ExtType(near_code, msgpack.packb([bytes(raw), kind, shape]))
    far.append(raw)
    return msgpack.ExtType(near_code + 1, msgpack.packb([len(far) - 1, kind, shape]))


def _lower_rarer(value: object, far: Buffers | None, depth: int) -> Any:
    """Arrays and tensors, subclasses of the plain types (enums, named tuples, ordered dicts), and other memory."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return _lower_array(numpy, value, far)
        if isinstance(value, numpy.generic):
            _check_dtype(value.dtype, _type_name(value))
            return msgpack.ExtType(_EXT_SCALAR, msgpack.packb([value.dtype.str, value.tobytes()]))
    torch = is_tensor(value)
    if torch is not None:
        return _lower_apart(_EXT_TENSOR, *lower_tensor(torch, value), far)
    if type(value) is BufferHandle:
        return msgpack.ExtType(_EXT_HANDLE, msgpack.packb(value.as_data()))
    if isinstance(value, dict):
        return _lower_dict(dict(value), far, depth)
    if isinstance(value, list | tuple):
        return _lower_items(list(value), far, depth)
    plain: type[Any]
    for plain in (int, float, str, bytes):
        if isinstance(value, plain):
            return _lower(plain(value), far, depth)
    if hasattr(type(value), "__dlpack__"):
        array = array_of_dlpack(value, _type_name(value))
        return _lower_array(sys.modules["numpy"], array, far)
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except (TypeError, BufferError, ValueError):
        raise Refused(f"of type {_type_name(value)}") from None
    return _lower_apart(_EXT_VIEW, *lower_view(view), far)


def _lower_array(numpy: ModuleType, value: Any, far: Buffers | None) -> Any:
    if type(value) not in (numpy.ndarray, numpy.memmap):
        raise Refused(f"of type {_type_name(value)}, a subclass whose own data would be lost")
    _check_dtype(value.dtype, "numpy.ndarray")
    shape = list(value.shape)
    if far is None or value.nbytes < FAR_BYTES_MIN:
        return msgpack.ExtType(_EXT_ARRAY, msgpack.packb([value.dtype.str, shape, value.tobytes()]))
    # Not memoryview(value): dates have no buffer format. A view as bytes works for every type.
    flat = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
    far.append(memoryview(flat))
    return msgpack.ExtType(_EXT_FAR_ARRAY, msgpack.packb([len(far) - 1, value.dtype.str, shape]))


def _check_dtype(dtype: Any, holder: str) -> None:
    if dtype.kind not in _DTYPE_KINDS or not dtype.itemsize:
        raise Refused(f"of type {holder} with dtype {dtype!s:.80}, which is not plain numbers, dates or text")


def _check_depth(depth: int) -> None:
    if depth >= DEPTH_MAX:
        raise Refused(f"nested deeper than {DEPTH_MAX} levels, or it contains itself")


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _find_unencodable(value: object) -> None:
    """Raise Refused at the first int or text that msgpack refuses."""
    pairs: list[tuple[str, object]] = []
    if isinstance(value, dict):
        pairs = [(f"[{key!r:.80}]", item) for pair in value.items() for key, item in ((pair[0], pair[0]), pair)]
    elif isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        pairs = [(f"[{position}]", item) for position, item in enumerate(value)]
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise Refused(f"an int of {value.bit_length()} bits (64 can be sent)")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Refused(f"text that is not Unicode ({error.reason})") from None
    for step, item in pairs:
        try:
            _find_unencodable(item)
        except Refused as refused:
            refused.trail.append(step)
            raise


def _extension_reader(buffers: Sequence[memoryview]) -> Callable[[int, bytes], Any]:
    def read(code: int, data: bytes) -> Any:
        if code == _EXT_ARRAY:
            dtype, shape, raw = _fields(data, (str, list, bytes))
            return _array(dtype, shape, bytearray(raw))
        if code == _EXT_SCALAR:
            dtype, raw = _fields(data, (str, bytes))
            return _array(dtype, [], raw)[()]
        if code == _EXT_FAR_BYTES and len(data) == _INDEX.size:
            return bytes(_far(buffers, _INDEX.unpack(data)[0]))
        if code == _EXT_FAR_ARRAY:
            index, dtype, shape = _fields(data, (int, str, list))
            return _array(dtype, shape, _far(buffers, index))
        if code in (_EXT_VIEW, _EXT_TENSOR):
            raw, kind, shape = _fields(data, (bytes, str, list))
            return (read_view if code == _EXT_VIEW else read_tensor)(bytearray(raw), kind, shape)
        if code in (_EXT_FAR_VIEW, _EXT_FAR_TENSOR):
            index, kind, shape = _fields(data, (int, str, list))
            return (read_view if code == _EXT_FAR_VIEW else read_tensor)(_far(buffers, index), kind, shape)
        if code == _EXT_HANDLE:
            return read_handle(msgpack.unpackb(data))
        raise MalformedData(f"extension {code} with {len(data)} bytes is not known; are both sides the same release?")

    return read


def _fields(data: bytes, kinds: tuple[type, ...]) -> list[Any]:
    found = msgpack.unpackb(data)
    if type(found) is not list or tuple(map(type, found)) != kinds:
        raise MalformedData("an extension does not hold the fields it should")
    return found


def _far(buffers: Sequence[memoryview], index: int) -> memoryview:
    if not 0 <= index < len(buffers):
        raise MalformedData(f"the value refers to buffer {index} of {len(buffers)}")
    return buffers[index]


@lru_cache(maxsize=256)
def _dtype(text: str) -> Any:
    if not _DTYPE.fullmatch(text):
        raise MalformedData(f"{text!r:.80} is no dtype of plain numbers, dates or text")
    try:
        import numpy
    except ImportError as error:
        raise MalformedData("a numpy array was received, but numpy is not installed here") from error
    return numpy.dtype(text)


def _array(dtype_text: str, shape: list[Any], data: bytes | bytearray | memoryview) -> Any:
    dtype = _dtype(dtype_text)
    if len(shape) > 32 or any(type(size) is not int or size < 0 for size in shape):
        raise MalformedData("an array has an impossible shape")
    if not dtype.itemsize or math.prod(shape) * dtype.itemsize != len(data):
        raise MalformedData(f"an array of {shape} {dtype_text} has {len(data)} bytes")
    import numpy

    return numpy.ndarray(tuple(shape), dtype, buffer=data)
