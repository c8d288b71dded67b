"""Rewinding: the state at any moment, with frames on the way, so that going to and fro does not read all of the log."""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from dataclasses import dataclass

from spoke.events import snapshot
from spoke.events.entries import end_of
from spoke.events.fold import fold_all
from spoke.events.ids import order_of
from spoke.events.log import EventLog, TrimmedLog
from spoke.events.state import PoolState

FRAME_EVENTS = 20_000
FRAMES_MAX = 32
FRAMES_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True, order=True)
class _Frame:
    order: tuple[int, int]
    id: str
    raw: bytes


class Rewinder:
    """Keeps encoded states of moments that were passed; one replay at a time, whoever asks."""

    def __init__(self, frame_events: int = FRAME_EVENTS) -> None:
        self._every = frame_events
        self._frames: list[_Frame] = []
        self._lock = threading.Lock()

    def at(self, log: EventLog, until: str) -> PoolState:
        """The state after the last event up to ``until``; raises LogError if the log does not reach back so far."""
        with self._lock:
            state = self._begin(log, end_of(until))
            with state.unindexed():
                since = 0
                for batch in log.batches(state.last_id, until):
                    fold_all(state, batch.ids, batch.events)
                    if batch.problem is not None:
                        raise batch.problem
                    since += len(batch.ids)
                    if since >= self._every:
                        self._keep(state)
                        since = 0
            return state

    def _begin(self, log: EventLog, end: tuple[int, int]) -> PoolState:
        """The newest frame up to a moment; else the state before the oldest event that is still there."""
        base = log.base()
        at = bisect_right(self._frames, end, key=lambda frame: frame.order)
        frame = self._frames[at - 1] if at else None
        if frame is not None and frame.order > order_of(base.last_id):
            if log.client.xrange(log.key, frame.id, frame.id, count=1):
                return snapshot.decode(frame.raw)
            self._frames.clear()  # they are of a log that is not there any more
        if end < order_of(base.last_id):
            raise TrimmedLog(
                f"an earlier moment was asked for, but the log was trimmed and reaches back to {base.last_id} only"
            )
        return base

    def _keep(self, state: PoolState) -> None:
        insort(self._frames, _Frame(order_of(state.last_id), state.last_id, snapshot.encode(state)))
        while len(self._frames) > FRAMES_MAX or sum(len(frame.raw) for frame in self._frames) > FRAMES_BYTES_MAX:
            if len(self._frames) == 1:
                self._frames.clear()  # the pool is so large that one frame is too much
            del self._frames[1::2]  # every second one: what is left is spread over all of the log
