"""What is there now: ``spoke status``, ``nodes``, ``tickets``; and ``release``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from spoke.cli.moments import time_option
from spoke.cli.options import Json, Opened, Pool, Ticket, Url, opened
from spoke.cli.output import clean, say, write_json

if TYPE_CHECKING:
    from spoke.client.status import PoolStatus


def status(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """Show the pool at a glance: its allocator, its nodes, its tickets."""
    from spoke.cli.views import node_table, ticket_table
    from spoke.client.status import read_status
    from spoke.protocol.url import mask_url

    with opened(url, pool) as place:
        found = read_status(place.redis, place.keys)
        where = mask_url(place.url)
    if json:
        write_json({"url": where, **status_document(found)})
        return
    for line in summary(found, where):
        say(clean(line))
    if found.nodes:
        node_table(found.nodes)
    if found.tickets:
        ticket_table(found.tickets)


def summary(found: PoolStatus, where: str) -> list[str]:
    """A pool in a few lines."""
    nodes = Counter(node.state for node in found.nodes)
    tickets = Counter(ticket.state for ticket in found.tickets)
    return [
        f"pool       {found.pool} at {where}",
        f"allocator  {found.allocator or f'none: start one with spoke allocator --pool {found.pool}'}",
        f"nodes      {_counted(nodes) or f'none: start one with spoke agent --pool {found.pool} --gpus auto'}",
        f"GPUs       {found.gpus_free} of {found.gpus} free",
        f"tickets    {_counted(tickets) or 'none'}",
    ]


def _counted(states: Counter[str]) -> str:
    return ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))


def status_document(found: PoolStatus) -> dict[str, Any]:
    """A pool as a document."""
    return {**asdict(found), "gpus": found.gpus, "gpus_free": found.gpus_free}


def nodes(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """List the nodes, and what is free on them."""
    from spoke.cli.views import show_nodes
    from spoke.client.status import read_status

    with opened(url, pool) as place:
        found = read_status(place.redis, place.keys).nodes
    if json:
        write_json([asdict(node) for node in found])
    else:
        show_nodes(found, place.keys.pool)


def tickets(
    ticket: Annotated[str | None, typer.Argument(metavar="[TICKET]", help="Show all of this one.")] = None,
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """List the tickets that are live or waiting; or show one of them, rank by rank."""
    from spoke.cli.views import show_ticket, show_tickets
    from spoke.client.status import read_status

    with opened(url, pool) as place:
        if ticket is not None:
            one = read_ticket(place, ticket)
        else:
            found = read_status(place.redis, place.keys).tickets
    if ticket is not None:
        if json:
            write_json(one)
        else:
            show_ticket(ticket, one)
    elif json:
        write_json([asdict(row) for row in found])
    else:
        show_tickets(found, place.keys.pool)


def find_ticket(place: Opened, ticket_id: str) -> dict[str, Any] | None:
    """All that the views have of a ticket; None for one that they do not have."""
    from spoke.cli.views import ticket_document
    from spoke.events.model import check_name

    check_name("the ticket id", ticket_id)
    raw = cast("dict[bytes, bytes]", place.redis.hgetall(place.keys.ticket(ticket_id)))
    return ticket_document(ticket_id, raw) if raw else None


def read_ticket(place: Opened, ticket_id: str) -> dict[str, Any]:
    """All of a ticket; raises UnknownTicket."""
    from spoke.errors import UnknownTicket

    found = find_ticket(place, ticket_id)
    if found is None:
        raise UnknownTicket(
            f"pool {place.keys.pool} shows no ticket {ticket_id}: it was never granted, or it ended more than an hour "
            f"ago. `spoke tickets` lists the live ones, `spoke log` has all that happened"
        )
    return found


def release(
    ticket: Ticket,
    url: Url = None,
    pool: Pool = None,
    timeout: Annotated[float, time_option("How long to wait for the end.", 60)] = 60.0,
) -> None:
    """Stop a ticket's actors and give its places back, whoever owns it; waits until all is confirmed free."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        if client.gang_release(ticket, timeout=timeout).result(timeout + 30.0):
            say(f"{ticket} is released: everything it held is free.")
        else:
            say(f"{ticket} had ended before.")
