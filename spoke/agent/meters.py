"""What an agent counts, for Prometheus: it watches what the state machine tells its shell to do."""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from spoke.agent import instructions as i
from spoke.agent.clock import clock_s
from spoke.errors import Forbidden, LimitExceeded, LogsUnavailable
from spoke.protocol import requests as r

_START_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)

_LOG_RESULTS = ("answered", Forbidden.code, LimitExceeded.code, LogsUnavailable.code)


class Meters:
    """One agent's counters. Written by the agent's thread, read by the scrape's."""

    def __init__(self, pool: str, node_id: str, clock: Callable[[], float] = clock_s) -> None:
        self.registry = CollectorRegistry()
        self._clock_s = clock
        self._sure_until_s = math.nan
        self._ordered_at_s: dict[str, float] = {}
        names, at = ("pool", "node"), (pool, node_id)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names, registry=self.registry).labels(*at)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=self.registry).labels(*at)

        self._up = gauge("spoke_agent_up", "1 while the node is in the pool.")
        self._alive = gauge("spoke_agent_actors", "Actors of this node that have not ended.")
        gauge(
            "spoke_agent_lease_left_seconds",
            "For how long actors may still run if no renewal succeeds any more; at 0 they are killed.",
        ).set_function(lambda: self._sure_until_s - self._clock_s())
        self._failures = counter("spoke_agent_start_failures", "Actors that did not come up.")
        self._restarts = counter("spoke_agent_restarts", "Actors that were started again by their restart policy.")
        self._fences = counter("spoke_agent_fences", "How often all actors were killed: the lease was not sure.")
        self._start = Histogram(
            "spoke_agent_start_seconds",
            "From the order to start an actor until it is up.",
            names,
            buckets=_START_S,
            registry=self.registry,
        ).labels(*at)
        exits = Counter("spoke_agent_exits", "Actors that ended, by how.", (*names, "how"), registry=self.registry)
        self._exits = {how: exits.labels(*at, how) for how in ("success", "failure", "signal")}

        self._log_bytes = counter("spoke_agent_log_bytes", "Bytes of actors' output that were sent to readers.")
        asks = Counter(
            "spoke_agent_log_asks",
            "Asks for actors' output, by what became of them: answered, or the code of the refusal.",
            (*names, "result"),
            registry=self.registry,
        )
        self._log_asks = {result: asks.labels(*at, result) for result in _LOG_RESULTS}
        self._log_stored = gauge("spoke_agent_log_stored_bytes", "What all kept output has, looked at once a minute.")

    def answered(self, size: int) -> None:
        """A reader's ask was answered, with so many bytes of output."""
        self._log_asks["answered"].inc()
        self._log_bytes.inc(size)

    def refused(self, code: str) -> None:
        """A reader's ask was refused, or could not be served."""
        self._log_asks[code].inc()

    def stored(self, size: int) -> None:
        """All output that is kept here has so many bytes."""
        self._log_stored.set(size)

    def watch(self, step: i.Instruction) -> None:
        """Count what the state machine has said."""
        match step:
            case i.Spawn(order, _, restarts):
                if restarts:
                    self._restarts.inc()
                self._ordered_at_s[order.launch_id] = self._clock_s()
                self._alive.set(len(self._ordered_at_s))
            case i.ExtendLease(until_s):
                self._sure_until_s = until_s
            case i.Joined():
                self._up.set(1)
            case i.KillAll():
                self._up.set(0)
                self._fences.inc()
                self._ordered_at_s.clear()
                self._alive.set(0)
            case i.Quit():
                self._up.set(0)
            case i.Send(envelope):
                self._reported(envelope.request)

    def spawned(self, launch_id: str) -> None:
        """A launch's process is started now: its order counts, and what came of it."""

    def _reported(self, report: r.Request) -> None:
        match report:
            case r.ReportStarted(launch_id=launch_id) if launch_id in self._ordered_at_s:
                self._start.observe(self._clock_s() - self._ordered_at_s[launch_id])
            case r.ReportStartFailed(launch_id=launch_id):
                self._failures.inc()
                self._forget(launch_id)
            case r.ReportExited(launch_id=launch_id, code=code, signal=signal) if launch_id in self._ordered_at_s:
                self._exits["signal" if signal else "failure" if code else "success"].inc()
                self._forget(launch_id)

    def _forget(self, launch_id: str) -> None:
        self._ordered_at_s.pop(launch_id, None)
        self._alive.set(len(self._ordered_at_s))
