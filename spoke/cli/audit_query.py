"""``spoke audit query``: SQL over the events, by DuckDB, in a process that can reach nothing else."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.audit_parquet import arrow_batches, needs_extra, schema
from spoke.cli.moments import time_option
from spoke.cli.options import Pool, Url
from spoke.cli.output import cell, tables, write_json
from spoke.cli.past import ArchiveDir, Csv, JsonLines, Offline, Since, Until, bounds, choose_one, past

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROWS_AT_ONCE = 1_000
QUOTE = "'"


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT over the view `events`.")],
    since: Since = None,
    until: Until = None,
    timeout: Annotated[float, time_option("Give up after so long.", 300)] = 300.0,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What DuckDB may use of memory; the rest goes to disk.")
    ] = "256MiB",
    as_csv: Csv = False,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: JsonLines = False,
) -> None:
    """Ask the log in SQL (DuckDB; install the extra `audit`).

    The view `events` has a row for each event: id, ms (since 1970), time (UTC), type, ticket_id, client_id, node_id,
    rank, actor_id, reason (null where an event has none), fields (JSON, all of them), and h, its hash in the chain.
    SQL can read nothing but this view: no files, no network, no extensions.
    """
    choose_one({"--json": json, "--csv": as_csv})
    after, end = bounds(since, until)
    with past(archive, offline, url, pool) as found, needs_extra():
        import pyarrow as pa

        reader = pa.RecordBatchReader.from_batches(schema(), arrow_batches(found.log, after, end))
        _run(sql, reader, timeout, memory, as_csv, json)


def _run(sql: str, events: Any, timeout: float, memory: str, as_csv: bool, json: bool) -> None:
    """Copy the events into a database of their own, lock it, and ask it: any log is read in bounded memory."""
    import duckdb

    from spoke.errors import InvalidRequest

    with TemporaryDirectory(prefix="spoke-query-") as folder:
        file = str(Path(folder, "events.duckdb"))
        try:
            with duckdb.connect(file, config={"memory_limit": memory}) as database:
                database.register("log", events)
                database.execute("CREATE TABLE events AS SELECT * FROM log")
            with duckdb.connect(file, read_only=True, config={"memory_limit": memory}) as database:
                _lock(database, folder)
                _ask(database, sql, timeout, as_csv, json)
        except duckdb.InterruptException:
            raise InvalidRequest(
                f"the query was stopped after {timeout:g} s: narrow it with --since and --until, or raise --timeout"
            ) from None
        except duckdb.OutOfMemoryException as error:
            raise InvalidRequest(
                f"the query needs more than {memory} of memory: narrow it with --since and --until, or raise --memory "
                f"({str(error).splitlines()[0]})"
            ) from None
        except duckdb.Error as error:
            raise InvalidRequest(f"the query failed: {error}") from None


def _lock(database: DuckDBPyConnection, folder: str) -> None:
    """From here SQL reaches no file, no network, no extension and no variable of this process."""
    database.execute(
        f"SET temp_directory = '{folder.replace(QUOTE, 2 * QUOTE)}'"
    )  # where large sorts go; before the rest
    database.execute("SET python_enable_replacements = false")
    database.execute("SET autoinstall_known_extensions = false")
    database.execute("SET autoload_known_extensions = false")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")


def _ask(database: DuckDBPyConnection, sql: str, timeout: float, as_csv: bool, json: bool) -> None:
    import duckdb

    from spoke.errors import InvalidRequest

    statements = database.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise InvalidRequest("one SELECT was expected: the log can be read, and nothing else")
    timer = Timer(timeout, database.interrupt)
    timer.daemon = True
    timer.start()
    try:
        database.execute(statements[0])
        names = [column[0] for column in database.description or ()]
        _write(names, _rows(database), as_csv, json)
    finally:
        timer.cancel()


def _rows(database: DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while some := database.fetchmany(ROWS_AT_ONCE):
        yield from some


def _write(names: list[str], rows: Iterator[tuple[Any, ...]], as_csv: bool, json: bool) -> None:
    if json:
        for row in rows:
            write_json(dict(zip(names, map(_plain, row), strict=True)), indent=False)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([cell(_plain(value)) for value in row] for row in rows)
    else:
        tables(names, ([_shown(value) for value in row] for row in rows))


def _plain(value: Any) -> Any:
    """A value as JSON and CSV know it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.isoformat()
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _shown(value: Any) -> str:
    return "-" if value is None else str(_plain(value))
