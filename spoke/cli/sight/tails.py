"""The end of a ticket's output, followed: what `spoke top` and `spoke web` show beside everything else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from spoke.cli.options import opened
from spoke.cli.output import clean

LINES = 200
"""Lines of each rank that are shown at first."""
CHARACTERS_MAX = 4_000
"""Longer lines are cut."""
_STYLES = re.compile(r"\x1b(\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


@dataclass(frozen=True, slots=True)
class News:
    """What has come: lines with their ranks, and what is to be said of the output as a whole."""

    lines: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()


def follow_output(url: str | None, pool: str | None, ticket_id: str, rank: int | None) -> Iterator[News]:
    """The last lines of a ticket's ranks (or one of them), then what comes, until its actors have ended.

    About once a second there is something, if only an empty piece of news. Raises SpokeError. The next piece is asked
    for when the last one was taken, so whoever does not take any causes no traffic.
    """
    from spoke.client.logs.output import TicketOutput
    from spoke.client.logs.reading import Begin, LogReader
    from spoke.protocol.identity import find_key

    notes: list[str] = []
    with opened(url, pool) as place, closing(LogReader(place.url, place.keys.pool, find_key())) as reader:
        output = TicketOutput(
            place.redis, place.keys, reader, ticket_id, rank=rank, begin=Begin(tail=LINES), warn=notes.append
        )
        for batch in output.batches(follow=True):
            said, notes[:] = tuple(notes), []
            yield News(tuple((line.rank, plain(line.data)) for line in batch), said)
        if notes:
            yield News(notes=tuple(notes))


def plain(line: bytes) -> str:
    """A line as text to show: of a progress bar its last state, and nothing that a terminal would obey.

    >>> plain(b"10%" + bytes([13]) + b"20%"), plain(bytes([27]) + b"[31mred" + bytes([27]) + b"[0m")
    ('20%', 'red')
    """
    text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
    return clean(_STYLES.sub("", text).expandtabs())[:CHARACTERS_MAX]
