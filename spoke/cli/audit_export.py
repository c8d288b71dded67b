"""``spoke audit export``: the log as JSON lines, for other tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from spoke.cli.options import Pool, Url
from spoke.cli.output import complain, count
from spoke.cli.past import ArchiveDir, Offline, Since, Until, bounds, past


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here instead of to standard output; all or nothing."
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Write the events as JSON lines: id, ms, type, v, the event's own fields, and h, its hash in the chain.

    An event that this release cannot read has its fields as text, and `problem`.
    """
    import orjson

    from spoke.cli.events import event_document
    from spoke.events.chain import hash_of

    after, end = bounds(since, until)
    written = 0
    with past(archive, offline, url, pool) as found, _opened(output) as file:
        for event_id, fields in found.log.raw(after, end):
            document = {**event_document(event_id, fields), "h": hash_of(fields)}
            file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE).decode())
            written += 1
    complain(f"{count(written, 'event')} of pool {found.pool} exported")


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    """The file, in place when it is whole; or standard output."""
    if output is None:
        yield sys.stdout
        return
    part = output.with_name(output.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
