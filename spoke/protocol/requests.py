"""Requests: what clients and agents ask of the allocator, imperatives, one frozen class each.

In the stream a request is flat: ``type``, ``v``, who asks (``client_id`` and ``seq``, the idempotency key; or
``node_id`` and ``incarnation`` for an agent), ``body`` (JSON), and ``blobs`` for launches: a msgpack list of opaque
byte strings, which the allocator passes on and never reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import msgspec

from spoke.events.codec import to_json
from spoke.events.model import ActorSpec, GangSpec, Member, NodeSpec
from spoke.events.queueing import QueuePolicy, Quota
from spoke.protocol.identity import Key, Signer

BODY_BYTES_MAX = 4 << 20
ARGS_BYTES_MAX = 16 << 20
USUAL_BYTES_MAX = 1 << 10
SEQ_MAX = 1 << 53


class Request(msgspec.Struct, frozen=True):
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
class ConnectClient(Request, frozen=True):
    """Open a session with a lease of ``lease_ms``. ``protocol`` is the version of it that the client speaks."""

    lease_ms: int
    host: str = ""
    pid: int = 0
    user: str = ""
    version: str = ""
    project: str = ""
    protocol: int = 0


@_request("client.close")
class CloseClient(Request, frozen=True):
    """End the session; tickets that are not detached are released."""


@_request("gang.allocate")
class AllocateGang(Request, frozen=True):
    """Grant a gang; wait in line for ``timeout_ms`` (None: for ever, 0: not at all).

    ``trace`` is the context of the asker's span (W3C traceparent), if it traces; no event has it.
    """

    spec: GangSpec
    timeout_ms: int | None = None
    trace: str = ""


@_request("gang.cancel")
class CancelGang(Request, frozen=True):
    """Withdraw this client's allocation request ``target_seq``; one that was granted meanwhile is released."""

    target_seq: int


@_request("gang.release")
class ReleaseGang(Request, frozen=True):
    """Give a ticket back. Anyone of the pool may; a waiting ticket is cancelled."""

    ticket_id: str
    reason: str = ""


@_request("gang.attach")
class AttachGang(Request, frozen=True):
    """Tell this client of the ticket, and of what becomes of it."""

    ticket_id: str


@_request("client.report_lost")
class ReportLost(Request, frozen=True):
    """What this client has seen, and a server that has changed does not know: tickets, and launches by their events."""

    tickets: tuple[str, ...] = ()
    launches: tuple[str, ...] = ()


@_request("gang.explain")
class ExplainGang(Request, frozen=True):
    """Say why a ticket waits, or is where it is."""

    ticket_id: str


@_request("gang.repair")
class RepairGang(Request, frozen=True):
    """Give the failed member at ``rank`` another slot; ``elsewhere``: on another node."""

    ticket_id: str
    rank: int
    elsewhere: bool = False


@_request("actor.launch")
class LaunchActors(Request, frozen=True):
    """Start ``spec`` at the given ranks. Blobs: one for all members, or one per member, in order.

    ``by_group``, if there is any, says what to start in each group of a mixed gang, in place of ``spec``.
    """

    ticket_id: str
    spec: ActorSpec
    members: tuple[Member, ...]
    by_group: Mapping[str, ActorSpec] = msgspec.field(default_factory=dict)


@_request("actor.stop")
class StopActor(Request, frozen=True):
    """Stop the actor of one rank; the ticket keeps its slot. Answered once it has ended."""

    ticket_id: str
    rank: int


# --- from operators ----------------------------------------------------------------------------------------------


@_request("node.cordon")
class CordonNode(Request, frozen=True):
    """Place nothing new on the node. Ends a drain that is under way."""

    node_id: str
    reason: str = ""


@_request("node.uncordon")
class UncordonNode(Request, frozen=True):
    """Let the node have new slots again."""

    node_id: str


@_request("node.drain")
class DrainNode(Request, frozen=True):
    """Cordon the node until its tickets have gone; after ``deadline_ms`` (None: never) they are released.

    ``wait``: the answer comes when the node is drained; else at once.
    """

    node_id: str
    deadline_ms: int | None = None
    reason: str = ""
    wait: bool = False


@_request("node.remove")
class RemoveNode(Request, frozen=True):
    """Take a node out of the pool; its agent ends. ``force``: its tickets are released first."""

    node_id: str
    force: bool = False
    reason: str = ""


@_request("gpu.mark")
class MarkGpu(Request, frozen=True):
    """Mark one GPU of a node unhealthy, so that it is not given out; or healthy again."""

    node_id: str
    index: int
    healthy: bool
    reason: str = ""


