"""A board as plain values for a browser, and what is different from the one before. Pure."""

from __future__ import annotations

from typing import Any, Protocol

from spoke.cli.sight.board import Board

SECTIONS = ("nodes", "tickets", "queue", "actors", "events")


class Row(Protocol):
    """Any row of a board."""

    @property
    def key(self) -> str:
        """What the row stands for; there is one of it in its section."""


def changes(before: Board | None, after: Board) -> dict[str, Any]:
    """What to send to a browser that shows ``before`` (None: nothing yet).

    ``head`` are the board's own fields. A section that differs says which rows to ``set`` and which keys to ``drop``.
    """
    found: dict[str, Any] = {"head": head(after)}
    for name in SECTIONS:
        old = {} if before is None else _by_key(getattr(before, name))
        new = _by_key(getattr(after, name))
        put = [row for key, row in new.items() if old.get(key) != row]
        drop = [key for key in old if key not in new]
        if put or drop:
            found[name] = {"set": put, "drop": drop}
    return found


def head(board: Board) -> dict[str, Any]:
    """What a board says besides its rows."""
    names = ("pool", "last_id", "now_ms", "allocator", "epoch", "rate", "clients", "problem", "gpus", "gpus_free")
    return {name: getattr(board, name) for name in names}


def _by_key(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {row.key: row for row in rows}
