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

from spoke.cli.output import iso_time
from spoke.events.ids import ms_of

if TYPE_CHECKING:
    from spoke.events.holdings import Holding
    from spoke.events.state import PoolState
    from spoke.events.types import Recorded

BARS_MAX = 2_000_000
WIDTH, ROW, LEFT, TOP = 1200, 12, 140, 40
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of tickets: neighbours in time differ most."""


@dataclass(slots=True)
class Chart:
    """``rows`` name GPUs; a bar is row, begin and end (ms), ticket, thousandths of the GPU, thousandths above it."""

    pool: str
    begin: int
    end: int
    rows: list[str] = field(default_factory=list)
    tickets: list[tuple[str, str, str, str]] = field(default_factory=list)
    bars: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What it shows."""
        return f"GPUs of pool {self.pool}, {iso_time(self.begin)} to {iso_time(self.end)}"


def chart_of(pool: str, base: PoolState, events: Iterable[Recorded], begin_ms: int, end_ms: int) -> Chart:
    """The holdings between two times. Raises InvalidRequest for more than a page can show."""
    from spoke.errors import InvalidRequest
    from spoke.events import types as e
    from spoke.events.holdings import Holdings

    held, gpus = Holdings(base), dict[tuple[str, int], None]()
    for node in base.nodes.values():
        gpus.update(((node.spec.node_id, gpu.index), None) for gpu in node.spec.gpus)
    found: list[Holding] = []
    first_ms = 0

    def keep(holdings: Iterable[Holding]) -> None:
        found.extend(h for h in holdings if (h.end_ms or end_ms) > begin_ms and h.begin_ms < end_ms)
        if len(found) > BARS_MAX:
            raise InvalidRequest(
                f"the timeline would have more than {BARS_MAX:,} bars: take a shorter range with --since and --until"
            )

    for recorded in events:
        first_ms = first_ms or recorded.ms
        keep(held.take(recorded))
        if isinstance(recorded.event, e.NodeRegistered):
            spec = recorded.event.spec
            gpus.update(((spec.node_id, gpu.index), None) for gpu in spec.gpus)
    keep(held.open())
    gpus.update(((h.node_id, h.gpu), None) for h in found)
    begin_ms = max(begin_ms, ms_of(base.last_id) or first_ms)
    chart = Chart(pool, begin_ms, max(end_ms, begin_ms + 1))
    places = {gpu: row for row, gpu in enumerate(sorted(gpus))}
    chart.rows = [f"{node_id}:{index}" for node_id, index in places]
    chart.bars = list(_bars(chart, places, sorted(found, key=lambda h: (h.begin_ms, h.ticket_id, h.rank))))
    return chart


def _bars(
    chart: Chart, places: dict[tuple[str, int], int], found: list[Holding]
) -> Iterator[tuple[int, int, int, int, int, int]]:
    tickets = dict[str, int]()
    shared = dict[int, list[tuple[int, int, int]]]()  # row -> end, from, to of the shares that are held
    for h in found:
        ticket = tickets.setdefault(h.ticket_id, len(tickets))
        if ticket == len(chart.tickets):
            chart.tickets.append((h.ticket_id, h.name, h.user, h.reason))
        row, end = places[h.node_id, h.gpu], min(h.end_ms or chart.end, chart.end)
        above = 0
        if h.milli < 1_000:
            live = sorted((s for s in shared.get(row, ()) if s[0] > h.begin_ms), key=lambda s: s[1])
            for _, low, high in live:
                if low - above >= h.milli:
                    break
                above = max(above, high)
            above = min(above, 1_000 - h.milli)
            shared[row] = [*live, (end, above, above + h.milli)]
        yield row, max(h.begin_ms, chart.begin), end, ticket, h.milli, above


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
        }
    ).decode()
    data = data.replace("<", "\\u003c")  # a name in the log must not end the element
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><title>{escape(chart.title)}</title>
<style>{style}</style></head>
<body><header><h1>{escape(chart.title)}</h1>
<input id="filter" type="search" placeholder="ticket, name, user or GPU" aria-label="filter"><span id="count"></span>
<button id="reset">All</button>
<span class="help">wheel: zoom; drag: move; wheel with shift, or over the names: scroll</span></header>
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
    for row, name in enumerate(chart.rows):
        y = TOP + row * ROW
        yield f'<text x="4" y="{y + 9}">{escape(name)}</text>'
        yield f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT}" height="{ROW - 1}" fill="#f2f2f2"/>\n'
    scale = (WIDTH - LEFT) / (chart.end - chart.begin)
    for row, begin, end, ticket, milli, above in chart.bars:
        x, top = LEFT + (begin - chart.begin) * scale, TOP + row * ROW + (ROW - 1) * above / 1000
        hue = ticket * GOLDEN_ANGLE % 360
        title = escape(" ".join(filter(None, chart.tickets[ticket][:3])))
        yield (
            f'<rect x="{x:.2f}" y="{top:.2f}" width="{max(0.2, (end - begin) * scale):.2f}" '
            f'height="{(ROW - 1) * milli / 1000:.2f}" fill="hsl({hue:.0f},62%,48%)"><title>{title}</title></rect>\n'
        )
    for part in range(6):
        ms = chart.begin + (chart.end - chart.begin) * part // 5
        anchor = "end" if part == 5 else "start"
        place = LEFT + (WIDTH - LEFT) * part / 5
        yield f'<text x="{place:.0f}" y="{TOP - 6}" text-anchor="{anchor}">{escape(iso_time(ms)[:19])}</text>\n'
    yield "</svg>\n"


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
    seconds = [((b - chart.begin) / 1000, (end - chart.begin) / 1000) for _, b, end, *_ in chart.bars]
    boxes, colours = [], []
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
    axes.set_xlabel(f"seconds since {iso_time(chart.begin)}")
    axes.set_title(chart.title, fontsize=10)
    with mpl.rc_context({"text.parse_math": False}):
        figure.savefig(path, format="png")
