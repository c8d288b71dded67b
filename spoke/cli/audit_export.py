"""``spoke audit export``: the log as JSON lines or Parquet, for other tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from spoke.cli.options import Pool, Url
from spoke.cli.output import complain, count
from spoke.cli.past import ArchiveDir, Offline, Since, Until, bounds, past
from spoke.errors import InvalidRequest

if TYPE_CHECKING:
    from spoke.events.log import EventLog


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here, all or nothing; .jsonl or .parquet says what it is."
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

    An event that this release cannot read has its fields as text, and `problem`. Parquet has the columns of `query`,
    and needs the extra `audit`.
    """
    from spoke.cli.audit_parquet import needs_extra, write_parquet

    kind = format_of(output, ("jsonl", "parquet")) if output else ""
    after, end = bounds(since, until)
    with past(archive, offline, url, pool, prints=output is None) as found:
        if output is None:
            written = _write_lines(found.log, after, end, sys.stdout)
        else:
            with whole(output) as part, needs_extra():
                if kind == "parquet":
                    written = write_parquet(found.log, after, end, part)
                else:
                    with part.open("w", encoding="utf-8") as file:
                        written = _write_lines(found.log, after, end, file)
    complain(f"{count(written, 'event')} of pool {found.pool} exported")


def _write_lines(log: EventLog, after: str, end: str, file: IO[str]) -> int:
    import orjson

    from spoke.cli.audit_parquet import raw_of
    from spoke.cli.events import event_document, fields_json
    from spoke.errors import LogError
    from spoke.events.ids import ms_of

    written = 0
    for link in log.links(after, end):
        event = link.event
        if isinstance(event, LogError) or not link.h.isalnum():
            document = {**event_document(link.id, raw_of(link)), "h": link.h}
            line = orjson.dumps(document).decode()
        else:
            head = f'{{"id":"{link.id}","ms":{ms_of(link.id)},"type":"{event.TYPE}",'
            line = f'{head}{fields_json(event)[1:-1]},"h":"{link.h}"}}'
        file.write(line + "\n")
        written += 1
    return written


def format_of(output: Path, formats: Sequence[str]) -> str:
    """The format that a file's ending names; raises BadParameter."""
    kind = output.suffix.lower().lstrip(".")
    if kind not in formats:
        raise typer.BadParameter(
            f"{output} has none of the endings .{', .'.join(formats)}: name the file by its format"
        )
    return kind


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A name to write to; the file has its own when it is whole and on disk, and else what was there before stays."""
    part = output.with_name(output.name + ".part")
    if not output.parent.is_dir():
        raise InvalidRequest(f"{output} cannot be written: there is no folder {output.parent}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
