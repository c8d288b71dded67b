"""``spoke audit``: check the log against the invariants, and look at the past."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.audit_diff import diff_document, show_diff
from spoke.cli.audit_export import export
from spoke.cli.audit_history import history
from spoke.cli.audit_query import query
from spoke.cli.audit_restore import restore
from spoke.cli.audit_strike import strike
from spoke.cli.audit_usage import usage
from spoke.cli.audit_what_if import what_if
from spoke.cli.options import Json, Pool, Url, opened
from spoke.cli.output import clean, complain, count, iso_time, local_time, say, table, write_json
from spoke.cli.past import ArchiveDir, Offline, Until, choose_one, past, state_at
from spoke.cli.progress import shown
from spoke.events.ids import ms_of

if TYPE_CHECKING:
    from spoke.events.audit import Report
    from spoke.events.log import EventLog
    from spoke.events.state import PoolState

Anchor = Annotated[
    str | None, typer.Option(metavar="HASH", help="A hash that `verify` told before: some event must still carry it.")
]

app = typer.Typer(no_args_is_help=True, help="Check the log, and look at the past.")

CHECKED = (
    ("chain", "every event's hash follows from the one before: nothing was changed, removed or put in"),
    ("readable", "every event is of a known type and version, and may follow the one before it"),
    ("I1", "no GPU belongs to two tickets"),
    ("I2", "a ticket has all its slots or none"),
    ("I3", "on every node used + free = total, and nothing leaks"),
    ("I4", "a GPU is free again only when nothing of its old ticket can run on it"),
    ("I5", "no request was decided twice"),
    ("I6", "no ticket is left to a client that is gone"),
    ("I8", "the snapshot and the events after it give the same state as the log"),
)


def verify(
    anchor: Anchor = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="So many processes work at an archive; without it, one for each core."),
    ] = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """Fold the log from its beginning and check every invariant after every event. Exit code 1 if one is broken."""
    from spoke.events.audit import verify as check

    with past(archive, offline, url, pool) as found:
        report = check(found.log, anchor=anchor or "", jobs=jobs or len(os.sched_getaffinity(0)))
        remedy = _remedy(found.log) if report.first_bad and not offline else ""
    if json:
        write_json(report_document(report, found.pool))
    else:
        _show_report(report, found.pool)
        if remedy:
            say(clean(remedy))
    if not report.ok:
        raise typer.Exit(1)


def archive(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of this pool's segments.")],
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Write what is not archived yet into compressed, checksummed files.

    From then on the log is trimmed behind them only.

    Run it from time to time (a systemd timer, cron) with the allocator's user of the server. From a replica, too; but
    its primary is not told, and keeps its log for another archive.
    """
    from redis.exceptions import ReadOnlyError

    from spoke.events.archive import Archive

    with opened(url, pool) as place:
        segments = Archive(directory, place.keys.pool)
        with shown(place.log, prints=False) as log:
            written = segments.write(log)
        if segments.segments():
            try:
                place.log.mark_archived(segments.last_id())
            except ReadOnlyError:
                complain(
                    "the server is a replica: its primary does not know of this archive, and keeps its log for another"
                )
    size = sum(path.stat().st_size for path in written)
    new = f"{count(len(written), 'new segment')} of {size:,} bytes"
    say(f"pool {place.keys.pool}: {new}; archived up to event {segments.last_id()}")


def _remedy(log: EventLog) -> str:
    """What to do where allocators cannot take up the log, or what the next one will do."""
    from spoke.errors import LogError
    from spoke.events.takeup import take_up

    try:
        strays = take_up(log).strays
    except LogError as error:
        return str(error)
    names = ", ".join(stray.id for stray in strays)
    return f"the allocator that next takes up the log takes out, and records: {names}" if strays else ""


def report_document(report: Report, pool: str) -> dict[str, Any]:
    """What ``verify`` found, as a document."""
    return {
        "pool": pool,
        "ok": report.ok,
        "events": report.events,
        "first_id": report.first_id,
        "last_id": report.last_id,
        "last_hash": report.last_hash,
        "first_bad": report.first_bad,
        "counts": dict(sorted(report.counts.items())),
        "checked": [name for name, _ in CHECKED],
        "problems": report.problems,
    }


