"""A log under another policy, beside what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from spoke.allocator.what_if.free import Free
from spoke.allocator.what_if.guided import Difference, Guided
from spoke.allocator.what_if.lifetimes import LASTING, Lifetimes
from spoke.allocator.what_if.policy import Trial
from spoke.allocator.what_if.tally import Tally
from spoke.allocator.what_if.world import World
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.columns import Only
from spoke.events.state import PoolState


@dataclass(slots=True)
class Comparison:
    """What happened, and what would have.

    ``decisions`` were the same, one by one, up to ``first_difference`` (empty: to the end), at event ``differs_at``;
    from there on the course of events is another.
    """

    happened: Tally = field(default_factory=Tally)
    would: Tally = field(default_factory=Tally)
    capacity_milli_ms: int = 0
    decisions: int = 0
    first_difference: str = ""
    differs_at: str = ""
    passed_over: int = 0
    """Recorded changes of nodes and reservations that could not happen in the other course of events."""

    def utilisation(self, tally: Tally) -> float:
        """The share of the pool's GPU time that was held."""
        return tally.milli_ms / self.capacity_milli_ms if self.capacity_milli_ms else 0.0


def what_if(read: Callable[[Only], Iterable[e.Recorded]], base: PoolState, trial: Trial, end_ms: int) -> Comparison:
    """Run a log through a policy; ``read`` gives its events of some types, or all. InvalidRequest if it was trimmed."""
    if base.last_id != "0-0":
        raise InvalidRequest(
            f"what-if needs the log from its beginning, and it reaches back to {base.last_id} only: give --archive"
        )
    lifetimes = Lifetimes()
    for recorded in read(LASTING):
        lifetimes.take(recorded)
    world, result = World(trial), Comparison()
    guided, free = Guided(world), None
    for recorded in read(None):
        end_ms = max(end_ms, recorded.ms)
        result.happened.take(recorded.event, recorded.ms)
        if free is None:
            try:
                guided.take(recorded)
                continue
            except Difference as difference:
                result.first_difference, result.differs_at = str(difference), recorded.id
                free = Free(world, lifetimes)
        free.take(recorded)
    if free is not None:
        free.end(end_ms)
        result.passed_over = free.passed_over
    world.pass_until(end_ms)
    for tally in (result.happened, world.tally):
        tally.end(end_ms)
    result.would, result.capacity_milli_ms, result.decisions = world.tally, world.capacity_milli_ms, guided.decisions
    return result
