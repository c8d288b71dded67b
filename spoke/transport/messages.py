"""What the frames of a call hold: the call, its result, its error."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

from spoke.errors import ActorError, MalformedData, NotSerializable, SpokeError, from_code
from spoke.transport.credit import Window, read_window
from spoke.transport.frames import Frame
from spoke.transport.values import Buffers, encode, lower, pack, unpack

_TEXT_MAX: Final = 64 * 1024
_FOUR: Final = b"\x94"  # the msgpack of a list of four, where a call is one of three


def pack_call(method: str, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[bytes, Buffers]:
    """A call's header and buffers; NotSerializable names the argument."""
    far: Buffers = []
    parts = [method, lower(list(args), far, "args"), lower(dict(kwargs), far, "kwargs")]
    try:
        return encode(parts, "the call"), far
    except NotSerializable:
        for part, name in zip(parts, ("method", "args", "kwargs"), strict=True):
            encode(part, name)  # raises again, with the path as the caller knows it
        raise


def unpack_call(frame: Frame) -> tuple[str, list[Any], dict[str, Any]]:
    """Method, args and kwargs; raises MalformedData."""
    return _checked_call(unpack(frame.header, frame.buffers))


def _checked_call(found: Any) -> tuple[str, list[Any], dict[str, Any]]:
    if not isinstance(found, list) or [type(part) for part in found] != [str, list, dict]:
        raise MalformedData("a call must hold a method, a list and a dict")
    method, args, kwargs = found
    if not all(type(name) is str for name in kwargs):
        raise MalformedData("the names of a call's keyword arguments must be text")
    return method, args, kwargs


def pack_stream(
    method: str, args: Sequence[object], kwargs: Mapping[str, object], window: Window
) -> tuple[bytes, Buffers]:
    """A streamed call's header and buffers: those of a call, and then the window."""
    header, far = pack_call(method, args, kwargs)
    return _FOUR + header[1:] + pack(window.as_data()), far


def unpack_stream(frame: Frame) -> tuple[str, list[Any], dict[str, Any], Window]:
    """Method, args, kwargs and window; raises MalformedData."""
    found = unpack(frame.header, frame.buffers)
    if not isinstance(found, list) or len(found) != 4:
        raise MalformedData("a streamed call must hold a method, a list, a dict and a window")
    return *_checked_call(found[:3]), read_window(found[3])


def pack_count(count: int) -> bytes:
    """A number of items."""
    return pack(count)


def read_count(frame: Frame) -> int:
    """The number of items that a frame tells of; raises MalformedData."""
    found = unpack(frame.header, frame.buffers)
    if type(found) is not int or found < 0:
        raise MalformedData("a frame should hold a number of items")
    return found


def pack_mailbox(window: Window) -> bytes:
    """The header that opens a mailbox."""
    return pack(window.as_data())


def read_mailbox(frame: Frame) -> Window:
    """The window of a mailbox; raises MalformedData."""
    return read_window(unpack(frame.header, frame.buffers))


def pack_error(error: SpokeError) -> bytes:
    """An error as it crosses."""
    return pack([error.code, _encodable(str(error)), getattr(error, "remote_type", "")])


def unpack_error(frame: Frame) -> SpokeError:
    """The error that the peer sent, whatever it holds."""
    try:
        found = unpack(frame.header, frame.buffers)
    except SpokeError as unreadable:
        return unreadable
    if not isinstance(found, list) or [type(part) for part in found] != [str, str, str]:
        return MalformedData("the peer sent an error that cannot be read")
    code, message, remote_type = found
    error = from_code(code, message)
    if isinstance(error, ActorError):
        error.remote_type = remote_type
    return error


def remote_error(what: str, error: BaseException) -> ActorError:
    """What a method raised, as the ActorError that its caller gets."""
    try:
        lines = traceback.format_exception(error)
    except Exception:
        lines = [f"{type(error).__name__} (its traceback cannot be printed)"]
    text = "".join(lines).rstrip()
    if len(text) > _TEXT_MAX:
        text = f"{text[: _TEXT_MAX // 2]}\n…\n{text[-_TEXT_MAX // 2 :]}"
    wrapped = ActorError(f"{what} raised {type(error).__name__}. Remote traceback:\n{text}")
    wrapped.remote_type = type(error).__name__
    return wrapped


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
