"""The hash chain of the log: each event's field ``h`` is a hash over the one before it, its own id and its fields.

So whoever changes, removes or inserts an event must change all that follow, and one hash noted elsewhere shows it.
The hash is BLAKE2b (RFC 7693) of 16 bytes, in hexadecimal. It has no key: who may write the log may compute it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgpack

FIELD = b"h"
BEGIN = ""
"""What stands before the first event."""


class Chain:
    """The end of a chain. ``link`` makes it longer."""

    __slots__ = ("last",)

    def __init__(self, last: str = BEGIN) -> None:
        self.last = last

    def link(self, event_id: str, args: Sequence[str | bytes]) -> str:
        """The hash of the next event, whose fields are name, value, name, value …"""
        self.last = link_of(self.last, event_id, args)
        return self.last


def link_of(before: str, event_id: str, args: Sequence[str | bytes | int]) -> str:
    """The hash of an event that comes after the hash ``before``; its fields are texts."""
    # in msgpack's old format text and bytes look the same, as they do in the stream
    packed = msgpack.packb([before, event_id, *args], use_bin_type=False)
    return blake2b(packed, digest_size=16).hexdigest()


def hash_of(raw: Mapping[bytes, bytes]) -> str:
    """The hash that an event of the log carries; empty for one from before there were hashes."""
    return raw.get(FIELD, b"").decode(errors="replace")


class Checker:
    """Walks along a log, and says where the chain breaks."""

    def __init__(self, last: str = BEGIN) -> None:
        self._last = last

    @property
    def last(self) -> str:
        """The last hash that an event carried."""
        return self._last

    def problem(self, event_id: str, found: str, args: Sequence[str | bytes]) -> str:
        """What is wrong with the next event, its hash and its other fields; empty if it follows."""
        before = self._last
        if not found:
            return f"event {event_id} carries no hash, although those before it do" if before else ""
        self._last = found
        if found == link_of(before, event_id, args):
            return ""
        return (
            f"chain: the hash of event {event_id} does not follow from the events before it: it was changed or put "
            f"in, or the one before it was changed or removed"
        )
