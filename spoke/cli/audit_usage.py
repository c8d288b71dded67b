"""``spoke audit usage``: GPU-hours by user, project, node or ticket, as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.audit_export import format_of, whole
from spoke.cli.audit_parquet import ROWS_AT_ONCE, needs_extra
from spoke.cli.options import Pool, Url
from spoke.cli.output import cell, complain, count, iso_time, say, tables, write_json
from spoke.cli.past import ArchiveDir, Csv, JsonLines, Offline, Since, Until, bounds, choose_one, past
from spoke.events.ids import ms_of

if TYPE_CHECKING:
    from spoke.events.usage import Ledger, Usage


def usage(
    by: Annotated[str, typer.Option("--by", metavar="user|project|node|ticket", help="What each row is.")] = "user",
    since: Since = None,
    until: Until = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here, all or nothing; .csv or .parquet says what it is."
        ),
    ] = None,
    as_csv: Csv = False,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: JsonLines = False,
) -> None:
    """Add up GPU-hours: what was held, from allocation until free again, whether it was busy or not.

    Shares of a GPU count as such. What still goes on counts up to now (of an archive alone: up to its last event).
    Parquet needs the extra `audit`.
    """
    from typing import cast

    from spoke.cli.moments import last_id_at
    from spoke.events.holdings import TELLING
    from spoke.events.usage import BY, By, Ledger

    if by not in BY:
        raise typer.BadParameter(f"usage by {by!r} is not counted: choose one of {', '.join(BY)}")
    kind = format_of(output, ("csv", "parquet")) if output else ""
    choose_one({"--json": json, "--csv": as_csv, "--output": output})
    begin_ms = ms_of(last_id_at(since)) if since else 0
    _, end = bounds(None, until)
    with past(archive, offline, url, pool, prints=output is None and by == "ticket") as found:  # as tickets end
        base = found.log.start(str(max(0, begin_ms - 1)))  # what was held before counts from there on
        base_ms = ms_of(base.last_id)
        end_ms = found.end_ms(end)
        if base_ms > begin_ms:
            complain(f"the log reaches back to {iso_time(base_ms)} only: what was used before is missing (--archive)")
        ledger = Ledger(cast(By, by), begin_ms, end_ms)
        rows = ledger.rows(base, found.log.read(base.last_id, end, TELLING))
        if json:
            for row in rows:
                write_json(usage_document(row, by), indent=False)
        elif as_csv:
            _write_csv(rows, by, sys.stdout)
        elif output is None:
            _show(rows, ledger)
        else:
            with whole(output) as part, needs_extra():
                if kind == "parquet":
                    _write_parquet(rows, by, part)
                else:
                    with part.open("w", encoding="utf-8") as file:
                        _write_csv(rows, by, file)


def usage_document(usage: Usage, by: str) -> dict[str, Any]:
    """A row as a document; ``gpu_milli_ms`` and ``gpu_seconds`` are exact."""
    extra = (
        {"name": usage.title, "user": usage.user, "project": usage.project}
        if by == "ticket"
        else {"tickets": usage.tickets}
    )
    return {
        by: usage.key,
        **extra,
        "gpu_hours": round(usage.gpu_hours, 6),
        "gpu_seconds": usage.gpu_seconds,
        "gpu_milli_ms": usage.milli_ms,
    }


def _write_csv(rows: Iterable[Usage], by: str, file: IO[str]) -> None:
    from spoke.events.usage import Usage

    writer = csv.DictWriter(file, list(usage_document(Usage(""), by)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: cell(value) for name, value in usage_document(row, by).items()})


def _write_parquet(rows: Iterator[Usage], by: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from spoke.events.usage import Usage

    kinds = {"tickets": pa.int64(), "gpu_hours": pa.float64(), "gpu_milli_ms": pa.decimal128(38, 0)}
    shape = pa.schema([(name, kinds.get(name, pa.string())) for name in usage_document(Usage(""), by)])
    with pq.ParquetWriter(path, shape, compression="zstd") as writer:
        while some := [usage_document(row, by) for row in islice(rows, ROWS_AT_ONCE)]:
            columns = [pa.array([row[field.name] for row in some], field.type) for field in shape]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=shape))


def _show(rows: Iterator[Usage], ledger: Ledger) -> None:
    if ledger.by == "ticket":
        columns: tuple[str, ...] = ("ticket", "name", "user", ">GPU-hours", ">GPU-seconds")
        cells = ((r.key, r.title or "-", r.user or "-", f"{r.gpu_hours:,.3f}", r.gpu_seconds) for r in rows)
        tables(columns, cells)
    else:
        columns = (ledger.by, ">tickets", ">GPU-hours", ">GPU-seconds")
        tables(columns, ((r.key or "-", f"{r.tickets:,}", f"{r.gpu_hours:,.3f}", r.gpu_seconds) for r in rows))
    total = ledger.total
    when = (f"from {iso_time(ledger.begin_ms)} " if ledger.begin_ms else "") + f"to {iso_time(ledger.end_ms)}"
    say(f"total: {total.gpu_hours:,.3f} GPU-hours of {count(total.tickets, 'ticket')}, {when}")
