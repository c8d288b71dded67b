"""``spoke key``: a pool's master key, and the keys of users, administrators and nodes that follow from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from spoke.cli.output import say

app = typer.Typer(no_args_is_help=True, help="Keys with which users and nodes sign their requests.")


@app.command("init")
def init(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; it must not exist.")]) -> None:
    """Make a master key. Give it to the allocators (--keys FILE) and to nobody else."""
    from spoke.protocol.identity import new_master

    new_master(file)
    say(f"A new master key is in {file}. Start the allocators with --keys {file}; make keys with `spoke key issue`.")


@app.command("issue")
def issue(
    kind: Annotated[str, typer.Argument(metavar="user|operator|admin|node", help="What the key is for.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The user, or the node's id (* for any node).")],
    keys: Annotated[Path, typer.Option("--keys", metavar="FILE", help="The file with the master key.")],
) -> None:
    """Print the key of one user, operator, administrator or node. It is the same each time, while the master is."""
    from spoke.protocol.identity import issue as make
    from spoke.protocol.identity import read_masters

    sys.stdout.write(make(read_masters(keys)[0], kind, name).text + "\n")
