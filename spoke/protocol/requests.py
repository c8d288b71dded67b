"""Requests: what clients and agents ask of the allocator, imperatives, one frozen class each.

In the stream a request is flat: ``type``, ``v``, who asks (``client_id`` and ``seq``, the idempotency key; or
``node_id`` and ``incarnation`` for an agent), ``body`` (JSON), and ``blobs`` for launches: a msgpack list of opaque
byte strings, which the allocator passes on and never reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import msgspec

from spoke.errors import SpokeError
from spoke.events.codec import to_json
from spoke.events.model import ActorSpec, GangSpec, Member, NodeSpec
from spoke.events.queueing import QueuePolicy, Quota
from spoke.protocol.identity import Key, Signer

BODY_BYTES_MAX = 4 << 20
ARGS_BYTES_MAX = 16 << 20
SEQ_MAX = 1 << 53


@dataclass(frozen=True, slots=True)
class Request:
    """Base of all requests."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int]


REQUEST_TYPES: dict[str, type[Request]] = {}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {}
_R = TypeVar("_R", bound=type[Request])


def _request(name: str, version: int = 1) -> Callable[[_R], _R]:
    def register(cls: _R) -> _R:
        cls.TYPE, cls.VERSION = name, version
        REQUEST_TYPES[name] = cls
        _DECODERS[name] = msgspec.json.Decoder(cls)
        return cls

    return register


# --- from clients ------------------------------------------------------------------------------------------------


@_request("client.connect")
@dataclass(frozen=True, slots=True)
class ConnectClient(Request):
    """Open a session with a lease of ``lease_ms``."""

    lease_ms: int
    host: str = ""
    pid: int = 0
    user: str = ""
    version: str = ""
    project: str = ""


@_request("client.close")
@dataclass(frozen=True, slots=True)
class CloseClient(Request):
    """End the session; tickets that are not detached are released."""


@_request("gang.allocate")
@dataclass(frozen=True, slots=True)
class AllocateGang(Request):
    """Grant a gang; wait in line for ``timeout_ms`` (None: for ever, 0: not at all)."""

    spec: GangSpec
    timeout_ms: int | None = None


@_request("gang.cancel")
@dataclass(frozen=True, slots=True)
class CancelGang(Request):
    """Withdraw this client's allocation request ``target_seq``; one that was granted meanwhile is released."""

    target_seq: int


@_request("gang.release")
@dataclass(frozen=True, slots=True)
class ReleaseGang(Request):
    """Give a ticket back. Anyone of the pool may; a waiting ticket is cancelled."""

    ticket_id: str
    reason: str = ""


@_request("gang.attach")
@dataclass(frozen=True, slots=True)
class AttachGang(Request):
    """Tell this client of the ticket, and of what becomes of it."""

    ticket_id: str


@_request("gang.explain")
@dataclass(frozen=True, slots=True)
class ExplainGang(Request):
    """Say why a ticket waits, or is where it is."""

    ticket_id: str


@_request("gang.repair")
@dataclass(frozen=True, slots=True)
class RepairGang(Request):
    """Give the failed member at ``rank`` another slot; ``elsewhere``: on another node."""

    ticket_id: str
    rank: int
    elsewhere: bool = False


@_request("actor.launch")
@dataclass(frozen=True, slots=True)
class LaunchActors(Request):
    """Start ``spec`` at the given ranks. Blobs: one for all members, or one per member, in order.

    ``by_group``, if there is any, says what to start in each group of a mixed gang, in place of ``spec``.
    """

    ticket_id: str
    spec: ActorSpec
    members: tuple[Member, ...]
    by_group: Mapping[str, ActorSpec] = field(default_factory=dict)


@_request("actor.stop")
@dataclass(frozen=True, slots=True)
class StopActor(Request):
    """Stop the actor of one rank; the ticket keeps its slot. Answered once it has ended."""

    ticket_id: str
    rank: int


# --- from operators ----------------------------------------------------------------------------------------------


@_request("node.cordon")
@dataclass(frozen=True, slots=True)
class CordonNode(Request):
    """Place nothing new on the node. Ends a drain that is under way."""

    node_id: str
    reason: str = ""


@_request("node.uncordon")
@dataclass(frozen=True, slots=True)
class UncordonNode(Request):
    """Let the node have new slots again."""

    node_id: str


@_request("node.drain")
@dataclass(frozen=True, slots=True)
class DrainNode(Request):
    """Cordon the node until its tickets have gone; after ``deadline_ms`` (None: never) they are released.

    ``wait``: the answer comes when the node is drained; else at once.
    """

    node_id: str
    deadline_ms: int | None = None
    reason: str = ""
    wait: bool = False


