"""Orders: what the allocator tells an agent. They stand in ``node:<id>``, fenced by the agent's incarnation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from spoke.events.codec import DecodeError, to_json
from spoke.events.model import ActorSpec
from spoke.protocol.notice import Notice

ORDERS_KEPT = 20_000
"""A node's stream holds no fewer than this many of its newest orders, and not many more."""


@dataclass(frozen=True, slots=True)
class Order:
    """Base of all orders."""

    TYPE: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Welcome(Order):
    """The registration is accepted: this incarnation's lease runs from now."""

    TYPE = "node.welcome"
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Reject(Order):
    """The registration is refused, or this incarnation is no longer the node's: stop everything."""

    TYPE = "node.reject"
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class StartActor(Order):
    """Start one actor. ``launch_id`` names this very start in every report about it."""

    TYPE = "actor.start"
    ticket_id: str
    launch_id: str
    actor_id: str
    spec: ActorSpec
    rank: int
    local_rank: int
    group_rank: int
    world_size: int
    local_world_size: int
    num_nodes: int
    gpu_ids: tuple[int, ...]
    gpu_uuids: tuple[str, ...]
    master_addr: str
    master_port: int
    grace_s: float
    gpu_milli: int = 0
    nics: tuple[str, ...] = ()
    numa_node: int = -1
    group: str = ""
    rank_in_group: int = 0
    group_size: int = 0


@dataclass(frozen=True, slots=True)
class StopActor(Order):
    """Stop one actor: SIGTERM, then SIGKILL after the ticket's grace time."""

    TYPE = "actor.stop"
    ticket_id: str
    rank: int
    launch_id: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class HaltActors(Order):
    """The gang is restarted as a whole: stop these launches, report each, and wait for ``ResumeActors``."""

    TYPE = "ticket.halt"
    ticket_id: str
    generation: int
    members: tuple[tuple[int, str], ...]
    """Rank and launch id."""
    grace_s: float


@dataclass(frozen=True, slots=True)
class ResumeActors(Order):
    """All members of the gang have ended: start these launches again after ``delay_s``."""

    TYPE = "ticket.resume"
    ticket_id: str
    generation: int
    launches: tuple[str, ...]
    delay_s: float


@dataclass(frozen=True, slots=True)
class CloseTicket(Order):
    """The ticket is being given back: stop all its actors here and take back what was lent to it."""

    TYPE = "ticket.close"
    ticket_id: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class TakeBackPort(Order):
    """Rank 0 of the ticket has gone to another node: hold the port again that was lent to it here."""

    TYPE = "ticket.take_back_port"
    ticket_id: str


@dataclass(frozen=True, slots=True)
class NotifyActors(Order):
    """Tell the running actors of a ticket what its clients are told."""

    TYPE = "ticket.notify"
    notice: Notice


@dataclass(frozen=True, slots=True)
class ReportHoldings(Order):
    """The server has changed: report again how actors ended, say what runs, and start nothing until told.

    ``server`` is the server's run id; the answer repeats it, since one that was given to a server before is worth
    nothing.
    """

    TYPE = "node.report_holdings"
    server: str


@dataclass(frozen=True, slots=True)
class StopUnknown(Order):
    """The log knows nothing of these launches and tickets: kill them, then say again what runs."""

    TYPE = "node.stop_unknown"
    launches: tuple[str, ...]
    tickets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resume(Order):
    """All that runs is known: go on as usual."""

    TYPE = "node.resume"


_CLASSES = (
    Welcome,
    Reject,
    StartActor,
    StopActor,
    HaltActors,
    ResumeActors,
    CloseTicket,
    TakeBackPort,
    NotifyActors,
    ReportHoldings,
    StopUnknown,
    Resume,
)
ORDER_TYPES: dict[str, type[Order]] = {cls.TYPE: cls for cls in _CLASSES}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {name: msgspec.json.Decoder(cls) for name, cls in ORDER_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Delivery:
    """An order as an agent receives it. ``blob`` is the opaque part of a start (see ``launch.py``)."""

    incarnation: str
    order: Order
    blob: bytes = b""


def encode_order(delivery: Delivery) -> dict[str, str | bytes]:
    """The stream fields of an order."""
    raw: dict[str, str | bytes] = {
        "type": delivery.order.TYPE,
        "incarnation": delivery.incarnation,
        "body": to_json(delivery.order),
    }
    if delivery.blob:
        raw["blob"] = delivery.blob
    return raw


def decode_order(raw: Mapping[bytes, bytes]) -> Delivery:
    """The order that the fields hold; raises DecodeError if they hold none."""
    name = raw.get(b"type", b"").decode(errors="replace")
    if name not in _DECODERS:
        raise DecodeError(f"there is no order {name!r}: agent and allocator must be of the same release")
    try:
        order = _DECODERS[name].decode(raw.get(b"body", b""))
        return Delivery(raw.get(b"incarnation", b"").decode(), order, raw.get(b"blob", b""))
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"the order {name} cannot be read: {error}") from error
