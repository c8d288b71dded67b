"""One term of leadership: from an election to a stop, a take-over, or a failure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from spoke.allocator import decide as core
from spoke.allocator.commit import Batch
from spoke.allocator.effects.kinds import Blobs
from spoke.allocator.gate import Gate
from spoke.allocator.intake import Intake, size_of
from spoke.allocator.leader import Elected, reopen_inbox, resign
from spoke.allocator.limits import Limits
from spoke.allocator.outbox import effects
from spoke.allocator.quarantine import Quarantine, Undecidable
from spoke.allocator.views import Views
from spoke.allocator.wire import Wire
from spoke.errors import Fenced
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.chain import Chain
from spoke.events.fold import fold
from spoke.events.ids import order_of
from spoke.events.log import EventLog
from spoke.events.state import PoolState
from spoke.events.takeup import FUTURE_MS, STRIKE, read_strike, take_up, too_late
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.launch import unpack_blobs
from spoke.protocol.server import Redis
from spoke.version import release_version

if TYPE_CHECKING:
    from spoke.allocator.collector import Collector
    from spoke.allocator.watcher import Watcher

READ_MAX = 256
READ_FIRST = 8
READ_BYTES = 16 << 20
"""About so much is read at once: large requests are read few at a time, else reading may outlast leadership."""
CHUNK = 64
"""Requests in one commit. A longer one would keep the server from everybody else for more than a millisecond."""
SHORT_BLOCK_MS = 1
"""So long a read waits behind a commit: for whoever asks again at once, before the house is kept."""
HOUSEKEEPING_MS = 250
"""Views are written and requests trimmed when nobody asks, and at least so often."""
EXPIRY_LOOK_MS = 100
"""So often a commit looks for leases that have run out."""
IDLE_BLOCK_MS = 500
STEPS_OF_THE_QUEUE_MAX = 1_000
"""No batch grants more waiting gangs than this: a commit stops the server while it runs."""
LONG_STEP_S = 0.0005
OVERTAKE_PAUSE = 9
"""After a look for gangs that may overtake, there is none for so many times as long as it took."""
FOR_EVER_MS = 1 << 60


class Term:
    """The state, the clock and the cursors of a leader. ``turn`` is one round of the loop."""

    def __init__(
        self,
        client: Redis,
        wire: Wire,
        keys: Keys,
        holder: str,
        elected: Elected,
        *,
        leader_ms: int,
        snapshot_every: int,
        keep: int,
        gate: Gate,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        seen: str = "0-0",
        quarantine: Quarantine,
        meters: Watcher | None = None,
        collector: Collector | None = None,
    ) -> None:
        self._meters, self._collector = meters, collector
        self._monotonic_s = clock
        self._client, self._wire, self._keys, self._holder, self._gate = client, wire, keys, holder, gate
        self._epoch, self._cursor = elected.epoch, elected.cursor
        self._leader_ms, self._snapshot_every, self._keep = leader_ms, snapshot_every, keep
        self._set_clock(elected.now_ms)
        log = EventLog(client, keys.events, keys.snapshot)
        strike = read_strike(log)
        found = take_up(log, strike)
        self.state: PoolState = found.state
        self._chain = Chain(found.last_hash)
        self._committed_id = found.end
        self.strays = found.strays
        """What stood in the log and was no event; the first commit takes it out."""
        blocked = too_late(found, elected.now_ms)
        if blocked is not None:
            raise blocked
        if elected.epoch <= self.state.epoch:  # it took so long to come here that others have led meanwhile
            raise Fenced(f"epoch {elected.epoch} is over: the log is in epoch {self.state.epoch}")
        end = self.state.last_id
        self._last = max(order_of(found.end), order_of(seen))
        self._since_snapshot = 0
        self._expired: list[str] = []
        self._views = Views(keys)
        self._limits, self._quarantine = limits, quarantine
        self._intake = Intake(self._cursor, outstanding_max=limits.client_outstanding)
        self._trimmed_to, self._tidied_at_ms, self._look_at_ms = self._cursor, 0, 0
        self._reply_keys: dict[str, int] = {}
        self._committing = 0
        self._reading, self._read_count = False, READ_FIRST
        self._idle_id, self._idle_until_ms, self._overtake_at_s = "", 0, 0.0
        stale = [ticket_id.decode() for ticket_id in cast(list[bytes], client.hkeys(keys.tickets))]
        batch = Batch(keys)
        self._record(batch, e.AllocatorElected(holder, elected.epoch, release_version()))
        if wire.server_id != self.state.server:
            self._record(batch, e.ServerChanged(wire.server_id, self.state.server, end))
        if order_of(seen) > order_of(end):
            self._record(batch, e.LogRegressed(seen, end, holder))
        for stray in found.strays:
            batch.add("XDEL", keys.events, stray.id)
            self._record(batch, e.LogEntryStruck(stray.id, stray.said, stray.reason, stray.by))
        if strike is not None:
            batch.add("HDEL", keys.snapshot, STRIKE)
        self._views.write_all(batch, self.state, stale)
        self._begin_commit(batch)
        self._settle()

    @property
    def committed_id(self) -> str:
        """The id of the last event that was sent to be committed."""
        return self._committed_id

    def turn(self) -> None:
        """Wait for requests, decide some, commit. Raises Fenced, Undecidable, or what the redis client raises.

        The next read goes out with a commit, and while there is much to do requests are decided as the server still
        works on it. Should that commit fail, the term is over, and with it all that was decided since.
        """
        chunk = self._next_requests()
        batch = Batch(self._keys)
        for holder in self._expired:
            self._record_all(batch, core.expire(self.state, holder))
            batch.add("ZREM", self._keys.leases, holder)
        self._expired = []
        for client_id in self._intake.take_flooders():
            self._record_all(batch, core.end_session(self.state, client_id, self._limits.client_outstanding))
        for asked in chunk:
            self._decide(batch, self._limits.apply(self.state, self._quarantine.admit(asked)))
        self._cursor = self._intake.cursor
        if core.waits(self.state):
            self._advance_queue(batch)
        self._settle()
        now_ms = self._now_ms()
        if len(batch) or chunk or now_ms >= self._renew_at_ms:
            self._begin_commit(batch)
        if self._untidy and (not chunk or now_ms - self._tidied_at_ms >= HOUSEKEEPING_MS):
            self._wire.flush()  # the answers first, which somebody waits for
            self._tidied_at_ms = now_ms
            batch = Batch(self._keys)
            self._keep_house(batch)
            self._begin_commit(batch)
        if chunk and self._intake.has_room:
            self._begin_read(None if self._intake else SHORT_BLOCK_MS)
        self._wire.flush()
        if self._meters is not None:
            self._meters.answer(self.state, self._now_ms())
        if self._collector is not None:
            if chunk or self._intake:
                self._collector.work()
            else:
                self._collector.rest()
        if not self._reading:
            self._settle()
            self._reopen_inbox()

    def close(self) -> None:
        """End the term in order: leave a snapshot, and let a standby take over at once."""
        self._settle()  # what was read ahead is left to the next leader
        batch = Batch(self._keys)
        self._keep_house(batch)
        self._add_snapshot(batch)
        self._begin_commit(batch)
        self._settle()
        resign(self._client, self._keys, self._holder, self._epoch)

    @property
    def _untidy(self) -> bool:
        return self._views.pending or self._trimmed_to != self._cursor

    def _keep_house(self, batch: Batch) -> None:
        """Write the views, and forget the requests that are decided."""
        self._views.write(batch, self.state)
        if self._trimmed_to != self._cursor:
            self._trimmed_to = self._cursor
            batch.add("XTRIM", self._keys.requests, "MINID", self._cursor)

    def _reopen_inbox(self) -> None:
        """Get over a request whose id lies in the future: all later ones would lie there, until no id is left."""
        if self._intake or order_of(self._cursor)[0] <= self._now_ms() + FUTURE_MS:
            return
        if reopen_inbox(self._client, self._keys, self._holder, self._epoch, self._cursor):
            self._cursor = self._trimmed_to = "0-0"
            self._intake = Intake(self._cursor, outstanding_max=self._limits.client_outstanding)

    def _decide(self, batch: Batch, asked: r.Asked) -> None:
        try:
            events = core.decide(self.state, asked, self._now_ms())
            blobs: Blobs = {}
            if isinstance(asked, r.Envelope) and isinstance(asked.request, r.LaunchActors) and events:
                members = asked.request.members
                if isinstance(events[0], e.ActorLaunchRequested):
                    blobs = dict(zip((m.rank for m in members), unpack_blobs(asked.blobs, len(members)), strict=True))
            self._record_all(batch, events, blobs)
        except Exception as error:  # nothing in here talks to anybody
            raise Undecidable(asked) from error

    def _advance_queue(self, batch: Batch) -> None:
        """Take all steps that the queue can take now, unless nothing has changed since there was none to take.

        Looking for gangs that may overtake others takes time: a tenth of all, at most.
        """
        if self.state.last_id == self._idle_id and self._now_ms() < self._idle_until_ms:
            return
        left = STEPS_OF_THE_QUEUE_MAX
        while left > 0:
            began_s = self._monotonic_s()
            overtake = began_s >= self._overtake_at_s
            events = core.tick(self.state, self._now_ms(), overtake=overtake)
            ended_s = self._monotonic_s()
            if overtake and ended_s - began_s > LONG_STEP_S:
                self._overtake_at_s = ended_s + OVERTAKE_PAUSE * (ended_s - began_s)
            if not events:
                self._idle_id, now_ms = self.state.last_id, self._now_ms()
                next_ms = core.next_deadline_ms(self.state, now_ms)
                self._idle_until_ms = FOR_EVER_MS if next_ms is None else next_ms
                if not overtake:
                    pause_ms = math.ceil(max(0.0, self._overtake_at_s - ended_s) * 1000)
                    self._idle_until_ms = min(self._idle_until_ms, now_ms + pause_ms)
                return
            self._record_all(batch, events)
            left -= len(events)

    def _record_all(self, batch: Batch, events: list[e.Event], blobs: Blobs | None = None) -> None:
        for event in events:
            self._record(batch, event, blobs)

    def _record(self, batch: Batch, event: e.Event, blobs: Blobs | None = None) -> None:
        now_ms = self._now_ms()
        recorded = e.Recorded(self._next_id(now_ms), event)
        batch.event(recorded, effects(self.state, recorded, blobs or {}), self._chain)
        self._views.touch(event, self.state)
        if self._meters is not None:
            self._meters.event(event, self.state, now_ms, recorded.id)
        fold(self.state, recorded)

    def _next_id(self, now_ms: int) -> str:
        """An id above the last one, near the server's time. The server's clock may jump back; ids never do."""
        ms, seq = self._last
        self._last = (now_ms, 0) if now_ms > ms else (ms, seq + 1)
        return f"{self._last[0]}-{self._last[1]}"

    def _next_requests(self) -> list[r.Asked]:
        """The next requests, no more than one commit can take; waits for them if there are none."""
        if not self._intake:
            read_ahead = self._reading
            self._settle()
            if not self._intake and not read_ahead:
                self._begin_read(self._block_ms())
                self._settle()
        return self._intake.take(CHUNK)

    def _begin_read(self, block_ms: int | None) -> None:
        self._wire.send_read(self._keys.requests, self._intake.read_to, block_ms=block_ms, count=self._read_count)
        self._reading = True

    def _begin_commit(self, batch: Batch) -> None:
        self._since_snapshot += batch.events
        if self._since_snapshot >= self._snapshot_every:
            self._add_snapshot(batch)
        now_ms = self._now_ms()
        look = now_ms >= self._look_at_ms
        if look:
            self._look_at_ms = now_ms + EXPIRY_LOOK_MS
        keys, packed = batch.sealed(self.state.clients, self._reply_keys, now_ms)
        leading = (self._holder, self._epoch, self._leader_ms)
        self._wire.send_commit(keys, [*leading, self._cursor, self._committed_id, packed, int(look)])
        self._committed_id = self.state.last_id
        self._committing += 1
        if self._meters is not None:
            self._meters.commit_sent()

    def _settle(self) -> None:
        """Wait for what is under way: the commits, then the read behind them."""
        while self._committing:
            self._committing -= 1
            now_ms, expired = self._wire.take_commit()
            if self._meters is not None:
                self._meters.commit_ended()
            self._expired += [holder for holder in expired if holder not in self._expired]
            self._set_clock(now_ms)
        if self._reading:
            self._reading = False
            found, size = self._wire.take_read(), 0
            for entry_id, raw in found:
                size += sum(map(len, raw.values()))
                self._intake.put(entry_id, self._gate.admit(raw), size_of(raw))
            if found:
                fit = READ_BYTES * len(found) // max(size, 1)
                self._read_count = max(1, min(READ_MAX, READ_FIRST * self._read_count, fit))

    def _add_snapshot(self, batch: Batch) -> None:
        """Write a snapshot. If the log is long, trim it behind the previous one, which becomes the log's base.

        A pool whose log is archived (``archived``: up to where) is trimmed no further than that: a snapshot that the
        archive has not reached yet stands as ``next`` until it has, however many newer ones there are by then.
        """
        key, events = self._keys.snapshot, self._keys.events
        names = ["state", "h", "archived", "next", "next_h"]
        found = cast(list[bytes | None], self._client.hmget(key, names))
        state, state_hash, archived, base, base_hash = found
        if base is None:
            base, base_hash = state, state_hash
        if base and self._client.xlen(events) > self._keep:
            base_id = snapshot.decode(base).last_id
            if archived is None or order_of(archived.decode()) >= order_of(base_id):
                batch.add("HSET", key, "base", base, "base_h", base_hash or b"")
                batch.add("HDEL", key, "next", "next_h")
                batch.add("XTRIM", events, "MINID", _after(base_id))
            else:
                batch.add("HSET", key, "next", base, "next_h", base_hash or b"")
        batch.add("HSET", key, "id", self.state.last_id, "state", snapshot.encode(self.state), "h", self._chain.last)
        self._since_snapshot = 0

    def _set_clock(self, server_ms: int) -> None:
        self._server_ms, self._clock = server_ms, self._monotonic_s()
        self._renew_at_ms = server_ms + min(IDLE_BLOCK_MS, self._leader_ms // 3)

    def _now_ms(self) -> int:
        """The server's time, as well as it is known here."""
        return self._server_ms + int((self._monotonic_s() - self._clock) * 1000)

    def _block_ms(self) -> int:
        """How long the read may wait: until leadership must be renewed, a waiting gang is out of time, or at all."""
        if self._expired or self._untidy:
            return SHORT_BLOCK_MS
        now_ms = self._now_ms()
        next_ms = core.next_deadline_ms(self.state, now_ms)
        until_ms = self._renew_at_ms if next_ms is None else min(self._renew_at_ms, next_ms)
        if self._idle_id == self.state.last_id:
            until_ms = min(until_ms, self._idle_until_ms)
        return max(1, until_ms - now_ms)


def _after(event_id: str) -> str:
    ms, seq = order_of(event_id)
    return f"{ms}-{seq + 1}"