@_request("node.remove")
@dataclass(frozen=True, slots=True)
class RemoveNode(Request):
    """Take a node out of the pool; its agent ends. ``force``: its tickets are released first."""

    node_id: str
    force: bool = False
    reason: str = ""


@_request("gpu.mark")
@dataclass(frozen=True, slots=True)
class MarkGpu(Request):
    """Mark one GPU of a node unhealthy, so that it is not given out; or healthy again."""

    node_id: str
    index: int
    healthy: bool
    reason: str = ""


@_request("gang.move")
@dataclass(frozen=True, slots=True)
class MoveGang(Request):
    """Move a waiting ticket to the head or the tail of the line."""

    ticket_id: str
    to: Literal["head", "tail"] = "head"


@_request("gang.prioritize")
@dataclass(frozen=True, slots=True)
class PrioritizeGang(Request):
    """Give a ticket another priority."""

    ticket_id: str
    priority: int


@_request("queue.set_policy")
@dataclass(frozen=True, slots=True)
class SetQueuePolicy(Request):
    """Order the queue by this policy from now on."""

    policy: QueuePolicy


@_request("quota.set")
@dataclass(frozen=True, slots=True)
class SetQuota(Request):
    """Give a project this quota; ``*`` stands for all that have none of their own."""

    quota: Quota


@_request("quota.remove")
@dataclass(frozen=True, slots=True)
class RemoveQuota(Request):
    """Take a project's quota away."""

    project: str


@_request("reservation.create")
@dataclass(frozen=True, slots=True)
class CreateReservation(Request):
    """Keep ``nodes`` nodes with ``gpus`` GPUs each for ``length_ms``, from ``start_ms`` (server time; 0: now) on."""

    nodes: int
    gpus: int
    length_ms: int
    start_ms: int = 0
    project: str = ""
    name: str = ""


@_request("reservation.cancel")
@dataclass(frozen=True, slots=True)
class CancelReservation(Request):
    """Give a reservation's nodes back to everybody."""

    reservation_id: str


# --- from agents -------------------------------------------------------------------------------------------------


@_request("node.register")
@dataclass(frozen=True, slots=True)
class RegisterNode(Request):
    """Join the pool, with no actor alive on this node."""

    spec: NodeSpec
    lease_ms: int


@_request("node.leave")
@dataclass(frozen=True, slots=True)
class LeaveNode(Request):
    """Leave the pool; all actors of this node are dead."""

    reason: str = ""


@_request("actor.report_started")
@dataclass(frozen=True, slots=True)
class ReportStarted(Request):
    """The actor of this launch is up; ``restarts``: for the how-manieth time after the first."""

    ticket_id: str
    rank: int
    launch_id: str
    pid: int
    address: str = ""
    restarts: int = 0


@_request("actor.report_start_failed")
@dataclass(frozen=True, slots=True)
class ReportStartFailed(Request):
    """The actor of this launch did not come up, and nothing of it is alive.

    ``forgotten``: the agent was to start it again, and does not know it any more.
    """

    ticket_id: str
    rank: int
    launch_id: str
    reason: str
    restarts: int = 0
    forgotten: bool = False


@_request("actor.report_exited")
@dataclass(frozen=True, slots=True)
class ReportExited(Request):
    """The actor of this launch and all its processes are gone. ``code`` is -1 when ``signal`` ended it.

    ``reason`` is set where neither says why: its agent killed it because it hung.
    """

    ticket_id: str
    rank: int
    launch_id: str
    code: int
    signal: int = 0
    reason: str = ""
    restarts: int = 0


@_request("actor.report_restarting")
@dataclass(frozen=True, slots=True)
class ReportRestarting(Request):
    """The actor of this launch failed, nothing of it is alive, and its agent starts it again after ``delay_ms``.

    ``restarts`` counts this one. ``reason`` is set where code and signal do not say why.
    """

    ticket_id: str
    rank: int
    launch_id: str
    restarts: int
    code: int
    signal: int
    reason: str
    delay_ms: int


@_request("actor.report_halted")
@dataclass(frozen=True, slots=True)
class ReportHalted(Request):
    """For a restart of its gang the actor was stopped, and nothing of it is alive. ``restarts``: the new generation."""

    ticket_id: str
    rank: int
    launch_id: str
    restarts: int
    code: int
    signal: int = 0


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What a node's source says of one GPU; an empty ``kind`` means that it is healthy."""

    index: int
    uuid: str
    kind: str = ""
    reason: str = ""


