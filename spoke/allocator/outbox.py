"""Who must be told what about an event: replies, notices, orders, leases. Pure, and derived from the event alone.

``effects`` is called with the state as it was BEFORE the event is folded. So an event has the same effects whoever
decides it, and a reader can ask of any event in the log what it set in motion. Each event type has one small function,
in ``effects/``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spoke.allocator.effects import actors, clients, gangs, nodes
from spoke.allocator.effects.handlers import Cause, Handler
from spoke.allocator.effects.kinds import Blobs, Effect, Tell
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import replies as p


def effects(state: PoolState, recorded: e.Recorded, blobs: Blobs | None = None) -> list[Effect]:
    """The effects of an event on the state before it. ``blobs`` are the opaque parts of a launch, by rank."""
    handler = _HANDLERS.get(type(recorded.event))
    return [] if handler is None else list(handler(state, recorded.event, Cause(recorded, blobs or {})))


def _only_answered(state: PoolState, event: Any, cause: Cause) -> Iterator[Effect]:
    yield Tell(event.client_id, event.seq, p.Done())


_ONLY_ANSWERED = (
    e.GangMoved,
    e.GangPrioritized,
    e.QueuePolicyChanged,
    e.QuotaChanged,
    e.QuotaRemoved,
    e.ReservationCancelled,
)
_HANDLERS: dict[type[e.Event], Handler[Any]] = {
    **clients.handlers,
    **nodes.handlers,
    **gangs.handlers,
    **dict.fromkeys(_ONLY_ANSWERED, _only_answered),
    **actors.handlers,
}
