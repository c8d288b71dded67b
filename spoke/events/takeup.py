"""Taking up a log where it ends: the state, the hash to go on from, and what stands there that no allocator wrote.

Every event that an allocator writes carries a hash. So an entry without one is no event: somebody with rights on the
server wrote it by hand. It is passed over, and the allocator that takes up the log takes it out and records that. An
entry that carries a hash and cannot be read or cannot follow is another matter: it may be an event of a later release,
or one before it may be missing. Nobody may guess there, so taking up the log ends with what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from spoke.errors import LogError
from spoke.events.chain import hash_of, link_of
from spoke.events.codec import Fields
from spoke.events.columns import link_parts, read_event
from spoke.events.fold import fold_all
from spoke.events.ids import ms_of
from spoke.events.log import EventLog
from spoke.events.state import PoolState
from spoke.events.strays import Stray, said_of, stray_of

FUTURE_MS: Final = 86_400_000
"""An entry whose id is further ahead of the server's clock than this would date all events after it."""
STRIKE: Final = "strike"
"""The field of the snapshot's hash in which an operator names an entry that is to be taken out."""


class BlockedLog(LogError):
    """The log cannot be taken up: an entry cannot be read, or cannot follow. ``entry_id`` names it.

    ``written``: an allocator wrote it, for its hash follows from the event before.
    """

    code = "log_blocked"

    def __init__(self, message: str, entry_id: str = "", *, written: bool = False) -> None:
        super().__init__(message)
        self.entry_id, self.written = entry_id, written


@dataclass(frozen=True, slots=True)
class Strike:
    """An operator's word that an entry is no event."""

    id: str
    by: str
    reason: str


@dataclass(slots=True)
class TakenUp:
    """``end`` is the id of the last entry, be it an event or not; ``last_hash`` that of the last event."""

    state: PoolState
    last_hash: str
    end: str
    strays: list[Stray] = field(default_factory=list)


def take_up(log: EventLog, strike: Strike | None = None) -> TakenUp:
    """The present state, from the newest snapshot and the events after it.

    ``strike``: passed over like an entry without a hash. Raises BlockedLog, or another LogError where the snapshot
    cannot be read.
    """
    state = log.newest()
    found = TakenUp(state, log.snapshot_hash() if state.last_id != "0-0" else "", state.last_id)
    with state.unindexed():
        for entry_id, raw in log.raw(state.last_id):
            found.end = entry_id
            stray = stray_of(entry_id, raw, found.last_hash)
            if stray is None:
                problem = _problem(state, entry_id, raw)
                if problem is None:
                    found.last_hash = hash_of(raw)
                    continue
                if strike is None or strike.id != entry_id:
                    raise _blocked(log.key, entry_id, raw, found.last_hash, problem)
                stray = Stray(entry_id, said_of(entry_id, raw), strike.reason, strike.by)
            found.strays.append(stray)
    return found


def too_late(found: TakenUp, now_ms: int) -> BlockedLog | None:
    """Why the log cannot go on after what stands at its end; None if it can."""
    if not found.strays or ms_of(found.end) <= now_ms + FUTURE_MS:
        return None
    return BlockedLog(
        f"entry {found.end} of the log is no event, and its id lies in the future: whatever comes after it would have "
        f"to lie there, too. Make the log anew without it: spoke audit archive DIR, then spoke audit restore DIR into "
        f"an empty pool",
        found.end,
    )


def read_strike(log: EventLog) -> Strike | None:
    """The entry that an operator has named, if there is one."""
    raw = log.client.hget(log.snapshot_key, STRIKE)
    try:
        return msgspec.json.decode(raw, type=Strike) if raw else None
    except ValueError:  # a decoder raises UnicodeDecodeError, too
        return None


def name_strike(log: EventLog, strike: Strike) -> None:
    """Name an entry to the allocators as one that is to be taken out."""
    log.client.hset(log.snapshot_key, STRIKE, msgspec.json.encode(strike))


def _problem(state: PoolState, entry_id: str, raw: Fields) -> LogError | None:
    event = read_event(entry_id, raw)
    if isinstance(event, LogError):
        return event
    try:
        fold_all(state, [entry_id], [event])
    except LogError as error:
        return error
    return None


def _blocked(key: str, entry_id: str, raw: Fields, before: str, problem: LogError) -> BlockedLog:
    h, args = link_parts(raw)
    pool = key.partition("{")[2].partition("}")[0]
    if h == link_of(before, entry_id, args):
        return BlockedLog(
            f"the log cannot be taken up at event {entry_id}, which an allocator wrote: {problem}",
            entry_id,
            written=True,
        )
    return BlockedLog(
        f"the log cannot be taken up at entry {entry_id}, whose hash does not follow from the event before it: "
        f"{problem}. Look at it: redis-cli XRANGE '{key}' {entry_id} {entry_id}. If it was written by hand, have it "
        f"taken out and that recorded: spoke audit strike {entry_id} --pool {pool}. If an event before it was "
        f"removed, restore an archive",
        entry_id,
    )
