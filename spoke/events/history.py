"""The history of one GPU, node, ticket, actor or client: the events that name it, and who held what of it, when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.columns import Only
from spoke.events.holdings import TELLING, Holding, Holdings
from spoke.events.state import PoolState

Kind = Literal["gpu", "node", "ticket", "actor", "client"]
KINDS: tuple[str, ...] = get_args(Kind)
Entry = e.Recorded | Holding


def history(base: PoolState, events: Iterable[e.Recorded], kind: Kind, name: str) -> Iterator[Entry]:
    """The events that name the subject, each holding of its GPUs when it ends, and at last those that go on.

    A GPU is named by its UUID or as ``NODE:INDEX``, and has holdings only; an actor has events only. Raises
    InvalidRequest for a GPU named in another way.
    """
    about, held = _event_test(kind, name), _holding_test(kind, name)
    holdings = Holdings(base)
    for recorded in events:
        if about(recorded.event):
            yield recorded
        if type(recorded.event) in TELLING:
            yield from filter(held, holdings.take(recorded))
    yield from filter(held, holdings.open())


def asked_of(kind: Kind) -> Only:
    """The types of events that must be read."""
    return TELLING if kind == "gpu" else None


def _event_test(kind: Kind, name: str) -> Callable[[e.Event], bool]:
    if kind == "gpu":
        return lambda event: False
    if kind == "node":
        return lambda event: _names_node(event, name)
    field = f"{kind}_id"
    return lambda event: getattr(event, field, None) == name


def _names_node(event: e.Event, node_id: str) -> bool:
    match event:
        case e.NodeRegistered():
            return event.node_id == node_id
        case e.GangAllocated():
            return any(slot.node_id == node_id for slot in event.slots)
        case e.GangRepaired():
            return event.slot.node_id == node_id
        case e.GangReleased():
            return node_id in event.nodes
        case e.LogRegressed():
            return event.by == node_id
    return getattr(event, "node_id", None) == node_id


def _holding_test(kind: Kind, name: str) -> Callable[[Holding], bool]:
    match kind:
        case "node":
            return lambda holding: holding.node_id == name
        case "ticket":
            return lambda holding: holding.ticket_id == name
        case "client":
            return lambda holding: holding.client_id == name
        case "actor":
            return lambda holding: False
    node_id, colon, index = name.rpartition(":")
    if colon and index.isascii() and index.isdigit() and len(index) < 6:
        gpu = int(index)
        return lambda holding: holding.gpu_uuid == name or (holding.node_id == node_id and holding.gpu == gpu)
    if not name:
        raise InvalidRequest("a GPU without a name was asked for: give its UUID, or NODE:INDEX")
    return lambda holding: holding.gpu_uuid == name
