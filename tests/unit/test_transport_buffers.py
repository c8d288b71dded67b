"""Memory as values: what is sent, what arrives, that it is not copied, and what is refused."""

from __future__ import annotations

import array
import contextlib
import ctypes
import mmap
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoke.errors import MalformedData, NotSerializable, SpokeError
from spoke.transport.handles import BufferHandle
from spoke.transport.values import FAR_BYTES_MIN, pack, pack_apart, unpack

LARGE = FAR_BYTES_MIN


def crossed(value: Any) -> Any:
    """The value as it arrives, in a message of its own."""
    header, buffers = pack_apart(value)
    return unpack(header, [memoryview(bytearray(buffer)) for buffer in buffers])


@pytest.mark.parametrize("size", [0, 1, LARGE])
@pytest.mark.parametrize("kind", [bytearray, lambda n: memoryview(bytes(n)), lambda n: array.array("B", bytes(n))])
def test_buffers_arrive_as_writable_memoryviews(kind: Any, size: int) -> None:
    for found in (crossed(kind(size)), unpack(pack(kind(size)))):
        assert type(found) is memoryview
        assert found == bytes(size)
        assert not found.readonly


def test_a_memoryview_keeps_its_format_and_shape() -> None:
    view = memoryview(array.array("d", range(6))).cast("B").cast("d", [2, 3])
    found = crossed([view])[0]
    assert (found.format, found.shape, found.tolist()) == ("d", (2, 3), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert crossed(memoryview(bytes(range(20)))[::2]).tolist() == list(range(0, 20, 2))
    assert crossed(memoryview(np.zeros((0, 3)))).nbytes == 0


def test_other_memory_is_sent_by_its_buffer() -> None:
    with mmap.mmap(-1, LARGE) as area:
        area[:3] = b"abc"
        header, buffers = pack_apart(area)
        assert bytes(buffers[0][:3]) == b"abc"
        assert len(header) < 100
        for buffer in buffers:
            buffer.release()
    assert crossed((ctypes.c_int * 3)(1, 2, 3)).nbytes == 12


def test_large_memory_is_neither_copied_on_the_way_out_nor_on_the_way_in() -> None:
    torch = pytest.importorskip("torch")
    sent: list[Any] = [bytearray(LARGE), np.zeros(LARGE, "u1"), torch.zeros(LARGE, dtype=torch.uint8)]
    for value in sent:
        _, buffers = pack_apart(value)
        memoryview(value.numpy() if hasattr(value, "numpy") else value)[5] = 77
        assert buffers[0][5] == 77
    header, buffers = pack_apart(sent)
    received = [memoryview(bytearray(buffer)) for buffer in buffers]
    found = unpack(header, received)
    for position, value in enumerate(found):
        received[position][7] = 99
        assert int(value[7]) == 99


@pytest.mark.parametrize("size", [0, 3, LARGE])
@pytest.mark.parametrize(
    "name", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "complex64", "float8_e4m3fn", "uint16"]
)
def test_torch_tensors_arrive_as_torch_tensors(name: str, size: int) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(size).remainder(2).to(getattr(torch, name))
    for found in (crossed({"w": tensor})["w"], unpack(pack(tensor))):
        assert type(found) is torch.Tensor
        assert found.dtype == tensor.dtype
        assert torch.equal(found.to(torch.complex64), tensor.to(torch.complex64))


def test_tensors_of_every_layout_of_memory() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(2, 3, 4)
    for tensor in (base.mT, base[:, ::2], base[1], torch.tensor(3.5), torch.nn.Parameter(base), (base * 1j).conj()):
        found = crossed(tensor)
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor.detach())
        assert not found.requires_grad
    with pytest.raises(NotSerializable, match=r"value\['w'\].*layout"):
        crossed({"w": base.to_sparse()})


def test_a_tensor_elsewhere_than_on_the_cpu_is_refused_with_what_to_do() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(NotSerializable, match=r"value\[1\].*torch tensor on meta.*use tensor.cpu\(\)"):
        pack_apart([1, torch.empty(3, device="meta")])


class OnDevice:
    def __init__(self, value: Any, device: int) -> None:
        self._value, self._device = value, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._value.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


def test_what_offers_dlpack_arrives_as_a_numpy_array() -> None:
    found = crossed(OnDevice(np.arange(LARGE), 1))
    assert type(found) is np.ndarray
    assert (found == np.arange(LARGE)).all()
    with pytest.raises(NotSerializable, match=r"on a device \(DLPack type 2\).*copy it to the CPU first"):
        pack_apart(OnDevice(np.arange(3), 2))


def test_without_torch_a_tensor_is_an_error_that_says_so_and_spoke_does_not_import_it() -> None:
    torch = pytest.importorskip("torch")
    header, _ = pack_apart(torch.zeros(3))
    code = (
        "import sys\n"
        "from spoke.transport.values import pack, unpack\n"
        "pack([bytearray(3), 1])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        f"unpack({header!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "a torch tensor was received, but torch is not installed here" in done.stderr


def test_handles_of_buffers_are_data_wherever_they_stand() -> None:
    handle = BufferHandle("tcp://10.0.0.1:7", b"k" * 16, 1 << 40, True, b"s" * 8)
    assert crossed({"a": [handle]}) == {"a": [handle]}


EXTENSIONS = st.tuples(st.integers(0, 12), st.binary(max_size=60))


@given(st.lists(EXTENSIONS, max_size=4), st.lists(st.binary(max_size=40), max_size=3))
def test_no_extension_of_a_peer_does_more_than_fail(extensions: list[tuple[int, bytes]], apart: list[bytes]) -> None:
    import msgpack

    raw = msgpack.packb([msgpack.ExtType(code, data) for code, data in extensions])
    with contextlib.suppress(SpokeError):
        unpack(raw, [memoryview(bytearray(data)) for data in apart])


_SHAPES = st.lists(st.integers(-2, 1 << 62), max_size=4)


@given(st.sampled_from([1, 5, 7]), st.sampled_from(["B", "d", "<f4", "float32", "bfloat16", "X"]), _SHAPES)
def test_lying_shapes_are_refused(code: int, kind: str, shape: list[int]) -> None:
    import msgpack

    fields = [kind, shape, bytes(8)] if code == 1 else [bytes(8), kind, shape]
    try:
        found = unpack(msgpack.packb(msgpack.ExtType(code, msgpack.packb(fields))))
    except MalformedData:
        return
    assert memoryview(found.numpy() if hasattr(found, "numpy") and kind != "bfloat16" else b"").nbytes <= 8


def test_claimed_lengths_reserve_no_memory() -> None:
    """Nested lists that each claim to be as long as the message may be."""
    claims = b"".join(b"\xdd" + (1 << 20).to_bytes(4, "big") for _ in range(900)) + bytes(1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for raw in (
        claims,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ):
        with pytest.raises(MalformedData):
            unpack(raw)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
