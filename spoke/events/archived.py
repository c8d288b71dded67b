"""Logs that begin in an archive: with what the server still has after it, or without any server."""

from __future__ import annotations

from collections.abc import Iterator

from spoke.events.archive import Archive
from spoke.events.columns import Only
from spoke.events.entries import Batch, Link, RawEntry, end_of
from spoke.events.ids import order_of
from spoke.events.log import EventLog
from spoke.events.segment import BadSegment
from spoke.events.state import PoolState


class ArchivedLog(EventLog):
    """A log that reaches back into its archive: from the first archived event to the newest in Redis."""

    def __init__(self, log: EventLog, archive: Archive) -> None:
        super().__init__(log.client, log.key, log.snapshot_key)
        self._live, self._archive = log, archive
        self.has_snapshot = log.has_snapshot

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, archived ones first."""
        yield from self._archive.raw(after, until)
        after = self._end_of_archive(after, until)
        if after:
            yield from self._live.raw(after, until)

    def batches(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Batch]:
        """The events after an id, archived ones first."""
        yield from self._archive.batches(after, until, only)
        after = self._end_of_archive(after, until)
        if after:
            yield from self._live.batches(after, until, only)

    def links(self, after: str = "0-0", until: str = "+") -> Iterator[Link]:
        """The entries after an id, with what proves and what tells them, archived ones first."""
        yield from self._archive.links(after, until)
        after = self._end_of_archive(after, until)
        if after:
            yield from self._live.links(after, until)

    def _end_of_archive(self, after: str, until: str) -> str:
        """Where the live log goes on; empty if it is not needed."""
        last = self._archive.last_id()
        if order_of(last) > order_of(after):
            after = last
        if order_of(after) > end_of(until):
            return ""
        base = self._live.base().last_id
        if order_of(base) > order_of(after):
            raise BadSegment(f"the archive ends at event {after}, but the log begins after {base}: events are missing")
        return after

    def first_id(self) -> str:
        """The id of the first archived event, or of the first there is."""
        return self._archive.first_id() if self._archive.segments() else self._live.first_id()

    def base(self) -> PoolState:
        """The state before the first archived event."""
        return self._archive.base() if self._archive.segments() else self._live.base()

    def base_hash(self) -> str:
        """The hash before the first archived event."""
        return self._archive.base_hash() if self._archive.segments() else self._live.base_hash()

    def start(self, until: str) -> PoolState:
        """The state at the beginning of the segment that holds ``until``."""
        return self._archive.start(until) if self._archive.segments() else self._live.base()

    def archive(self) -> Archive | None:
        """The segments before the live log."""
        return self._archive


class StoredLog(EventLog):
    """A log read from its archive alone: no server is asked. Raises BadSegment for a folder without segments."""

    has_snapshot = False

    def __init__(self, archive: Archive) -> None:
        super().__init__(None, "", "")
        self._archive = archive
        if not archive.segments():
            raise BadSegment(f"{archive.folder} holds no segments: name the folder that `spoke audit archive` wrote")

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, up to and including ``until``."""
        yield from self._archive.raw(after, until)

    def batches(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Batch]:
        """The events after an id, up to and including ``until``, many at once."""
        yield from self._archive.batches(after, until, only)

    def links(self, after: str = "0-0", until: str = "+") -> Iterator[Link]:
        """The entries after an id, with what proves and what tells them."""
        yield from self._archive.links(after, until)

    def base(self) -> PoolState:
        """The state before the first archived event."""
        return self._archive.base()

    def base_hash(self) -> str:
        """The hash before the first archived event."""
        return self._archive.base_hash()

    def start(self, until: str) -> PoolState:
        """The state at the beginning of the segment that holds ``until``."""
        return self._archive.start(until)

    def archive(self) -> Archive | None:
        """The segments."""
        return self._archive

    def first_id(self) -> str:
        """The id of the first archived event."""
        return self._archive.first_id()

    def last_id(self) -> str:
        """The id of the last archived event."""
        return self._archive.last_id()

    def recover(self, until: str = "+") -> PoolState:
        """The state at the end."""
        return self.replay(until)
