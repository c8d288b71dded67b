"""``spoke log``: what happened, an event a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.options import Opened, Pool, Url, opened
from spoke.cli.output import complain, write_json
from spoke.cli.past import Since

if TYPE_CHECKING:
    from spoke.events.entries import RawEntry

FOLLOW_SHOWS_FIRST = 10


def log(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events happen.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
    since: Since = None,
    limit: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the newest N of them.")] = None,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Show the event log, oldest first: id, local time, type, and what happened.

    With --follow and neither --since nor --limit it begins with the newest few.
    """
    from spoke.cli.events import event_document, event_line
    from spoke.cli.moments import id_before

    after = "0-0" if since is None else id_before(since)
    if follow and since is None and limit is None:
        limit = FOLLOW_SHOWS_FIRST
    shown = False
    with opened(url, pool) as place:
        for event_id, fields in _entries(place, after, limit, follow):
            shown = True
            if json:
                write_json(event_document(event_id, fields), indent=False)
            else:
                sys.stdout.write(event_line(event_id, fields) + "\n")
            if follow:
                sys.stdout.flush()
        if not shown and not json and since is None and limit != 0:
            complain(f"the log of pool {place.keys.pool} is empty: nothing has happened yet (or is it another pool?)")


def _entries(place: Opened, after: str, limit: int | None, follow: bool) -> Iterator[RawEntry]:
    if limit is None:
        past: Iterator[RawEntry] = place.log.raw(after)
    else:
        past = _newest(place, after, limit)
    for entry in past:
        after = entry[0]
        yield entry
    if follow:
        if limit == 0 and after == "0-0":
            after = "$"
        for found in place.log.follow(after):
            if found is not None:
                yield found


def _newest(place: Opened, after: str, limit: int) -> Iterator[RawEntry]:
    if limit:
        found: Any = place.redis.xrevrange(place.keys.events, "+", f"({after}", count=limit)
        for event_id, fields in reversed(found):
            yield event_id.decode(), fields
