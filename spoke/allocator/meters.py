"""What an allocator counts and measures, for Prometheus (``spoke allocator --metrics``).

The allocator's thread counts as it goes. What the pool holds is summed up only when somebody scrapes, and by the
allocator's thread as well, between two turns of its loop: nobody else may read the state while it changes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spoke.events import types as e
from spoke.events.ids import ms_of
from spoke.events.model import GPU_MILLI
from spoke.events.state import PoolState

ANSWER_S_MAX = 3.0
"""A scrape waits no longer for the allocator's thread. An idle one comes round twice a second."""
_SHORT_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG_S = (0.001, 0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28800.0, 86400.0)


@dataclass(slots=True)
class Figures:
    """What a pool holds at one moment. Each counter goes by a state's name; ``gpus`` counts whole GPUs."""

    epoch: int = 0
    nodes: Counter[str] = field(default_factory=Counter)
    gpus: Counter[str] = field(default_factory=Counter)
    tickets: Counter[str] = field(default_factory=Counter)
    actors: Counter[str] = field(default_factory=Counter)
    clients: int = 0
    queue: int = 0
    shared_free_milli: int = 0
    oldest_wait_s: float = 0.0


def figures(state: PoolState, now_ms: int) -> Figures:
    """Sum a pool up. Its cost grows with nodes, tickets and actors: about a microsecond for each."""
    found = Figures(epoch=state.epoch, clients=len(state.clients), queue=len(state.queue))
    for node in state.nodes.values():
        found.nodes[node.phase if node.confirmed else "reconciling"] += 1
        unhealthy, free = node.unhealthy.bit_count(), node.free_gpus.bit_count()
        usable = node.phase == "up" and node.confirmed
        found.gpus["unhealthy"] += unhealthy
        found.gpus["free" if usable else "unavailable"] += free
        found.gpus["shared"] += len(node.shared)
        found.gpus["held"] += len(node.spec.gpus) - unhealthy - free - len(node.shared)
        found.shared_free_milli += sum(GPU_MILLI - used for used in node.shared.values())
    for ticket in state.tickets.values():
        found.tickets[ticket.phase] += 1
        for actor in ticket.actors:
            found.actors[actor.phase] += 1
    if state.queue:
        found.oldest_wait_s = max(0, now_ms - min(ms_of(state.tickets[t].since) for t in state.queue)) / 1000
    return found


class Meters(Collector):
    """One allocator's counters, over all its terms."""

    def __init__(self, pool: str) -> None:
        self.registry = CollectorRegistry()
        self.leading = False
        self._pool = pool
        self._events: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter({"on_failure": 0, "gang": 0})
        self._sent_s: deque[float] = deque()
        self._lock = threading.Lock()
        self._wanted = False
        self._answered = threading.Condition()
        self._figures: Figures | None = None
        self._commit = Histogram(
            "spoke_commit_seconds",
            "From sending a commit until its end is seen.",
            ["pool"],
            buckets=_SHORT_S,
            registry=self.registry,
        ).labels(pool)
        self._wait = Histogram(
            "spoke_gang_wait_seconds",
            "From a gang's request to its grant.",
            ["pool"],
            buckets=_LONG_S,
            registry=self.registry,
        ).labels(pool)
        self.registry.register(self)

    # --- the allocator's thread ------------------------------------------------------------------------------------

    def event(self, event: e.Event, before: PoolState, now_ms: int, event_id: str = "") -> None:
        """Count an event that is about to change ``before``."""
        self._events[event.TYPE] += 1
        if isinstance(event, e.ActorRestarting):
            self._restarts["on_failure"] += 1
        elif isinstance(event, e.GangRestarted):
            self._restarts["gang"] += len(event.ranks)
        if isinstance(event, e.GangAllocated):
            waiting = before.tickets.get(event.ticket_id)
            self._wait.observe(0.0 if waiting is None else max(0, now_ms - ms_of(waiting.since)) / 1000)

    def commit_sent(self) -> None:
        """A commit is on its way."""
        self._sent_s.append(time.perf_counter())

    def commit_ended(self) -> None:
        """The oldest commit that is under way has ended."""
        self._commit.observe(time.perf_counter() - self._sent_s.popleft())

    def answer(self, state: PoolState, now_ms: int) -> None:
        """Sum the pool up if a scrape waits for it."""
        if self._wanted:
            found = figures(state, now_ms)
            with self._answered:
                self._figures, self._wanted = found, False
                self._answered.notify_all()

    def begin_term(self) -> None:
        """This allocator leads from now on; what an earlier term had under way is void."""
        self._sent_s.clear()
        self.leading = True

    def end_term(self) -> None:
        """This allocator leads no more."""
        self.leading = False

    # --- the scrape's thread -----------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """All but the histograms, as Prometheus's client asks for it."""
        yield self._gauge("spoke_leading", "1 while this allocator decides for the pool.", self.leading)
        events = CounterMetricFamily("spoke_events", "Events that this allocator recorded.", labels=["pool", "type"])
        for name, count in sorted(self._events.copy().items()):
            events.add_metric([self._pool, name], count)
        yield events
        restarts = CounterMetricFamily(
            "spoke_actor_restarts",
            "Actors that were started again, by the restart policy that did it.",
            labels=["pool", "policy"],
        )
        for name, count in sorted(self._restarts.copy().items()):
            restarts.add_metric([self._pool, name], count)
        yield restarts
        found = self._ask()
        if found is None:
            return
        yield self._gauge("spoke_epoch", "The leader's epoch: it grows with every election.", found.epoch)
        yield self._gauge("spoke_clients", "Connected clients.", found.clients)
        yield self._gauge("spoke_queue_length", "Gangs that wait.", found.queue)
        yield self._gauge(
            "spoke_queue_oldest_wait_seconds", "For how long the oldest of them has waited.", found.oldest_wait_s
        )
        yield self._gauge(
            "spoke_shared_gpus_free", "What is free of the shared GPUs, in GPUs.", found.shared_free_milli / GPU_MILLI
        )
        yield self._gauges("spoke_nodes", "Nodes by phase.", "phase", found.nodes)
        yield self._gauges("spoke_gpus", "Whole GPUs by state.", "state", found.gpus)
        yield self._gauges("spoke_tickets", "Tickets by phase.", "phase", found.tickets)
        yield self._gauges("spoke_actors", "Actors of live tickets by phase.", "phase", found.actors)

    def describe(self) -> list[Metric]:
        """Nothing: so that registering this does not ask for a first scrape."""
        return []

    def _ask(self) -> Figures | None:
        with self._lock, self._answered:  # one scrape at a time
            if not self.leading:
                return None
            self._figures, self._wanted = None, True
            self._answered.wait_for(lambda: self._figures is not None, ANSWER_S_MAX)
            self._wanted = False
            return self._figures

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, text, labels=["pool"])
        gauge.add_metric([self._pool], value)
        return gauge

    def _gauges(self, name: str, text: str, by: str, values: Counter[str]) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(name, text, labels=["pool", by])
        for key, value in sorted(values.items()):
            gauge.add_metric([self._pool, key], value)
        return gauge
