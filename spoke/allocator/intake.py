"""The intake: requests that were read and are not decided yet, given out in turns, so that no sender waits for another.

Within one sender the order is kept; between senders it is not. So the cursor, up to which everything is decided, may
lag behind what is decided: after a crash some requests come again, and the idempotency key (for agents: the launch)
tells that they were decided.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping

from spoke.protocol.requests import Asked, Garbage

WINDOW = 65_536
WINDOW_BYTES = 256 << 20
"""No more is read ahead than this."""
TURN = 8
"""So many of one sender are given out before the next one's turn."""
BANNED_KEPT = 1_000
STRANGERS = "?"
"""Those who did not prove who they are take one turn together."""


class Intake:
    """Requests by sender. ``cursor`` is the id up to which all have been given out."""

    def __init__(self, cursor: str, *, outstanding_max: int, window: int = WINDOW) -> None:
        self.cursor = self.read_to = cursor
        self._outstanding_max, self._window = outstanding_max, window
        self._queues: OrderedDict[str, deque[tuple[str, Asked, int]]] = OrderedDict()
        self._seqs: dict[str, set[int]] = {}
        self._ids: deque[str] = deque()
        self._done: set[str] = set()
        self._banned: OrderedDict[str, None] = OrderedDict()
        self._flooders: list[str] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._ids) - len(self._done)

    @property
    def has_room(self) -> bool:
        """Whether more may be read."""
        return len(self._ids) < self._window and self._bytes < WINDOW_BYTES

    def put(self, entry_id: str, asked: Asked, size: int) -> None:
        """Take in a request of ``size`` bytes, in the order of the stream."""
        self.read_to = entry_id
        self._ids.append(entry_id)
        sender = _sender(asked)
        if sender in self._banned:
            self._done.add(entry_id)
            return
        if asked.seq and sender is not STRANGERS:
            seqs = self._seqs.setdefault(sender, set())
            if asked.seq in seqs:  # sent again; the first one will be decided
                self._done.add(entry_id)
                return
            seqs.add(asked.seq)
            if len(seqs) > self._outstanding_max:
                self._done.add(entry_id)
                self._ban(sender)
                return
        self._queues.setdefault(sender, deque()).append((entry_id, asked, size))
        self._bytes += size

    def take(self, count: int) -> list[Asked]:
        """At most ``count`` requests, in turns; the cursor moves on with what is given out."""
        found: list[Asked] = []
        while self._queues and len(found) < count:
            sender, queue = self._queues.popitem(last=False)
            seqs = self._seqs.get(sender)
            for _ in range(min(TURN, len(queue), count - len(found))):
                entry_id, asked, size = queue.popleft()
                self._done.add(entry_id)
                self._bytes -= size
                if seqs is not None:
                    seqs.discard(asked.seq)
                found.append(asked)
            if queue:
                self._queues[sender] = queue
            else:
                self._seqs.pop(sender, None)
        self._move_on()
        return found

    def take_flooders(self) -> list[str]:
        """Clients that sent more than they may without waiting for answers: nothing more is taken from them."""
        found, self._flooders = self._flooders, []
        return found

    def _ban(self, sender: str) -> None:
        for entry_id, _, size in self._queues.pop(sender, ()):
            self._done.add(entry_id)
            self._bytes -= size
        self._seqs.pop(sender, None)
        self._banned[sender] = None
        if len(self._banned) > BANNED_KEPT:
            self._banned.popitem(last=False)
        self._flooders.append(sender)

    def _move_on(self) -> None:
        ids, done = self._ids, self._done
        while ids and ids[0] in done:
            self.cursor = ids.popleft()
            done.discard(self.cursor)


def _sender(asked: Asked) -> str:
    if isinstance(asked, Garbage) and asked.code == "authentication":
        return STRANGERS
    return asked.client_id or f"node:{asked.node_id}"


def size_of(raw: Mapping[bytes, bytes]) -> int:
    """The bytes of a request's large fields."""
    return len(raw.get(b"body", b"")) + len(raw.get(b"blobs", b""))
