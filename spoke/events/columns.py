"""Log entries as columns, and back: what an archived segment holds, and the fastest way to read events.

Entries of one type stand together, a list for each field. Whole numbers are numbers, everything else is the text that
stands in the log, so that the entries come back exactly as they were, also those of a later release. To read events
from columns is to call their classes on the columns; what does not fit in that way is decoded entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from typing import Any, Final, cast

import msgspec

from spoke.errors import LogError, SpokeError
from spoke.events.chain import hash_of
from spoke.events.codec import Fields, decode_event
from spoke.events.model import ActorSpec, GangSpec
from spoke.events.types import EVENT_TYPES, Event

HASH: Final = b"h"
HASH_DIGITS = 32
SPEC_CACHE_MAX = 10_000
"""Specs repeat: so many are remembered by their text."""


@dataclass(slots=True)
class Block:
    """Entries with the same fields in the same order: a column for each field."""

    names: list[str]
    columns: list[list[Any]]


@dataclass(slots=True)
class Columns:
    """Some entries that follow each other. ``order`` names the block of each, ``h`` holds all hashes in one text.

    ``odd`` are entries that are not plain text with a hash at the end, as pairs of latin-1; their place is in
    ``order`` as -1.
    """

    ids: list[str]
    order: list[int]
    blocks: list[Block]
    h: str = ""
    odd: list[list[list[str]]] = field(default_factory=list)


def to_columns(entries: Iterable[tuple[str, Fields]]) -> Columns:
    """The entries as columns."""
    found, rows, places, hashes = Columns([], [], []), list[list[Any]](), dict[tuple[str, ...], int](), list[str]()
    for event_id, raw in entries:
        found.ids.append(event_id)
        plain = _plain(raw)
        if plain is None:
            found.odd.append([[k.decode("latin-1"), v.decode("latin-1")] for k, v in raw.items()])
            found.order.append(-1)
            continue
        names, values, link = plain
        place = places.setdefault((*names, str(values[0])), len(rows))  # the first field is the type
        if place == len(rows):
            rows.append([])
            found.blocks.append(Block(list(names), []))
        rows[place].append(values)
        found.order.append(place)
        hashes.append(link)
    for block, values in zip(found.blocks, rows, strict=True):
        block.columns = [_column(column) for column in zip(*values, strict=True)]
    found.h = "".join(hashes)
    return found


def _plain(raw: Fields) -> tuple[tuple[str, ...], list[str], str] | None:
    names = list(raw)
    link = raw.get(HASH, b"")
    if len(names) < 2 or names[0] != b"type" or names[-1] != HASH or len(link) != HASH_DIGITS or not link.isascii():
        return None
    try:
        return tuple(n.decode() for n in names[:-1]), [raw[n].decode() for n in names[:-1]], link.decode()
    except UnicodeDecodeError:
        return None


def _column(texts: Sequence[str]) -> list[Any]:
    """Numbers, if every text is a number as Python writes it; else the texts."""
    try:
        numbers = [int(text) for text in texts]
    except ValueError:
        return list(texts)
    return numbers if all(map(_fits, numbers, texts)) else list(texts)


def _fits(number: int, text: str) -> bool:
    return str(number) == text and -(2**63) <= number < 2**63


def entries_of(found: Columns) -> list[tuple[str, Fields]]:
    """The entries as they stood in the log; raises ValueError for columns that are none."""
    rows = [_raw_rows(block) for block in found.blocks]
    hashes = iter(range(0, len(found.h), HASH_DIGITS))
    odd, nexts = iter(found.odd), [iter(row).__next__ for row in rows]
    entries: list[tuple[str, Fields]] = []
    try:
        for event_id, place in zip(found.ids, found.order, strict=True):
            if place < 0:
                entries.append((event_id, {k.encode("latin-1"): v.encode("latin-1") for k, v in next(odd)}))
                continue
            fields = nexts[place]()
            at = next(hashes)
            fields[HASH] = found.h[at : at + HASH_DIGITS].encode()
            entries.append((event_id, fields))
    except (StopIteration, IndexError):
        raise ValueError("there are more places than entries") from None
    return entries


def _raw_rows(block: Block) -> list[dict[bytes, bytes]]:
    names = [name.encode() for name in block.names]
    columns = [[str(value).encode() for value in column] for column in block.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def links_of(found: Columns) -> Iterator[tuple[str, list[str | bytes]]]:
    """The hash and the fields (name, value, name …) of each entry, as the chain takes them; raises ValueError."""
    if found.odd:
        yield from (link_parts(raw) for _, raw in entries_of(found))
        return
    nexts = [_arguments(block).__next__ for block in found.blocks]
    try:
        for at, place in enumerate(found.order):
            yield found.h[at * HASH_DIGITS : (at + 1) * HASH_DIGITS], nexts[place]()
    except (StopIteration, IndexError):
        raise ValueError("there are more places than entries") from None


def _arguments(block: Block) -> Iterator[list[str | bytes]]:
    template: list[str | bytes] = [item for name in block.names for item in (name, "")]
    for row in zip(*(list(_texts(column)) for column in block.columns), strict=True):
        args = template.copy()
        args[1::2] = row
        yield args


def link_parts(raw: Fields) -> tuple[str, list[str | bytes]]:
    """The hash and the fields of an entry, as the chain takes them."""
    return hash_of(raw), [item for name, value in raw.items() if name != HASH for item in (name, value)]


Only = frozenset[type[Event]] | None
"""The types of events that are asked for; None: all. Others are not even decoded."""
Read = Event | LogError
"""An event, or why it cannot be read: to be raised when its turn comes."""


def events_of(found: Columns) -> list[Read]:
    """The events in their order; raises ValueError for columns that are none."""
    return cast(list[Read], some_events_of(found, None))


def some_events_of(found: Columns, only: Only) -> list[Read | None]:
    """The same with None for events of known types that are not asked for: those are not decoded."""
    blocks = [_events(block, only) for block in found.blocks]
    if found.odd or None in blocks:
        return [read_event_of(only, *entry) for entry in entries_of(found)]
    nexts = [iter(block or ()).__next__ for block in blocks]
    try:
        return [nexts[place]() for place in found.order]
    except (StopIteration, IndexError):
        raise ValueError("there are more places than entries") from None


def read_event_of(only: Only, event_id: str, raw: Fields) -> Read | None:
    """An event of the log, or why it cannot be read; None for one of a known type that is not asked for."""
    if only is not None:
        cls = EVENT_TYPES.get(raw.get(b"type", b"").decode(errors="replace"))
        if cls is not None and cls not in only:
            return None
    return read_event(event_id, raw)


def read_event(event_id: str, raw: Fields) -> Read:
    """An event of the log, or why it cannot be read."""
    try:
        return decode_event(event_id, raw).event
    except LogError as error:
        return error


# --- events from columns -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    """How a field of a class is read from a column."""

    name: str
    read: Callable[[list[Any]], Iterable[Any]]
    default: Any


@cache
def _fields(cls: Any) -> list[_Field]:
    plain: dict[Any, Callable[[list[Any]], Iterable[Any]]] = {str: _texts, int: _numbers}
    fields = msgspec.structs.fields(cls)
    return [_Field(f.name, plain.get(f.type) or _nested(f.type), f.default) for f in fields]


def _texts(column: list[Any]) -> Iterable[Any]:
    return map(str, column) if type(column[0]) is int else msgspec.convert(column, list[str])


def _numbers(column: list[Any]) -> Iterable[Any]:
    return msgspec.convert(column, list[int])


def _nested(hint: Any) -> Callable[[list[Any]], Iterable[Any]]:
    decode: Callable[[str], Any] = msgspec.json.Decoder(hint).decode
    if hint not in (GangSpec, ActorSpec):  # what can be changed later must not be shared
        return lambda column: map(decode, _texts(column))
    known: dict[str, Any] = {}

    def read(column: list[Any]) -> Iterable[Any]:
        texts = list(_texts(column))
        if len(known) > SPEC_CACHE_MAX:
            known.clear()
        for text in texts:
            if text not in known:
                known[text] = decode(text)
        return map(known.__getitem__, texts)

    return read


def _events(block: Block, only: Only) -> Sequence[Event | None] | None:
    """The events of a block; None where one of them may not be as its class says: decoding it tells what is wrong."""
    try:
        named = dict(zip(block.names, block.columns, strict=True))
        cls: Any = EVENT_TYPES[named["type"][0]]
        if set(named["v"]) != {cls.VERSION} or set(named["type"]) != {cls.TYPE}:
            return None
        size = len(named["type"])
        if only is not None and cls not in only:
            return [None] * size
        columns: list[Iterable[Any]] = []
        for known in _fields(cls):
            column = named.get(known.name)
            if column is not None:
                columns.append(known.read(column))
            elif known.default is not msgspec.NODEFAULT:
                columns.append(repeat(known.default, size))
            else:
                return None
        return list(map(cls, *columns))
    except (ValueError, TypeError, LookupError, SpokeError, RecursionError):
        return None
