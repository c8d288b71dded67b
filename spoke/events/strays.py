"""Entries of a log that are no events: each event that an allocator writes carries a hash, and they do not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from spoke.errors import LogError
from spoke.events.chain import hash_of
from spoke.events.codec import Fields, raw_entry
from spoke.events.columns import read_event

SAID_MAX: Final = 2_000
"""So many characters of what a stray entry says are kept in the event that records its end."""
_HASH: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Stray:
    """An entry that is no event. ``said`` are its fields as JSON, cut short; ``by`` is who had it taken out."""

    id: str
    said: str
    reason: str
    by: str = ""


def stray_of(entry_id: str, raw: Fields, before: str) -> Stray | None:
    """The entry as one that no allocator wrote, if it is one; ``before`` is the hash of the event before it."""
    h = hash_of(raw)
    if _HASH.fullmatch(h):
        return None
    if not h and not before and not isinstance(read_event(entry_id, raw), LogError):
        return None  # of a log from before there were hashes
    return Stray(entry_id, said_of(entry_id, raw), "it carries no hash, so no allocator wrote it")


def said_of(entry_id: str, raw: Fields) -> str:
    """The fields of an entry as JSON, cut short."""
    fields = {name[:SAID_MAX]: value[:SAID_MAX] for name, value in raw_entry(entry_id, raw).fields.items()}
    text = msgspec.json.encode(fields).decode()
    return text if len(text) <= SAID_MAX else f"{text[:SAID_MAX]} …"
