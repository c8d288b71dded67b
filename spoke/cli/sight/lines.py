"""A board as lines of styled text, for terminals: which columns there are, how wide, in which colours. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spoke.cli import output
from spoke.cli.output import age, clean, count, local_time, size
from spoke.cli.sight.board import ActorRow, Board, EventRow, GpuCell, NodeRow, TicketRow
from spoke.events.ids import ms_of
from spoke.events.state import ticket_number

View = Literal["nodes", "tickets", "queue", "actors", "events"]
Part = tuple[str, str]
"""A text and its style, as rich knows styles."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
COLOURS = (39, 208, 118, 199, 226, 51, 141, 203, 48, 215, 111, 177)
"""Of the 256 of nearly every terminal: bright ones, easy to tell apart on black, that carry black letters."""
CELLS_MAX = 64
WIDTH_MAX = 24

DIM = "bright_black"
BAD = "bold red"
STATE_STYLES = output.STATE_STYLES | {"stopping": "yellow", "lost": BAD, "start_failed": BAD}


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what it stands for, and its parts from left to right."""

    key: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The line without its colours."""
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True, slots=True)
class Listing:
    """A heading and the lines below it."""

    heading: str
    lines: tuple[Line, ...]


def mark_of(ticket_id: str) -> Part:
    """The letter and colour of a ticket: the same in its line and on the GPUs that it holds."""
    number = ticket_number(ticket_id) or 0
    return LETTERS[number % len(LETTERS)], f"black on color({COLOURS[number % len(COLOURS)]})"


def cell_part(cell: GpuCell) -> Part:
    """One GPU as one character; a shared one is underlined, an unhealthy one is ``!``, a free one ``·``."""
    if cell.kind == "free":
        return "·", DIM
    if cell.kind == "unhealthy":
        return "!", BAD
    letter, style = mark_of(cell.ticket)
    return (letter, f"{style} underline") if cell.kind == "shared" else (letter, style)


# --- the listings ------------------------------------------------------------------------------------------------


def listing(board: Board, view: View, wanted: str = "") -> Listing:
    """A view of the board: those rows in which ``wanted`` occurs, whatever the case."""
    return _VIEWS[view](board, wanted.casefold())


def _nodes(board: Board, wanted: str) -> Listing:
    rows = [row for row in board.nodes if _matches(wanted, row.key, row.state, row.host, row.remark, *row.tickets)]
    cells = min(CELLS_MAX, max((len(row.gpus) for row in rows), default=4))
    table = _Table(("node", "state", ">free", ">cpus", ">memory"), [_node_cells(row) for row in rows])
    head = f"{table.heading[0]}  {table.heading[1]}  {'gpus':{cells}}  {'  '.join(table.heading[2:])}  tickets"
    lines = []
    for row, (name, state, *amounts) in zip(rows, table.rows, strict=True):
        parts = [(name + "  ", ""), (state + "  ", STATE_STYLES.get(row.state, ""))]
        parts += _merged(cell_part(cell) for cell in row.gpus[:cells])
        parts.append((" " * (cells - min(cells, len(row.gpus))) + "  " + "  ".join(amounts) + "  ", ""))
        rest = clean(row.remark) if row.remark else " ".join(row.tickets)
        parts.append((rest, "yellow" if row.remark else DIM))
        lines.append(Line(row.key, tuple(parts)))
    return Listing(head, tuple(lines))


def _node_cells(row: NodeRow) -> tuple[str, ...]:
    return (row.key, row.state, str(row.gpus_free), f"{row.cpus_free:g}/{row.cpus:g}", _memory(row))


def _memory(row: NodeRow) -> str:
    return "/".join(size(number).replace(" ", "").removesuffix("iB") for number in (row.memory_free, row.memory))


def _tickets(board: Board, wanted: str) -> Listing:
    rows = [r for r in board.tickets if _matches(wanted, r.key, r.state, r.name, r.user, r.client, *r.nodes)]
    table = _Table(
        ("ticket", "state", ">age", "gang", "actors", "user", "name"),
        [
            (
                row.key,
                row.state,
                _age(board, row),
                row.gang,
                f"{row.running}/{row.actors}",
                row.user,
                row.name or "-",
            )
            for row in rows
        ],
    )
    lines = [
        Line(
            row.key,
            (
                mark_of(row.key),
                (" ", ""),
                *_styled(cells, 1, row.state),
                (clean(f"  {_places(row)}{f': {row.reason}' if row.reason else ''}"), DIM),
            ),
        )
        for row, cells in zip(rows, table.rows, strict=True)
    ]
    return Listing("  " + "  ".join(table.heading) + "  where", tuple(lines))


def _places(row: TicketRow) -> str:
    shown = " ".join(row.nodes[:8])
    more = f" +{len(row.nodes) - 8}" if len(row.nodes) > 8 else ""
    return shown + more + (" (detached)" if row.detached else "")


def _queue(board: Board, wanted: str) -> Listing:
    rows = [row for row in board.queue if _matches(wanted, row.key, row.name, row.user, row.client, row.reason)]
    table = _Table(
        (">place", "ticket", ">age", "gang", "per actor", "user", "name"),
        [(str(r.place), r.key, _age(board, r), r.gang, r.needs, r.user, r.name or "-") for r in rows],
    )
    lines = [
        Line(row.key, (("  ".join(cells) + "  ", ""), (clean(row.reason), "yellow")))
        for row, cells in zip(rows, table.rows, strict=True)
    ]
    return Listing("  ".join(table.heading) + "  why it waits", tuple(lines))


