"""A chart of who held which GPU, when: collected from the log, and written as a page, as SVG or as PNG."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from spoke.cli.output import iso_time, span
from spoke.events.ids import ms_of
from spoke.events.model import GPU_MILLI

if TYPE_CHECKING:
    from spoke.cli.timeline_bars import Bar
    from spoke.events.holdings import Holding
    from spoke.events.model import NodeSpec
    from spoke.events.state import PoolState
    from spoke.events.types import Recorded

BARS_MAX, PICTURE_BARS_MAX = 250_000, 100_000
"""Of a page, some 15 MB then, and of a picture."""
WIDTH, ROW, LEFT, TOP = 1200, 12, 140, 40
PARTS = 5
"""Of the time, each of which is named where it begins and ends."""
CELL_COLOUR = "#888"
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of tickets: neighbours in time differ most."""


@dataclass(slots=True)
class Chart:
    """``rows`` name GPUs; a bar is row, begin and end (ms), ticket, thousandths of the GPU, thousandths above it.

    What is too short for a bar in a chart of so many is drawn together: a cell is row, begin and end (ms), how many
    holdings began in it, and how many thousandths of the GPU they held. There are ``together`` of these holdings, each
    shorter than ``cell_ms``.
    """

    pool: str
    begin: int
    end: int
    rows: list[str] = field(default_factory=list)
    tickets: list[tuple[str, str, str, str]] = field(default_factory=list)
    bars: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    cells: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    cell_ms: int = 0
    together: int = 0

    @property
    def title(self) -> str:
        """What it shows."""
        return f"GPUs of pool {self.pool}, {iso_time(self.begin)} to {iso_time(self.end)}"

    @property
    def note(self) -> str:
        """What is not shown one by one; empty if everything is."""
        if not self.together:
            return ""
        return f"grey: {self.together:,} holdings shorter than {span(self.cell_ms)} each, drawn together"


def chart_of(
    pool: str, base: PoolState, events: Iterable[Recorded], begin_ms: int, end_ms: int, bars_max: int = BARS_MAX
) -> Chart:
    """The holdings between two times, in no more than so many bars."""
    from spoke.cli.timeline_bars import Bars
    from spoke.events import types as e
    from spoke.events.holdings import Holdings

    held, bars = Holdings(base), Bars(bars_max)

    def name(spec: NodeSpec) -> None:
        for gpu in spec.gpus:
            bars.gpu(spec.node_id, gpu.index)

    def keep(holdings: Iterable[Holding]) -> None:
        for h in holdings:
            if (h.end_ms or end_ms) > begin_ms and h.begin_ms < end_ms:
                bars.add(h, max(h.begin_ms, begin_ms), min(h.end_ms or end_ms, end_ms))

    for node in base.nodes.values():
        name(node.spec)
    begin_ms = max(begin_ms, ms_of(base.last_id))
    first_ms = 0
    for recorded in events:
        first_ms = first_ms or recorded.ms
        keep(held.take(recorded))
        if isinstance(recorded.event, e.NodeRegistered):
            name(recorded.event.spec)
    keep(held.open())
    begin_ms = begin_ms or first_ms
    chart = Chart(pool, begin_ms, max(end_ms, begin_ms + 1), cell_ms=bars.cell_ms, together=bars.together)
    order = sorted(bars.gpus)
    row_of = dict(zip((bars.gpus[gpu] for gpu in order), range(len(order)), strict=True))
    chart.rows = [f"{node_id}:{index}" for node_id, index in order]
    chart.bars = list(_stacked(chart, row_of, sorted(bars.bars)))
    chart.cells = [(row_of[gpu], *rest) for gpu, *rest in bars.shown(chart.begin, chart.end)]  # type: ignore[misc]
    return chart


def _stacked(chart: Chart, row_of: dict[int, int], bars: list[Bar]) -> Iterator[tuple[int, int, int, int, int, int]]:
    """The bars with their tickets, shares of a GPU one on another."""
    tickets = dict[str, int]()
    shared = dict[int, list[tuple[int, int, int]]]()  # row -> end, from, to of the shares that are held
    for bar in bars:
        ticket = tickets.setdefault(bar.ticket_id, len(tickets))
        if ticket == len(chart.tickets):
            chart.tickets.append((bar.ticket_id, bar.name, bar.user, bar.reason))
        row, end, milli = row_of[bar.gpu], bar.end, bar.milli
        above = 0
        if milli < GPU_MILLI:
            live = sorted((s for s in shared.get(row, ()) if s[0] > bar.begin), key=lambda s: s[1])
            for _, low, high in live:
                if low - above >= milli:
                    break
                above = max(above, high)
            above = min(above, GPU_MILLI - milli)
            shared[row] = [*live, (end, above, above + milli)]
        yield row, bar.begin, end, ticket, milli, above


