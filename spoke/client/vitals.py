"""The client's signs of life: it renews its own lease, and looks whether an allocator is alive when none answers."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from redis.exceptions import RedisError

from spoke.client.patience import Outage, log
from spoke.errors import LeaseLost, NoAllocator, SpokeError
from spoke.protocol.keys import Keys, client_lease
from spoke.protocol.leases import renew_lease
from spoke.protocol.server import Redis, connect
from spoke.protocol.url import mask_url

UNANSWERED_FACTOR: Final = 6
"""An allocator that lives and leaves a quick request unanswered for this many time limits counts as none."""
_TIMEOUT_S_MIN: Final = 1.0
_TIMEOUT_S_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class Leader:
    """Who decides in a pool. ``silent_s`` is for how long its leadership has lapsed (0 or less: it is alive)."""

    holder: str
    silent_s: float


def read_leader(redis: Redis, keys: Keys) -> Leader | None:
    """The pool's allocator, dead or alive; None if there never was one."""
    pipe = redis.pipeline(transaction=False)
    pipe.hmget(keys.leader, ["holder", "deadline"])
    pipe.time()
    found: Any = pipe.execute()
    (holder, deadline), (seconds, micros) = found
    if not holder or not deadline:
        return None
    return Leader(holder.decode(errors="replace"), seconds + micros / 1e6 - float(deadline) / 1000)


class Patient(Protocol):
    """The session, as far as it is looked after here."""

    def is_connected(self) -> bool:
        """Whether the lease exists."""

    def oldest_unanswered(self, *, quick_only: bool) -> float | None:
        """When the oldest request was asked that was not taken up."""

    def give_up(self, error: SpokeError, *, asked_before: float, quick_only: bool) -> None:
        """Fail what nobody has answered."""

    def give_up_overdue(self) -> None:
        """Fail the allocations that are past their own time."""

    def lost(self, error: SpokeError) -> None:
        """End the session."""


class Vitals:
    """One thread with a connection of its own, so that nothing else delays the renewals."""

    def __init__(
        self, patient: Patient, url: str, keys: Keys, client_id: str, *, lease_s: float, allocator_timeout_s: float
    ) -> None:
        self._patient = patient
        self._url = url
        self._keys = keys
        self._holder = client_lease(client_id)
        self._lease_ms = round(lease_s * 1000)
        self._renew_every_s = lease_s / 3
        self._allocator_timeout_s = allocator_timeout_s
        self._tick_s = min(lease_s / 6, allocator_timeout_s / 4)
        self._renew_at = 0.0
        self._redis = connect(url, pool=keys.pool, timeout_s=min(_TIMEOUT_S_MAX, max(_TIMEOUT_S_MIN, lease_s / 3)))
        self._stopping = threading.Event()
        self._outage = Outage(f"renewing the lease of client {client_id}", url, self._stopping)
        self.thread = threading.Thread(target=self._run, name=f"spoke-{client_id}-vitals", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Tell the thread to end."""
        self._stopping.set()

    def close(self) -> None:
        """Close the connection; after the thread has ended."""
        self._redis.close()

    def _run(self) -> None:
        while not self._stopping.wait(self._tick_s):
            try:
                self._renew()
                self._look_for_allocator()
                self._patient.give_up_overdue()
            except (RedisError, OSError) as error:
                self._outage.began(error)
                self._patient.give_up_overdue()
            except Exception:  # a defect here must not cost the lease
                log.exception("looking after the lease %s failed; trying again", self._holder)
            else:
                self._outage.over()

    def _renew(self) -> None:
        if not self._patient.is_connected() or time.monotonic() < self._renew_at:
            return
        begun = time.monotonic()
        if not renew_lease(self._redis, self._keys, self._holder, self._lease_ms):
            self._patient.lost(
                LeaseLost(
                    f"the lease of {self._lease_ms / 1000:g} s ran out before it was renewed, and the tickets of this "
                    f"client are being released: open a new client; if it happens again, give it a longer lease_s"
                )
            )
        self._renew_at = begun + self._renew_every_s

    def _look_for_allocator(self) -> None:
        now = time.monotonic()
        oldest = self._patient.oldest_unanswered(quick_only=False)
        if oldest is None or oldest > now - self._allocator_timeout_s:
            return
        where = f"in pool {self._keys.pool!r} at {mask_url(self._url)}"
        start = f"start one: spoke allocator --url {mask_url(self._url)} --pool {self._keys.pool}"
        leader = read_leader(self._redis, self._keys)
        if leader is None or leader.silent_s >= self._allocator_timeout_s:
            seen = "there never was one" if leader is None else f"{leader.holder} stopped {leader.silent_s:.0f} s ago"
            error = NoAllocator(f"no allocator decides the requests {where} ({seen}); {start} (or is it another pool?)")
            self._patient.give_up(error, asked_before=now - self._allocator_timeout_s, quick_only=False)
            return
        patience_s = UNANSWERED_FACTOR * self._allocator_timeout_s
        oldest = self._patient.oldest_unanswered(quick_only=True)
        if oldest is not None and oldest <= now - patience_s:
            error = NoAllocator(
                f"the allocator {leader.holder} {where} has not answered for {patience_s:g} s although it seems to "
                f"live: look at its log, or restart it"
            )
            self._patient.give_up(error, asked_before=now - patience_s, quick_only=True)
