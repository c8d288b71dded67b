"""Replies and notices: what the allocator tells a client. They stand in ``reply:<client>``.

A reply answers one request (``seq``), exactly once. A notice (``seq`` 0) tells of something that happened. An entry of
the stream holds all that one commit has for the client, in order: the field is the seq, the value the message's type,
a space, and its content in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from spoke.events.codec import DecodeError, to_json
from spoke.events.model import GangSpec, Slot
from spoke.events.queueing import Reservation
from spoke.protocol.explanation import Explanation
from spoke.protocol.notice import Notice

REPLIES_KEPT = 20_000
"""The stream of a client with a long lease holds no fewer than this many of its newest entries, and not many more."""


class Message(msgspec.Struct, frozen=True):
    """Base of replies and notices."""

    TYPE: ClassVar[str]


class Done(Message, frozen=True):
    """The request is done; ``value`` says whether it changed anything."""

    TYPE: ClassVar[str] = "done"
    value: bool = True


class Failed(Message, frozen=True):
    """The request is refused or failed: ``code`` names the exception (``spoke.errors.from_code``)."""

    TYPE: ClassVar[str] = "failed"
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class ActorInfo:
    """An actor as clients see it. ``phase`` is one of launching, running, restarting, exited, start_failed, lost.

    While it is restarting, ``code``, ``signal`` and ``reason`` say how its last process ended.
    """

    rank: int
    actor_id: str
    node_id: str
    launch_id: str
    phase: str
    pid: int = 0
    address: str = ""
    code: int = 0
    signal: int = 0
    reason: str = ""
    restarts: int = 0


class Granted(Message, frozen=True):
    """The gang has its slots. ``spec`` and ``actors`` are filled for a client that attached to another one's ticket."""

    TYPE: ClassVar[str] = "granted"
    ticket_id: str
    slots: tuple[Slot, ...]
    master_addr: str
    master_port: int
    spec: GangSpec | None = None
    actors: tuple[ActorInfo, ...] = ()


class Repaired(Message, frozen=True):
    """A member of the gang has another slot. The answer to whoever asked, a notice to the others."""

    TYPE: ClassVar[str] = "repaired"
    ticket_id: str
    slot: Slot
    master_addr: str
    master_port: int


class Reserved(Message, frozen=True):
    """The reservation is made, and what it keeps."""

    TYPE: ClassVar[str] = "reserved"
    reservation: Reservation


class Launched(Message, frozen=True):
    """All actors of the launch are up."""

    TYPE: ClassVar[str] = "launched"
    ticket_id: str
    actors: tuple[ActorInfo, ...]


class Queued(Message, frozen=True):
    """Notice: the request ``of_seq`` waits in line under this ticket id; ``reason`` says for what."""

    TYPE: ClassVar[str] = "queued"
    of_seq: int
    ticket_id: str
    reason: str


class Explained(Message, frozen=True):
    """Why a ticket waits, or is where it is."""

    TYPE: ClassVar[str] = "explained"
    explanation: Explanation


class ActorEnded(Message, frozen=True):
    """Notice: an actor exited, failed to start or was lost. ``expected`` if it had been told to stop."""

    TYPE: ClassVar[str] = "actor_ended"
    ticket_id: str
    actor: ActorInfo
    expected: bool


class ActorsRestarting(Message, frozen=True):
    """Notice: the actor of ``rank`` failed, and these actors are started again: it alone, or all of its gang."""

    TYPE: ClassVar[str] = "actors_restarting"
    ticket_id: str
    actors: tuple[ActorInfo, ...]
    rank: int


class ActorRestarted(Message, frozen=True):
    """Notice: an actor that was started again is up."""

    TYPE: ClassVar[str] = "actor_restarted"
    ticket_id: str
    actor: ActorInfo


class TicketReleasing(Message, frozen=True):
    """Notice: the ticket is being given back, and why."""

    TYPE: ClassVar[str] = "ticket_releasing"
    ticket_id: str
    reason: str


class TicketReleased(Message, frozen=True):
    """Notice: nothing is left of the ticket."""

    TYPE: ClassVar[str] = "ticket_released"
    ticket_id: str


class TicketNotice(Message, frozen=True):
    """Notice: something that the client should know of a ticket, which goes on."""

    TYPE: ClassVar[str] = "ticket_notice"
    notice: Notice


class SessionLost(Message, frozen=True):
    """Notice: the client's lease ran out; its tickets are being released."""

    TYPE: ClassVar[str] = "session_lost"
    reason: str


@dataclass(frozen=True, slots=True)
class Holding:
    """One ticket of a client as the log has it; ``seq`` is the request that it came from, 0 if it is not its own."""

    ticket_id: str
    seq: int
    releasing: bool
    launches: tuple[str, ...]


class Resync(Message, frozen=True):
    """Notice: the server has changed and may have lost its last writes; this is all that the client has now."""

    TYPE: ClassVar[str] = "resync"
    holdings: tuple[Holding, ...]


_CLASSES = (
    Done,
    Failed,
    Granted,
    Repaired,
    Reserved,
    Launched,
    Queued,
    Explained,
    ActorEnded,
    ActorsRestarting,
    ActorRestarted,
    TicketReleasing,
    TicketReleased,
    TicketNotice,
    SessionLost,
    Resync,
)
MESSAGE_TYPES: dict[str, type[Message]] = {cls.TYPE: cls for cls in _CLASSES}
_HEADS: dict[type[Message], bytes] = {cls: cls.TYPE.encode() + b" " for cls in _CLASSES}
_DECODERS: dict[bytes, msgspec.json.Decoder[Any]] = {cls.TYPE.encode(): msgspec.json.Decoder(cls) for cls in _CLASSES}


def encode_message(message: Message) -> bytes:
    """The value that tells of the message."""
    return _HEADS[type(message)] + to_json(message)


def decode_message(raw: bytes) -> Message:
    """The message that a value tells of; raises DecodeError if it holds none."""
    kind, _, body = raw.partition(b" ")
    try:
        message: Message = _DECODERS[kind].decode(body)
        return message
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DecodeError(
            f"a reply cannot be read ({error}): client and allocator must be of the same release"
        ) from error
