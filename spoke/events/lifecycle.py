"""The life cycles of tickets, actors and nodes, as literal tables. They are the specification.

A table maps (state, event type) to the next state. ``fold`` consults them, the documentation draws them, and the
property tests walk them. What is not in a table cannot happen: ``advance`` raises InvalidTransition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeVar

from spoke.errors import InvalidTransition

TicketPhase = Literal["queued", "allocated", "active", "releasing", "released", "refused", "cancelled"]
ActorPhase = Literal["launching", "running", "restarting", "exited", "start_failed", "lost"]
NodePhase = Literal["up", "cordoned", "draining", "drained", "lost", "removed"]
P = TypeVar("P", bound=str)
Table = Mapping[tuple[P | None, str], P]

TICKET: Final[Table[TicketPhase]] = {
    (None, "gang.queued"): "queued",
    (None, "gang.allocated"): "allocated",
    ("queued", "gang.allocated"): "allocated",
    ("queued", "gang.refused"): "refused",
    ("queued", "gang.cancelled"): "cancelled",
    ("allocated", "actor.launch_requested"): "active",
    ("active", "actor.launch_requested"): "active",
    ("allocated", "gang.repaired"): "allocated",
    ("active", "gang.repaired"): "active",
    ("active", "gang.restarting"): "active",
    ("active", "gang.restarted"): "active",
    ("allocated", "gang.releasing"): "releasing",
    ("active", "gang.releasing"): "releasing",
    ("releasing", "gang.released"): "released",  # the final one; a partial one leaves the ticket releasing
}

ACTOR: Final[Table[ActorPhase]] = {
    (None, "actor.launch_requested"): "launching",
    (
        "exited",
        "actor.launch_requested",
    ): "launching",  # a rank may be launched again once its actor has ended
    ("start_failed", "actor.launch_requested"): "launching",
    ("lost", "actor.launch_requested"): "launching",
    ("launching", "actor.started"): "running",
    ("launching", "actor.start_failed"): "start_failed",
    ("launching", "actor.exited"): "exited",
    ("launching", "actor.lost"): "lost",
    ("running", "actor.exited"): "exited",
    ("running", "actor.lost"): "lost",
    ("launching", "actor.restarting"): "launching",  # it has not come up yet: it failed, and is started again
    ("running", "actor.restarting"): "restarting",
    ("restarting", "actor.restarting"): "restarting",
    ("launching", "gang.restarting"): "launching",
    ("running", "gang.restarting"): "restarting",
    ("restarting", "gang.restarting"): "restarting",
    ("exited", "gang.restarting"): "restarting",  # it had ended well: all members begin again
    ("launching", "actor.halted"): "launching",
    ("restarting", "actor.halted"): "restarting",
    ("restarting", "actor.started"): "running",
    ("restarting", "actor.start_failed"): "start_failed",
    ("restarting", "actor.exited"): "exited",
    ("restarting", "actor.lost"): "lost",
}

NODE: Final[Table[NodePhase]] = {
    (None, "node.registered"): "up",
    ("lost", "node.registered"): "up",
    ("up", "node.cordoned"): "cordoned",  # also at once when a node registers whose id is cordoned
    ("cordoned", "node.cordoned"): "cordoned",  # for another reason
    ("draining", "node.cordoned"): "cordoned",
    ("drained", "node.cordoned"): "cordoned",
    ("lost", "node.cordoned"): "lost",  # a cordon belongs to the node's id: a lost node comes back cordoned
    ("cordoned", "node.uncordoned"): "up",
    ("draining", "node.uncordoned"): "up",
    ("drained", "node.uncordoned"): "up",
    ("lost", "node.uncordoned"): "lost",
    ("up", "node.draining"): "draining",
    ("cordoned", "node.draining"): "draining",
    ("draining", "node.draining"): "draining",
    ("drained", "node.draining"): "draining",
    ("lost", "node.draining"): "lost",
    ("draining", "node.drained"): "drained",
    ("lost", "node.drained"): "lost",
    ("up", "node.lost"): "lost",
    ("cordoned", "node.lost"): "lost",
    ("draining", "node.lost"): "lost",
    ("drained", "node.lost"): "lost",
    ("up", "node.removed"): "removed",
    ("cordoned", "node.removed"): "removed",
    ("draining", "node.removed"): "removed",
    ("drained", "node.removed"): "removed",
    ("lost", "node.removed"): "removed",
}

TICKET_HOLDS_GPUS: Final[frozenset[TicketPhase]] = frozenset({"allocated", "active", "releasing"})
ACTOR_ALIVE: Final[frozenset[ActorPhase]] = frozenset({"launching", "running", "restarting"})


def advance(table: Table[P], what: str, phase: P | None, event_id: str, event_type: str) -> P:
    """The state after the event; raise InvalidTransition, naming ``what``, if the table has no such step."""
    try:
        return table[phase, event_type]
    except KeyError:
        allowed = sorted(name for source, name in table if source == phase)
        raise InvalidTransition(
            f"event {event_id} ({event_type}) cannot happen to {what}, which is {phase or 'not there'}; "
            f"possible now: {', '.join(allowed) or 'nothing'}. The log was written by something else than an allocator"
        ) from None
