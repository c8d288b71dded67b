"""``spoke audit usage``: GPU-hours by user, node or ticket, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.options import Pool, Url
from spoke.cli.output import clean, complain, count, iso_time, say, tables, write_json
from spoke.cli.past import ArchiveDir, JsonLines, Offline, Since, Until, bounds, past

if TYPE_CHECKING:
    from spoke.events.usage import Ledger, Usage


def usage(
    by: Annotated[str, typer.Option("--by", metavar="user|node|ticket", help="What each row is.")] = "user",
    since: Since = None,
    until: Until = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, for spreadsheets.")] = False,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: JsonLines = False,
) -> None:
    """Add up GPU-hours: what was held, from allocation until free again, whether it was busy or not.

    Shares of a GPU count as such. What still goes on counts up to now (of an archive alone: up to its last event).
    """
    from typing import cast

    from spoke.cli.moments import last_id_at
    from spoke.events.usage import BY, By, Ledger

    if by not in BY:
        raise typer.BadParameter(f"usage by {by!r} is not counted: choose one of {', '.join(BY)}")
    if json and as_csv:
        raise typer.BadParameter("--json and --csv were given: choose one of them")
    begin_ms = int(last_id_at(since).partition("-")[0]) if since else 0
    _, end = bounds(None, until)
    with past(archive, offline, url, pool) as found:
        base = found.log.base()
        base_ms = int(base.last_id.partition("-")[0])
        end_ms = found.end_ms(end)
        if base_ms > begin_ms:
            complain(f"the log reaches back to {iso_time(base_ms)} only: what was used before is missing (--archive)")
        ledger = Ledger(cast(By, by), begin_ms, end_ms)
        rows = ledger.rows(base, found.log.read(base.last_id, end))
        if json:
            for row in rows:
                write_json(usage_document(row, by), indent=False)
        elif as_csv:
            _write_csv(rows, by)
        else:
            _show(rows, ledger)


def usage_document(usage: Usage, by: str) -> dict[str, Any]:
    """A row as a document; ``gpu_milli_ms`` and ``gpu_seconds`` are exact."""
    extra = {"name": usage.title, "user": usage.user} if by == "ticket" else {"tickets": usage.tickets}
    return {
        by: usage.key,
        **extra,
        "gpu_hours": round(usage.gpu_hours, 6),
        "gpu_seconds": usage.gpu_seconds,
        "gpu_milli_ms": usage.milli_ms,
    }


def _write_csv(rows: Iterable[Usage], by: str) -> None:
    from spoke.events.usage import Usage

    writer = csv.DictWriter(sys.stdout, list(usage_document(Usage(""), by)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in usage_document(row, by).items()})


def _cell(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula: users choose their names themselves."""
    if not isinstance(value, str):
        return value
    return "'" + clean(value) if value[:1] in ("=", "+", "-", "@") else clean(value)


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
