"""The views: what ``redis-cli HGETALL`` shows of nodes and tickets, and what ``spoke status`` reads. Pure.

They are written with the events they follow from, in the same commit, and only for what a batch touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from spoke.events import types as e
from spoke.events.state import NodeState, TicketState, indices_of

ENDED_TICKET_KEPT_S = 3600


def touched_nodes(event: e.Event) -> Iterator[str]:
    """The nodes whose view an event changes."""
    if isinstance(event, e.GangAllocated):
        yield from {slot.node_id for slot in event.slots}
    elif isinstance(event, e.GangReleased):
        yield from event.nodes
    elif event.TYPE.startswith("node."):
        yield event.node_id  # type: ignore[attr-defined]


def touched_ticket(event: e.Event) -> str:
    """The ticket whose view an event changes; empty for none."""
    return getattr(event, "ticket_id", "")


def node_line(node: NodeState) -> bytes:
    """A node as one line of JSON."""
    spec = node.spec
    return orjson.dumps(
        {
            "state": node.phase,
            "gpus": len(spec.gpus),
            "gpus_free": indices_of(node.free_gpus),
            "gpu_model": spec.gpus[0].model if spec.gpus else "",
            "cpus": spec.cpu_milli / 1000,
            "cpus_free": node.free_cpu_milli / 1000,
            "memory": spec.memory,
            "memory_free": node.free_memory,
            "tickets": sorted(node.tickets),
            "host": spec.host,
            "address": spec.address,
            "labels": spec.labels,
            "pid": spec.pid,
        }
    )


def ticket_line(ticket: TicketState) -> bytes:
    """A ticket as one line of JSON."""
    return orjson.dumps(_summary(ticket))


def _summary(ticket: TicketState) -> dict[str, Any]:
    spec, resources = ticket.spec, ticket.spec.resources
    return {
        "state": ticket.phase,
        "name": spec.name,
        "client": ticket.client_id,
        "gang": f"{spec.num_nodes}x{spec.actors_per_node}",
        "actors": spec.size,
        "gpus_per_actor": resources.gpus,
        "cpus_per_actor": resources.cpus,
        "memory_per_actor": resources.memory_bytes,
        "detached": spec.detached,
        "nodes": list(dict.fromkeys(slot.node_id for slot in ticket.slots)),
        "since_ms": int(ticket.since.partition("-")[0]),
        "reason": ticket.reason,
    }


def ticket_fields(ticket: TicketState) -> dict[str, str | bytes | int]:
    """All of a ticket, one hash field each; ``rank.N`` is the place and the actor of a rank."""
    fields: dict[str, str | bytes | int] = {
        name: value if isinstance(value, (str, int)) and not isinstance(value, bool) else orjson.dumps(value)
        for name, value in _summary(ticket).items()
    }
    if ticket.master_addr:
        fields["master"] = f"{ticket.master_addr}:{ticket.master_port}"
    for slot in ticket.slots:
        rank: dict[str, Any] = {"node": slot.node_id, "host": slot.host, "gpus": slot.gpu_ids}
        actor = ticket.actor(slot.global_rank)
        if actor is not None:
            rank |= {"actor": actor.actor_id, "runs": actor.spec.title[:200], "state": actor.phase, "pid": actor.pid}
            if actor.phase in ("exited", "start_failed", "lost"):
                rank |= {"code": actor.code, "signal": actor.signal, "reason": actor.reason}
        fields[f"rank.{slot.global_rank}"] = orjson.dumps(rank)
    return fields


def ends_ticket(event: e.Event) -> bool:
    """Whether nothing is left of the event's ticket after it."""
    return event.final if isinstance(event, e.GangReleased) else isinstance(event, (e.GangRefused, e.GangCancelled))
