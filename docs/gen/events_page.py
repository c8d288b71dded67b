"""The reference of events, from their classes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import msgspec
from prose import NOTE, cell, doc, markdown

from spoke.events import model, supervision, types
from spoke.events.codec import encode_event
from spoke.events.queueing import QueuePolicy, Quota, Reservation

GROUPS = {
    "allocator": "The allocator and requests",
    "server": "The allocator and requests",
    "log": "The allocator and requests",
    "request": "The allocator and requests",
    "client": "Clients",
    "node": "Nodes",
    "gpu": "GPUs",
    "gang": "Gangs",
    "ticket": "Tickets",
    "queue": "The queue",
    "quota": "The queue",
    "reservation": "The queue",
    "actor": "Actors",
}
WRITTEN_WHEN = {
    "allocator.elected": "an allocator begins a term: at its start, at a take-over, and after a commit that failed",
    "server.changed": "a term begins and the server is not the one that the log was last written on",
    "log.regressed": "allocator, agent (`node.report_held`) or client (`client.report_lost`) names what is lost",
    "log.entry_struck": "an allocator takes up a log with what is no event, or what `spoke audit strike` has named",
    "request.refused": "a request cannot be decided, or asks for what cannot be",
    "request.answered": "a request finds nothing left to do",
    "client.connected": "a client sends `client.connect`",
    "client.lost": "a client's lease has run out",
    "client.closed": "a client sends `client.close`",
    "node.registered": "an agent sends `node.register`",
    "node.reconciling": "an agent's `node.report_held` names what the log does not know",
    "node.confirmed": "an agent's `node.report_held` names nothing else than the log knows",
    "node.lost": "a node's lease has run out, or its agent registers anew",
    "node.cordoned": "an operator cordons a node",
    "node.uncordoned": "an operator uncordons a node",
    "node.draining": "an operator drains a node, or removes one that has tickets",
    "node.drained": "a draining node's last ticket has gone",
    "node.removed": "an agent sends `node.leave`, or an operator removes the node",
    "gpu.marked_unhealthy": "an agent's `node.report_health` says so, or an operator marks the GPU",
    "gpu.marked_healthy": "an agent's `node.report_health` says so, or an operator marks the GPU",
    "gang.queued": "a gang asks for places, does not fit now, and is willing to wait",
    "gang.allocated": "a gang fits: at once, or when it is its turn in the line",
    "gang.refused": "a gang does not fit and does not wait, or has waited as long as it was willing to",
    "gang.cancelled": "a waiting gang is withdrawn by its client, by a release, or because its client is gone",
    "gang.moved": "an operator moves a waiting ticket",
    "gang.explained": "a client sends `gang.explain`",
    "gang.prioritized": "an operator changes a ticket's priority, or its owner lowers it",
    "ticket.preempting": "a ticket must make room for another, or for a reservation",
    "ticket.spared": "what the ticket was to make room for does not wait any more",
    "ticket.expiring": "a ticket's `max_duration`, or its reservation, is nearly over",
    "queue.policy_changed": "an operator sets the queue's policy",
    "quota.changed": "an operator sets a project's quota",
    "quota.removed": "an operator removes a project's quota",
    "reservation.created": "an operator makes a reservation",
    "reservation.cancelled": "an operator cancels a reservation",
    "reservation.ended": "a reservation's time is over",
    "gang.attached": "another client sends `gang.attach`",
    "gang.repaired": "somebody asks for another slot for a failed member, and there is one",
    "gang.restarting": "a member fails whose restart policy is `gang`, and restarts are left",
    "gang.restarted": "the last member of a restarting gang has ended",
    "gang.releasing": "a ticket is released, or its client is gone, or a member failed and it was to fail as a whole",
    "gang.released": "nothing of a releasing ticket can run any more on these nodes",
    "actor.launch_requested": "a client launches; one event for each actor",
    "actor.started": "an agent reports that an actor is up",
    "actor.start_failed": "an agent reports that an actor did not come up",
    "actor.exited": "an agent reports that nothing of an actor is alive",
    "actor.restarting": "an agent reports that an actor failed and is started again",
    "actor.halted": "an agent reports that a member of a restarting gang has ended",
    "actor.lost": "an actor's node is lost",
    "actor.stop_requested": "a client stops one actor",
}
RESOURCES = model.Resources(gpus=1)
GANG = model.GangSpec(num_nodes=1, actors_per_node=2, resources=RESOURCES, name="digits")
SLOTS = tuple(model.Slot(rank, rank, 0, "node-0", "10.0.0.7", (rank,), (f"GPU-5ca1ab1e-{rank}",)) for rank in range(2))
NODE = model.NodeSpec(
    "node-0",
    "gpu-7",
    "10.0.0.7",
    gpus=tuple(model.Gpu(index, f"GPU-5ca1ab1e-{index}", "H100", 85_899_345_920) for index in range(2)),
    cpu_milli=64_000,
    memory=549_755_813_888,
    ports=model.PortRange(12_300, 16),
    imports=("my_actors",),
    pid=4711,
)
BY_TYPE: dict[str, Any] = {
    "GangSpec": GANG,
    "NodeSpec": NODE,
    "ActorSpec": model.ActorSpec(type_name="DigitsWorker"),
    "tuple[Slot, ...]": SLOTS,
    "Slot": SLOTS[1],
    "tuple[str, ...]": ("node-0",),
    "dict[str, str]": {"rack": "b4"},
    "bool": True,
    "QueuePolicy": QueuePolicy(),
    "Quota": Quota("vision", 64_000, weight=2),
    "Reservation": Reservation("r-1", ("node-0", "node-1"), 8, 1_764_010_800_000, 1_764_018_000_000, by="ada"),
}
BY_NAME: dict[str, Any] = {
    "server": "7f3c0b9e",
    "was": "51d2aa04",
    "end": "1764000000000-0",
    "seen": "1764000000500-2",
    "by": "node-0",
    "entry": "1764000000600-0",
    "said": '{"hello":"world"}',
    "launches": ("1764000000500-2",),
    "tickets": ("t-7",),
    "holder": "gpu-7:4242:a1b2c3",
    "epoch": 3,
    "version": "0.1.0",
    "client_id": "c-9f31c2",
    "seq": 2,
    "request": "gang.allocate",
    "code": "refused",
    "reason": "needs 2 nodes with 8 GPUs free; 1 of 2 nodes qualifies: node-0",
    "node_id": "node-0",
    "incarnation": "8d1f60",
    "lease_ms": 10_000,
    "host": "login-1",
    "pid": 4811,
    "user": "ada",
    "ticket_id": "t-17",
    "deadline_ms": 0,
    "master_addr": "10.0.0.7",
    "master_port": 12_300,
    "policy": "pack/1",
    "rank": 1,
    "actor_id": "DigitsWorker-1",
    "address": "tcp://10.0.0.7:40117",
    "signal": 0,
    "to": "head",
    "index": 3,
    "uuid": "GPU-5ca1ab1e-3",
    "kind": "temperature",
    "order": "priority/1",
    "project": "vision",
    "priority": 10,
    "by_ticket": "t-18",
    "reservation_id": "r-1",
    "restarts": 1,
    "generation": 1,
    "strikes": 1,
    "ranks": (0, 1),
    "delay_ms": 700,
}
SPECIAL: dict[tuple[str, str], Any] = {
    ("client.lost", "reason"): "no sign of life for 10 s",
    ("node.lost", "reason"): "its lease ran out",
    ("node.removed", "reason"): "its agent was stopped",
    ("log.entry_struck", "reason"): "it carries no hash, so no allocator wrote it",
    ("log.entry_struck", "by"): "",
    ("request.refused", "request"): "actor.launch",
    ("request.refused", "code"): "unknown_ticket",
    ("request.refused", "reason"): "there is no ticket 't-99' in this pool",
    ("request.refused", "node_id"): "",
    ("request.refused", "incarnation"): "",
    ("request.answered", "request"): "gang.release",
    ("request.answered", "reason"): "t-17 has ended before",
    ("node.cordoned", "reason"): "its fan rattles",
    ("node.draining", "reason"): "new kernel",
    ("node.draining", "deadline_ms"): 1_764_000_600_000,
    ("node.draining", "remove"): False,
    ("gpu.marked_unhealthy", "reason"): "94 degrees Celsius, where it slows down at 90",
    ("gpu.marked_unhealthy", "client_id"): "",
    ("gpu.marked_unhealthy", "seq"): 0,
    ("gpu.marked_healthy", "reason"): "its fan was replaced",
    ("gang.cancelled", "reason"): "its client cancelled it",
    ("gang.releasing", "reason"): "its client released it",
    ("gang.refused", "code"): "timeout",
    ("actor.start_failed", "reason"): "ModuleNotFoundError: No module named 'my_actors'",
    ("actor.lost", "reason"): "its node was lost: its lease ran out",
    ("actor.exited", "code"): 0,
    ("actor.exited", "reason"): "",
    ("actor.started", "restarts"): 0,
    ("actor.restarting", "reason"): "",
    ("actor.halted", "code"): -1,
    ("actor.halted", "signal"): 15,
    ("gang.restarting", "reason"): "",
}


def render() -> str:
    """The page."""
    parts = [
        NOTE.format(source="spoke/events/types.py"),
        "# Events\n",
        markdown(inspect.getdoc(types) or "").split("\n", 1)[1].strip() + "\n",
        "In the stream `spoke:{POOL}:events` an event is flat: `type`, `v` (its version), then its own fields. Text "
        "and whole numbers stand as they are; nested values are JSON. The entry's id is `<milliseconds>-<sequence>`: "
        "it orders the events, and its milliseconds are roughly the server's time. `spoke log` shows them, and so does "
        "`redis-cli XRANGE`.\n",
        "Where an event has `client_id` and `seq`, they name the request that led to it.\n",
    ]
    heading = ""
    for name, cls in types.EVENT_TYPES.items():
        group = GROUPS[name.partition(".")[0]]
        if group != heading:
            heading = group
            parts.append(f"## {heading}\n")
        parts.append(_entry(name, cls))
    parts.append("## Nested values\n")
    for nested in (
        model.NodeSpec,
        model.Gpu,
        model.PortRange,
        model.GangSpec,
        model.Resources,
        model.Slot,
        model.ActorSpec,
        supervision.Supervision,
        supervision.Restart,
        supervision.HealthCheck,
        supervision.ExitHook,
    ):
        parts.append(f"### {nested.__name__}\n\n{_without_examples(doc(nested))}\n\n{_table(nested)}")
    return "\n".join(parts)


def _entry(name: str, cls: type[types.Event]) -> str:
    example = cls(**{field: _example(name, field, kind) for field, kind in _types(cls).items()})
    lines = "\n".join(f"{key}: {_plain(value)}".rstrip() for key, value in encode_event(example).items())
    return (
        f"### `{name}`\n\n{doc(cls)}\n\n*Written when* {WRITTEN_WHEN[name]}. *Version* {cls.VERSION}.\n\n"
        f"{_table(cls)}\n```text\n{lines}\n```\n"
    )


def _table(cls: type[Any]) -> str:
    rows = ["| field | type | default |", "|---|---|---|"]
    default = _defaults(cls)
    for field, kind in _types(cls).items():
        rows.append(f"| `{field}` | `{cell(kind)}` | {default.get(field, '')} |")
    return "\n".join(rows) + "\n"


def _types(cls: type[Any]) -> dict[str, str]:
    """The fields of a class, and their types as they are written in its source."""
    known = cls.__struct_fields__ if issubclass(cls, msgspec.Struct) else cls.__dataclass_fields__
    return {name: cls.__annotations__[name] for name in known}


_NONE = (msgspec.NODEFAULT, dataclasses.MISSING)


def _defaults(cls: type[Any]) -> dict[str, str]:
    found: Any = msgspec.structs.fields(cls) if issubclass(cls, msgspec.Struct) else dataclasses.fields(cls)
    plain = {field.name: f"`{field.default!r}`" for field in found if field.default not in _NONE}
    return plain | {field.name: "empty" for field in found if field.default_factory not in _NONE}


def _example(event: str, field: str, kind: str) -> Any:
    if (event, field) in SPECIAL:
        return SPECIAL[event, field]
    return BY_TYPE[kind] if kind in BY_TYPE else BY_NAME[field]


def _plain(value: str | bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _without_examples(text: str) -> str:
    return re.split(r"\n*>>> ", text)[0].strip()
