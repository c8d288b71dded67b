"""The log in Redis: read it, follow it, take up a state from it. Only the allocator's commit appends to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from spoke.errors import LogError
from spoke.events import snapshot
from spoke.events.chain import BEGIN, hash_of
from spoke.events.codec import Fields
from spoke.events.columns import Only, Read, link_parts, read_event, read_event_of
from spoke.events.fold import fold_all
from spoke.events.ids import order_of
from spoke.events.state import PoolState
from spoke.events.types import Event, Recorded

if TYPE_CHECKING:
    from spoke.events.archive import Archive

READ_COUNT = 1_000
FOLLOW_BLOCK_MS = 1_000

RawEntry = tuple[str, Fields]


class TrimmedLog(LogError):
    """The log no longer reaches back to where reading was to begin."""

    code = "trimmed"


def end_of(until: str) -> tuple[int, int]:
    """The bound that ``until`` names, as numbers: ``+`` and a millisecond without a sequence take in all of it.

    >>> end_of("5-1"), end_of("5") > order_of("5-7")
    ((5, 1), True)
    """
    if until == "+":
        return 2**63, 0
    return order_of(until) if "-" in until else (int(until), 2**64 - 1)


class Link(NamedTuple):
    """An entry of the log as an auditor sees it: its hash, its fields (name, value, name …), and the event it tells."""

    id: str
    h: str
    args: list[str | bytes]
    event: Read


@dataclass(slots=True)
class Batch:
    """Events that follow each other, with their ids. ``problem``: why the event after them cannot be read, if so."""

    ids: list[str]
    events: list[Event]
    problem: LogError | None = None

    @classmethod
    def of(cls, ids: list[str], found: Sequence[Read | None]) -> Batch:
        """The events before the first that cannot be read, without those that were not asked for."""
        if None in found:
            kept = [(i, event) for i, event in zip(ids, found, strict=True) if event is not None]
            ids, found = [i for i, _ in kept], [event for _, event in kept]
        problem = next((event for event in found if isinstance(event, LogError)), None)
        if problem is not None:
            end = found.index(problem)
            ids, found = ids[:end], found[:end]
        return cls(ids, found, problem)  # type: ignore[arg-type]

    def between(self, begin: tuple[int, int], end: tuple[int, int]) -> Batch:
        """The events after ``begin``, up to and including ``end``."""
        inside = [(i, x) for i, x in zip(self.ids, self.events, strict=True) if begin < order_of(i) <= end]
        over = bool(self.ids) and order_of(self.ids[-1]) > end
        return Batch([i for i, _ in inside], [event for _, event in inside], None if over else self.problem)


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

    def last_hash(self) -> str:
        """The hash of the newest event (see ``chain.py``)."""
        newest = self.tail(1)
        if newest:
            return hash_of(newest[0][1])
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
        raw = self.client.hget(self.snapshot_key, "state")
        state = snapshot.decode(raw) if raw else PoolState()
        if until != "+" and order_of(state.last_id) > order_of(until):
            return self.replay(until)  # the snapshot is newer than that
        if state.last_id != "0-0" and self.last_id() == "0-0":
            raise TrimmedLog(
                f"the snapshot stands at event {state.last_id}, but the log is empty: the server lost its data; "
                f"restore its append-only file, or delete the pool's keys to start anew"
            )
        return self.folded(state, until)

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
    """A log that tells how far it has been read: ``tell(events since the last time, id of the last)``."""

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

    def batches(self, after: str = "0-0", until: str = "+", only: Only = None) -> Iterator[Batch]:
        """The events after an id, many at once."""
        for batch in self._log.batches(after, until, only):
            yield batch
            if batch.ids:
                self._tell(len(batch.ids), batch.ids[-1])

    def links(self, after: str = "0-0", until: str = "+") -> Iterator[Link]:
        """The entries after an id, with what proves and what tells them."""
        seen = 0
        for link in self._log.links(after, until):
            yield link
            seen += 1
            if seen == READ_COUNT:
                self._tell(seen, link.id)
                seen = 0

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
