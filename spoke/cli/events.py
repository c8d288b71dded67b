"""One event as one line: what a person wants to know first. An event that is not known is shown as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from spoke.cli.output import clean, count, local_time, numbers
from spoke.cli.views import needs
from spoke.errors import LogError
from spoke.events import types as e
from spoke.events.codec import Fields, decode_event, raw_entry, to_json
from spoke.events.ids import ms_of
from spoke.events.model import GangSpec, Slot

TYPE_WIDTH = max(map(len, e.EVENT_TYPES))
WORDS_MAX = 160


def event_line(event_id: str, raw: Fields) -> str:
    """Id, time, type, and the rest; clean for a terminal."""
    try:
        event = decode_event(event_id, raw).event
        name, rest = event.TYPE, describe(event)
    except LogError:
        fields = raw_entry(event_id, raw).fields
        name = fields.pop("type", "?")
        rest = " ".join(f"{key}={value}" for key, value in fields.items())
    ms = ms_of(event_id)
    return clean(f"{event_id}  {local_time(ms)}  {name:{TYPE_WIDTH}}  {rest}").rstrip()


def event_document(event_id: str, raw: Fields) -> dict[str, Any]:
    """An event as a document; one that cannot be decoded has its fields as text, and ``problem``."""
    head: dict[str, Any] = {"id": event_id, "ms": ms_of(event_id)}
    try:
        event = decode_event(event_id, raw).event
    except LogError as error:
        return {**head, **raw_entry(event_id, raw).fields, "problem": str(error)}
    return recorded_document(e.Recorded(event_id, event))


def recorded_document(recorded: e.Recorded) -> dict[str, Any]:
    """A decoded event as a document."""
    event = recorded.event
    fields: dict[str, Any] = orjson.loads(to_json(event))
    return {"id": recorded.id, "ms": recorded.ms, "type": event.TYPE, "v": event.VERSION, **fields}


def fields_json(event: e.Event) -> str:
    """The event's version and its own fields as JSON."""
    own = to_json(event).decode()
    return f'{{"v":{event.VERSION}' + ("," + own[1:] if own != "{}" else "}")


def recorded_line(recorded: e.Recorded) -> str:
    """A decoded event as one line, clean for a terminal."""
    event = recorded.event
    return clean(f"{recorded.id}  {local_time(recorded.ms)}  {event.TYPE:{TYPE_WIDTH}}  {describe(event)}").rstrip()


def describe(event: e.Event) -> str:
    """The rest of an event's line."""
    words = _WORDS.get(type(event))
    return words(event) if words else generic(event)


def generic(event: e.Event) -> str:
    """Every field by its name."""
    fields: dict[str, Any] = orjson.loads(to_json(event))
    return " ".join(
        f"{name}={value if isinstance(value, str) else orjson.dumps(value).decode()}"
        for name, value in fields.items()
        if value not in ("", None)
    )


def gang_words(spec: GangSpec) -> str:
    """What a gang asks for, in one line."""
    name = f"{spec.name!r} " if spec.name else ""
    size = f"{spec.shape} actors"
    each = [(group.name, group.resources) for group in spec.groups] or [("", spec.resources)]
    for group, resources in each:
        need = needs(resources.gpus, resources.cpus, resources.memory_bytes, int(resources.gpu_memory), resources.nics)
        size += f" {'with' if not group else f'({group}:'} {need}{')' if group else ''}" if need != "nothing" else ""
    strategy = spec.strategy.replace("_", " ") if spec.strategy != "pack" else "dense"
    extras = [strategy] if spec.strategy != "pack" or (not spec.strict_pack and not spec.groups) else []
    extras += ["exclusive"] if spec.rules is not None and spec.rules.exclusive else []
    extras += ["detached"] if spec.detached else []
    extras += [f"on {' or '.join(spec.gpu_models)}"] if spec.gpu_models else []
    return name + size + "".join(f", {word}" for word in extras)


