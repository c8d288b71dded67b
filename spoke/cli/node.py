"""``spoke node``: nodes in and out of service: cordon, uncordon, drain, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from spoke.cli.moments import parse_time, time_option
from spoke.cli.options import Pool, Url
from spoke.cli.output import complain, say

app = typer.Typer(no_args_is_help=True, help="Take nodes out of service and back: cordon, drain, uncordon, remove.")

Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's id; see `spoke nodes`.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; it is shown to whoever asks.")]
ANSWER_S = 30.0


@app.command("cordon")
def cordon(node: Node, reason: Reason = "", url: Url = None, pool: Pool = None) -> None:
    """Place nothing new on a node. It stays so when its agent starts anew, until `spoke node uncordon`."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        changed = client.cordon_node(node, reason).result(ANSWER_S)
    say(f"{node} is cordoned: nothing new is placed there." if changed else f"{node} was cordoned before.")


@app.command("uncordon")
def uncordon(node: Node, url: Url = None, pool: Pool = None) -> None:
    """Let a node have new slots again; a drain that is under way ends."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        changed = client.uncordon_node(node).result(ANSWER_S)
    say(f"{node} takes new slots again." if changed else f"{node} was not cordoned.")


@app.command("drain")
def drain(
    node: Node,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Release the tickets that are left after this time, like 90s, 10m, 2h."),
    ] = None,
    reason: Reason = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the node is drained.")] = True,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Cordon a node and wait until its tickets have gone. Their owners and actors are told at once.

    Ctrl-C ends the waiting, not the drain.
    """
    import spoke

    seconds = None if deadline is None else parse_time(deadline)
    with spoke.Client(url, pool=pool) as client:
        asked = client.drain_node(node, deadline=seconds, reason=reason, wait=wait)
        left = next((found.tickets for found in client.status().nodes if found.node_id == node), ())
        if wait and left:
            say(f"waiting for {', '.join(left)}: {node} takes nothing new.")
        try:
            begun = asked.result(None if wait else ANSWER_S)
        except KeyboardInterrupt:
            complain(f"{node} goes on being drained; `spoke node uncordon {node}` ends that")
            raise
    say(f"{node} is drained." if wait or not begun else f"{node} is being drained.")


@app.command("remove")
def remove(
    node: Node,
    force: Annotated[bool, typer.Option("--force", help="Release the tickets there first.")] = False,
    reason: Reason = "",
    timeout: Annotated[float, time_option("How long to wait for the end.", 120)] = 120.0,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Take an empty node out of the pool (or any, with --force); its agent ends. A cordon stays with its id."""
    import spoke

    with spoke.Client(url, pool=pool) as client:
        client.remove_node(node, force=force, reason=reason).result(timeout)
    say(f"{node} is removed.")
