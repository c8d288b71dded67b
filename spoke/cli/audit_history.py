"""``spoke audit history``: what became of one GPU, node, ticket, actor or client, and who held what of it, when."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.options import Pool, Url
from spoke.cli.output import complain, iso_time, local_time, numbers, span, tables, write_json
from spoke.cli.past import ArchiveDir, JsonLines, Offline, Since, Until, bounds, past

if TYPE_CHECKING:
    from spoke.events.history import Entry
    from spoke.events.holdings import Holding

COLUMNS = ("ticket", "name", "user", "client", "node", "gpus", "share", "ranks", "from", "to", ">for", "reason")


def history(
    kind: Annotated[str, typer.Argument(metavar="gpu|node|ticket|actor|client", help="What it is.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="Its id; a GPU's is NODE:INDEX, or its UUID.")],
    since: Since = None,
    until: Until = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: JsonLines = False,
) -> None:
    """Show what the log says of one thing: the events that name it, and who held its GPUs from when to when.

    A ticket holds a GPU from its allocation until the GPU is free for others, also while its node is lost.
    """
    from typing import cast

    from spoke.events.history import KINDS, Kind, asked_of
    from spoke.events.history import history as history_of

    if kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} has no history: it is one of {', '.join(KINDS)}")
    after, end = bounds(since, until)
    with past(archive, offline, url, pool, prints=True) as found:
        base = found.log.base()
        events = found.log.read(base.last_id, end, asked_of(cast(Kind, kind)))
        entries = history_of(base, events, cast(Kind, kind), name)
        now_ms = found.end_ms(end)
        shown = _show((entry for entry in entries if _is_after(entry, after)), now_ms, json)
        if base.last_id != "0-0":
            complain(f"the log reaches back to event {base.last_id} only; an archive may tell more (--archive)")
        if not shown:
            hint = "; name a GPU as NODE:INDEX or by its UUID" if kind == "gpu" else ""
            complain(f"nothing in the log of pool {found.pool} tells of {kind} {name}{hint}")


def _is_after(entry: Entry, after: str) -> bool:
    from spoke.events.holdings import Holding
    from spoke.events.ids import order_of

    if isinstance(entry, Holding):
        return not entry.end_id or order_of(entry.end_id) > order_of(after)
    return order_of(entry.id) > order_of(after)


def _show(entries: Iterator[Entry], now_ms: int, json: bool) -> bool:
    """Events as lines at once, holdings in tables of a bounded size; False if there was nothing."""
    from spoke.cli.events import recorded_document, recorded_line
    from spoke.events.holdings import Holding

    shown = False

    def holdings() -> Iterator[Holding]:
        nonlocal shown
        for entry in entries:
            shown = True
            if isinstance(entry, Holding):
                yield entry
            elif json:
                write_json({"is": "event", **recorded_document(entry)}, indent=False)
            else:
                sys.stdout.write(recorded_line(entry) + "\n")

    if json:
        for holding in holdings():
            write_json(holding_document(holding, now_ms), indent=False)
    else:
        tables(COLUMNS, _rows(holdings(), now_ms), spare=("client", "share", "name", "ranks", "for", "reason"))
    return shown


def holding_document(holding: Holding, now_ms: int) -> dict[str, Any]:
    """A rank's time on one GPU as a document; ``end`` is empty while it lasts."""
    end_ms = holding.end_ms or max(now_ms, holding.begin_ms)
    return {
        "is": "holding",
        "ticket_id": holding.ticket_id,
        "name": holding.name,
        "user": holding.user,
        "client_id": holding.client_id,
        "rank": holding.rank,
        "node_id": holding.node_id,
        "gpu": holding.gpu,
        "gpu_uuid": holding.gpu_uuid,
        "gpu_milli": holding.milli,
        "begin_id": holding.begin_id,
        "begin": iso_time(holding.begin_ms),
        "end_id": holding.end_id,
        "end": iso_time(holding.end_ms) if holding.end_id else "",
        "ms": end_ms - holding.begin_ms,
        "reason": holding.reason,
    }


def _rows(holdings: Iterator[Holding], now_ms: int) -> Iterator[tuple[str, ...]]:
    """One row for what a ticket held of a node, in equal shares, over the same time."""
    same = groupby(holdings, key=lambda h: (h.ticket_id, h.node_id, h.milli, h.begin_ms, h.end_id))
    for _, group in same:
        held = list(group)
        first = held[0]
        end_ms = first.end_ms or max(now_ms, first.begin_ms)
        yield (
            first.ticket_id,
            first.name or "-",
            first.user or "-",
            first.client_id,
            first.node_id,
            numbers({h.gpu for h in held}),
            f"{first.milli / 1000:g}",
            numbers({h.rank for h in held}),
            local_time(first.begin_ms) if first.begin_id else "before the log",
            local_time(first.end_ms) if first.end_id else "now",
            span(end_ms - first.begin_ms),
            first.reason or "-",
        )
