"""``verify``: a whole log, with its archive or without, against the invariants."""

from __future__ import annotations

from collections.abc import Iterator

from spoke.events.log import EventLog
from spoke.events.state import PoolState
from spoke.events.stretches import archived
from spoke.events.walk import Report, walk

__all__ = ["Report", "verify"]


def verify(log: EventLog, until: str = "+", *, anchor: str = "", jobs: int = 1) -> Report:
    """Check the whole log (or up to an id). Stops at the first event that cannot be read or folded.

    ``anchor`` is a hash that was noted before: an event must carry it, else the whole chain was made anew. ``jobs``:
    how many processes may work at the segments of an archive; they import the main module, as multiprocessing does.
    """
    report = Report(last_hash=log.base_hash())
    parts = archived(log, until, anchor, jobs)
    if parts is None:
        report.go_on(walk(log, log.base(), report.last_hash, until, anchor))
    else:
        for part in parts:
            report.go_on(part)
            if report.broken_off:
                break
        if not report.broken_off:
            report.go_on(walk(log, report.state, report.last_hash, until, anchor))
    if not report.events:
        report.last_hash = ""
    if not report.broken_off:
        if anchor and not report.anchored:
            report.problems.append(f"chain: no event has the hash {anchor}: the log was made anew, or is trimmed")
        if until == "+":
            report.problems += [f"at the end: {problem}" for problem in _at_the_end(log, report.state)]
    return report


def _at_the_end(log: EventLog, state: PoolState) -> Iterator[str]:
    for ticket_id, ticket in state.tickets.items():
        orphaned = ticket.client_id not in state.clients and not ticket.spec.detached
        if orphaned and ticket.phase != "releasing":
            yield f"I6: ticket {ticket_id} is {ticket.phase}, but its client {ticket.client_id} is gone"
    if log.has_snapshot and log.recover(state.last_id) != state:
        yield f"I8: the snapshot and the events after it fold to another state than the log does ({state.last_id})"
