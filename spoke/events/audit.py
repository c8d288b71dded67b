"""Checking a log against the invariants, and walking through it.

``verify`` walks along the hash chain, folds the log from its base and checks after every event what that event
touched: that it can be read, that it may follow (the life cycles), that I1 to I4 hold, that no request was decided
twice (I5). At the end: that nothing was left to a client that is gone (I6), and that the snapshot agrees with the log
(I8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from spoke.errors import LogError
from spoke.events import types as e
from spoke.events.chain import Checker, hash_of
from spoke.events.codec import decode_event
from spoke.events.fold import fold
from spoke.events.invariants import node_violations, queue_violations, ticket_violations, violations
from spoke.events.log import EventLog
from spoke.events.state import PoolState

PROBLEMS_MAX = 100


@dataclass(slots=True)
class Report:
    """What ``verify`` found. ``problems`` name the event after which something did not hold; empty is good.

    ``first_bad`` is the first of these events; ``last_hash`` the hash of the last one, to note elsewhere.
    """

    events: int = 0
    first_id: str = ""
    last_id: str = ""
    last_hash: str = ""
    first_bad: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    state: PoolState = field(default_factory=PoolState)

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not self.problems


def verify(log: EventLog, until: str = "+", *, anchor: str = "") -> Report:
    """Check the whole log (or up to an id). Stops at the first event that cannot be read or folded.

    ``anchor`` is a hash that was noted before: an event must carry it, else the whole chain was made anew.
    """
    report = Report(state=log.base())
    state = report.state
    previous: e.Event | None = None
    chain = Checker(log.base_hash())
    for event_id, raw in log.raw(state.last_id, until):
        broken = chain.problem(event_id, raw)
        if broken:
            report.problems.append(broken)
            report.first_bad = report.first_bad or event_id
        try:
            recorded = decode_event(event_id, raw)
            problems = list(_decided_twice(state, recorded, previous))
            before_nodes = _held(state, recorded.event)
            fold(state, recorded)
        except LogError as error:
            report.problems.append(str(error))
            report.first_bad = report.first_bad or event_id
            break
        problems += _violations_near(state, recorded.event, before_nodes)
        report.problems += [f"after event {event_id} ({recorded.event.TYPE}): {problem}" for problem in problems]
        report.first_id = report.first_id or event_id
        report.last_id, report.last_hash = event_id, hash_of(raw)
        if problems:
            report.first_bad = report.first_bad or event_id
        report.events += 1
        report.counts[recorded.event.TYPE] += 1
        previous = recorded.event
        if len(report.problems) >= PROBLEMS_MAX:
            break
        if anchor and report.last_hash == anchor:
            anchor = ""
    else:
        if anchor:
            report.problems.append(f"chain: no event has the hash {anchor}: the log was made anew, or is trimmed")
        report.problems += [f"at the end: {problem}" for problem in violations(state)]
        if until == "+":
            report.problems += [f"at the end: {problem}" for problem in _at_the_end(log, state)]
    return report


def _decided_twice(state: PoolState, recorded: e.Recorded, previous: e.Event | None) -> Iterator[str]:
    """I5: a request leads to one decision. A grant from the line, and the members of one launch, are not a second."""
    event = recorded.event
    client_id, seq = getattr(event, "client_id", ""), getattr(event, "seq", 0)
    client = state.client(client_id)
    if not seq or client is None or not client.has_decided(seq):
        return
    if isinstance(event, (e.GangAllocated, e.GangRefused)) and event.ticket_id in state.tickets:
        return
    same_launch = isinstance(event, e.ActorLaunchRequested) and isinstance(previous, e.ActorLaunchRequested)
    if same_launch and (previous.client_id, previous.seq) == (client_id, seq):  # type: ignore[union-attr]
        return
    yield f"I5: request {seq} of client {client_id} was decided before"


def _held(state: PoolState, event: e.Event) -> set[str]:
    ticket = state.tickets.get(getattr(event, "ticket_id", ""))
    return set(ticket.held) if ticket is not None else set()


def _violations_near(state: PoolState, event: e.Event, nodes: set[str]) -> list[str]:
    """What is wrong with the ticket and the nodes that an event touched."""
    found: list[str] = []
    ticket = state.tickets.get(getattr(event, "ticket_id", ""))
    if ticket is not None:
        found += ticket_violations(state, ticket)
        nodes |= ticket.held
    nodes.add(getattr(event, "node_id", ""))
    for node_id in nodes & state.nodes.keys():
        found += node_violations(state, state.nodes[node_id])
    if event.TYPE.startswith("gang.") and len(state.queue) < 100:
        found += queue_violations(state)
    return found


def _at_the_end(log: EventLog, state: PoolState) -> Iterator[str]:
    for ticket_id, ticket in state.tickets.items():
        orphaned = ticket.client_id not in state.clients and not ticket.spec.detached
        if orphaned and ticket.phase != "releasing":
            yield f"I6: ticket {ticket_id} is {ticket.phase}, but its client {ticket.client_id} is gone"
    if log.has_snapshot and log.recover(state.last_id) != state:
        yield f"I8: the snapshot and the events after it fold to another state than the log does ({state.last_id})"