def html(chart: Chart) -> str:
    """A page of its own: it asks no network, and its content policy lets nothing else run."""
    import orjson

    parts = files("spoke.cli")
    script, style = (parts.joinpath(name).read_text() for name in ("timeline.js", "timeline.css"))
    longest = max((bar[2] - bar[1] for bar in chart.bars), default=0)
    data = orjson.dumps(
        {
            "begin": chart.begin,
            "end": chart.end,
            "longest": longest,
            "rows": chart.rows,
            "tickets": chart.tickets,
            "bars": chart.bars,
            "cells": chart.cells,
            "cell_ms": chart.cell_ms,
        }
    ).decode()
    data = data.replace("<", "\\u003c")  # a name in the log must not end the element
    hint = f"{chart.note}; a shorter range shows and filters each" if chart.note else ""
    note = f'<span id="note">{escape(hint)}</span>\n' if hint else ""
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><title>{escape(chart.title)}</title>
<style>{style}</style></head>
<body><header><h1>{escape(chart.title)}</h1>
<input id="filter" type="search" placeholder="ticket, name, user or GPU" aria-label="filter"><span id="count"></span>
<button id="reset">All</button>
{note}<span class="help">wheel: zoom; drag: move; wheel with shift, or over the names: scroll</span></header>
<canvas id="chart" tabindex="0"></canvas><div id="tip" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script></body></html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def svg(chart: Chart) -> Iterator[str]:
    """A picture for reports, in pieces."""
    height = TOP + ROW * len(chart.rows) + 20
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="9">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="4" y="14" font-size="13">{escape(chart.title)}</text>\n'
    )
    if chart.note:
        yield f'<text x="{WIDTH - 4}" y="14" text-anchor="end">{escape(chart.note)}</text>\n'
    for row, name in enumerate(chart.rows):
        y = TOP + row * ROW
        yield f'<text x="4" y="{y + 9}">{escape(name)}</text>'
        yield f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT}" height="{ROW - 1}" fill="#f2f2f2"/>\n'
    scale = (WIDTH - LEFT) / (chart.end - chart.begin)
    for row, begin, end, count, milli in chart.cells:
        x, high = LEFT + (begin - chart.begin) * scale, (ROW - 1) * milli / 1000
        top, wide = TOP + row * ROW + ROW - 1 - high, max(0.2, (end - begin) * scale)
        yield (
            f'<rect x="{x:.2f}" y="{top:.2f}" width="{wide:.2f}" '
            f'height="{high:.2f}" fill="{CELL_COLOUR}"><title>{count} began</title></rect>\n'
        )
    for row, begin, end, ticket, milli, above in chart.bars:
        x, top = LEFT + (begin - chart.begin) * scale, TOP + row * ROW + (ROW - 1) * above / 1000
        hue = ticket * GOLDEN_ANGLE % 360
        title = escape(" ".join(filter(None, chart.tickets[ticket][:3])))
        yield (
            f'<rect x="{x:.2f}" y="{top:.2f}" width="{max(0.2, (end - begin) * scale):.2f}" '
            f'height="{(ROW - 1) * milli / 1000:.2f}" fill="hsl({hue:.0f},62%,48%)"><title>{title}</title></rect>\n'
        )
    for part, ms in enumerate(_moments(chart)):
        anchor = "end" if part == PARTS else "start"
        place = LEFT + (WIDTH - LEFT) * part / PARTS
        yield f'<text x="{place:.0f}" y="{TOP - 6}" text-anchor="{anchor}">{escape(iso_time(ms)[:19])}</text>\n'
    yield "</svg>\n"


def _moments(chart: Chart) -> Iterator[int]:
    """What a picture names of the time, in ms."""
    for part in range(PARTS + 1):
        yield chart.begin + (chart.end - chart.begin) * part // PARTS


def png(chart: Chart, path: Path) -> None:
    """The same as a bitmap, by matplotlib."""
    from colorsys import hls_to_rgb

    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    rows = max(1, len(chart.rows))
    figure = Figure(figsize=(12, min(60.0, 1.2 + rows * 0.16)), dpi=120, layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    least = (chart.end - chart.begin) / 1e6  # seconds: a bar that is thinner than a pixel would be left out
    seconds = [
        (x0, max(x0 + least, (end - chart.begin) / 1000))
        for x0, end in (((begin - chart.begin) / 1000, end) for _, begin, end, *_ in chart.bars)
    ]
    boxes, colours = [], []
    for row, begin, end, _, milli in chart.cells:
        x0, x1 = (begin - chart.begin) / 1000, (end - chart.begin) / 1000
        low = row + 0.92 - milli / 1000 * 0.92
        boxes.append([(x0, low), (x1, low), (x1, row + 0.92), (x0, row + 0.92)])
        colours.append((0.53, 0.53, 0.53))
    for (row, _, _, ticket, milli, above), (x0, x1) in zip(chart.bars, seconds, strict=True):
        low = row + above / 1000
        high = low + milli / 1000 * 0.92
        boxes.append([(x0, low), (x1, low), (x1, high), (x0, high)])
        colours.append(hls_to_rgb(ticket * GOLDEN_ANGLE % 360 / 360, 0.48, 0.62))
    axes.add_collection(PolyCollection(boxes, facecolors=colours, linewidths=0))
    axes.set_xlim(0, (chart.end - chart.begin) / 1000)
    axes.set_ylim(rows, 0)
    step = max(1, rows // 200)
    axes.set_yticks([row + 0.5 for row in range(0, len(chart.rows), step)], chart.rows[::step], fontsize=6)
    moments = list(_moments(chart))
    axes.set_xticks([(ms - chart.begin) / 1000 for ms in moments], [iso_time(ms)[:19] for ms in moments], fontsize=7)
    axes.set_title(f"{chart.title}\n{chart.note}".strip(), fontsize=10)
    with mpl.rc_context({"text.parse_math": False}):
        figure.savefig(path, format="png")