@_request("node.report_health")
@dataclass(frozen=True, slots=True)
class ReportHealth(Request):
    """The health of these GPUs: of all when the node has joined, later of those whose health has changed."""

    gpus: tuple[GpuReport, ...]


@_request("node.report_held")
@dataclass(frozen=True, slots=True)
class ReportHeld(Request):
    """What this node holds after a change of servers: the launches whose processes may live, and their tickets.

    ``server`` is the run id that the order to report named; ``seen`` is the newest launch id that was ever ordered
    here: an event's id, by which a lost end of the log shows.
    """

    server: str
    launches: tuple[str, ...]
    tickets: tuple[str, ...]
    seen: str = ""


# --- the allocator's own (they never cross the stream) -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExpireLease(Request):
    """The holder did not renew in time."""

    TYPE = "lease.expire"
    VERSION = 1
    holder: str


@dataclass(frozen=True, slots=True)
class Tick(Request):
    """Time has passed: look for waiting gangs that are out of time, and place those that fit."""

    TYPE = "tick"
    VERSION = 1


class Envelope(NamedTuple):
    """A request and who asked. For an agent's report ``seq`` is 0 and ``node_id`` is set."""

    request: Request
    client_id: str = ""
    seq: int = 0
    node_id: str = ""
    incarnation: str = ""
    blobs: bytes = b""
    signer: Signer | None = None
    """Whose signature was checked; None in a pool without a master key."""


class Garbage(NamedTuple):
    """A request that could not be read: what is known of who sent it, and why it is refused."""

    client_id: str
    seq: int
    request: str
    code: str
    reason: str
    node_id: str = ""
    incarnation: str = ""


def encode_request(envelope: Envelope, key: Key | None = None, pool: str = "") -> dict[str, str | bytes | int]:
    """The stream fields of a request, signed if there is a ``key``."""
    request = envelope.request
    raw: dict[str, str | bytes | int] = {"type": request.TYPE, "v": request.VERSION}
    if envelope.node_id:
        raw["node_id"], raw["incarnation"] = envelope.node_id, envelope.incarnation
    else:
        raw["client_id"], raw["seq"] = envelope.client_id, envelope.seq
    raw["body"] = to_json(request)
    if envelope.blobs:
        raw["blobs"] = envelope.blobs
    if key is not None:
        raw.update(key.sign(pool, raw))
    return raw


def decode_request(raw: Mapping[bytes, bytes]) -> Envelope | Garbage:
    """The request that stands in the stream, or why it is none. Never raises."""
    client_id, node_id, incarnation = _clip(raw, b"client_id"), _clip(raw, b"node_id"), _clip(raw, b"incarnation")
    name, seq = _clip(raw, b"type"), _seq(raw.get(b"seq", b""))

    def garbage(code: str, reason: str) -> Garbage:
        return Garbage(client_id, seq, name, code, reason, node_id, incarnation)

    cls = REQUEST_TYPES.get(name)
    if cls is None:
        return garbage("unknown_request", f"there is no request {name!r}; known are {', '.join(sorted(REQUEST_TYPES))}")
    version = raw.get(b"v", b"")
    if version != b"%d" % cls.VERSION:
        found = _clip(raw, b"v") or "none"
        return garbage(
            "unknown_request",
            f"{name} has version {found}, this allocator speaks {cls.VERSION}: use the same release",
        )
    if bool(client_id and seq) == bool(node_id and incarnation):
        return garbage("invalid", f"{name} must name either client_id and seq, or node_id and incarnation")
    body, blobs = raw.get(b"body", b"{}"), raw.get(b"blobs", b"")
    if len(body) > BODY_BYTES_MAX or len(blobs) > ARGS_BYTES_MAX:
        return garbage(
            "limit",
            f"{name} carries {len(body)} + {len(blobs)} bytes; at most {BODY_BYTES_MAX} + {ARGS_BYTES_MAX}",
        )
    try:
        return Envelope(_DECODERS[name].decode(body), client_id, seq, node_id, incarnation, blobs)
    except (ValueError, TypeError, SpokeError, RecursionError) as error:
        return garbage("invalid", f"{name}: {str(error)[:500]}")


def _clip(fields: Mapping[bytes, bytes], key: bytes) -> str:
    """At most 200 printable characters of what should be a short name; empty if it is not there."""
    raw = fields.get(key)
    if raw is None:
        return ""
    text = raw[:200].decode(errors="replace")
    return text if text.isprintable() else ascii(text)[1:-1][:200]


def _seq(raw: bytes) -> int:
    return int(raw) if raw.isdigit() and len(raw) < 17 and int(raw) < SEQ_MAX else 0
