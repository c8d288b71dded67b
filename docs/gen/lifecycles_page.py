"""The life cycles as diagrams, from the tables that fold consults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from prose import NOTE, markdown

from spoke.events import lifecycle

TICKETS = """A ticket is a gang from its request to its end. It holds its GPUs while it is {holding}. A
`gang.released` that is not final frees some of its nodes and leaves it `releasing`; the final one ends it."""
ACTORS = """An actor is the process in a slot. It may hold its GPUs while it is {alive}. A rank whose actor has ended
can be launched again."""
NODES = """A node takes new slots while it is `up`. One that was lost comes back by registering; what live tickets hold
on it stays theirs. A cordon belongs to the node's id: a node that registers under a cordoned id is `cordoned`,
`draining` or `drained` at once, as it was before."""


def render() -> str:
    """The page."""
    tickets = TICKETS.format(holding=_list(lifecycle.TICKET_HOLDS_GPUS, lifecycle.TICKET))
    actors = ACTORS.format(alive=_list(lifecycle.ACTOR_ALIVE, lifecycle.ACTOR))
    intro = markdown((lifecycle.__doc__ or "").strip())
    return "\n".join(
        [
            NOTE.format(source="spoke/events/lifecycle.py"),
            f"# Life cycles\n\n{intro}\n",
            _section("Tickets", tickets, lifecycle.TICKET),
            _section("Actors", actors, lifecycle.ACTOR),
            _section("Nodes", NODES, lifecycle.NODE),
        ]
    )


def _section(title: str, text: str, table: Mapping[Any, str]) -> str:
    steps: dict[tuple[str, str], list[str]] = {}
    for (source, event), target in table.items():
        steps.setdefault((source or "[*]", target), []).append(event)
    sources = {source for source, _ in steps}
    arrows = [f"    {a} --> {b}: {' or '.join(events)}" for (a, b), events in steps.items()]
    ends = [f"    {target} --> [*]" for target in dict.fromkeys(table.values()) if target not in sources]
    diagram = "\n".join(["```mermaid", "stateDiagram-v2", *arrows, *ends, "```"])
    rows = [f"| {a if a != '[*]' else '(none)'} | `{e}` | {b} |" for (a, b), events in steps.items() for e in events]
    table_text = "\n".join(["| from | event | to |", "|---|---|---|", *rows])
    return f"## {title}\n\n{text}\n\n{diagram}\n\n{table_text}\n"


def _list(phases: Collection[str], table: Mapping[Any, str]) -> str:
    """The phases in the order of the table."""
    names = [f"`{phase}`" for phase in dict.fromkeys(table.values()) if phase in phases]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
