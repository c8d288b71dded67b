"""``spoke gpu``: GPUs marked unhealthy, so that they are not given out, and healthy again."""

from __future__ import annotations

from typing import Annotated

import typer

from spoke.cli.node import ANSWER_S, Node, Reason
from spoke.cli.options import Pool, Url
from spoke.cli.output import say

app = typer.Typer(no_args_is_help=True, help="Mark GPUs unhealthy, so that they are not given out, or healthy again.")


@app.callback()
def _group() -> None:
    """Keep `mark` a command of its own, though it is the only one."""


@app.command("mark")
def mark(
    node: Node,
    index: Annotated[int, typer.Argument(min=0, metavar="INDEX", help="The GPU's physical index on the node.")],
    health: Annotated[str, typer.Argument(metavar="unhealthy|healthy", help="What it is from now on.")],
    reason: Reason = "",
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Mark a GPU by hand. Whoever holds it is told; what is said here stands until it is said otherwise here."""
    import spoke

    if health not in ("healthy", "unhealthy"):
        raise typer.BadParameter(f"a GPU is marked healthy or unhealthy, not {health!r}")
    with spoke.Client(url, pool=pool) as client:
        changed = client.mark_gpu(node, index, healthy=health == "healthy", reason=reason).result(ANSWER_S)
    after = "it is given out again" if health == "healthy" else "it is not given out any more"
    say(f"GPU {index} of {node} is {health}: {after}." if changed else f"GPU {index} of {node} was healthy before.")
