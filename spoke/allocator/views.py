"""The views: what ``redis-cli HGETALL`` shows of nodes and tickets, and what ``spoke status`` reads. Pure.

``Views`` notes what the events touch, and writes it into a commit when its term has time for that: a ticket that lives
for a moment costs nothing here. A new term writes them all anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

from spoke.allocator.commit import Batch, flat
from spoke.events import types as e
from spoke.events.ids import ms_of
from spoke.events.model import GPU_MILLI
from spoke.events.moments import moment
from spoke.events.state import Cordon, GpuFault, NodeState, PoolState, TicketState, indices_of
from spoke.protocol.keys import Keys

ENDED_TICKET_KEPT_S = 3600
ENDED_TICKETS_KEPT = 10_000
"""At a thousand tickets a second an hour of them would fill the server."""
PROJECTS_SHOWN_MAX = 200
_ALWAYS = frozenset({"state", "since", "nodes"})


class Views:
    """What has changed since the views were last written."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._nodes: set[str] = set()
        self._tickets: dict[str, None] = {}  # in the order of the events
        self._written: set[str] = set()
        self._ended: dict[str, TicketState] = {}  # tickets whose view is to say how they ended
        self._kept: deque[str] = deque()  # tickets that have ended and still have a view
        self._queue = True

    def touch(self, event: e.Event, before: PoolState) -> None:
        """Note what an event changes; ``before`` is the state that it is about to change."""
        note = _NOTES.get(type(event))
        if note is not None:
            note(self, event, before)

    def ticket(self, event: Any, before: PoolState) -> None:
        """Note a ticket."""
        if event.ticket_id:
            self._tickets[event.ticket_id] = None

    def allocated(self, event: e.GangAllocated, before: PoolState) -> None:
        """Note a ticket, and the nodes that it gets."""
        self._tickets[event.ticket_id] = None
        self._nodes.update([slot.node_id for slot in event.slots])

    def repaired(self, event: e.GangRepaired, before: PoolState) -> None:
        """Note a ticket, the node that it leaves, and the one that it gets."""
        self._tickets[event.ticket_id] = None
        self._nodes |= {event.slot.node_id, before.tickets[event.ticket_id].slots[event.rank].node_id}

    def released(self, event: e.GangReleased, before: PoolState) -> None:
        """Note a ticket, and the nodes that it leaves."""
        self._tickets[event.ticket_id] = None
        self._nodes.update(event.nodes)
        if event.final and event.ticket_id in self._written:
            self._ended[event.ticket_id] = before.tickets[event.ticket_id]

    def node(self, event: Any, before: PoolState) -> None:
        """Note a node."""
        self._nodes.add(event.node_id)

    def queue(self, event: e.Event, before: PoolState) -> None:
        """Note the queue's settings."""
        self._queue = True

    @property
    def pending(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._nodes or self._tickets or self._queue)

    def write(self, batch: Batch, state: PoolState) -> None:
        """Write what was touched, as it is now."""
        keys = self._keys
        for node_id in self._nodes:
            node = state.nodes.get(node_id)
            if node is not None:
                batch.add("HSET", keys.nodes, node_id, node_line(node, state))
            else:
                batch.add("HDEL", keys.nodes, node_id)
                batch.add("DEL", keys.node(node_id))
                batch.add("DEL", keys.logs(node_id))
        for ticket_id in self._tickets:
            ticket = state.tickets.get(ticket_id)
            if ticket is not None:
                changing, asked = _changing(ticket), _asked(ticket)  # once for both: this is the allocator's thread
                batch.add("HSET", keys.tickets, ticket_id, _line(changing, asked))
                batch.add("HSET", keys.ticket(ticket_id), *flat(_fields(ticket, changing, asked)))
                self._written.add(ticket_id)
            elif ticket_id in self._written:
                self._written.discard(ticket_id)
                ended = self._ended.pop(ticket_id, None)
                _write_end(batch, keys, ticket_id, flat(ticket_fields(ended)) if ended is not None else [])
                self._kept.append(ticket_id)
        while len(self._kept) > ENDED_TICKETS_KEPT:
            batch.add("DEL", keys.ticket(self._kept.popleft()))
        if self._queue or self._tickets:
            batch.add("HSET", keys.queue, *flat(queue_fields(state)))
        self._nodes.clear()
        self._tickets.clear()
        self._queue = False

    def write_all(self, batch: Batch, state: PoolState, stale: list[str]) -> None:
        """Begin a term: write everything. ``stale`` are the tickets in the views of the term before."""
        batch.add("DEL", self._keys.nodes)
        for ticket_id in stale:
            if ticket_id not in state.tickets:
                _write_end(batch, self._keys, ticket_id, [])
        self._nodes.update(state.nodes)
        self._queue = True
        self._tickets.update(dict.fromkeys(state.tickets))
        self.write(batch, state)