def _show_report(report: Report, pool: str) -> None:
    if not report.events and not report.problems:
        say(f"The log of pool {pool} is empty: there is nothing to check (or is it another pool?)")
        return
    say(f"pool {pool}: {count(report.events, 'event')}" + (_span(report) if report.events else ""))
    if report.counts:
        table(("event", ">count"), ((name, f"{number:,}") for name, number in sorted(report.counts.items())))
    state = report.state
    held = sum(len(node.spec.gpus) - node.free.gpus for node in state.nodes.values())
    say(
        f"now: {count(len(state.nodes), 'node')}, {count(len(state.tickets), 'ticket')} "
        f"({len(state.queue)} waiting), {count(held, 'GPU')} in use, {count(len(state.clients), 'client')}"
    )
    for name, words in CHECKED:
        broken = sum(name in problem for problem in report.problems)
        say(f"  {name:8}  {words}" + (f": BROKEN {count(broken, 'time')}" if broken else ""))
    for problem in report.problems:
        say(clean(problem), style="red")
    if report.last_hash:
        say(f"the chain ends with {report.last_hash} at event {report.last_id}: note it elsewhere, for --anchor")
    if report.ok:
        say("ok: every invariant holds", style="green")
    else:
        first = f", first at event {report.first_bad}" if report.first_bad else ""
        say(f"not ok: {count(len(report.problems), 'problem')}{first}", style="red")


def _span(report: Report) -> str:
    begin, end = (f"{name} ({iso_time(ms_of(name))})" for name in (report.first_id, report.last_id))
    return f", from {begin} to {end}"


def replay(
    until: Until = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Show what changed from one event or time to another instead."),
    ] = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """Show the pool as it was at a moment of the past (default: as it is now), folded from the log alone."""
    from spoke.cli.moments import last_id_at

    choose_one({"--until": until, "--diff": diff})
    with past(archive, offline, url, pool) as found:
        if diff is not None:
            document = diff_document(found.log, *diff, found.pool)
        else:
            state = state_at(found.log, "+" if until is None else last_id_at(until))
            document = state_document(state, found.pool) if json else {}
    if json:
        write_json(document)
    elif diff is not None:
        show_diff(document)
    else:
        _show_state(state, found.pool)


def state_document(state: PoolState, pool: str) -> dict[str, Any]:
    """A folded state as a document."""
    from spoke.cli.pool import status_document
    from spoke.cli.views import status_of_state

    ms = ms_of(state.last_id)
    return {
        "last_id": state.last_id,
        "time": iso_time(ms) if ms else "",
        "epoch": state.epoch,
        **status_document(status_of_state(state, pool)),
        "queue": state.queue,
        "clients": sorted(state.clients),
    }


def _show_state(state: PoolState, pool: str) -> None:
    from spoke.cli.views import node_table, status_of_state, ticket_table

    ms = ms_of(state.last_id)
    if not ms:
        say(f"pool {pool} before its first event: nothing has happened yet")
        return
    found = status_of_state(state, pool)
    say(f"pool {pool} after event {state.last_id} ({local_time(ms)})")
    say(f"allocator {clean(state.allocator) or 'none'}, epoch {state.epoch}")
    live = sum(ticket.state != "queued" for ticket in found.tickets)
    say(
        f"{count(len(found.nodes), 'node')}, {found.gpus_free} of {found.gpus} GPUs free, "
        f"{count(live, 'live ticket')}, {len(state.queue)} waiting, {count(len(state.clients), 'client')}"
    )
    if found.nodes:
        node_table(found.nodes)
    if found.tickets:
        ticket_table(found.tickets, now_s=ms / 1000)


for _name, _command in (
    ("replay", replay),
    ("verify", verify),
    ("history", history),
    ("usage", usage),
    ("query", query),
    ("what-if", what_if),
    ("export", export),
    ("archive", archive),
    ("restore", restore),
    ("strike", strike),
):
    app.command(_name)(_command)
