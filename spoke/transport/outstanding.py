"""The outstanding futures of one connection, by the ids of their calls; usable from any thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from spoke.errors import LimitExceeded
from spoke.transport.deadlines import Deadlines
from spoke.transport.frames import Done, Frame, Incoming, Kind
from spoke.transport.future import CallFuture, StreamFuture
from spoke.transport.messages import unpack_error
from spoke.transport.values import unpack

_RESULT = Kind.RESULT  # looked up once: an enum's attributes are slow


class Outstanding:
    """Futures from when they enter until somebody takes them out, to complete them; once closed, none enters."""

    def __init__(self, nearer: Callable[[], None]) -> None:
        """``nearer`` is called, under the lock, when the next time limit is nearer than it was."""
        self._nearer = nearer
        self._lock = threading.Lock()
        self._futures: dict[int, CallFuture] = {}
        self._deadlines = Deadlines(self._futures)
        self._closed = False
        self.last_id = 0
        """The id that was given last."""

    def __len__(self) -> int:
        return len(self._futures)

    def new_id(self) -> int:
        """An id for a message that nobody answers."""
        with self._lock:
            self.last_id += 1
            return self.last_id

    def enter(self, future: CallFuture) -> bool:
        """Put it among the outstanding ones, with an id of its own; False when closed."""
        with self._lock:
            if self._closed:
                return False
            future.call_id = self.last_id = self.last_id + 1
            self._futures[future.call_id] = future
            if future.deadline < math.inf and self._deadlines.add(future.deadline, future.call_id):
                self._nearer()
            return True

    def take(self, call_id: int) -> CallFuture | None:
        """Take it out; None where it has been taken: it was cancelled, or what comes is late."""
        with self._lock:
            return self._futures.pop(call_id, None)

    def stream(self, call_id: int) -> StreamFuture | None:
        """The stream of that id, which stays; None where it was closed, or is none."""
        future = self._futures.get(call_id)
        return future if isinstance(future, StreamFuture) else None

    def late(self, now: float) -> list[CallFuture]:
        """Those whose time is over; each is told once, and stays until it is taken."""
        if now < self._deadlines.next:
            return []
        with self._lock:
            return [self._futures[call_id] for call_id in self._deadlines.pop_late(now)]

    @property
    def next_deadline(self) -> float:
        """When the next one's time is over, on the monotonic clock."""
        return self._deadlines.next

    def close(self) -> list[CallFuture]:
        """Let none enter any more; those that are left."""
        with self._lock:
            self._closed = True
            left = list(self._futures.values())
            self._futures.clear()
            self._deadlines.clear()
        return left


def settle(future: CallFuture, incoming: Incoming) -> None:
    """Complete a future by what came for it."""
    try:
        if isinstance(incoming, Done):
            future.succeed(None)
        elif not isinstance(incoming, Frame):
            future.fail(LimitExceeded(f"the answer of {future.method} cannot be taken: {incoming}"))
        elif incoming.kind is _RESULT:
            future.succeed(unpack(incoming.header, incoming.buffers))
        else:
            future.fail(unpack_error(incoming))
    except Exception as error:  # what cannot be unpacked
        future.fail(error)
