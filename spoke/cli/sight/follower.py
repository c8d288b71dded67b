"""The follower: a thread that takes up a pool's state from snapshot and log, folds what comes, and publishes boards."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from spoke.cli.events import describe
from spoke.cli.options import Opened, opened
from spoke.cli.sight.board import Board, EventRow, board_of
from spoke.errors import LogError, SpokeError
from spoke.events.codec import Fields
from spoke.events.columns import read_event
from spoke.events.entries import RawEntry
from spoke.events.fold import fold
from spoke.events.ids import order_of
from spoke.events.types import Event, Recorded

if TYPE_CHECKING:
    from spoke.events.state import PoolState

PUBLISH_S = 0.25
"""No view is redrawn more often."""
BUILD_SHARE = 5
"""Making a board may take a fifth of the time at most: a large and busy pool is drawn a little less often."""
PULSE_S = 1.0
"""How often the time, the rate and the allocator's life are looked at while nothing happens."""
RATE_OVER_S = 5.0
EVENTS_KEPT = 200
PAUSE_S = 1.0
STOP_S = 15.0


class Follower:
    """Follows one pool until it is closed. ``board`` is always the newest; it is replaced, never changed.

    A server that goes away is told in ``board.problem``, and the state is taken up anew when it is back.
    """

    def __init__(self, url: str | None, pool: str | None, name: str) -> None:
        self.board = Board(name, problem="reading the log …")
        self._url, self._pool = url, pool
        self._stop = threading.Event()
        self._events: deque[EventRow] = deque(maxlen=EVENTS_KEPT)
        self._arrivals: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._opened() as place:
                    self._follow(place)
            except (SpokeError, OSError) as error:
                if not self._stop.is_set():
                    self.board = replace(self.board, problem=str(error) or type(error).__name__, rate=0.0)
            self._stop.wait(PAUSE_S)

    def _opened(self) -> AbstractContextManager[Opened]:
        return opened(self._url, self._pool)

    def _follow(self, place: Opened) -> None:
        """Take up the state and keep it up to date; returns when the log is not the one that was followed."""
        log = place.log
        state = log.recover()
        self._arrivals.clear()
        self._events.clear()
        for entry in log.tail(EVENTS_KEPT):
            if order_of(entry[0]) <= order_of(state.last_id):
                self._events.append(event_row(*entry))
        board, dirty, due_s, pulse_s = board_of(state, place.keys.pool), True, 0.0, 0.0
        while not self._stop.is_set():
            now_s = time.monotonic()
            if now_s - pulse_s >= PULSE_S:
                if order_of(log.last_id()) < order_of(state.last_id):
                    return  # an older log, or none: the server was restored or emptied
                board, pulse_s = self._pulse(place, board), now_s
                self.board = board
            if dirty and now_s >= due_s:
                board, dirty = self._board(state, board), False
                due_s = now_s + max(PUBLISH_S, BUILD_SHARE * (time.monotonic() - now_s))
                self.board = board
            entries = log.newer(state.last_id, block_ms=int(PUBLISH_S * 1000))
            if entries:
                self._fold(state, entries)
                self._arrivals.append((time.monotonic(), len(entries)))
                dirty = True

    def _board(self, state: PoolState, before: Board) -> Board:
        fresh = board_of(state, before.pool)
        return replace(
            fresh,
            allocator=before.allocator,
            now_ms=max(before.now_ms, fresh.now_ms),
            rate=self._rate(time.monotonic()),
            events=tuple(reversed(self._events)),
        )

    def _fold(self, state: PoolState, entries: list[RawEntry]) -> None:
        for entry in entries:
            event = _read(*entry)
            fold(state, Recorded(entry[0], event))
            self._events.append(_row(entry[0], event))

    def _pulse(self, place: Opened, board: Board) -> Board:
        from spoke.client.vitals import read_leader

        leader = read_leader(place.redis, place.keys)
        seconds, micros = place.redis.time()
        alive = leader is not None and leader.silent_s <= 0
        return replace(
            board,
            allocator=leader.holder if leader is not None and alive else "",
            now_ms=int(seconds) * 1000 + int(micros) // 1000,
            rate=self._rate(time.monotonic()),
        )

    def _rate(self, now_s: float) -> float:
        while self._arrivals and self._arrivals[0][0] < now_s - RATE_OVER_S:
            self._arrivals.popleft()
        return sum(number for _, number in self._arrivals) / RATE_OVER_S


def event_row(event_id: str, fields: Fields) -> EventRow:
    """An entry of the log as a row; raises LogError for one that this release does not know."""
    return _row(event_id, _read(event_id, fields))


def _row(event_id: str, event: Event) -> EventRow:
    return EventRow(event_id, event.TYPE, describe(event))


def _read(event_id: str, fields: Fields) -> Event:
    event = read_event(event_id, fields)
    if isinstance(event, LogError):
        raise event
    return event