def _places(slots: Iterable[Slot]) -> str:
    nodes: dict[str, tuple[list[int], list[int]]] = {}
    for slot in slots:
        ranks, gpus = nodes.setdefault(slot.node_id, ([], []))
        ranks.append(slot.global_rank)
        gpus += [gpu for gpu in slot.gpu_ids if gpu not in gpus]
    return "; ".join(
        f"{node_id}: ranks {numbers(ranks)}" + (f", GPUs {numbers(gpus)}" if gpus else "")
        for node_id, (ranks, gpus) in nodes.items()
    )


def _short(text: str) -> str:
    return text if len(text) <= WORDS_MAX else text[: WORDS_MAX - 1] + "…"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _asked(event: Any) -> str:
    return f" (asked by {event.client_id})" if event.client_id else ""


def _actor(event: Any) -> str:
    return f"{event.ticket_id} rank {event.rank} {event.actor_id} on {event.node_id}"


def _registered(event: e.NodeRegistered) -> str:
    spec = event.spec
    model = f" ({spec.gpus[0].model})" if spec.gpus else ""
    return (
        f"{event.node_id} on {spec.host} {spec.address}: {count(len(spec.gpus), 'GPU')}{model}, "
        f"{spec.cpu_milli / 1000:g} CPU, agent pid {spec.pid}"
    )


def _queued(event: e.GangQueued) -> str:
    until = f", until {local_time(event.deadline_ms)}" if event.deadline_ms else ""
    return f"{event.ticket_id} {gang_words(event.spec)} for {event.client_id}{until}{_because(event.reason)}"


def _exited(event: e.ActorExited) -> str:
    return f"{_actor(event)}: {_how(event)}{_because(event.reason)}"


def _how(event: Any) -> str:
    return f"signal {event.signal}" if event.signal else f"code {event.code}"


def _in(delay_ms: int) -> str:
    return f" in {delay_ms / 1000:g} s" if delay_ms else ""


def _refused(event: e.RequestRefused) -> str:
    what = event.request or "something that is no request"
    sender = event.client_id or event.node_id or "somebody who does not say who"
    return f"{what}{f' {event.seq}' if event.seq else ''} of {sender} ({event.code}): {event.reason}"


