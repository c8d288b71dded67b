"""``spoke logs``: what a ticket's actors printed."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from spoke.cli.files import GrowingFile, Place, Prefixer, place_of, size_of, wants_colours
from spoke.cli.options import Opened, Pool, Ticket, Url, opened
from spoke.cli.output import complain

FOLLOW_S = 0.1
LOOK_EVERY_S = 1.0


def logs(
    ticket: Ticket,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank, without a prefix.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until its actors have ended.")] = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Show the output of a ticket's actors that ran on this machine; for the others, say where it is."""
    with opened(url, pool) as place:
        found, running = find_outputs(place, ticket, rank)
        if not found:
            complain(f"no actor of ticket {ticket} was launched yet")
        files = {where.rank: GrowingFile(where.path) for where in found if where.here}
        for where in found:
            if not where.here:
                complain(where.elsewhere)
            elif not follow and not running and not size_of(where.path):
                complain(f"rank {where.rank} printed nothing ({where.path})")
        prefixer = None if rank is not None else Prefixer(files, wants_colours(1))
        try:
            _print_all(files, prefixer)
            look_at_s = 0.0
            while follow and running:
                if time.monotonic() >= look_at_s:
                    _, running = find_outputs(place, ticket, rank)
                    look_at_s = time.monotonic() + LOOK_EVERY_S
                if running:
                    time.sleep(FOLLOW_S)
                _print_all(files, prefixer)
            for number, file in files.items():
                for line in file.rest():
                    _write(number, line, prefixer)
            sys.stdout.flush()
        finally:
            for file in files.values():
                file.close()


def find_outputs(place: Opened, ticket_id: str, rank: int | None) -> tuple[list[Place], bool]:
    """Where the output of each launched rank is, and whether one of them runs; raises UnknownTicket, RankOutOfRange."""
    from spoke.cli.pool import read_ticket
    from spoke.cli.views import RUNS
    from spoke.client.status import read_status
    from spoke.errors import RankOutOfRange

    ticket = read_ticket(place, ticket_id)
    ranks: list[dict[str, Any]] = ticket["ranks"]
    if rank is not None:
        chosen = [row for row in ranks if row["rank"] == rank]
        if not chosen:
            has = f"has ranks 0 to {len(ranks) - 1}" if ranks else f"is {ticket.get('state')} and has no ranks yet"
            raise RankOutOfRange(f"rank {rank} of ticket {ticket_id} was asked for, which {has}")
        ranks = chosen
    nodes = {node.node_id: node for node in read_status(place.redis, place.keys).nodes}
    launched = [row for row in ranks if row.get("actor")]
    found = [
        place_of(ticket_id, row["rank"], row["actor"], str(row.get("host", "")), nodes.get(row.get("node", "")))
        for row in launched
    ]
    return found, any(row.get("state") in RUNS for row in launched)


def _print_all(files: dict[int, GrowingFile], prefixer: Prefixer | None) -> None:
    for rank, file in files.items():
        for line in file.lines():
            _write(rank, line, prefixer)
    sys.stdout.flush()


def _write(rank: int, line: bytes, prefixer: Prefixer | None) -> None:
    sys.stdout.buffer.write(prefixer.line(rank, line) if prefixer else line + b"\n")
