"""Memory as values: memoryviews, torch tensors, and what offers a buffer or DLPack.

Nothing is imported for it on the sending side: a tensor can only come from a torch that is loaded already. What was
received is a view of the memory that it was received into.
"""

from __future__ import annotations

import ctypes
import math
import sys
from types import ModuleType
from typing import Any, Final

from spoke.errors import MalformedData

_FORMATS: Final = "bBhHiIlLqQfd?c"
_TENSOR_DTYPES: Final = frozenset(
    {"bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16"}
    | {"float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"}
)
_DLPACK_HOSTS: Final = (1, 3)  # kDLCPU, and kDLCUDAHost: pinned memory, which the CPU reads as any other
_DIMENSIONS_MAX: Final = 32


class Refused(Exception):
    """A value cannot be sent. Carries the path upwards while the recursion unwinds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trail: list[str] = []


def lower_view(view: memoryview) -> tuple[memoryview, str, list[int]]:
    """A memoryview as bytes, with its format and shape; a view of foreign structures becomes plain bytes."""
    kind = view.format.removeprefix("@")
    if "O" in kind:
        raise Refused("memory that holds Python objects")
    if not view.c_contiguous:
        flat = memoryview(bytearray(view.tobytes()))
    else:
        flat = view.cast("B") if view.nbytes else memoryview(bytearray())
    if len(kind) != 1 or kind not in _FORMATS or not view.shape or 0 in view.shape:
        return flat, kind if len(kind) == 1 and kind in _FORMATS and not view.nbytes else "B", [view.nbytes]
    return flat, kind, list(view.shape)


def read_view(raw: bytearray | memoryview, kind: str, shape: list[Any]) -> memoryview:
    """The memoryview with this format and shape; raises MalformedData."""
    _check_shape(shape)
    if len(kind) != 1 or kind not in _FORMATS:
        raise MalformedData(f"{kind!r:.20} is no format of a buffer")
    flat: Any = memoryview(raw)
    if not flat:
        empty: memoryview = flat.cast(kind)
        return empty
    try:
        view: memoryview = flat.cast(kind, shape)
        return view
    except (TypeError, ValueError) as error:
        raise MalformedData(f"a buffer of {len(flat)} bytes is no {shape} of {kind!r}") from error


def is_tensor(value: object) -> ModuleType | None:
    """The torch module, if the value is one of its tensors."""
    torch = sys.modules.get("torch")
    kind = getattr(torch, "Tensor", None)
    return torch if kind is not None and isinstance(value, kind) else None


def lower_tensor(torch: ModuleType, tensor: Any) -> tuple[memoryview, str, list[int]]:
    """A tensor's memory, dtype and shape. Gradients stay behind; what is not contiguous is copied."""
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu":
        raise Refused(f"a torch tensor on {tensor.device}, and only the CPU's memory can be sent: use tensor.cpu()")
    if tensor.layout is not torch.strided or name not in _TENSOR_DTYPES:
        raise Refused(f"a torch tensor of layout {tensor.layout} and dtype {name}, which is not plain numbers")
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return _memory_of(plain), name, list(plain.shape)


def _memory_of(tensor: Any) -> memoryview:
    nbytes = tensor.numel() * tensor.element_size()
    if not nbytes:
        return memoryview(bytearray())
    area = (ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr())
    area.owner = tensor  # the memory lives as long as the view
    return memoryview(area).cast("B")


def read_tensor(raw: bytearray | memoryview, name: str, shape: list[Any]) -> Any:
    """The tensor that lies in this memory; raises MalformedData, also where torch is not installed."""
    _check_shape(shape)
    if name not in _TENSOR_DTYPES:
        raise MalformedData(f"{name!r:.40} is no dtype of a tensor")
    try:
        import torch
    except ImportError as error:
        raise MalformedData(
            "a torch tensor was received, but torch is not installed here: install it, or send tensor.numpy()"
        ) from error
    dtype = getattr(torch, name)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise MalformedData(f"a tensor of {shape} {name} has {len(raw)} bytes")
    if not len(raw):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def array_of_dlpack(value: Any, type_name: str) -> Any:
    """What offers DLPack as a numpy array on the same memory; raises Refused."""
    try:
        device = int(value.__dlpack_device__()[0])
    except Exception as error:
        raise Refused(f"of type {type_name}, whose DLPack device cannot be told ({error})") from None
    if device not in _DLPACK_HOSTS:
        raise Refused(
            f"of type {type_name} on a device (DLPack type {device}), and only the CPU's memory can be sent: copy it "
            f"to the CPU first"
        )
    try:
        import numpy

        return numpy.from_dlpack(value)
    except Exception as error:
        raise Refused(f"of type {type_name}, whose memory numpy cannot take by DLPack ({error})") from None


def view_of(value: object, *, writable: bool = False) -> memoryview:
    """The memory of an array, a tensor, or anything with a buffer, as one run of bytes; raises TypeError."""
    torch = is_tensor(value)
    try:
        if torch is not None:
            tensor: Any = value
            if not tensor.is_contiguous() or tensor.device.type != "cpu":
                raise TypeError("it is a tensor that is not contiguous in the CPU's memory")
            view = _memory_of(tensor.detach())
        elif hasattr(value, "dtype") and hasattr(value, "view") and not value.dtype.hasobject:
            import numpy

            if not value.flags.c_contiguous:  # type: ignore[attr-defined]
                raise TypeError("it is an array that is not contiguous")
            view = memoryview(value.reshape(-1).view(numpy.uint8))  # type: ignore[attr-defined]
        else:
            view = memoryview(value)  # type: ignore[arg-type]
            if "O" in view.format:
                raise TypeError("it holds Python objects")
            view = view.cast("B") if view.nbytes else memoryview(bytearray())
    except (Refused, ValueError) as error:
        raise TypeError(str(error)) from error
    if writable and view.readonly:
        raise TypeError("it is read-only")
    return view


def address_of(view: memoryview) -> int:
    """Where a contiguous view lies, also one that is read-only."""
    found = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
    try:
        return int(found.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))


class _PyBuffer(ctypes.Structure):
    """Py_buffer, of Python's stable interface since 3.11."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.c_void_p), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_void_p), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


def lifetime_of(value: object) -> object | None:
    """What lives no longer than the memory of ``value`` stays where it is, and can be referred to weakly; or None."""
    torch = is_tensor(value)
    if torch is not None:
        base: object = getattr(value, "_base", None)
        return value if base is None else base
    if isinstance(value, memoryview):
        return value  # holds its exporter
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray):
        return None  # a bytearray, an mmap: may be resized
    root: Any = value
    while isinstance(root.base, numpy.ndarray):
        root = root.base
    found: object = root
    return found  # cannot be resized while it is referred to


def _check_shape(shape: list[Any]) -> None:
    if len(shape) > _DIMENSIONS_MAX or any(type(size) is not int or size < 0 for size in shape):
        raise MalformedData("an array has an impossible shape")
