"""``spoke timeline``: a Gantt of GPUs over time, as a page, SVG or PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spoke.cli.audit_export import format_of, whole
from spoke.cli.audit_parquet import needs_extra
from spoke.cli.options import Pool, Url
from spoke.cli.output import complain, count
from spoke.cli.past import ArchiveDir, Offline, Since, Until, bounds, past
from spoke.events.ids import ms_of


def timeline(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file: .html, .svg or .png says what it is.")
    ] = Path("timeline.html"),
    since: Since = None,
    until: Until = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Draw who held which GPU, and when, from the log.

    The page needs no network: zoom with the wheel, drag, filter by ticket, name, user or GPU. PNG needs the extra
    `audit`. Where there would be more bars than can be shown, the shortest are drawn together, in grey, and it says so.
    """
    from spoke.cli.moments import last_id_at
    from spoke.cli.timeline_chart import BARS_MAX, PICTURE_BARS_MAX, chart_of, html, png, svg
    from spoke.events.holdings import TELLING
    from spoke.events.types import NodeRegistered

    kind = format_of(output, ("html", "svg", "png"))
    bars_max = BARS_MAX if kind == "html" else PICTURE_BARS_MAX
    begin_ms = ms_of(last_id_at(since)) if since else 0
    _, end = bounds(None, until)
    with past(archive, offline, url, pool) as found:
        base = found.log.start(str(max(0, begin_ms - 1)))
        events = found.log.read(base.last_id, end, TELLING | {NodeRegistered})
        chart = chart_of(found.pool, base, events, begin_ms, found.end_ms(end), bars_max)
    with whole(output) as part, needs_extra():
        if kind == "png":
            png(chart, part)
        else:
            with part.open("w", encoding="utf-8") as file:
                file.writelines([html(chart)] if kind == "html" else svg(chart))
    complain(f"{output}: {count(len(chart.rows), 'GPU')}, {count(len(chart.tickets), 'ticket')}")
    if chart.note:
        complain(f"{chart.note}: a shorter range (--since, --until) shows each of them")
