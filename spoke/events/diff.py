"""What differs between two moments of a pool: its nodes, tickets, actors, clients and allocator, field by field.

``facts`` puts a state into plain values, so that the state can be folded on (which uses it up) and compared later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from spoke.events.model import GPU_MILLI
from spoke.events.state import ActorState, Cordon, NodeState, PoolState, TicketState, indices_of

Subject = tuple[str, str]
"""What kind of thing, and its name."""
Facts = dict[Subject, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was. ``before`` and ``after`` hold what differs; all of what was added or removed."""

    kind: str
    name: str
    change: Literal["added", "removed", "changed"]
    before: dict[str, Any]
    after: dict[str, Any]


def facts(state: PoolState) -> Facts:
    """A state as plain values, by subject."""
    found: Facts = {("allocator", "leader"): {"holder": state.allocator, "epoch": state.epoch, "server": state.server}}
    for node_id, node in state.nodes.items():
        found["node", node_id] = _node(node, state.cordons.get(node_id))
    places = {ticket_id: place for place, ticket_id in enumerate(state.queue, start=1)}
    for ticket_id, ticket in state.tickets.items():
        found["ticket", ticket_id] = _ticket(ticket, places.get(ticket_id, 0))
        for actor in ticket.actors:
            found["actor", f"{ticket_id} rank {actor.rank}"] = _actor(actor)
    for client in state.clients.values():
        found["client", client.client_id] = {"user": client.user, "host": client.host, "pid": client.pid}
    return found


def changes(before: Facts, after: Facts) -> Iterator[Change]:
    """What was removed, changed and added, each in the order of its state."""
    for subject, was in before.items():
        if subject not in after:
            yield Change(*subject, "removed", was, {})
            continue
        now = after[subject]
        names = [name for name in was if was[name] != now[name]]
        if names:
            yield Change(*subject, "changed", {n: was[n] for n in names}, {n: now[n] for n in names})
    for subject, now in after.items():
        if subject not in before:
            yield Change(*subject, "added", {}, now)


def _node(node: NodeState, cordon: Cordon | None) -> dict[str, Any]:
    return {
        "state": node.phase,
        "confirmed": node.confirmed,
        "cordon": cordon.reason if cordon is not None else None,
        "agent": node.incarnation,
        "gpus": len(node.spec.gpus),
        "gpus_unhealthy": list(indices_of(node.unhealthy)),
        "gpus_free": list(indices_of(node.free_gpus)),
        "gpus_shared": {str(gpu): (GPU_MILLI - used) / GPU_MILLI for gpu, used in sorted(node.shared.items())},
        "cpus_free": node.free_cpu_milli / 1000,
        "memory_free": node.free_memory,
        "tickets": sorted(node.tickets),
        "labels": dict(node.spec.labels),
    }


def _ticket(ticket: TicketState, place: int) -> dict[str, Any]:
    return {
        "state": ticket.phase,
        "name": ticket.spec.name,
        "client": ticket.client_id,
        "gang": f"{ticket.spec.num_nodes}x{ticket.spec.actors_per_node}",
        "nodes": sorted(ticket.held),
        "place_in_line": place,
        "reason": ticket.reason,
    }


def _actor(actor: ActorState) -> dict[str, Any]:
    return {
        "actor": actor.actor_id,
        "state": actor.phase,
        "node": actor.node_id,
        "launch": actor.launch_id,
        "pid": actor.pid,
        "code": actor.code,
        "signal": actor.signal,
        "reason": actor.reason,
    }
