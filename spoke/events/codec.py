"""Typed values to and from flat Redis stream fields.

Text and whole numbers stand in the stream as they are; everything nested is one JSON field. So a person with
redis-cli reads the log, and what comes back is checked field by field (msgspec names the path of what is wrong).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from spoke.errors import LogError, SpokeError, UnknownEvent
from spoke.events.types import EVENT_TYPES, Event, Recorded

Fields = Mapping[bytes, bytes]
FlatFields = dict[str, str | bytes]
T = TypeVar("T")
to_json = msgspec.json.Encoder().encode
"""JSON of dataclasses, in half of orjson's time."""


class DecodeError(LogError):
    """Fields that do not form the value they claim to be."""

    code = "undecodable"


def _text(raw: bytes) -> str:
    return raw.decode()


class _Columns:
    """How one class of events stands in the stream; worked out once, since every event passes here."""

    def __init__(self, cls: type[Any]) -> None:
        fields = msgspec.structs.fields(cls)
        names = [f.name for f in fields]
        plain: dict[Any, Callable[[bytes], Any]] = {str: _text, int: int}
        self.readers = [(f.name, f.name.encode(), plain.get(f.type, msgspec.json.decode)) for f in fields]
        self.numbers = [at for at, f in enumerate(fields) if f.type is int]
        self.nested = [at for at, f in enumerate(fields) if f.type not in plain]
        self.head: list[str | bytes] = ["type", cls.TYPE, "v", str(cls.VERSION)]
        self.template = [*self.head, *(item for name in names for item in (name, ""))]
        self.get = attrgetter(*names) if len(names) > 1 else lambda event: (getattr(event, names[0]),)


_COLUMNS: dict[type[Any], _Columns] = {}


def _columns(cls: type[Any]) -> _Columns:
    found = _COLUMNS.get(cls)
    if found is None:
        found = _COLUMNS[cls] = _Columns(cls)
    return found


def event_args(event: Event) -> list[str | bytes]:
    """The stream fields of an event as XADD takes them, name and value in turn: type, v, then the event's own."""
    columns = _columns(type(event))
    values = list(columns.get(event))
    for at in columns.numbers:
        values[at] = str(values[at])
    for at in columns.nested:
        values[at] = to_json(values[at])
    args = columns.template.copy()
    args[len(columns.head) + 1 :: 2] = values
    return args


def encode_event(event: Event) -> FlatFields:
    """The stream fields of an event."""
    args = event_args(event)
    return dict(zip(args[::2], args[1::2], strict=True))  # type: ignore[arg-type]


def from_fields(cls: type[T], raw: Fields) -> T:
    """The value of type ``cls`` that the flat fields hold; raise DecodeError with the reason if they do not."""
    try:
        plain = {name: read(raw[key]) for name, key, read in _columns(cls).readers if key in raw}
        return msgspec.convert(plain, cls)
    except (ValueError, TypeError, SpokeError, RecursionError) as error:
        raise DecodeError(f"the fields do not form a {cls.__name__}: {error}") from error


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