_WORDS: dict[type[e.Event], Callable[[Any], str]] = {
    e.AllocatorElected: lambda v: f"{v.holder}, epoch {v.epoch}",
    e.RequestRefused: _refused,
    e.ServerChanged: lambda v: f"run {v.server[:12]} after {v.was[:12] or 'none'}, the log ended at {v.end}",
    e.LogRegressed: lambda v: f"{v.by} knows of {v.seen}, the log ended at {v.end}: writes were lost",
    e.LogEntryStruck: lambda v: (
        f"entry {v.entry} was taken out{f' by {v.by}' if v.by else ''}: {v.reason}; it said {v.said}"
    ),
    e.NodeReconciling: lambda v: (
        f"{v.node_id} holds {len(v.launches)} launches and {len(v.tickets)} tickets that the log does not know"
    ),
    e.NodeConfirmed: lambda v: f"{v.node_id}",
    e.RequestAnswered: lambda v: f"{v.request} {v.seq} of {v.client_id}: {v.reason}",
    e.ClientConnected: lambda v: f"{v.client_id} {v.user}@{v.host} pid {v.pid}, lease {v.lease_ms / 1000:g} s",
    e.ClientLost: lambda v: f"{v.client_id}{_because(v.reason)}",
    e.ClientClosed: lambda v: f"{v.client_id}",
    e.NodeRegistered: _registered,
    e.NodeLost: lambda v: f"{v.node_id}{_because(v.reason)}",
    e.NodeCordoned: lambda v: f"{v.node_id}{_asked(v)}{_because(v.reason)}",
    e.NodeUncordoned: lambda v: f"{v.node_id}{_asked(v)}",
    e.NodeDraining: lambda v: (
        f"{v.node_id}{f', until {local_time(v.deadline_ms)}' if v.deadline_ms else ''}"
        f"{', then it is removed' * v.remove}{_asked(v)}{_because(v.reason)}"
    ),
    e.NodeDrained: lambda v: f"{v.node_id}",
    e.NodeRemoved: lambda v: f"{v.node_id}{_asked(v)}{_because(v.reason)}",
    e.GpuMarkedUnhealthy: lambda v: f"GPU {v.index} of {v.node_id} ({v.kind}){_asked(v)}{_because(v.reason)}",
    e.GpuMarkedHealthy: lambda v: f"GPU {v.index} of {v.node_id}{_asked(v)}{_because(v.reason)}",
    e.GangQueued: _queued,
    e.GangAllocated: lambda v: f"{v.ticket_id} {gang_words(v.spec)} for {v.client_id}; {_places(v.slots)}",
    e.GangRefused: lambda v: f"{v.ticket_id or '-'} {gang_words(v.spec)} for {v.client_id} ({v.code}): {v.reason}",
    e.GangCancelled: lambda v: f"{v.ticket_id}{_because(v.reason)}",
    e.GangPrioritized: lambda v: f"{v.ticket_id} has priority {v.priority}{_asked(v)}",
    e.TicketPreempting: lambda v: f"{v.ticket_id} until {local_time(v.deadline_ms)}{_because(v.reason)}",
    e.TicketSpared: lambda v: f"{v.ticket_id}{_because(v.reason)}",
    e.TicketExpiring: lambda v: f"{v.ticket_id} at {local_time(v.deadline_ms)}{_because(v.reason)}",
    e.QueuePolicyChanged: lambda v: f"{v.policy}{_asked(v)}",
    e.QuotaChanged: lambda v: f"{v.quota}{_asked(v)}",
    e.QuotaRemoved: lambda v: f"of {v.project}{_asked(v)}",
    e.ReservationCreated: lambda v: (
        f"{v.reservation.reservation_id}: {', '.join(v.reservation.nodes)} from {local_time(v.reservation.start_ms)} "
        f"to {local_time(v.reservation.end_ms)}{_asked(v)}"
    ),
    e.ReservationCancelled: lambda v: f"{v.reservation_id}{_asked(v)}",
    e.ReservationEnded: lambda v: f"{v.reservation_id}",
    e.GangMoved: lambda v: f"{v.ticket_id} to the {v.to}{_asked(v)}",
    e.GangExplained: lambda v: f"{v.ticket_id} to {v.client_id}",
    e.GangAttached: lambda v: f"{v.ticket_id} by {v.client_id}",
    e.GangRepaired: lambda v: f"{v.ticket_id} rank {v.rank}{_asked(v)}; now {_places((v.slot,))}",
    e.GangRestarting: lambda v: (
        f"{v.ticket_id} generation {v.generation}, ranks {numbers(v.ranks)}: rank {v.rank} failed "
        f"({_how(v)}{_because(v.reason)})"
    ),
    e.GangRestarted: lambda v: f"{v.ticket_id} generation {v.generation}, ranks {numbers(v.ranks)}{_in(v.delay_ms)}",
    e.GangReleasing: lambda v: f"{v.ticket_id}{_asked(v)}{_because(v.reason)}",
    e.GangReleased: lambda v: f"{v.ticket_id} on {', '.join(v.nodes) or 'no node'}" + (", all of it" * v.final),
    e.ActorLaunchRequested: lambda v: f"{_actor(v)}: {_short(v.spec.title)}",
    e.ActorStarted: lambda v: (
        f"{_actor(v)}: pid {v.pid}"
        + (f" at {v.address}" if v.address else "")
        + (f", restart {v.restarts}" if v.restarts else "")
    ),
    e.ActorStartFailed: lambda v: f"{_actor(v)}: {v.reason}",
    e.ActorExited: _exited,
    e.ActorRestarting: lambda v: (
        f"{_actor(v)}: restart {v.restarts}{_in(v.delay_ms)}, after {_how(v)}{_because(v.reason)}"
    ),
    e.ActorHalted: lambda v: f"{_actor(v)}: {_how(v)}, for generation {v.generation}",
    e.ActorLost: lambda v: f"{_actor(v)}{_because(v.reason)}",
    e.ActorStopRequested: lambda v: f"{_actor(v)}{_asked(v)}",
}
