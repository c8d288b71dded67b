"""`spoke` with a bug in it, for the storm's allocators: its checker must find each.

python -m tests.chaos.storm.planted BUG allocator --url URL --pool POOL
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from spoke.allocator import commit, nodes, tickets
from spoke.cli.main import app
from spoke.events import fold as fold_module
from spoke.events import types as e
from spoke.events.state import ticket_number
from spoke.protocol import orders as o


def early_free() -> None:
    """A released ticket's GPUs are free at once, whatever still runs there: soon two processes hold one GPU."""

    def free_nodes(ticket, candidates, dead=()):  # type: ignore[no-untyped-def]
        free = tuple(sorted(candidates))
        return [e.GangReleased(ticket.ticket_id, free, len(free) == len(ticket.held))] if free else []

    def released(state, event_id, event):  # type: ignore[no-untyped-def]
        state.tickets[event.ticket_id].alive.clear()
        real(state, event_id, event)

    real = fold_module._HANDLERS[e.GangReleased]
    fold_module._HANDLERS[e.GangReleased] = released
    nodes.free_nodes = tickets.free_nodes = free_nodes  # type: ignore[attr-defined]


def leak() -> None:
    """Every seventh ticket never becomes free again."""

    def free_nodes(ticket, candidates, dead=()):  # type: ignore[no-untyped-def]
        return real(ticket, candidates, dead) if ticket_number(ticket.ticket_id) % 7 else []

    real = tickets.free_nodes
    nodes.free_nodes = tickets.free_nodes = free_nodes  # type: ignore[attr-defined]


def wrong_gpu() -> None:
    """The log is right, but agents are told the first GPUs of the node: only the processes show it."""

    def encode_order(delivery):  # type: ignore[no-untyped-def]
        order = delivery.order
        if isinstance(order, o.StartActor):
            delivery = replace(delivery, order=replace(order, gpu_ids=tuple(range(len(order.gpu_ids)))))
        return o.encode_order(delivery)

    commit.encode_order = encode_order  # type: ignore[attr-defined]


BUGS: dict[str, Callable[[], None]] = {"early-free": early_free, "leak": leak, "wrong-gpu": wrong_gpu}


def main() -> None:
    BUGS[sys.argv.pop(1)]()
    app(prog_name="spoke")


if __name__ == "__main__":
    main()
