"""Events as columns of Arrow: what `spoke audit export -o FILE.parquet` writes and `spoke audit query` asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from spoke.events.entries import Link
    from spoke.events.log import EventLog

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

    shape, links = schema(), log.links(after, until)
    while some := list(islice(links, ROWS_AT_ONCE)):
        columns = zip(*map(_row, some), strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, shape, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=shape)


def _row(link: Link) -> tuple[Any, ...]:
    """One event as a row; of one that cannot be read, its fields as they stand."""
    from spoke.cli.events import event_document, fields_json
    from spoke.errors import LogError
    from spoke.events.ids import ms_of

    event, ms = link.event, ms_of(link.id)
    if isinstance(event, LogError):
        import orjson

        fields = event_document(link.id, raw_of(link))
        kind = str(fields.pop("type", ""))
        del fields["id"], fields["ms"]
        texts, rank = [str(fields[name]) if fields.get(name) else None for name in TEXTS], None
        shown = orjson.dumps(fields).decode()
    else:
        kind, shown, rank = event.TYPE, fields_json(event), getattr(event, "rank", None)
        texts = [getattr(event, name, None) or None for name in TEXTS]
    return link.id, ms, min(ms, _MS_MAX), kind, *texts, rank, shown, link.h or None


def raw_of(link: Link) -> dict[bytes, bytes]:
    """The fields of an entry as they stand, without its hash."""
    raw = [part if isinstance(part, bytes) else part.encode() for part in link.args]
    return dict(zip(raw[::2], raw[1::2], strict=True))


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