_Note = Callable[[Views, Any, PoolState], None]
_NOTES: dict[type[e.Event], _Note] = {
    **{cls: Views.ticket for cls in e.EVENT_TYPES.values() if "ticket_id" in cls.__struct_fields__},
    **{cls: Views.node for name, cls in e.EVENT_TYPES.items() if name.startswith(("node.", "gpu."))},
    e.GangAllocated: Views.allocated,
    e.GangRepaired: Views.repaired,
    e.GangReleased: Views.released,
    e.QueuePolicyChanged: Views.queue,
    e.QuotaChanged: Views.queue,
    e.QuotaRemoved: Views.queue,
    e.ReservationCreated: Views.queue,
    e.ReservationCancelled: Views.queue,
    e.ReservationEnded: Views.queue,
}


def _write_end(batch: Batch, keys: Keys, ticket_id: str, fields: list[Any]) -> None:
    batch.add("HDEL", keys.tickets, ticket_id)
    batch.add("HSET", keys.ticket(ticket_id), *fields, "state", "ended")
    batch.add("EXPIRE", keys.ticket(ticket_id), ENDED_TICKET_KEPT_S)


def node_line(node: NodeState, state: PoolState) -> bytes:
    """A node as one line of JSON: what changes first, and what does not apply left out."""
    spec, cordon = node.spec, state.cordons.get(node.spec.node_id)
    faults = state.faults.get(spec.node_id, {})
    return orjson.dumps(
        {
            "state": node.phase,
            **({"cordon": _cordon(cordon)} if cordon is not None else {}),
            "gpus": len(spec.gpus),
            "gpus_free": indices_of(node.free_gpus),
            **_said(
                gpus_shared={str(index): (GPU_MILLI - used) / GPU_MILLI for index, used in sorted(node.shared.items())},
                gpus_unhealthy={str(gpu.index): _fault(faults[gpu.uuid]) for gpu in spec.gpus if gpu.uuid in faults},
            ),
            "tickets": sorted(node.tickets),
            "cpus": spec.cpu_milli / 1000,
            "cpus_free": node.free_cpu_milli / 1000,
            "memory": spec.memory,
            "memory_free": node.free_memory,
            **_said(gpu_model=spec.gpus[0].model if spec.gpus else "", nics=[nic.name for nic in spec.nics]),
            "host": spec.host,
            "address": spec.address,
            **_said(labels=spec.labels),
            "pid": spec.pid,
            **_said(version=spec.version, protocol=spec.protocol),
        }
    )


def _said(**fields: Any) -> dict[str, Any]:
    """The fields that say something: not those that are empty, zero or false, as readers take them to be without."""
    return {name: value for name, value in fields.items() if value}


def _fault(fault: GpuFault) -> str:
    by = f" by {fault.by}" if fault.by else ""
    return f"{fault.kind}{by}" + (f": {fault.reason}" if fault.reason else "")


def _cordon(cordon: Cordon) -> dict[str, Any]:
    return {
        "state": cordon.phase,
        **_said(by=cordon.by, reason=cordon.reason),
        "since": moment(ms_of(cordon.since)),
        **_said(deadline=moment(cordon.deadline_ms)),
    }


