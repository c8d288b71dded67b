"""``spoke ticket``: what operators do with tickets."""

from __future__ import annotations

from typing import Annotated

import typer

from spoke.cli.options import Pool, Ticket, Url
from spoke.cli.output import say

app = typer.Typer(
    no_args_is_help=True, help="Move waiting tickets in the line, change priorities, repair live tickets."
)
ANSWER_S = 30.0


@app.command("priority")
def priority(
    ticket: Ticket,
    number: Annotated[int, typer.Argument(metavar="N", help="The priority; the higher goes first.")],
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Give a ticket, waiting or live, another priority. Its owner may lower it. (Negative: after `--`.)"""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        changed = client.set_priority(ticket, number).result(ANSWER_S)
    say(f"{ticket} has priority {number}." if changed else f"{ticket} had priority {number} before.")


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


@app.command("repair")
def repair(
    ticket: Ticket,
    rank: Annotated[int, typer.Option("--rank", min=0, metavar="R", help="The failed member.")],
    elsewhere: Annotated[bool, typer.Option("--elsewhere", help="On another node only.")] = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Give a failed member of a live ticket another place: other GPUs of its node, or another node."""
    import spoke
    from spoke.cli.output import numbers

    with spoke.Client(url, pool=pool) as client:
        slot = client.gang_repair(ticket, rank, elsewhere=elsewhere).result(ANSWER_S)
    gpus = f", GPUs {numbers(slot.gpu_ids)}" if slot.gpu_ids else ""
    say(f"rank {rank} of {ticket} has its place on {slot.node_id} now{gpus}: it can be launched there.")
