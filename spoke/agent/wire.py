"""The agent's three conversations with the server, each in a thread of its own: orders in, requests out, the lease.

They share nothing but the callbacks into the agent.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

import redis.exceptions as rx

from spoke.agent.clock import clock_s
from spoke.agent.conversation import Conversation, Outage
from spoke.errors import SpokeError
from spoke.protocol.identity import Key
from spoke.protocol.keys import Keys, node_lease
from spoke.protocol.leases import renew_lease
from spoke.protocol.orders import ORDERS_KEPT, Delivery, decode_order
from spoke.protocol.requests import Envelope, encode_request
from spoke.protocol.server import read_stream, trimmed_behind

log = logging.getLogger("spoke.agent")

BLOCK_MS = 1_000
BATCH_MAX = 256
_IDLE_S = 1.0


class OrderReader(Conversation):
    """Reads the orders to a node from the moment of ``start`` on, each once, and passes them to ``tell``.

    ``lost`` is called when this agent was away for so long that orders were trimmed which it has not read.
    """

    def __init__(
        self,
        url: str,
        keys: Keys,
        node_id: str,
        outage: Outage,
        tell: Callable[[Delivery], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__("orders", url, keys, outage, timeout_s=BLOCK_MS / 1000 + 5.0)
        self._key = keys.node(node_id)
        self._tell, self._lost = tell, lost
        self._cursor = "0"

    def start(self) -> None:
        """Begin after the orders that stand in the stream now: they are an earlier agent's."""
        newest = self._client.xrevrange(self._key, count=1)
        if newest:
            self._cursor = newest[0][0].decode()  # type: ignore[union-attr]
        super().start()

    def _turn(self) -> bool:
        secret: list[bytes] = []
        found = read_stream(self._client, self._key, self._cursor, block_ms=BLOCK_MS, count=BATCH_MAX)
        if len(found) == BATCH_MAX and trimmed_behind(self._client, self._key, self._cursor, ORDERS_KEPT):
            self._lost()
        for entry_id, fields in found:
            self._cursor = entry_id.decode()
            if b"blob" in fields:
                secret.append(entry_id)
            try:
                delivery = decode_order(fields)
            except SpokeError as error:
                log.error("order %s is passed over: %s", self._cursor, error)
                continue
            self._tell(delivery)
        if secret:  # secrets and arguments need not lie in the server any longer
            self._client.xdel(self._key, *secret)
        return True


class RequestSender(Conversation):
    """Appends requests to the pool's stream, in order, each until it is known to stand there."""

    def __init__(self, url: str, keys: Keys, outage: Outage, key: Key | None = None) -> None:
        super().__init__("requests", url, keys, outage, timeout_s=5.0)
        self._key, self._pool, self._signing = keys.requests, keys.pool, key
        self._changed = threading.Condition()
        self._unsent: deque[Envelope] = deque()

    def send(self, envelope: Envelope) -> None:
        """Queue a request."""
        with self._changed:
            self._unsent.append(envelope)
            self._changed.notify_all()

    def drop_unsent(self) -> None:
        """Forget what is queued."""
        with self._changed:
            self._unsent.clear()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; False if that takes longer than ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._unsent, timeout_s)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _turn(self) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._unsent or self._stopped.is_set(), _IDLE_S):
                return False
            batch = [self._unsent[at] for at in range(min(len(self._unsent), BATCH_MAX))]
        if not batch:
            return False
        pipeline = self._client.pipeline(transaction=False)
        for envelope in batch:
            pipeline.xadd(self._key, encode_request(envelope, self._signing, self._pool))  # type: ignore[arg-type]
        pipeline.execute()
        with self._changed:  # unless they were dropped meanwhile
            for envelope in batch:
                if self._unsent and self._unsent[0] is envelope:
                    self._unsent.popleft()
            self._changed.notify_all()
        return True


class LeaseRenewer(Conversation):
    """Renews the lease when asked.

    ``tell`` gets the incarnation, when the renewal was sent, and whether the lease is held (None: unknown). It does not
    try again by itself: whether that makes sense is for the state machine to say.
    """

    def __init__(
        self,
        url: str,
        keys: Keys,
        node_id: str,
        outage: Outage,
        lease_ms: int,
        tell: Callable[[str, float, bool | None], None],
    ) -> None:
        super().__init__("lease", url, keys, outage, timeout_s=min(5.0, lease_ms / 4000))
        self._keys = keys
        self._node_id = node_id
        self._tell = tell
        self._asked: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()

    def renew(self, incarnation: str, lease_ms: int) -> None:
        """Renew this incarnation's lease now."""
        self._asked.put((incarnation, lease_ms))

    def _wake(self) -> None:
        self._asked.put(None)

    def _turn(self) -> bool:
        try:
            asked = self._asked.get(timeout=_IDLE_S)
        except queue.Empty:
            return False
        if asked is None:
            return False
        incarnation, lease_ms = asked
        sent_at_s = clock_s()
        try:
            held: bool | None = renew_lease(self._client, self._keys, node_lease(self._node_id, incarnation), lease_ms)
        except (rx.RedisError, OSError) as error:
            self._outage.failed(self._name, error)
            held = None
        self._tell(incarnation, sent_at_s, held)
        return held is not None
