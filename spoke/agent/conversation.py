"""A conversation with the server: a thread with a connection of its own, which goes on whatever fails on the way.

An agent has several, because each may block for as long as its time limit allows, and none may delay another: an agent
whose reader hangs on a dead connection must still renew its lease.
"""

from __future__ import annotations

import logging
import threading

import redis.exceptions as rx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from spoke.errors import SpokeError
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis, connect, explain
from spoke.protocol.url import mask_url

log = logging.getLogger("spoke.agent")

BACKOFF_S_MAX = 1.0
JOIN_S_MAX = 3.0


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
        except Exception:  # _Stopped, or whatever a connection raises that stop() closed under its reader's feet
            if not self._stopped.is_set():
                raise

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _Stopped

    def _note(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        if error is not None and not self._stopped.is_set():
            self._outage.failed(self._name, error)
