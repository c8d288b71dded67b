"""The log that the audit commands read: of a live pool, with its archive before it, or of an archive alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spoke.cli.options import opened
from spoke.events.ids import ms_of, order_of

if TYPE_CHECKING:
    from spoke.events.log import EventLog
    from spoke.events.state import PoolState

ArchiveDir = Annotated[
    Path | None,
    typer.Option("--archive", metavar="DIR", help="Begin with the segments that `spoke audit archive` wrote."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Read --archive alone: no server is asked.")]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="ID|TIME",
        help="Only what came after this event, or since a time (2026-01-31T12:00, local; 10m: ago).",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(metavar="ID|TIME", help="The last event to take in, or a time (2026-01-31T12:00, local; 10m: ago)."),
]
Csv = Annotated[bool, typer.Option("--csv", help="Comma-separated values.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


@dataclass(frozen=True, slots=True)
class Past:
    """A log and its pool. ``now_ms`` is the server's time, or that of the last event where there is no server."""

    log: EventLog
    pool: str
    now_ms: int

    def end_ms(self, end: str) -> int:
        """The time of the end that ``bounds`` gave: what still goes on is counted up to there."""
        return self.now_ms if end == "+" else min(self.now_ms, ms_of(end))


@contextmanager
def past(
    archive: Path | None, offline: bool, url: str | None, pool: str | None, *, prints: bool = False
) -> Iterator[Past]:
    """Open what the options name, and show how far it is read (``prints``: if the command does not). SpokeError."""
    from spoke.cli.progress import shown
    from spoke.events.archive import Archive
    from spoke.events.archived import ArchivedLog, StoredLog
    from spoke.protocol.url import resolve_pool

    if offline:
        if archive is None:
            raise typer.BadParameter("--offline reads an archive: name its folder with --archive")
        name = resolve_pool(pool)
        stored = StoredLog(Archive(archive, name))
        with shown(stored, prints=prints) as log:
            yield Past(log, name, ms_of(stored.last_id()))
        return
    with opened(url, pool) as place:
        name = place.keys.pool
        found = place.log if archive is None else ArchivedLog(place.log, Archive(archive, name))
        seconds, micros = place.redis.time()
        with shown(found, prints=prints) as log:
            yield Past(log, name, seconds * 1000 + micros // 1000)


def choose_one(given: Mapping[str, object]) -> None:
    """Refuse options that each ask for something else; raises BadParameter."""
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise typer.BadParameter(f"{' and '.join(names)} were given: choose one of them")


def bounds(since: str | None, until: str | None) -> tuple[str, str]:
    """The event ids that the options name: after the first, up to and including the second."""
    from spoke.cli.moments import id_before, last_id_at

    return id_before(since) if since else "0-0", last_id_at(until) if until else "+"


def state_at(log: EventLog, until: str) -> PoolState:
    """The state after the last event up to ``until``; raises LogError if the log does not reach back so far."""
    from spoke.events.entries import end_of
    from spoke.events.log import TrimmedLog

    base = log.base().last_id
    if until != "+" and end_of(until) < order_of(base):
        raise TrimmedLog(
            f"the state at {until} was asked for, but the log was trimmed and reaches back to {base} only: ask for a "
            f"later moment"
        )
    return log.replay(until)
