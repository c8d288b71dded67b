"""Small HTML tables for notebooks: everything that is shown is escaped, and no library is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

ROWS_MAX = 200
"""A notebook keeps what it shows: more rows of a big pool are counted, not shown."""


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """A table with a line above it. Columns whose name begins with ``>`` stand to the right.

    >>> html_table(("n",), [("<b>",)], caption="a < b")[:61]
    '<p>a &lt; b</p><table><thead><tr><th>n</th></tr></thead><tbody>'
    """
    shown = list(rows)
    sides = ["right" if name.startswith(">") else "left" for name in columns]
    head = "".join(f"<th>{escape(name.lstrip('>'))}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:{side}">{escape(str(cell))}</td>' for side, cell in zip(sides, row, strict=True)
        )
        + "</tr>"
        for row in shown[:ROWS_MAX]
    )
    more = len(shown) - ROWS_MAX
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if shown else ""
    return html_line(caption) + table + (html_line(f"… and {more:,} more") if more > 0 else "")


def html_line(text: str) -> str:
    """A line of text; nothing for none."""
    return f"<p>{escape(text)}</p>" if text else ""
