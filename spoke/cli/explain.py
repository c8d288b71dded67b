"""``spoke explain``: why a ticket waits, was refused, or is where it is; now, or at a moment of the past.

It folds the log by itself and asks no allocator, so it works on a pool that nobody serves, and on an archive.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from spoke.cli.options import Json, Pool, Url
from spoke.cli.output import clean, local_time, say, table, write_json
from spoke.cli.past import ArchiveDir, Offline, past, state_at

if TYPE_CHECKING:
    from spoke.cli.past import Past
    from spoke.events import types as e
    from spoke.events.state import PoolState
    from spoke.protocol.explanation import Explanation, NodeReason

At = Annotated[
    str | None,
    typer.Option("--at", metavar="ID|TIME", help="At this event, or time (2026-01-31T12:00, local; 10m: ago)."),
]


def explain(
    ticket: Annotated[
        str, typer.Argument(metavar="TICKET|ID", help="A ticket, or the id of the event that refused one.")
    ],
    at: At = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """Say why a ticket waits: what is missing, on which nodes, who holds it, and when it would start.

    Of a ticket that was granted: why it is where it is; of one that was refused: what was missing then. It reads the
    log, and needs no allocator.
    """
    from spoke.cli.moments import last_id_at

    with past(archive, offline, url, pool) as found:
        told = explained(found, ticket, last_id_at(at) if at else "+")
    if json:
        write_json(asdict(told))
    else:
        show(told)


def explained(found: Past, name: str, end: str) -> Explanation:
    """What the log says of a ticket, or of the event that refused one, up to the event ``end`` (``+``: now)."""
    from spoke.allocator.explain import explain as of_ticket
    from spoke.allocator.explain import explain_grant

    if "-" in name and name.replace("-", "").isdigit():
        return _of_event(found, name)
    state = found.log.recover(end) if end == "+" else state_at(found.log, end)
    ticket = state.tickets.get(name)
    if ticket is None:
        return _of_ended(found, name, end)
    now_ms = found.end_ms(end)
    if ticket.phase in ("allocated", "active"):
        before = _before(found, ticket.since)
        if before is not None:
            return explain_grant(before, ticket)
    return of_ticket(state, ticket, now_ms)


def _before(found: Past, event_id: str) -> PoolState | None:
    """The state just before an event; None if the log does not reach back so far."""
    from spoke.events.ids import order_of

    end = _just_before(event_id)
    if order_of(found.log.base().last_id) > order_of(end):
        return None
    return found.log.replay(end)


def _of_event(found: Past, event_id: str) -> Explanation:
    from spoke.errors import InvalidRequest
    from spoke.events import types as e

    recorded = next(iter(found.log.read(_just_before(event_id), event_id)), None)
    if recorded is None or not isinstance(recorded.event, e.GangRefused):
        raise InvalidRequest(f"event {event_id} was to be explained, and it is no gang.refused: see `spoke log`")
    return _of_refusal(found, recorded.id, recorded.event)


def _of_refusal(found: Past, event_id: str, event: e.GangRefused) -> Explanation:
    from spoke.allocator.explain import explain_spec
    from spoke.protocol.explanation import Explanation

    before = _before(found, event_id)
    if before is None:  # the log does not say how the pool was then
        return Explanation(event.ticket_id, "refused", f"{event.ticket_id or 'the gang'} was refused: {event.reason}")
    return explain_spec(before, event.spec, event.ticket_id, "refused", event.reason)


def _of_ended(found: Past, name: str, end: str) -> Explanation:
    """What the log says of a ticket that is not there: it was refused, withdrawn or released, or never was."""
    from spoke.errors import UnknownTicket
    from spoke.events import types as e
    from spoke.protocol.explanation import Explanation

    last: e.Recorded | None = None
    reason = ""
    for recorded in found.log.read(found.log.base().last_id, end):
        event = recorded.event
        if getattr(event, "ticket_id", "") == name and isinstance(
            event, (e.GangQueued, e.GangAllocated, e.GangRefused, e.GangCancelled, e.GangReleasing, e.GangReleased)
        ):
            last = recorded
            reason = getattr(event, "reason", reason)
    if last is None:
        raise UnknownTicket(
            f"the log of pool {found.pool} tells nothing of ticket {name}: `spoke tickets` lists the live ones; what "
            f"is older may stand in an archive (--archive)"
        )
    if isinstance(last.event, e.GangRefused):
        return _of_refusal(found, last.id, last.event)
    state = "cancelled" if isinstance(last.event, e.GangCancelled) else "released"
    return Explanation(name, state, f"{name} was {state} at {local_time(last.ms)}" + (f": {reason}" if reason else ""))


def _just_before(event_id: str) -> str:
    from spoke.events.ids import order_of

    ms, seq = order_of(event_id)
    return f"{ms}-{seq - 1}" if seq else f"{max(0, ms - 1)}-{2**64 - 1}"


def show(told: Explanation) -> None:
    """Print an explanation."""
    say(clean(told.sentence + "."))
    lines = {
        "needs": told.needs,
        "place": f"{told.place} of {told.waiting} in line" if told.place else "",
        "behind": " ".join(told.behind),
        "start": f"{local_time(told.starts_ms)} ({told.starts})" if told.starts_ms else told.starts,
        "not counted": "; ".join(told.left_out),
    }
    for name, words in lines.items():
        if words:
            say(f"{name:12} {clean(words)}")
    if told.nodes:
        waits = told.state in ("queued", "refused")
        columns = ("node", ">fit", "free", "missing" if waits else "policy", "held by")
        table(columns, (_cells(node, "" if waits else told.policy) for node in told.nodes))


def _cells(node: NodeReason, policy: str) -> tuple[str, ...]:
    from spoke.protocol.explanation import amount

    held = "; ".join(
        f"{one.ticket_id}{f' {one.name}' if one.name else ''} ({one.user}): {amount(one.gpus, one.cpus, one.memory)}"
        + (f", until {local_time(one.ends_ms)}" if one.ends_ms else "")
        for one in node.holders
    )
    return (
        node.node_id,
        f"{node.fits} of {node.wanted}",
        amount(node.gpus_free, node.cpus_free, node.memory_free),
        policy or amount(node.gpus_missing, node.cpus_missing, node.memory_missing),
        held or "-",
    )