@_request("gang.move")
class MoveGang(Request, frozen=True):
    """Move a waiting ticket to the head or the tail of the line."""

    ticket_id: str
    to: Literal["head", "tail"] = "head"


@_request("gang.prioritize")
class PrioritizeGang(Request, frozen=True):
    """Give a ticket another priority."""

    ticket_id: str
    priority: int


@_request("queue.set_policy")
class SetQueuePolicy(Request, frozen=True):
    """Order the queue by this policy from now on."""

    policy: QueuePolicy


@_request("quota.set")
class SetQuota(Request, frozen=True):
    """Give a project this quota; ``*`` stands for all that have none of their own."""

    quota: Quota


@_request("quota.remove")
class RemoveQuota(Request, frozen=True):
    """Take a project's quota away."""

    project: str


@_request("reservation.create")
class CreateReservation(Request, frozen=True):
    """Keep ``nodes`` nodes with ``gpus`` GPUs each for ``length_ms``, from ``start_ms`` (server time; 0: now) on."""

    nodes: int
    gpus: int
    length_ms: int
    start_ms: int = 0
    project: str = ""
    name: str = ""


@_request("reservation.cancel")
class CancelReservation(Request, frozen=True):
    """Give a reservation's nodes back to everybody."""

    reservation_id: str


# --- from agents -------------------------------------------------------------------------------------------------


@_request("node.register")
class RegisterNode(Request, frozen=True):
    """Join the pool, with no actor alive on this node."""

    spec: NodeSpec
    lease_ms: int


@_request("node.leave")
class LeaveNode(Request, frozen=True):
    """Leave the pool; all actors of this node are dead."""

    reason: str = ""


@_request("actor.report_started")
class ReportStarted(Request, frozen=True):
    """The actor of this launch is up; ``restarts``: for the how-manieth time after the first."""

    ticket_id: str
    rank: int
    launch_id: str
    pid: int
    address: str = ""
    restarts: int = 0


@_request("actor.report_start_failed")
class ReportStartFailed(Request, frozen=True):
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
class ReportExited(Request, frozen=True):
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
class ReportRestarting(Request, frozen=True):
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
class ReportHalted(Request, frozen=True):
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
class ReportHealth(Request, frozen=True):
    """The health of these GPUs: of all when the node has joined, later of those whose health has changed."""

    gpus: tuple[GpuReport, ...]


@_request("node.report_held")
class ReportHeld(Request, frozen=True):
    """What this node holds after a change of servers: the launches whose processes may live, and their tickets.

    ``server`` is the run id that the order to report named; ``seen`` is the newest launch id that was ever ordered
    here: an event's id, by which a lost end of the log shows.
    """

    server: str
    launches: tuple[str, ...]
    tickets: tuple[str, ...]
    seen: str = ""


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


Asked = Envelope | Garbage
"""What came: a request, or what is refused in its place."""


def refused(asked: Asked, code: str, why: str) -> Garbage:
    """The refusal that takes a request's place; its reason begins with the request's name."""
    name = asked.request if isinstance(asked, Garbage) else asked.request.TYPE
    return Garbage(asked.client_id, asked.seq, name, code, f"{name}: {why}", asked.node_id, asked.incarnation)


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


@lru_cache(maxsize=512)
def _decode_usual(body: bytes) -> Any:
    """A short request for a gang: most are asked for again and again in the same words."""
    return _DECODERS[AllocateGang.TYPE].decode(body)


def decode_request(raw: Mapping[bytes, bytes]) -> Asked:
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
        usual = cls is AllocateGang and len(body) <= USUAL_BYTES_MAX
        request = _decode_usual(body) if usual else _DECODERS[name].decode(body)
        return Envelope(request, client_id, seq, node_id, incarnation, blobs)
    except Exception as error:  # whatever a value's own checks raise: no request may end the allocator that reads it
        return garbage("invalid", f"{name}: {str(error)[:500]}")


def _clip(fields: Mapping[bytes, bytes], key: bytes) -> str:
    """At most 200 printable characters of what should be a short name; empty if it is not there."""
    raw = fields.get(key)
    if not raw:
        return ""
    text = raw[:200].decode(errors="replace")
    return text if text.isprintable() else ascii(text)[1:-1][:200]


def _seq(raw: bytes) -> int:
    seq = int(raw) if raw.isdigit() and len(raw) < 17 else 0
    return seq if seq < SEQ_MAX else 0
