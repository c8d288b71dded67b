"""From the first decision on that is another: a course of events of its own.

Requests, cancellations, what happens to nodes, clients, quotas and reservations come at their recorded times. A ticket
holds its GPUs for as long as it did, from when it is granted. Everything else follows from the trial: grants, waits
that are over, preemptions, limits of time, drains. Actors are left out: they decide nothing but how long that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from msgspec.structs import replace

from spoke.allocator.decide import next_deadline_ms, waits
from spoke.allocator.what_if.lifetimes import Lifetimes
from spoke.allocator.what_if.world import World
from spoke.errors import InvalidTransition
from spoke.events import types as e

_HAPPENS = (
    *(
        e.AllocatorElected,
        e.ServerChanged,
        e.LogRegressed,
        e.LogEntryStruck,
        e.ClientConnected,
        e.ClientLost,
        e.ClientClosed,
    ),
    *(e.NodeRegistered, e.NodeReconciling, e.NodeConfirmed, e.NodeLost, e.NodeCordoned),
    *(e.NodeUncordoned, e.NodeDraining, e.NodeRemoved, e.GpuMarkedUnhealthy, e.GpuMarkedHealthy),
    *(e.QueuePolicyChanged, e.QuotaChanged, e.QuotaRemoved, e.ReservationCreated, e.ReservationCancelled),
)
"""What happens to the pool whatever the policy. That a drain or a reservation ends follows from the rest."""

_MATTERS: frozenset[type[e.Event]] = frozenset(
    {
        *_HAPPENS,
        *(e.GangQueued, e.GangAllocated, e.GangRefused, e.GangCancelled, e.GangMoved, e.GangPrioritized),
    }
)
FOR_EVER_MS = 1 << 62


@dataclass(slots=True)
class _Gang:
    """A gang by its ticket in the log (empty: it had none there) and here."""

    was: str
    now: str
    granted: bool = False


class Free:
    """Goes on with a world where it is; give it the recorded events that follow, then ``end``."""

    def __init__(self, world: World, lifetimes: Lifetimes) -> None:
        self._world, self._lifetimes = world, lifetimes
        self._by_was: dict[str, _Gang] = {}
        self._by_now: dict[str, _Gang] = {}
        self._ends: list[tuple[int, str]] = []
        self._queued = {ticket.ticket_id for ticket in world.state.tickets.values() if ticket.phase == "queued"}
        self._idle_id, self._idle_until_ms = "", 0
        self.passed_over = 0
        """Recorded changes that could not happen in this course of events."""
        for ticket in world.state.tickets.values():
            gang = self._enter(ticket.ticket_id, ticket.ticket_id)
            if ticket.phase != "queued":
                self._granted(gang, world.tally.held[ticket.ticket_id].granted_ms)

    def take(self, recorded: e.Recorded) -> None:
        """The next recorded event."""
        event, ms = recorded.event, recorded.ms
        if type(event) not in _MATTERS:
            return
        if ms > self._world.now_ms:  # whatever is recorded in one moment comes before the queue moves on
            self._advance()
            self._until(ms)
            self._world.pass_until(ms)
        match event:
            case e.GangQueued():
                self._arrive(event, event.ticket_id, max(1, event.deadline_ms - ms) if event.deadline_ms else None)
                self._queued.add(event.ticket_id)
            case e.GangAllocated() if event.ticket_id not in self._queued:
                self._arrive(event, event.ticket_id, None)
            case e.GangRefused() if not event.ticket_id:
                self._arrive(event, "", 0)
            case e.GangAllocated() | e.GangRefused():
                self._queued.discard(event.ticket_id)
            case e.GangCancelled():
                self._queued.discard(event.ticket_id)
                self._cancel(event)
            case e.GangMoved() | e.GangPrioritized():
                self._adjust(event)
            case _ if isinstance(event, _HAPPENS):
                self._happen(event)

    def end(self, ms: int) -> None:
        """The end of the log."""
        self._advance()
        self._until(ms)
        self._world.pass_until(ms)

    # --- what was recorded ---

    def _arrive(self, event: e.GangQueued | e.GangAllocated | e.GangRefused, was: str, timeout_ms: int | None) -> None:
        world = self._world
        decided = world.arrival(event.spec, event.client_id, event.seq, timeout_ms, world.now_ms)
        if isinstance(decided, (e.GangQueued, e.GangAllocated)):
            self._enter(was, decided.ticket_id)
        elif isinstance(decided, e.RequestRefused):
            world.tally.refused += 1
        if decided is not None:
            self._decided([decided])

    def _cancel(self, event: e.GangCancelled) -> None:
        """A gang that waited in vain leaves the queue; if it would have been granted, it is given back."""
        gang = self._by_was.get(event.ticket_id)
        if gang is None:
            return
        if gang.granted:
            self._release(gang)
        else:
            self._decided([replace(event, ticket_id=gang.now)])

    def _adjust(self, event: e.GangMoved | e.GangPrioritized) -> None:
        gang = self._by_was.get(event.ticket_id)
        if gang is not None and not (gang.granted and isinstance(event, e.GangMoved)):
            self._world.happen(replace(event, ticket_id=gang.now))

    def _happen(self, event: e.Event) -> None:
        if isinstance(event, e.NodeRemoved) and event.node_id not in self._world.state.nodes:
            return  # its drain has ended here, too
        try:
            self._world.happen(event)
        except InvalidTransition:
            self.passed_over += 1

    # --- what would have happened ---

    def _until(self, ms: int) -> None:
        """Whatever ends, or is due, before the next recorded event."""
        world = self._world
        while True:
            due_ms = next_deadline_ms(world.state, world.now_ms)
            at_ms = min(self._ends[0][0] if self._ends else ms, ms if due_ms is None else max(due_ms, world.now_ms))
            if at_ms >= ms:
                return
            before = (at_ms, len(self._ends))
            world.pass_until(at_ms)
            while self._ends and self._ends[0][0] <= at_ms:
                gang = self._by_now.get(heappop(self._ends)[1])
                if gang is not None:
                    self._release(gang)
            if not self._advance() and before == (world.now_ms, len(self._ends)) and due_ms == at_ms:
                world.pass_until(at_ms + 1)  # due, and nothing came of it: it is not due again

    def _advance(self) -> bool:
        """Let the queue, the drains and the clock do all that they can now; whether there was anything."""
        state, now_ms, moved = self._world.state, self._world.now_ms, False
        if not waits(state) or (state.last_id == self._idle_id and now_ms < self._idle_until_ms):
            return False
        while steps := self._world.step(now_ms):
            self._decided(steps)
            moved = True
        due_ms = next_deadline_ms(state, now_ms)
        self._idle_id, self._idle_until_ms = state.last_id, FOR_EVER_MS if due_ms is None else due_ms
        return moved

    def _decided(self, events: list[e.Event]) -> None:
        for event in events:
            self._world.happen(event)
            gang = self._by_now.get(getattr(event, "ticket_id", ""))
            if gang is None:
                continue
            if isinstance(event, e.GangAllocated):
                self._granted(gang, self._world.now_ms)
            elif isinstance(event, (e.GangRefused, e.GangCancelled)) or (
                isinstance(event, e.GangReleased) and event.final
            ):
                self._forget(gang)
        for event in events:
            if isinstance(event, e.GangReleasing) and event.ticket_id in self._by_now:
                self._release(self._by_now[event.ticket_id])  # its actors, if it has any, end at once

    def _granted(self, gang: _Gang, at_ms: int) -> None:
        gang.granted = True
        span_ms = self._lifetimes.of(gang.was)
        if span_ms is not None:
            heappush(self._ends, (at_ms + span_ms, gang.now))

    def _release(self, gang: _Gang) -> None:
        world = self._world
        ticket = world.state.tickets[gang.now]
        if ticket.phase != "releasing":
            world.happen(e.GangReleasing(gang.now, "", 1, ""))  # by its client: it is over
        for actor in ticket.actors:
            if actor.alive:
                world.happen(e.ActorLost(gang.now, actor.rank, actor.actor_id, actor.node_id, ""))
        world.happen(e.GangReleased(gang.now, tuple(sorted(ticket.held)), True))
        self._forget(gang)

    def _enter(self, was: str, now: str) -> _Gang:
        gang = self._by_now[now] = _Gang(was, now)
        if was:
            self._by_was[was] = gang
        return gang

    def _forget(self, gang: _Gang) -> None:
        del self._by_now[gang.now]
        self._by_was.pop(gang.was, None)