def _actors(board: Board, wanted: str) -> Listing:
    rows = [r for r in board.actors if _matches(wanted, r.ticket, r.node, r.state, r.actor, r.runs)]
    table = _Table(
        ("ticket", ">rank", "node", "gpus", "state", ">pid"),
        [(r.ticket, str(r.rank), r.node, r.gpus or "-", r.state, str(r.pid or "-")) for r in rows],
    )
    lines = [
        Line(
            row.key,
            (
                mark_of(row.ticket),
                (" ", ""),
                *_styled(cells, 4, row.state),
                (f"  {clean(row.end)}" if row.end else "", BAD if _failed(row) else DIM),
                (f"  {clean(row.actor)}: {clean(row.runs)}", DIM),
            ),
        )
        for row, cells in zip(rows, table.rows, strict=True)
    ]
    return Listing("  " + "  ".join(table.heading) + "  runs", tuple(lines))


def _failed(row: ActorRow) -> bool:
    return row.state in ("start_failed", "lost") or (row.state == "exited" and row.end != "code 0")


def _events(board: Board, wanted: str) -> Listing:
    rows = [row for row in board.events if _matches(wanted, row.key, row.type, row.text)]
    table = _Table(("time", "event"), [(_time(row), row.type) for row in rows])
    lines = [
        Line(row.key, (*_styled(cells, 1, ""), (f"  {clean(row.text)}", DIM)))
        for row, cells in zip(rows, table.rows, strict=True)
    ]
    return Listing("  ".join(table.heading), tuple(lines))


def _time(row: EventRow) -> str:
    return local_time(ms_of(row.key)).partition(" ")[2]


_VIEWS: dict[View, Callable[[Board, str], Listing]] = {
    "nodes": _nodes,
    "tickets": _tickets,
    "queue": _queue,
    "actors": _actors,
    "events": _events,
}


# --- the summary -------------------------------------------------------------------------------------------------


def summary(board: Board) -> tuple[tuple[Part, ...], ...]:
    """Three lines: who decides, what there is, and what is wrong (or what a GPU's character means)."""
    who: Part = (clean(board.allocator), "green") if board.allocator else ("none: nothing is decided", BAD)
    used = sum(cell.kind in ("held", "shared") for node in board.nodes for cell in node.gpus)
    out = sum(node.state != "up" for node in board.nodes)
    ill = sum(cell.kind == "unhealthy" for node in board.nodes for cell in node.gpus)
    first = (
        ("spoke top  ", "bold"),
        (f"pool {board.pool}  allocator ", ""),
        who,
        (f"  {board.rate:,.1f} events/s  {local_time(board.now_ms)[6:14] if board.now_ms else ''}", ""),
    )
    second = [(f"{count(len(board.nodes), 'node')}", "bold")]
    second += [(f" ({out:,} not in service)", "yellow")] if out else []
    second += [(f"  {used:,} of {count(board.gpus, 'GPU')} in use, {board.gpus_free:,} free", "")]
    second += [(f", {ill:,} unhealthy", BAD)] if ill else []
    second += [(f"  {count(len(board.tickets), 'ticket')}, {len(board.queue):,} waiting", "")]
    second += [(f"  {count(board.clients, 'client')}", "")]
    if board.problem:
        return first, tuple(second), ((clean(board.problem.splitlines()[0]), BAD),)
    legend: tuple[Part, ...] = (("A-z", ""), (" held  ", DIM), ("A", "underline"), (" shared  ", DIM), ("·", DIM))
    return first, tuple(second), (*legend, (" free  ", DIM), ("!", BAD), (" unhealthy", DIM))


# --- helpers -----------------------------------------------------------------------------------------------------


class _Table:
    """Columns padded to one width; names that begin with ``>`` stand to the right. Everything is cleaned."""

    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        rows = [[_cut(clean(cell)) for cell in row] for row in rows]
        heads = [name.lstrip(">") for name in names]
        widths = [max([len(head), *(len(row[at]) for row in rows)]) for at, head in enumerate(heads)]
        right = [name.startswith(">") for name in names]
        self.heading = _padded(heads, widths, right)
        self.rows = [_padded(row, widths, right) for row in rows]


def _padded(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH_MAX else text[: WIDTH_MAX - 1] + "…"


def _styled(cells: Sequence[str], at: int, state: str) -> list[Part]:
    """Padded cells as parts, with the state in its colour."""
    parts: list[Part] = [("  ".join(cells[:at]) + "  ", "")] if at else []
    parts.append((cells[at], STATE_STYLES.get(state, "")))
    return parts + ([("  " + "  ".join(cells[at + 1 :]), "")] if cells[at + 1 :] else [])


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one style drawn together: fewer bytes over a slow line."""
    found: list[Part] = []
    for text, style in parts:
        if found and found[-1][1] == style:
            found[-1] = (found[-1][0] + text, style)
        else:
            found.append((text, style))
    return found


def _age(board: Board, row: TicketRow) -> str:
    return age((board.now_ms - row.since_ms) / 1000)


def _matches(wanted: str, *texts: str) -> bool:
    return not wanted or any(wanted in text.casefold() for text in texts)
