"""How things are shown: tables for people, JSON for programs, and nothing that could steer a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160
FOLDED_WIDTH = 12
"""No cell is folded to less while there are columns to leave out."""
STATE_STYLES = {
    "up": "green",
    "active": "green",
    "running": "green",
    "allocated": "cyan",
    "launching": "cyan",
    "restarting": "yellow",
    "queued": "yellow",
    "cordoned": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "releasing": "yellow",
    "lost": "red",
    "start_failed": "red",
}


def console() -> Console:
    """The console for standard output as it is now; wide where nobody looks, so that nothing is cut off."""
    from rich.console import Console

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPE_WIDTH if wide else None, highlight=False, markup=False, emoji=False)


def clean(text: str) -> str:
    """The text on one line, with everything that a terminal would obey spelled out.

    >>> print(clean("a" + chr(27) + "[2J" + chr(10)))
    a\\x1b[2J\\n
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(text: str) -> None:
    """Say something on standard error, after the program's name; what follows the first line is indented."""
    lines = [clean(line) for line in text.splitlines()] or [""]
    print("spoke: " + "\n  ".join(lines), file=sys.stderr, flush=True)


def forget_output() -> None:
    """Nobody reads standard output any more: whatever is still written to it goes nowhere, without a word."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def write_json(value: Any, *, indent: bool = True) -> None:
    """One JSON document on standard output."""
    import orjson

    flags = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if indent else 0)
    sys.stdout.write(orjson.dumps(value, option=flags).decode())


def cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula: users choose their names themselves."""
    if not isinstance(value, str):
        return value
    return "'" + clean(value) if value[:1] in ("=", "+", "-", "@") and value != "-" else clean(value)


def say(text: str = "", style: str | None = None) -> None:
    """One line for people; long lines are the terminal's to wrap."""
    console().print(text, style=style, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", spare: Sequence[str] = ()) -> None:
    """A table for people. Columns whose name begins with ``>`` stand to the right; ``state`` has colours.

    On a terminal that is too narrow, columns are left out, those named in ``spare`` only, the first of them first.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names, cells = [name.lstrip(">") for name in columns], [list(map(clean, row)) for row in rows]
    left_out, fits = _left_out(names, cells, spare if sys.stdout.isatty() else (), console().width)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    kept = [at for at, name in enumerate(names) if name not in left_out]
    for at in kept:
        justify: Literal["left", "right"] = "right" if columns[at].startswith(">") else "left"
        one_word = not any(" " in row[at] for row in cells)
        shown.add_column(names[at], justify=justify, overflow="fold", no_wrap=fits and one_word)
    for row in cells:
        styles = (STATE_STYLES.get(row[at], "") if names[at] == "state" else "" for at in kept)
        shown.add_row(*(Text(row[at], style=style) for at, style in zip(kept, styles, strict=True)))
    console().print(shown)
    if left_out:
        say(f"not shown on a terminal this narrow: {', '.join(left_out)}", style="dim")


def _left_out(
    names: Sequence[str], cells: Sequence[Sequence[str]], spare: Sequence[str], width: int
) -> tuple[list[str], bool]:
    """The columns to do without, so that of the others no word is folded; and whether that is so."""
    least = {}
    for name, *column in zip(names, *cells, strict=True):
        words = max((len(word) for cell in column for word in cell.split()), default=0)
        least[name] = max(len(name), words, min(FOLDED_WIDTH, max(map(len, column), default=0)))
    left_out: list[str] = []
    while not (fits := sum(least.values()) + 3 * (len(least) - 1) + 2 <= width) and len(left_out) < len(spare):
        left_out.append(spare[len(left_out)])
        del least[left_out[-1]]
    return left_out, fits


def tables(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, rows_max: int = 1_000, spare: Sequence[str] = ()
) -> None:
    """A table of any length in bounded memory: after ``rows_max`` rows another one begins."""
    rest = iter(rows)
    while some := list(islice(rest, rows_max)):
        if len(some) < rows_max or not _quick_table(columns, some):
            table(columns, some, spare=spare)


def _quick_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """The same as ``table`` in a hundredth of its time, for long listings; False where that would fold a cell."""
    names = [name.lstrip(">") for name in columns]
    cells = [list(map(clean, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    wide = sum(widths) + 3 * (len(widths) - 1) + 2
    if wide > console().width or not all(text.isascii() for row in cells for text in row):
        return False
    aligned = (f"{{:{'>' if name[:1] == '>' else '<'}{w}}}" for name, w in zip(columns, widths, strict=True))
    line, blank = f" {'   '.join(aligned)} \n", " " * wide + "\n"
    sys.stdout.write(f"{blank}{line.format(*names)} {'─' * (wide - 2)} \n")
    sys.stdout.writelines(line.format(*row) for row in cells)
    sys.stdout.write(blank)
    return True


def span(ms: int) -> str:
    """A time span in hours, minutes and seconds.

    >>> span(3_725_250), span(250)
    ('1:02:05.250', '0:00:00.250')
    """
    seconds, rest = divmod(ms, 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "node"), count(2, "node")
    ('1 node', '2 nodes')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(number: int) -> str:
    """A number of bytes.

    >>> size(0), size(3 << 30), size(1536)
    ('0', '3 GiB', '1.5 KiB')
    """
    value, units = float(number), ["", " KiB", " MiB", " GiB", " TiB", " PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g}{units[0]}"


def part_of(part: int, whole: int) -> str:
    """Bytes of so many bytes; a unit that both have is said once.

    >>> part_of(3 << 29, 3 << 30), part_of(512 << 20, 2 << 30)
    ('1.5 of 3 GiB', '512 MiB of 2 GiB')
    """
    first, last = size(part), size(whole)
    number, _, unit = first.partition(" ")
    return f"{number if unit == last.partition(' ')[2] else first} of {last}"


def duration(ms: int) -> str:
    """A time span in its greatest units, as options are written.

    >>> duration(86_400_000), duration(90_000), duration(250), duration(0)
    ('1d', '1m30s', '0.25s', '0s')
    """
    parts = []
    for unit, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        number, ms = divmod(ms, unit_ms)
        parts += [f"{number}{unit}"] if number else []
    return "".join(parts + ([f"{ms / 1000:g}s"] if ms or not parts else []))


def numbers(found: Iterable[int]) -> str:
    """Whole numbers, with runs drawn together.

    >>> numbers([0, 1, 2, 3, 5]), numbers([])
    ('0-3,5', '')
    """
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def age(seconds: float) -> str:
    """A time span in its greatest unit.

    >>> age(3.2), age(90), age(7200), age(200_000)
    ('3s', '1m', '2h', '2d')
    """
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"


def local_time(ms: int) -> str:
    """Milliseconds since 1970 as a local time of this year, to read; the event's id has it all."""
    try:
        moment = datetime.fromtimestamp(ms / 1000, UTC).astimezone()
    except (ValueError, OverflowError, OSError):  # an id that somebody made up
        return "?"
    return f"{moment:%m-%d %H:%M:%S}.{ms % 1000:03d}"


def iso_time(ms: int) -> str:
    """Milliseconds since 1970 as an ISO time in UTC; empty for one that no calendar has."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return ""


class Prefixer:
    """Puts the rank before each line, in a colour of its own where there are colours."""

    _COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)

    def __init__(self, ranks: Iterable[int], colours: bool) -> None:
        width = max((len(str(rank)) for rank in ranks), default=1)
        self._width, self._colours = width, colours

    def line(self, rank: int, line: bytes) -> bytes:
        """The line with its prefix and its end."""
        prefix = f"[{rank:{self._width}}]"
        if self._colours:
            prefix = f"\x1b[{self._COLOURS[rank % len(self._COLOURS)]}m{prefix}\x1b[0m"
        return prefix.encode() + b" " + line + b"\n"


def wants_colours(fd: int) -> bool:
    """Whether colours are welcome there."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or os.isatty(fd)
