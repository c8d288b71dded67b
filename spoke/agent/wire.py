"""The agent's three conversations with the server, each in a thread of its own: orders in, requests out, the lease.

Apart, because each may block for as long as its time limit allows, and none may delay another: an agent whose reader
hangs on a dead connection must still renew its lease. They share nothing but the callbacks into the agent.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

import redis.exceptions as rx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from spoke.agent.keeper import clock_s
from spoke.errors import SpokeError
from spoke.protocol.identity import Key
from spoke.protocol.keys import Keys, node_lease
from spoke.protocol.leases import renew_lease
from spoke.protocol.orders import ORDERS_KEPT, Delivery, decode_order
from spoke.protocol.requests import Envelope, encode_request
from spoke.protocol.server import Redis, connect, explain, read_stream, trimmed_behind
from spoke.protocol.url import mask_url

log = logging.getLogger("spoke.agent")

BLOCK_MS = 1_000
BACKOFF_S_MAX = 1.0
BATCH_MAX = 256
JOIN_S_MAX = 3.0
_IDLE_S = 1.0


class _Stopped(SpokeError):
    """The conversation was ended while it waited to try again."""


class Outage:
    """Tells of an outage once when it begins and once when it ends, however many threads notice."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._down: set[str] = set()

    def failed(self, who: str, error: BaseException) -> None:
        """``who`` could not do its work."""
        with self._lock:
            first = not self._down
            self._down.add(who)
        if first:
            text = explain(error, self._url) if isinstance(error, rx.RedisError) else error
            log.warning("the server is not usable: %s; trying again until it is", text)

    def worked(self, who: str) -> None:
        """``who`` got through."""
        if not self._down:
            return
        with self._lock:
            was_down = bool(self._down)
            self._down.discard(who)
            over = was_down and not self._down
        if over:
            log.info("the server at %s is usable again", mask_url(self._url))


class Conversation:
    """A thread with a connection of its own, which tries again, with growing pauses, whatever fails on the way."""

    def __init__(self, name: str, url: str, keys: Keys, outage: Outage, timeout_s: float) -> None:
        self._name = name
        self._outage = outage
        self._stopped = threading.Event()
        self._client: Redis = connect(url, pool=keys.pool, timeout_s=timeout_s)
        self._thread = threading.Thread(target=self._main, name=f"spoke-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wake()
        self._client.connection_pool.disconnect()  # whoever waits for an answer on it gets an error
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(JOIN_S_MAX)
        self._client.close()

    def _wake(self) -> None:
        """Interrupt a wait of ``_turn``."""

    def _turn(self) -> bool:
        """Wait a moment for something to do and do it; whether the server has done its part."""
        raise NotImplementedError

    def _main(self) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type((rx.RedisError, OSError)),
            wait=wait_random_exponential(multiplier=0.05, max=BACKOFF_S_MAX),
            sleep=self._sleep,
            before_sleep=self._note,
        )
        try:
            while not self._stopped.is_set():
                if retrying(self._turn):
                    self._outage.worked(self._name)
        except _Stopped:
            pass

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _Stopped

    def _note(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        if error is not None and not self._stopped.is_set():
            self._outage.failed(self._name, error)


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
