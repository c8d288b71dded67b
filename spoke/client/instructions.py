"""What the client's machine says is to be done."""

from __future__ import annotations

import msgspec

from spoke.client.tracking import Ticket
from spoke.errors import SpokeError
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.notice import Notice


class Transmit(msgspec.Struct, frozen=True):
    """Send this request (again)."""

    seq: int
    request: r.Request
    blobs: bytes = b""


class Resolve(msgspec.Struct, frozen=True):
    """The request has its answer; ``ticket`` is set where a gang was granted or attached to, or actors launched."""

    seq: int
    message: p.Message
    ticket: Ticket | None = None


class Fail(msgspec.Struct, frozen=True):
    """The request will not be answered with what was asked for."""

    seq: int
    error: SpokeError


class Connected(msgspec.Struct, frozen=True):
    """The allocator has opened the session: the lease exists from now on and must be renewed."""


class WaitOver(msgspec.Struct, frozen=True):
    """All that a wait is for has happened (see ``Ticket.exits_of``)."""

    wait_id: int
    ticket: Ticket


class WaitFailed(msgspec.Struct, frozen=True):
    """What a wait is for will not be told to this client any more."""

    wait_id: int
    error: SpokeError


class Noticed(msgspec.Struct, frozen=True):
    """There is something that the user should know of a ticket."""

    ticket: Ticket
    notice: Notice


class ActorChanged(msgspec.Struct, frozen=True):
    """The actor of a rank has ended, or is up again."""

    ticket: Ticket
    rank: int


class TicketGone(msgspec.Struct, frozen=True):
    """Nothing is left of the ticket."""

    ticket: Ticket


class Lost(msgspec.Struct, frozen=True):
    """The session is over for good."""

    error: SpokeError


Instruction = Transmit | Resolve | Fail | Connected | WaitOver | WaitFailed | Noticed | ActorChanged | TicketGone | Lost
