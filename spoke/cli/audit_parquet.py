"""Events as columns of Arrow: what `spoke audit export --format parquet` writes and `spoke audit query` asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from spoke.events.log import EventLog, RawEntry

ROWS_AT_ONCE = 10_000
BATCHES_TOGETHER = 10
"""A row group of a file has so many times as many rows: larger ones take memory, smaller ones room."""
TEXTS = ("ticket_id", "client_id", "node_id", "actor_id", "reason")
"""Fields that many events have get columns of their own."""


@contextmanager
def needs_extra() -> Iterator[None]:
    """Say what to install where a package of the extra `audit` is missing."""
    from spoke.errors import InvalidRequest

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("pyarrow", "duckdb", "matplotlib", "numpy"):
            raise
        raise InvalidRequest(
            f'this needs the package {error.name}, which is not installed: pip install "spoke-scheduler[audit]"'
        ) from error


def schema() -> pa.Schema:
    """The columns of the events."""
    import pyarrow as pa

    head = [("id", pa.string()), ("ms", pa.int64()), ("time", pa.timestamp("ms")), ("type", pa.string())]
    texts = [(name, pa.string()) for name in TEXTS]
    return pa.schema([*head, *texts, ("rank", pa.int64()), ("fields", pa.string()), ("h", pa.string())])


def arrow_batches(log: EventLog, after: str, until: str) -> Iterator[pa.RecordBatch]:
    """The events between two ids, some thousand rows at a time."""
    import pyarrow as pa

    shape, entries = schema(), log.raw(after, until)
    while some := list(islice(entries, ROWS_AT_ONCE)):
        rows = [_row(entry) for entry in some]
        columns = zip(*rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, shape, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=shape)


def _row(entry: RawEntry) -> tuple[Any, ...]:
    """One event as a row."""
    import orjson

    from spoke.cli.events import event_document
    from spoke.events.chain import hash_of

    event_id, raw = entry
    fields = event_document(event_id, raw)
    ms, kind = fields.pop("ms"), str(fields.pop("type", ""))
    del fields["id"]
    texts = [str(fields[name]) if fields.get(name) else None for name in TEXTS]
    rank = fields.get("rank")
    return (
        *(event_id, ms, min(ms, _MS_MAX), kind, *texts, rank if type(rank) is int else None),
        *(orjson.dumps(fields).decode(), hash_of(raw) or None),
    )


_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def write_parquet(log: EventLog, after: str, until: str, path: Path) -> int:
    """Write the events to a Parquet file; how many there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written, some = 0, list[pa.RecordBatch]()
    with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
        for batch in arrow_batches(log, after, until):
            some.append(batch)
            written += batch.num_rows
            if len(some) == BATCHES_TOGETHER:
                writer.write_table(pa.Table.from_batches(some))
                some = []
        if some:
            writer.write_table(pa.Table.from_batches(some))
    return written
