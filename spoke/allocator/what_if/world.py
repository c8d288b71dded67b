"""The pool in which another policy is tried: a state, its clock, and the events that really change it."""

from __future__ import annotations

from spoke.allocator.decide import decide, tick
from spoke.allocator.what_if.policy import Trial
from spoke.allocator.what_if.tally import Tally
from spoke.events import types as e
from spoke.events.fold import fold
from spoke.events.model import GPU_MILLI, GangSpec
from spoke.events.queueing import QueuePolicy
from spoke.events.state import PoolState
from spoke.protocol import requests as r


class World:
    """A state under a trial. ``now_ms`` never goes back; ``capacity_milli_ms`` is what the pool could have given."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.state, self.tally = trial, PoolState(), Tally()
        self.now_ms = self.capacity_milli_ms = 0
        self._steps = self._gpus = 0
        self._changed = True
        self.recorded_policy = QueuePolicy()
        self._fold(e.QueuePolicyChanged("", 0, trial.queue(self.recorded_policy)))

    @property
    def as_recorded(self) -> bool:
        """Whether the trial is, at this moment, what was recorded."""
        return self.trial.placement is None and self.state.queueing.policy == self.recorded_policy

    def happen(self, event: e.Event) -> None:
        """Let an event happen. Raises InvalidTransition for one that cannot."""
        if isinstance(event, e.QueuePolicyChanged):
            self.recorded_policy = event.policy
            event = e.QueuePolicyChanged(event.client_id, event.seq, self.trial.queue(event.policy))
        elif event.TYPE.startswith("node."):
            self._changed = True
        self._fold(event)
        self.tally.take(event, self.now_ms)

    def _fold(self, event: e.Event) -> None:
        self._steps += 1
        fold(self.state, e.Recorded(f"{self.now_ms}-{self._steps}", event))
        if self.trial.placement is not None:  # which policy places a gang follows from whether shares were granted
            self.state.demand.shares_granted = int(self.trial.placement == "stranding")

    def pass_until(self, ms: int) -> None:
        """Let time go on."""
        if ms <= self.now_ms:
            return
        if self._changed:
            up = (node for node in self.state.nodes.values() if node.phase != "lost")
            self._gpus, self._changed = sum(len(node.spec.gpus) for node in up), False
        if self.now_ms:
            self.capacity_milli_ms += self._gpus * GPU_MILLI * (ms - self.now_ms)
        self.now_ms = ms

    def arrival(self, spec: GangSpec, client_id: str, seq: int, timeout_ms: int | None, now_ms: int) -> e.Event | None:
        """What would be decided of a request for a gang."""
        asked = r.Envelope(r.AllocateGang(spec, timeout_ms), client_id, seq)
        return next(iter(decide(self.state, asked, now_ms)), None)

    def step(self, now_ms: int, *, overtake: bool = True) -> list[e.Event]:
        """What time, and the queue, would lead to."""
        return tick(self.state, now_ms, overtake=overtake)
