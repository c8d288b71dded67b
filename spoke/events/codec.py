"""Typed values to and from flat Redis stream fields.

Text and whole numbers stand in the stream as they are; everything nested is one JSON field. So a person with
redis-cli reads the log, and what comes back is checked field by field (msgspec names the path of what is wrong).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_type_hints

import msgspec
import orjson

from spoke.errors import LogError, SpokeError, UnknownEvent
from spoke.events.types import EVENT_TYPES, Event, Recorded

Fields = Mapping[bytes, bytes]
FlatFields = dict[str, str | bytes | int]
T = TypeVar("T")


class DecodeError(LogError):
    """Fields that do not form the value they claim to be."""

    code = "undecodable"


def _text(raw: bytes) -> str:
    return raw.decode()


_Column = tuple[str, bytes, Callable[[bytes], Any], bool]
_COLUMNS: dict[type[Any], tuple[_Column, ...]] = {}


def _columns(cls: type[Any]) -> tuple[_Column, ...]:
    """Per field of ``cls``: its name, the name in bytes, the reader, and whether it is written as JSON."""
    found = _COLUMNS.get(cls)
    if found is None:
        hints = get_type_hints(cls)
        readers: dict[Any, Callable[[bytes], Any]] = {str: _text, int: int}
        found = _COLUMNS[cls] = tuple(
            (f.name, f.name.encode(), readers.get(hints[f.name], orjson.loads), hints[f.name] not in readers)
            for f in fields(cls)
        )
    return found


def to_fields(value: Any) -> FlatFields:
    """The flat fields of a dataclass value."""
    return {
        name: orjson.dumps(getattr(value, name)) if is_json else getattr(value, name)
        for name, _, _, is_json in _columns(type(value))
    }


def from_fields(cls: type[T], raw: Fields) -> T:
    """The value of type ``cls`` that the flat fields hold; raise DecodeError with the reason if they do not."""
    try:
        plain = {name: read(raw[key]) for name, key, read, _ in _columns(cls) if key in raw}
        return msgspec.convert(plain, cls)
    except (ValueError, TypeError, SpokeError) as error:
        raise DecodeError(f"the fields do not form a {cls.__name__}: {error}") from error


def encode_event(event: Event) -> FlatFields:
    """The stream fields of an event: ``type``, ``v``, then the event's own."""
    return {"type": event.TYPE, "v": event.VERSION, **to_fields(event)}


def decode_event(event_id: str, raw: Fields) -> Recorded:
    """The event that stands in the log under ``event_id``.

    Raises UnknownEvent for a type or version that this release does not know, DecodeError for broken fields.
    """
    name = raw.get(b"type", b"").decode(errors="replace")
    cls = EVENT_TYPES.get(name)
    if cls is None:
        raise UnknownEvent(
            f"event {event_id} has the unknown type {name!r}: upgrade spoke, or read it with `spoke log`"
        )
    version = raw.get(b"v", b"")
    if version != b"%d" % cls.VERSION:
        raise UnknownEvent(
            f"event {event_id} ({name}) has version {version.decode(errors='replace') or 'none'}; this release reads "
            f"version {cls.VERSION}: upgrade spoke, or read it with `spoke log`"
        )
    try:
        return Recorded(event_id, from_fields(cls, raw))
    except DecodeError as error:
        raise DecodeError(f"event {event_id} ({name}): {error}") from error


@dataclass(frozen=True, slots=True)
class RawEntry:
    """A log entry as it stands, for tools that show what they cannot decode."""

    id: str
    fields: dict[str, str]


def raw_entry(event_id: str, raw: Fields) -> RawEntry:
    """The entry's fields as text, whatever they hold."""
    return RawEntry(event_id, {k.decode(errors="replace"): v.decode(errors="replace") for k, v in raw.items()})
