"""``spoke logs``: what a ticket's actors printed, wherever they ran."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from spoke.cli.options import Pool, Ticket, Url, opened
from spoke.cli.output import Prefixer, complain, wants_colours
from spoke.errors import InvalidRequest

if TYPE_CHECKING:
    from spoke.client.logs.reading import Begin


def logs(
    ticket: Ticket,
    rank: Annotated[int | None, typer.Option(min=0, metavar="R", help="Only this rank, without a prefix.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until its actors have ended.")] = False,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only what was printed since (2026-01-31T12:00, local; 10m: ago).")
    ] = "",
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", min=0, max=10_000, metavar="N", help="Only the last lines of each rank."),
    ] = None,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Show the output of a ticket's actors, also after their end; it is read from the agents of their nodes.

    In a pool with signed requests, SPOKE_KEY or SPOKE_KEY_FILE must hold the key of the user whose ticket it is.
    """
    from contextlib import closing

    from spoke.client.logs.output import TicketOutput
    from spoke.client.logs.reading import LogReader
    from spoke.events.names import check_name
    from spoke.protocol.identity import find_key

    check_name("the ticket id", ticket)
    begin = beginning(since, tail)
    with opened(url, pool) as place, closing(LogReader(place.url, place.keys.pool, find_key())) as reader:
        output = TicketOutput(place.redis, place.keys, reader, ticket, rank=rank, begin=begin, warn=complain)
        if not output.ranks and not output.failed:
            complain(f"no actor of ticket {ticket} was launched yet")
        prefixer = None if rank is not None else Prefixer(output.ranks, wants_colours(1))
        printed: set[int] = set()
        for batch in output.batches(follow=follow):
            for line in batch:
                printed.add(line.rank)
                sys.stdout.buffer.write(prefixer.line(line.rank, line.data) if prefixer else line.data + b"\n")
            sys.stdout.flush()
        if not since and tail is None:
            for silent in (number for number in output.ranks if number not in printed):
                complain(f"rank {silent} printed nothing")
    if output.failed:
        raise typer.Exit(1)


def beginning(since: str, tail: int | None) -> Begin:
    """Where to begin; raises InvalidRequest."""
    from spoke.cli.moments import parse_ago, parse_moment
    from spoke.client.logs.reading import Begin

    if tail is not None and since:
        raise InvalidRequest("--since and --tail were both given: choose one of them")
    if tail is not None:
        return Begin(tail=tail)
    if not since:
        return Begin()
    ago_s = parse_ago(since)
    if ago_s is not None:
        return Begin(age_ms=round(ago_s * 1000))
    try:
        return Begin(since_ms=parse_moment(since))
    except InvalidRequest:
        raise InvalidRequest(
            f"--since {since!r} is neither a time span (10m) nor a time (2026-01-31T12:00:00)"
        ) from None
