"""Granting gangs, and the line in which those wait that do not fit.

The line is first come, first served: a gang that waits is not overtaken by a later one, so that small gangs cannot
starve a large one. The exception: a gang that the pool as registered could not hold even if it were empty waits
aside and holds nobody up.
"""

from __future__ import annotations

from spoke.allocator.placement import select
from spoke.allocator.placement.assign import assign
from spoke.allocator.placement.choose import never_fits, place
from spoke.allocator.placement.pack import NoFit
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.model import GangSpec
from spoke.events.state import PoolState
from spoke.protocol import requests as r

TIMEOUT_MS_MAX = 10 * 365 * 24 * 3600 * 1000


def allocate(state: PoolState, client_id: str, seq: int, request: r.AllocateGang, now_ms: int) -> list[e.Event]:
    """Grant the gang, put it in line, or refuse it."""
    spec, timeout_ms = request.spec, request.timeout_ms
    if timeout_ms is not None and not 0 <= timeout_ms <= TIMEOUT_MS_MAX:
        raise InvalidRequest(f"a timeout of {timeout_ms} ms was given: use 0 or more, or none at all to wait for ever")
    select.check_near(state, spec)
    ahead = _first_that_could_fit(state)
    if ahead:
        reason = f"waits behind {ahead}, which came first ({len(state.queue)} in line)"
    else:
        granted = _grant(state, f"t-{state.next_ticket}", client_id, seq, spec)
        if isinstance(granted, e.Event):
            return [granted]
        reason = granted.reason
    never = never_fits(state, spec)
    if never:
        reason = f"cannot fit the pool as it is registered: {never}"
    if timeout_ms == 0:
        return [e.GangRefused("", client_id, seq, spec, "refused", f"{reason} (timeout=0: it did not wait)")]
    deadline_ms = 0 if timeout_ms is None else now_ms + timeout_ms
    return [e.GangQueued(f"t-{state.next_ticket}", client_id, seq, spec, deadline_ms, reason)]


def advance(state: PoolState, now_ms: int) -> list[e.Event]:
    """The next step of the line: one that is out of time is refused, else the first that fits is granted."""
    for ticket_id in state.queue:
        ticket = state.tickets[ticket_id]
        if ticket.deadline_ms and ticket.deadline_ms <= now_ms:
            found, _ = place(state, ticket.spec)
            reason = found.reason if isinstance(found, NoFit) else ticket.reason
            text = f"did not fit in the time it was willing to wait: {never_fits(state, ticket.spec) or reason}"
            return [e.GangRefused(ticket_id, ticket.client_id, ticket.seq, ticket.spec, "timeout", text)]
    for ticket_id in state.queue:
        ticket = state.tickets[ticket_id]
        granted = _grant(state, ticket_id, ticket.client_id, ticket.seq, ticket.spec)
        if isinstance(granted, e.Event):
            return [granted]
        if not never_fits(state, ticket.spec):
            break
    return []


def _first_that_could_fit(state: PoolState) -> str:
    return next((t for t in state.queue if not never_fits(state, state.tickets[t].spec)), "")


def _grant(state: PoolState, ticket_id: str, client_id: str, seq: int, spec: GangSpec) -> e.Event | NoFit:
    found, policy = place(state, spec)
    if isinstance(found, NoFit):
        return found
    got = assign(state, spec, found)
    return e.GangAllocated(ticket_id, client_id, seq, spec, got.slots, got.master_addr, got.master_port, policy)
