"""What the frames of a call hold: the call, its result, its error."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

from spoke.errors import ActorError, MalformedData, NotSerializable, SpokeError, from_code
from spoke.transport.frames import Frame
from spoke.transport.values import Buffers, encode, lower, pack, unpack

_TEXT_MAX: Final = 64 * 1024


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
    found = unpack(frame.header, frame.buffers)
    if not isinstance(found, list) or [type(part) for part in found] != [str, list, dict]:
        raise MalformedData("a call must hold a method, a list and a dict")
    method, args, kwargs = found
    if not all(type(name) is str for name in kwargs):
        raise MalformedData("the names of a call's keyword arguments must be text")
    return method, args, kwargs


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