def queue_fields(state: PoolState) -> dict[str, str | bytes | int]:
    """The queue's policy, how many wait, what projects have (those with quotas first), the reservations."""
    queueing = state.queueing
    projects = [*queueing.quotas, *(name for name in sorted(queueing.accounts) if name not in queueing.quotas)]
    lines = []
    for project in projects:
        gpus, cpus, memory, nodes = queueing.held(project)
        quota = queueing.quotas.get(project)
        if quota is not None or gpus or cpus or memory or nodes:
            held = {"gpus": gpus / 1000, "cpus": cpus / 1000, "memory": memory, "nodes": nodes}
            lines.append({"project": project, **held, "quota": quota})
        if len(lines) >= PROJECTS_SHOWN_MAX:
            break
    return {
        "policy": orjson.dumps(queueing.policy),
        "waiting": len(state.queue),
        "projects": orjson.dumps(lines),
        "reservations": orjson.dumps(list(queueing.reservations.values())),
    }


def ticket_line(ticket: TicketState) -> bytes:
    """A ticket as one line of JSON: what changes first, and what does not apply left out."""
    return _line(_changing(ticket), _asked(ticket))


def _line(changing: dict[str, Any], asked: dict[str, Any]) -> bytes:
    said = {name: value for name, value in changing.items() if value or name in _ALWAYS}
    return orjson.dumps({**said, **asked})


def _changing(ticket: TicketState) -> dict[str, Any]:
    """What can change while a ticket lives."""
    return {
        "state": ticket.phase,
        "since": moment(ms_of(ticket.since)),
        "nodes": list(dict.fromkeys(slot.node_id for slot in ticket.slots)),
        "reason": ticket.reason,
        "borrowed": ticket.borrowed,
        "ends": moment(ticket.preempt_ms or ticket.ends_ms),
    }


def _asked(ticket: TicketState) -> dict[str, Any]:
    """What was asked for, and by whom."""
    spec, resources = ticket.spec, ticket.spec.resources
    return {
        **_said(name=spec.name),
        "gang": spec.shape,
        "actors": len(ticket.slots) or spec.size,
        **_said(
            groups=[group.name for group in spec.groups],
            strategy=spec.strategy if spec.strategy != "pack" else "",
            exclusive=ticket.exclusive,
            gpus_per_actor=resources.gpus,
            cpus_per_actor=resources.cpus,
            memory_per_actor=resources.memory_bytes,
            gpu_memory_per_actor=int(resources.gpu_memory),
            nics_per_actor=resources.nics,
            detached=spec.detached,
            priority=spec.terms.priority,
            preemptible=spec.terms.preemptible,
            reservation=spec.terms.reservation,
        ),
        "client": ticket.client_id,
        "project": ticket.project,
    }


def ticket_fields(ticket: TicketState) -> dict[str, str | bytes | int]:
    """All of a ticket, one hash field each; ``rank.N`` is the place and the actor of a rank.

    What can change is written even when it is empty, so that it takes the place of what stood there before.
    """
    return _fields(ticket, _changing(ticket), _asked(ticket))


def _fields(ticket: TicketState, changing: dict[str, Any], asked: dict[str, Any]) -> dict[str, str | bytes | int]:
    fields: dict[str, str | bytes | int] = {
        name: value if isinstance(value, (str, int)) and not isinstance(value, bool) else orjson.dumps(value)
        for name, value in (*changing.items(), *asked.items())
    }
    if ticket.master_addr:
        fields["master"] = f"{ticket.master_addr}:{ticket.master_port}"
    for slot in ticket.slots:
        rank: dict[str, Any] = {"node": slot.node_id, "host": slot.host, "gpus": slot.gpu_ids}
        if slot.gpu_milli:
            rank["gpu_share"] = slot.gpu_milli / GPU_MILLI
        rank |= {"group": slot.group} if slot.group else {}
        rank |= {"nics": slot.nics} if slot.nics else {}
        rank |= {"numa_node": slot.numa_node} if slot.numa_node >= 0 else {}
        rank |= {"link": slot.link} if slot.link else {}
        actor = ticket.actor(slot.global_rank)
        if actor is not None and (actor.alive or actor.node_id == slot.node_id):
            rank |= {"actor": actor.actor_id, "runs": actor.spec.title[:200], "state": actor.phase, "pid": actor.pid}
            rank |= {"address": actor.address} if actor.address else {}
            rank |= {"restarts": actor.restarts} if actor.restarts else {}
            if actor.phase in ("restarting", "exited", "start_failed", "lost"):
                rank |= {"code": actor.code, "signal": actor.signal, "reason": actor.reason}
        fields[f"rank.{slot.global_rank}"] = orjson.dumps(rank)
    return fields
