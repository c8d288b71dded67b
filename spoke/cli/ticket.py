"""``spoke ticket``: what operators do with tickets."""

from __future__ import annotations

from typing import Annotated

import typer

from spoke.cli.options import Pool, Ticket, Url
from spoke.cli.output import say

app = typer.Typer(no_args_is_help=True, help="Move waiting tickets in the line.")
ANSWER_S = 30.0


@app.command("move")
def move(
    ticket: Ticket,
    to: Annotated[str, typer.Option("--to", metavar="head|tail", help="Where in the line.")] = "head",
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Move a waiting ticket to the head of the line, or to its tail."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        client.move_ticket(ticket, to).result(ANSWER_S)  # type: ignore[arg-type]
    say(f"{ticket} is at the {to} of the line.")
