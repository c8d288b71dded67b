"""The allocator's loop: read a batch of requests, decide them, commit once. One thread, one blocking read a turn.

A term of leadership begins with the state recovered from the log. Whatever goes wrong with a commit ends the term:
the state is thrown away and taken up again from the log, where the commit either stands or does not. So there is no
outcome that the loop would have to guess.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis.exceptions as rx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random, wait_random_exponential

from spoke.allocator.collector import Collector
from spoke.allocator.gate import Gate
from spoke.allocator.leader import Elected, elect, resign
from spoke.allocator.limits import Limits
from spoke.allocator.quarantine import Quarantine, Undecidable
from spoke.allocator.term import Term
from spoke.allocator.watcher import watchers
from spoke.allocator.wire import Wire
from spoke.errors import Fenced, LogError, ServerUnreachable, SpokeError
from spoke.protocol.arrival import WAIT_S, arrived
from spoke.protocol.keys import Keys
from spoke.protocol.server import check_server, connect, explain
from spoke.protocol.url import mask_url

if TYPE_CHECKING:
    from spoke.allocator.tracing import AllocatorTracing
    from spoke.allocator.watcher import Watcher

log = logging.getLogger("spoke.allocator")

STANDBY_POLL_S = 0.2
SHORT_TERM_S = 5.0
SHORT_TERMS_TOLD = 3
"""After so many terms in a row that ended as soon as they had begun, the next ones are not told any more."""
SHORT_TERMS_SOON = 5
"""After so many of them, the next ones come slowly: each writes into the log."""
REASONS_KEPT = 100
_SOON = wait_random_exponential(multiplier=0.05, max=1.0)
_LATER = wait_random(2.0, 5.0)
_MUCH_LATER = wait_random(5.0, 15.0)


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """How an allocator runs. ``leader_ms``: a standby takes over when the leader was silent for so long.

    A snapshot is written every ``snapshot_every`` events; once the log holds more than ``keep_events`` it is trimmed
    behind the snapshot before the newest. With ``masters`` (master keys) only signed requests are decided. At its
    start the allocator waits up to ``server_wait_s`` for a server that is not there. ``own_process``: nobody else is in
    this process, so its garbage collector may be told when to work.
    """

    url: str
    pool: str
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}")
    leader_ms: int = 3_000
    snapshot_every: int = 20_000
    keep_events: int = 2_000_000
    masters: tuple[bytes, ...] = field(default=(), repr=False)
    limits: Limits = field(default_factory=Limits)
    server_wait_s: float = WAIT_S
    own_process: bool = False


class Allocator:
    """The allocator of one pool; ``run`` leads it, or stands by until it can."""

    def __init__(
        self, config: AllocatorConfig, meters: Watcher | None = None, *, tracing: AllocatorTracing | None = None
    ) -> None:
        self._config = config
        self._tracing = tracing
        self._meters = watchers(meters, tracing)
        self._keys = Keys(config.pool)
        self._client = connect(config.url, pool=config.pool)
        self._stop = threading.Event()
        self._quarantine = Quarantine()
        self._seen = "0-0"  # the newest event that this allocator knows of, should the server forget it
        self._leader = ""  # who was last known to lead
        self._told: set[str] = set()  # why attempts to lead have failed since the last one that lasted
        self._short_terms = 0
        self._term_began = False
        self.leading = threading.Event()
        """Set while this allocator leads."""

    def stop(self) -> None:
        """Make ``run`` return soon; callable from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> None:
        """Lead the pool, or stand by, until ``stop``. Raises ServerError if the server is not usable at the start."""
        config = self._config
        try:
            arrived(
                lambda: check_server(self._client, config.url),
                config.url,
                wait_s=config.server_wait_s,
                log=log,
                stopping=self._stop,
            )
            while not self._stop.is_set():
                self._retrying()(self._take_turn)
        except _Stopped:
            log.info("stopped")
        except ServerUnreachable:
            if not self._stop.is_set():
                raise
            log.info("stopped")
        finally:
            self._client.close()

    def _retrying(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type((rx.RedisError, OSError, Fenced, LogError, Undecidable)),
            wait=self._pause_s,
            sleep=self._sleep,
            before_sleep=self._log_failure,
        )

    def _pause_s(self, attempt: RetryCallState) -> float:
        if self._short_terms >= SHORT_TERMS_SOON:
            return _MUCH_LATER(attempt)
        error = attempt.outcome.exception() if attempt.outcome else None
        return (_LATER if isinstance(error, LogError) else _SOON)(attempt)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def _log_failure(self, attempt: RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        why = str(_words(error, self._config.url)) if isinstance(error, Exception) else ""
        if why not in self._told:
            if len(self._told) >= REASONS_KEPT:
                self._told.clear()
            self._told.add(why)
            log.warning("%s: %s; trying again", "the term ended" if self._term_began else "no term begins", why)

    def _take_turn(self) -> None:
        """Stand by for a moment, or serve one term."""
        config, self._term_began = self._config, False
        found = elect(self._client, self._keys, config.holder, config.leader_ms)
        if not isinstance(found, Elected):
            self._told.clear()
            self._short_terms = 0
            if found.leader != self._leader:
                self._leader = found.leader
                log.info("standing by in pool %s at %s: %s leads", config.pool, mask_url(config.url), found.leader)
            self._sleep(min(STANDBY_POLL_S, found.left_ms / 1000 + 0.01))
            return
        wire, term, began_s = Wire(self._client), None, time.monotonic()
        gate = Gate(config.pool, config.masters)
        if self._tracing is not None:
            gate = self._tracing.gate(gate)
        if self._meters is not None:
            self._meters.begin_term()
        collector = Collector() if config.own_process else None
        try:
            term = Term(
                self._client,
                wire,
                self._keys,
                config.holder,
                found,
                leader_ms=config.leader_ms,
                snapshot_every=config.snapshot_every,
                keep=config.keep_events,
                gate=gate,
                limits=config.limits,
                seen=self._seen,
                quarantine=self._quarantine,
                meters=self._meters,
                collector=collector,
            )
            if collector is not None:
                collector.begin()
            self.leading.set()
            self._leader, self._term_began = config.holder, True
            self._serve(term, found.epoch)
            term.close()
        except LogError:
            resign(self._client, self._keys, config.holder, found.epoch)  # another release may be able to read it
            raise
        except Undecidable as error:
            self._quarantine.add(error)
            log.exception("%s; it is refused from now on", error)
            raise
        finally:
            if term is not None:
                self._seen = term.committed_id
                self._note_length(time.monotonic() - began_s)
            self.leading.clear()
            if collector is not None:
                collector.end()
            if self._meters is not None:
                self._meters.end_term()
            wire.close()

    def _serve(self, term: Term, epoch: int) -> None:
        """Lead until told to stop, and say so; where terms have been short, only when this one has lasted."""
        tell_at_s = time.monotonic()
        if self._short_terms < SHORT_TERMS_TOLD:
            self._told.clear()
        else:
            tell_at_s += SHORT_TERM_S
        for stray in term.strays:
            log.warning("took entry %s out of the log: %s; it said %s", stray.id, stray.reason, stray.said[:200])
        while not self._stop.is_set():
            if time.monotonic() >= tell_at_s:
                tell_at_s = math.inf
                where = mask_url(self._config.url)
                log.info("leading pool %s in epoch %d at %s", self._config.pool, epoch, where)
            term.turn()

    def _note_length(self, seconds: float) -> None:
        self._short_terms = self._short_terms + 1 if seconds < SHORT_TERM_S else 0
        if not self._short_terms:
            self._told.clear()


class _Stopped(SpokeError):
    """The allocator was told to stop while it waited."""


def _words(error: Exception, url: str) -> object:
    return explain(error, url) if isinstance(error, rx.RedisError) else error
