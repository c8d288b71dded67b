"""Checking a stretch of the log: every event is understood, may follow the one before, and leaves the pool in order.

It is walked event by event: the hash chain, the fold, and the invariants of what the event touched (``inspection.py``);
all invariants now and then, at the end, and when the server changed. Where something is found, the event with which it
began is searched for, by looking at everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from spoke.errors import LogError
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.chain import Checker
from spoke.events.fold import fold
from spoke.events.inspection import Inspector
from spoke.events.invariants import violations
from spoke.events.log import EventLog
from spoke.events.state import PoolState

PROBLEMS_MAX = 100
LOOK_EVERY = 20_000
"""After so many events everything is looked at."""


Launch = tuple[str, int]
"""The client and the seq of a launch request: its members are events of their own."""


@dataclass(slots=True)
class Report:
    """What ``verify`` found. ``problems`` name the event after which something did not hold; empty is good.

    ``first_bad`` is the first of these events; ``last_hash`` the last hash that an event carried, to note elsewhere.
    ``broken_off``: what comes after the last event was not looked at, because of the problems.
    """

    events: int = 0
    first_id: str = ""
    last_id: str = ""
    last_hash: str = ""
    first_bad: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    state: PoolState = field(default_factory=PoolState)
    broken_off: bool = False
    anchored: bool = False
    """Whether an event carried the hash that was asked for."""
    goes_on: Launch | None = None
    """The launch that the first event goes on with, if it does: the event before must belong to it, too."""
    ends_in: Launch | None = None
    """The launch that the last event belongs to."""

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not self.problems

    def add(self, event_id: str, problem: str) -> None:
        """Note what does not hold after an event."""
        self.problems.append(problem)
        self.first_bad = self.first_bad or event_id

    def go_on(self, part: Report) -> None:
        """Add what was found of the part of the log that follows."""
        if self.events and part.goes_on is not None and part.goes_on != self.ends_in:
            self.add(
                part.first_id, f"after event {part.first_id} ({e.ActorLaunchRequested.TYPE}): {_twice(*part.goes_on)}"
            )
        self.events += part.events
        self.first_id = self.first_id or part.first_id
        self.last_id, self.last_hash = part.last_id or self.last_id, part.last_hash or self.last_hash
        self.first_bad = self.first_bad or part.first_bad
        self.counts += part.counts
        self.problems += part.problems
        self.state, self.anchored = part.state, self.anchored or part.anchored
        self.ends_in = part.ends_in
        self.broken_off = part.broken_off or len(self.problems) >= PROBLEMS_MAX


def walk(log: EventLog, state: PoolState, last_hash: str, until: str, anchor: str = "") -> Report:
    """Check the events after a state, which is used up."""
    report, chain, inspector = Report(state=state), Checker(last_hash), Inspector(state)
    good, launch, unseen = snapshot.encode(state), None, 0
    for link in log.links(state.last_id, until):
        broken = chain.problem(link.id, link.h, link.args)
        if broken:
            report.add(link.id, broken)
        event = link.event
        try:
            if isinstance(event, LogError):
                raise event
            before, launch = launch, launch_of(event)
            problems = list(decided_twice(state, event, before))
            if problems and launch and not report.events:
                report.goes_on, problems = launch, []
            fold(state, e.Recorded(link.id, event))
        except LogError as error:
            _search(log, good, report, report.last_id)
            report.add(link.id, str(error))
            report.broken_off = True
            return report
        found = inspector.after(event)
        if found:  # it may have begun earlier, where nobody looked
            _search(log, good, report, report.last_id)
        for problem in problems + found:
            report.add(link.id, f"after event {link.id} ({event.TYPE}): {problem}")
        report.first_id = report.first_id or link.id
        report.last_id, report.last_hash = link.id, chain.last
        report.events += 1
        report.counts[event.TYPE] += 1
        report.anchored = report.anchored or (bool(anchor) and link.h == anchor)
        report.ends_in, unseen = launch, unseen + 1
        if len(report.problems) >= PROBLEMS_MAX:
            report.broken_off = True
            return report
        if unseen >= LOOK_EVERY or isinstance(event, e.ServerChanged):
            if not _look(log, good, report):
                return report
            good, unseen = snapshot.encode(state), 0
    _look(log, good, report)
    return report


def _look(log: EventLog, good: bytes, report: Report) -> bool:
    """Look at everything; False, and the first event after which not all was well is named, if it is not."""
    found = violations(report.state)
    if not found:
        return True
    _search(log, good, report, report.last_id)
    for problem in found:
        report.add(report.last_id, f"at event {report.last_id}: {problem}")
    report.broken_off = True
    return False


def _search(log: EventLog, good: bytes, report: Report, until: str) -> None:
    """Name the first event up to an id after which not all was well, if nothing is named yet."""
    found = _first_broken(log, good, until) if until and not report.problems else None
    if found is not None:
        event_id, kind, problems = found
        for problem in problems:
            report.add(event_id, f"after event {event_id} ({kind}): {problem}")


def _first_broken(log: EventLog, good: bytes, bad_id: str) -> tuple[str, str, list[str]] | None:
    """The event between a good state and a bad one with which it began, by halving; None if all is well."""
    events = list(log.read(snapshot.decode(good).last_id, bad_id))
    low, high, found = 0, len(events), list[str]()
    middle = high
    while high - low > 1 or not found:
        state = snapshot.decode(good)
        for recorded in events[low:middle]:
            fold(state, recorded)
        wrong = violations(state)
        if wrong:
            high, found = middle, wrong
        elif middle == len(events):
            return None
        else:
            low, good = middle, snapshot.encode(state)
        middle = (low + high) // 2
    return events[high - 1].id, events[high - 1].event.TYPE, found


def launch_of(event: e.Event) -> Launch | None:
    """The launch that an event belongs to."""
    return (event.client_id, event.seq) if isinstance(event, e.ActorLaunchRequested) else None


def decided_twice(state: PoolState, event: e.Event, before: Launch | None) -> Iterator[str]:
    """I5: a request leads to one decision. A grant from the line, and the members of one launch, are not a second.

    ``before``: the launch that the event before belongs to.
    """
    client_id, seq = getattr(event, "client_id", ""), getattr(event, "seq", 0)
    client = state.client(client_id) if seq else None
    if client is None or not client.has_decided(seq):
        return
    if isinstance(event, (e.GangAllocated, e.GangRefused)) and event.ticket_id in state.tickets:
        return
    if isinstance(event, e.ActorLaunchRequested) and before == (client_id, seq):
        return
    yield _twice(client_id, seq)


def _twice(client_id: str, seq: int) -> str:
    return f"I5: request {seq} of client {client_id} was decided before"
