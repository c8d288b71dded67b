"""Line charts as SVG, by hand: no library is needed to look at figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 260, 58, 92, 34, 40
COLOURS = ("#1f5fa8", "#c2571a", "#2e8b57", "#8a3ea8", "#555555")


def line_chart(
    title: str, across: str, up: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, log: bool = False
) -> str:
    """A chart with one line for each name. ``log``: the upward axis is logarithmic, from 1 on."""
    points = [point for line in lines.values() for point in line]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top = max(1.0, *(y for _, y in points))

    def x_at(x: float) -> float:
        return LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        part = math.log10(max(1.0, y)) / math.log10(max(10.0, top)) if log else y / top
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    ticks = [10.0**n for n in range(int(math.log10(max(10.0, top))) + 1)] if log else [top * n / 4 for n in range(5)]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in ticks:
        y = y_at(tick)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:,.0f} {escape(up)}</text>')
    for x in sorted({x for x, _ in points}):
        out.append(f'<text x="{x_at(x):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{x:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 7}" text-anchor="middle">{escape(across)}</text>')
    for at, (name, line) in enumerate(lines.items()):
        colour = COLOURS[at % len(COLOURS)]
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 14 + 16 * at}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
