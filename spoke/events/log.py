"""The log in Redis: read it, follow it, take up a state from it. Only the allocator's commit appends to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from spoke.errors import LogError
from spoke.events import snapshot
from spoke.events.archive import Archive
from spoke.events.chain import BEGIN
from spoke.events.columns import Only, link_parts, read_event, read_event_of
from spoke.events.entries import Batch, Link, RawEntry
from spoke.events.fold import fold_all
from spoke.events.ids import order_of
from spoke.events.state import PoolState
from spoke.events.types import Recorded

READ_COUNT = 1_000
FOLLOW_BLOCK_MS = 1_000


class TrimmedLog(LogError):
    """The log no longer reaches back to where reading was to begin."""

    code = "trimmed"


class EventLog:
    """The events of one pool. ``client`` is a redis client; the two keys are the pool's stream and snapshot."""

    has_snapshot = True
    """Whether there is a snapshot to compare with."""

    def __init__(self, client: Any, events_key: str, snapshot_key: str) -> None:
        self.client = client
        self.key = events_key
        self.snapshot_key = snapshot_key

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, up to and including ``until``, as they stand."""
        while True:
            chunk = self.client.xrange(self.key, min=f"({after}", max=until, count=READ_COUNT)
            for entry_id, fields in chunk:
                yield entry_id.decode(), fields
            if len(chunk) < READ_COUNT:
                return
            after = chunk[-1][0].decode()

    def tail(self, count: int) -> list[RawEntry]:
        """The newest entries, oldest of them first."""
        found = self.client.xrevrange(self.key, count=count)
        return [(entry_id.decode(), fields) for entry_id, fields in reversed(found)]

    def read(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Recorded]:
        """The events after an id (all, or of some types); raises UnknownEvent, DecodeError where one cannot be read."""
        for batch in self.batches(after, until, only):
            yield from map(Recorded, batch.ids, batch.events)
            if batch.problem is not None:
                raise batch.problem

    def batches(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Batch]:
        """The events after an id, many at once: the way to read most of a log."""
        entries = self.raw(after, until)
        while some := list(islice(entries, READ_COUNT)):
            yield Batch.of([entry_id for entry_id, _ in some], [read_event_of(only, *entry) for entry in some])

    def links(self, after: str = "0-0", until: str = "+") -> Iterator[Link]:
        """The entries after an id, with what proves and what tells them."""
        for event_id, raw in self.raw(after, until):
            yield Link(event_id, *link_parts(raw), read_event(event_id, raw))

    def follow(self, after: str = "$") -> Iterator[RawEntry | None]:
        """Entries as they come, from an id on (``$``: from now on). Yields None about once a second while idle.

        Resume a broken-off reader with the id of the last entry it saw.
        """
        if after == "$":
            after = self.last_id()
        while True:
            entries = self.newer(after, block_ms=FOLLOW_BLOCK_MS)
            if not entries:
                yield None
            for entry in entries:
                after = entry[0]
                yield entry

    def newer(self, after: str, *, block_ms: int) -> list[RawEntry]:
        """The next entries after an id; waits for the first of them, and gives an empty list if none comes."""
        found = self.client.xread({self.key: after}, count=READ_COUNT, block=block_ms)
        entries = (entry for chunk in next(iter(found.values())) for entry in chunk) if found else ()
        return [(entry_id.decode(), fields) for entry_id, fields in entries]

    def last_id(self) -> str:
        """The id of the newest event; ``0-0`` for an empty log."""
        newest = self.client.xrevrange(self.key, count=1)
        return newest[0][0].decode() if newest else "0-0"

    def first_id(self) -> str:
        """The id of the oldest event that is still there; ``0-0`` for an empty log."""
        oldest = self.client.xrange(self.key, count=1)
        return oldest[0][0].decode() if oldest else "0-0"

    def snapshot_hash(self) -> str:
        """The hash of the event at which the newest snapshot stands (see ``chain.py``)."""
        raw = self.client.hget(self.snapshot_key, "h")
        return raw.decode() if raw else BEGIN

    def mark_archived(self, event_id: str) -> None:
        """Note up to where the log is archived: the allocator trims no further."""
        self.client.hset(self.snapshot_key, "archived", event_id)

    def base_hash(self) -> str:
        """The hash of the event before the oldest that is still there."""
        raw = self.client.hget(self.snapshot_key, "base_h")
        return raw.decode() if raw else BEGIN

    def base(self) -> PoolState:
        """The state just before the oldest event that is still there: empty, unless the log was trimmed."""
        raw = self.client.hget(self.snapshot_key, "base")
        return snapshot.decode(raw) if raw else PoolState()

    def start(self, until: str) -> PoolState:
        """A state from which ``until`` is reached: the nearest that is kept with the log."""
        return self.base()

    def archive(self) -> Archive | None:
        """The archive that the log begins with, if it has one."""
        return None

    def recover(self, until: str = "+") -> PoolState:
        """The present state, from the newest snapshot and the events after it."""
        state = self._snapshot()
        if until != "+" and order_of(state.last_id) > order_of(until):
            return self.replay(until)  # the snapshot is newer than that
        self._check_not_lost(state)
        return self.folded(state, until)

    def newest(self) -> PoolState:
        """The state of the newest snapshot, empty without one; raises TrimmedLog where the log is gone."""
        state = self._snapshot()
        self._check_not_lost(state)
        return state

    def _snapshot(self) -> PoolState:
        raw = self.client.hget(self.snapshot_key, "state")
        return snapshot.decode(raw) if raw else PoolState()

    def _check_not_lost(self, state: PoolState) -> None:
        if state.last_id != "0-0" and self.last_id() == "0-0":
            raise TrimmedLog(
                f"the snapshot stands at event {state.last_id}, but the log is empty: the server lost its data; "
                f"restore its append-only file, or delete the pool's keys to start anew"
            )

    def replay(self, until: str = "+") -> PoolState:
        """The state at a moment of the past, folded from the nearest state that is kept with the log."""
        return self.folded(self.start(until), until)

    def folded(self, state: PoolState, until: str = "+") -> PoolState:
        """A state and the events after it; the state is used up."""
        with state.unindexed():
            for batch in self.batches(state.last_id, until):
                fold_all(state, batch.ids, batch.events)
                if batch.problem is not None:
                    raise batch.problem
        return state


class WatchedLog(EventLog):
    """A log that tells how far it has been read: ``tell(events since the last time, id of the last)``.

    At the end of what was to be read the id is empty.
    """

    def __init__(self, log: EventLog, tell: Callable[[int, str], None]) -> None:
        super().__init__(log.client, log.key, log.snapshot_key)
        self._log, self._tell = log, tell
        self.has_snapshot = log.has_snapshot

    def raw(self, after: str = "0-0", until: str = "+") -> Iterator[RawEntry]:
        """The entries after an id, up to and including ``until``, as they stand."""
        seen = 0
        for entry in self._log.raw(after, until):
            yield entry
            seen += 1
            if seen == READ_COUNT:
                self._tell(seen, entry[0])
                seen = 0
        self._tell(seen, "")

    def batches(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Batch]:
        """The events after an id, many at once."""
        for batch in self._log.batches(after, until, only):
            yield batch
            if batch.ids:
                self._tell(len(batch.ids), batch.ids[-1])
        self._tell(0, "")

    def links(self, after: str = "0-0", until: str = "+") -> Iterator[Link]:
        """The entries after an id, with what proves and what tells them."""
        seen = 0
        for link in self._log.links(after, until):
            yield link
            seen += 1
            if seen == READ_COUNT:
                self._tell(seen, link.id)
                seen = 0
        self._tell(seen, "")

    def tell(self, events: int, last_id: str) -> None:
        """Tell of events that somebody else has read for us."""
        self._tell(events, last_id)

    def first_id(self) -> str:
        """The id of the oldest event that is still there."""
        return self._log.first_id()

    def last_id(self) -> str:
        """The id of the newest event."""
        return self._log.last_id()

    def base(self) -> PoolState:
        """The state just before the oldest event."""
        return self._log.base()

    def base_hash(self) -> str:
        """The hash of the event before the oldest."""
        return self._log.base_hash()

    def start(self, until: str) -> PoolState:
        """A state from which ``until`` is reached."""
        return self._log.start(until)

    def archive(self) -> Archive | None:
        """The archive that the log begins with, if it has one."""
        return self._log.archive()

    def recover(self, until: str = "+") -> PoolState:
        """The present state, as the log itself finds it."""
        return self._log.recover(until)
