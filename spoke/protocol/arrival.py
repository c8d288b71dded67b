"""Waiting at a daemon's start for a server that is not there yet: it may be started a moment later, or fail over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying
from tenacity.retry import retry_if_exception
from tenacity.stop import stop_after_delay, stop_when_event_set
from tenacity.wait import wait_random_exponential

from spoke.errors import InvalidRequest, ServerUnreachable
from spoke.protocol.server import explained, transient

T = TypeVar("T")
WAIT_S = 60.0
"""Without another wish: about as long as a server takes to load a large append-only file, or to fail over."""
WAIT_S_MAX = 86_400.0
PAUSE_S_MAX = 1.0


def check_wait(wait_s: float) -> None:
    """Raise InvalidRequest for a time that makes no sense."""
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise InvalidRequest(f"--wait-for-server must be from 0 to {WAIT_S_MAX:g} seconds, not {wait_s:g}")


def arrived(
    work: Callable[[], T], url: str, *, wait_s: float, log: logging.Logger, stopping: threading.Event | None = None
) -> T:
    """What ``work`` returns; it is done again while no server answers, for ``wait_s`` seconds at most.

    The pauses grow and have jitter; one line is logged. Raises ServerUnreachable when the time is over or ``stopping``
    is set, and at once whatever waiting does not cure.
    """
    stopping = stopping or threading.Event()

    def attempt() -> T:
        with explained(url):
            return work()

    def absent(error: BaseException) -> bool:
        cause = error.__cause__
        return isinstance(error, ServerUnreachable) or (cause is not None and transient(cause))

    def note(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            log.warning("%s; trying again for up to %g s", state.outcome.exception(), wait_s)

    def sleep(seconds: float) -> None:
        stopping.wait(seconds)

    retrying = Retrying(
        retry=retry_if_exception(absent),
        wait=wait_random_exponential(multiplier=0.05, max=PAUSE_S_MAX),
        stop=stop_after_delay(wait_s) | stop_when_event_set(stopping),
        sleep=sleep,
        before_sleep=note,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except ServerUnreachable as error:
        if not wait_s or stopping.is_set():
            raise
        raise ServerUnreachable(f"{error} (tried for {wait_s:g} s: --wait-for-server)") from error
