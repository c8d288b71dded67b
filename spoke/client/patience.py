"""How the client's threads get over an outage: growing pauses with jitter, one log line for its begin and its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis import exceptions as rx
from redis.exceptions import RedisError
from tenacity import RetryCallState, RetryError, Retrying, sleep_using_event
from tenacity.retry import retry_if_exception, retry_if_exception_type
from tenacity.stop import stop_after_delay, stop_when_event_set
from tenacity.wait import wait_random_exponential

from spoke.errors import ServerUnreachable, SpokeError
from spoke.protocol.server import explain, explained, transient
from spoke.protocol.url import mask_url

T = TypeVar("T")
log = logging.getLogger("spoke.client")
PAUSE_S_MAX = 1.0


class Outage:
    """One thread's view of the server: since when it is away. Owned by that thread."""

    def __init__(self, what: str, url: str, stopping: threading.Event) -> None:
        self._what = what
        self._url = url
        self._stopping = stopping
        self.since: float | None = None

    def began(self, error: BaseException) -> None:
        """Note an error; the first one of an outage is logged."""
        if self.since is None:
            self.since = time.monotonic()
            log.warning("%s: %s; trying again", self._what, said(error, self._url))

    def over(self) -> bool:
        """Note a success; True if it ended an outage, which is logged."""
        if self.since is None:
            return False
        log.info("%s: the server is back after %.1f s", self._what, time.monotonic() - self.since)
        self.since = None
        return True

    def persist(self, work: Callable[[], None], failed: Callable[[BaseException], None]) -> bool:
        """Do ``work`` until the server lets it succeed; False if told to stop. ``failed`` hears of each error."""

        def note(state: RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            assert error is not None
            self.began(error)
            failed(error)

        retrying = Retrying(
            retry=retry_if_exception_type((RedisError, OSError)),
            wait=wait_random_exponential(multiplier=0.05, max=PAUSE_S_MAX),
            stop=stop_when_event_set(self._stopping),
            sleep=sleep_using_event(self._stopping),
            before_sleep=note,
        )
        try:
            retrying(work)
        except RetryError:
            return False
        return True


def said(error: BaseException, url: str) -> SpokeError:
    """The Spoke error for whatever went wrong with the server."""
    if isinstance(error, RedisError):
        return explain(error, url)
    return ServerUnreachable(f"the server at {mask_url(url)} cannot be reached: {error}")


def retried(work: Callable[[], T], url: str, *, retry_s: float, check: Callable[[], None]) -> T:
    """What ``work`` returns; it is done again while the server is away, for ``retry_s`` seconds at most.

    ``check`` is called between two attempts, and raises when there is no more use in them. Raises ServerError.
    """

    def passes(error: BaseException) -> bool:
        away = isinstance(error, (rx.ConnectionError, rx.TimeoutError, OSError)) or transient(error)
        return away and not isinstance(error, rx.AuthenticationError)

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        check()

    retrying = Retrying(
        retry=retry_if_exception(passes),
        wait=wait_random_exponential(multiplier=0.05, max=PAUSE_S_MAX),
        stop=stop_after_delay(retry_s),
        sleep=sleep,
        reraise=True,
    )
    with explained(url):
        return retrying(work)
