"""``fold(state, recorded)``: the one place where a pool's state changes.

No clock, no randomness, no I/O: the state after is decided by the state before and the event. The state that is
passed in is used up (changed and returned), since copying a pool of ten thousand nodes for every event would cost
more than the event; a caller that needs the old one takes ``state.copy()`` first.

Each event type has one small function, in ``folding/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from spoke.events import types as e
from spoke.events.folding import actors, clients, gangs, nodes, queue
from spoke.events.state import SEQ_WINDOW, PoolState


def _nothing(state: PoolState, event_id: str, event: e.Event) -> None:
    pass


_ONLY_SAID = (e.RequestRefused, e.RequestAnswered, e.NodeReconciling, e.GangExplained, e.LogEntryStruck)
_HANDLERS: dict[type[e.Event], Callable[[PoolState, str, Any], None]] = {
    **dict.fromkeys(_ONLY_SAID, _nothing),
    **clients.handlers,
    **nodes.handlers,
    **gangs.handlers,
    **queue.handlers,
    **actors.handlers,
}
_ASKED = frozenset(cls for cls in _HANDLERS if "seq" in cls.__struct_fields__)


def fold(state: PoolState, recorded: e.Recorded) -> PoolState:
    """The state after the event. Raises InvalidTransition for an event that cannot follow."""
    event = recorded.event
    kind = type(event)
    _HANDLERS[kind](state, recorded.id, event)
    if state.waiting.aside and event.TYPE.startswith(("node.", "gpu.")):
        state.waiting.recall()
    if kind in _ASKED and event.seq:  # type: ignore[attr-defined]
        _mark_decided(state, event.client_id, event.seq)  # type: ignore[attr-defined]
    state.last_id = recorded.id
    return state


def fold_all(state: PoolState, ids: Iterable[str], events: Iterable[e.Event]) -> None:
    """Fold many events. Raises InvalidTransition; the state is then at the event before."""
    for event_id, event in zip(ids, events, strict=True):
        kind = type(event)
        _HANDLERS[kind](state, event_id, event)
        if kind in _ASKED and event.seq:  # type: ignore[attr-defined]
            _mark_decided(state, event.client_id, event.seq)  # type: ignore[attr-defined]
        state.last_id = event_id


def _mark_decided(state: PoolState, client_id: str, seq: int) -> None:
    client = state.clients.get(client_id) or state.gone.get(client_id)
    if client is None or seq <= client.seq_floor:
        return
    if seq == client.seq_floor + 1 and not client.seqs:  # in order, as nearly always
        client.seq_floor = seq
        return
    client.seqs.add(seq)
    while client.seq_floor + 1 in client.seqs:
        client.seq_floor += 1
        client.seqs.discard(client.seq_floor)
    if len(client.seqs) > SEQ_WINDOW:  # a request left this far behind never comes any more
        client.seq_floor = min(client.seqs)
        client.seqs.discard(client.seq_floor)
