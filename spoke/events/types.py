"""The events: facts that happened, in the past tense, one frozen class each.

The vocabulary grows; the meaning of an event never changes. A change of fields raises ``VERSION``. ``EVENT_TYPES``
maps the type names of the log to the classes. Where a request caused an event, ``client_id`` and ``seq`` name it:
that is how a request that arrives twice is decided once, and how an auditor finds who asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, TypeVar

import msgspec

from spoke.events.ids import ms_of
from spoke.events.model import ActorSpec, GangSpec, NodeSpec, Slot
from spoke.events.queueing import QueuePolicy, Quota, Reservation


class Event(msgspec.Struct, frozen=True):
    """Base of all events. ``TYPE`` is the name in the log, ``VERSION`` the version of its fields."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int]


class Recorded(msgspec.Struct, frozen=True):
    """An event and its id in the stream, ``<milliseconds>-<sequence>``."""

    id: str
    event: Event

    @property
    def ms(self) -> int:
        """The id's milliseconds since 1970: roughly when it happened."""
        return ms_of(self.id)


EVENT_TYPES: dict[str, type[Event]] = {}
_E = TypeVar("_E", bound=type[Event])


def _event(name: str, version: int = 1) -> Callable[[_E], _E]:
    def register(cls: _E) -> _E:
        cls.TYPE, cls.VERSION = name, version
        EVENT_TYPES[name] = cls
        return cls

    return register


# --- allocator -------------------------------------------------------------------------------------------------


@_event("allocator.elected")
class AllocatorElected(Event, frozen=True):
    """An allocator took over the pool; ``epoch`` fences all earlier ones."""

    holder: str
    epoch: int
    version: str = ""


@_event("server.changed")
class ServerChanged(Event, frozen=True):
    """The server was started anew, or another took its place: its last writes may be gone.

    ``server`` is its run id, ``was`` that of the server before, ``end`` the last event that was found. Every lease
    begins anew, and no GPU of a node is granted before its agent has said what runs there.
    """

    server: str
    was: str
    end: str


@_event("log.regressed")
class LogRegressed(Event, frozen=True):
    """The log has lost its end: ``by`` (a node, a client, or the allocator) has seen what is not in it.

    ``seen`` is that event's id, or the ticket whose grant is lost; ``end`` is the last event that was left of what the
    log was.
    """

    seen: str
    end: str
    by: str


@_event("log.entry_struck")
class LogEntryStruck(Event, frozen=True):
    """An entry that stood in the log and was no event was taken out of it: somebody had written it by hand.

    ``entry`` was its id, ``said`` are its fields as JSON, cut short. ``by`` is the operator who had it taken out;
    empty where the allocator did so by itself, since an entry without a hash was written by no allocator.
    """

    entry: str
    said: str
    reason: str
    by: str = ""


@_event("request.refused")
class RequestRefused(Event, frozen=True):
    """A request could not be decided: unreadable, unknown type or version, or it asked for something impossible.

    ``request`` is the request's type as it was given, ``code`` the stable name of the reason (see ``spoke.errors``).
    It came from a client, or from the agent of ``node_id`` in its run ``incarnation``.
    """

    client_id: str
    seq: int
    request: str
    code: str
    reason: str
    node_id: str = ""
    incarnation: str = ""


@_event("request.answered")
class RequestAnswered(Event, frozen=True):
    """A request found nothing left to do, such as the release of a ticket that had ended; ``reason`` says what."""

    client_id: str
    seq: int
    request: str
    reason: str


# --- clients ---------------------------------------------------------------------------------------------------


@_event("client.connected")
class ClientConnected(Event, frozen=True):
    """A client opened its session; it must renew its lease every ``lease_ms`` or lose its tickets."""

    client_id: str
    seq: int
    lease_ms: int
    host: str = ""
    pid: int = 0
    user: str = ""
    version: str = ""
    project: str = ""


@_event("client.lost")
class ClientLost(Event, frozen=True):
    """A client's lease ran out: killed, cut off, or stopped for too long."""

    client_id: str
    reason: str


@_event("client.closed")
class ClientClosed(Event, frozen=True):
    """A client said goodbye."""

    client_id: str
    seq: int


# --- nodes -----------------------------------------------------------------------------------------------------


@_event("node.registered")
class NodeRegistered(Event, frozen=True):
    """An agent joined with an empty node: at this moment none of its actors is alive."""

    node_id: str
    incarnation: str
    lease_ms: int
    spec: NodeSpec


@_event("node.reconciling")
class NodeReconciling(Event, frozen=True):
    """After a change of servers a node holds what the log does not know: these launches are stopped, none adopted."""

    node_id: str
    incarnation: str
    launches: tuple[str, ...]
    tickets: tuple[str, ...]


@_event("node.confirmed")
class NodeConfirmed(Event, frozen=True):
    """After a change of servers a node holds what the log knows and nothing else: its free GPUs can be granted."""

    node_id: str
    incarnation: str


@_event("node.lost")
class NodeLost(Event, frozen=True):
    """A node's agent is gone; the agent kills its actors before its lease runs out, so they are gone too."""

    node_id: str
    reason: str


@_event("node.cordoned")
class NodeCordoned(Event, frozen=True):
    """No new slots are placed on the node, until it is uncordoned; also after it was lost, or left and came back."""

    node_id: str
    client_id: str
    seq: int
    reason: str = ""


@_event("node.uncordoned")
class NodeUncordoned(Event, frozen=True):
    """New slots may be placed on the node again; a drain that was under way ends."""

    node_id: str
    client_id: str
    seq: int


@_event("node.draining")
class NodeDraining(Event, frozen=True):
    """No new slots are placed on the node; what runs there goes on, at most until ``deadline_ms`` (0: for ever).

    ``remove``: the node is removed when its last ticket has gone. ``wait``: the request is answered only then.
    """

    node_id: str
    client_id: str
    seq: int
    reason: str = ""
    deadline_ms: int = 0
    remove: bool = False
    wait: bool = False


@_event("node.drained")
class NodeDrained(Event, frozen=True):
    """The last ticket left a draining node."""

    node_id: str


@_event("node.removed")
class NodeRemoved(Event, frozen=True):
    """The node left the pool on purpose: its agent stopped, or an operator (``client_id``, ``seq``) removed it."""

    node_id: str
    reason: str
    client_id: str = ""
    seq: int = 0


# --- GPUs ------------------------------------------------------------------------------------------------------


@_event("gpu.marked_unhealthy")
class GpuMarkedUnhealthy(Event, frozen=True):
    """Nothing new is placed on this GPU. ``kind`` is a short stable name of what was found (``operator``: by hand).

    It holds for the GPU of this ``uuid`` on this node until it is marked healthy, also when the node comes back.
    """

    node_id: str
    index: int
    uuid: str
    kind: str
    reason: str
    client_id: str = ""
    seq: int = 0


@_event("gpu.marked_healthy")
class GpuMarkedHealthy(Event, frozen=True):
    """The GPU can be given out again: the agent's source says so, or an operator."""

    node_id: str
    index: int
    uuid: str
    reason: str = ""
    client_id: str = ""
    seq: int = 0


# --- gangs -----------------------------------------------------------------------------------------------------


@_event("gang.queued")
class GangQueued(Event, frozen=True):
    """The gang does not fit now and waits in line. ``deadline_ms`` is 0 for one that waits for ever."""

    ticket_id: str
    client_id: str
    seq: int
    spec: GangSpec
    deadline_ms: int
    reason: str


@_event("gang.allocated")
class GangAllocated(Event, frozen=True):
    """Every member has its place. ``policy`` is the placement policy's name and version.

    ``order`` is the same of the queue's policy, ``+backfill/N`` if the gang overtook others; ``borrowed``: its project
    has more than its quota with it.
    """

    ticket_id: str
    client_id: str
    seq: int
    spec: GangSpec
    slots: tuple[Slot, ...]
    master_addr: str
    master_port: int
    policy: str
    order: str = ""
    borrowed: bool = False


@_event("gang.refused")
class GangRefused(Event, frozen=True):
    """The gang was not granted; ``ticket_id`` is empty for one that never waited."""

    ticket_id: str
    client_id: str
    seq: int
    spec: GangSpec
    code: str
    reason: str


@_event("gang.cancelled")
class GangCancelled(Event, frozen=True):
    """A waiting gang was withdrawn, or its client is gone. ``seq`` is the cancelling request (0: none)."""

    ticket_id: str
    client_id: str
    seq: int
    reason: str


@_event("gang.moved")
class GangMoved(Event, frozen=True):
    """A waiting gang was moved to the head or the tail of the line."""

    ticket_id: str
    client_id: str
    seq: int
    to: Literal["head", "tail"]


@_event("gang.explained")
class GangExplained(Event, frozen=True):
    """A client asked why a ticket waits, or is where it is; what it was told follows from the state at this moment."""

    ticket_id: str
    client_id: str
    seq: int


@_event("gang.prioritized")
class GangPrioritized(Event, frozen=True):
    """A ticket has another priority from now on: in the queue, and against preemption."""

    ticket_id: str
    client_id: str
    seq: int
    priority: int


@_event("gang.attached")
class GangAttached(Event, frozen=True):
    """Another client asked to be told what becomes of a ticket."""

    ticket_id: str
    client_id: str
    seq: int


@_event("gang.repaired")
class GangRepaired(Event, frozen=True):
    """A failed member got another slot; what it held is free. The others keep theirs, the master moves with rank 0."""

    ticket_id: str
    client_id: str
    seq: int
    rank: int
    slot: Slot
    master_addr: str
    master_port: int
    policy: str


@_event("gang.restarting")
class GangRestarting(Event, frozen=True):
    """A member failed, and the gang's restart policy starts all of them again: the agents were told to stop ``ranks``.

    ``generation`` counts the gang's restarts, ``strikes`` those that its policy counts now. ``rank`` is who failed, by
    ``code`` or ``signal``; ``reason`` says what neither does. There is no ``actor.exited`` of it.
    """

    ticket_id: str
    generation: int
    rank: int
    code: int
    signal: int
    reason: str
    ranks: tuple[int, ...]
    strikes: int
    delay_ms: int


@_event("gang.restarted")
class GangRestarted(Event, frozen=True):
    """Nothing of the gang's members is alive any more: the agents were told to start ``ranks``, after ``delay_ms``."""

    ticket_id: str
    generation: int
    ranks: tuple[int, ...]
    delay_ms: int


@_event("gang.releasing")
class GangReleasing(Event, frozen=True):
    """The ticket is being given back and its actors told to stop. ``client_id`` and ``seq``: who asked, if anyone."""

    ticket_id: str
    client_id: str
    seq: int
    reason: str


@_event("gang.released")
class GangReleased(Event, frozen=True):
    """What the ticket held on ``nodes`` is free; ``final`` when nothing is left of it."""

    ticket_id: str
    nodes: tuple[str, ...]
    final: bool


@_event("ticket.preempting")
class TicketPreempting(Event, frozen=True):
    """The ticket must make room for ``by_ticket``, which waits: it is released at ``deadline_ms``; it is told now.

    ``policy`` is the name and version of the policy that chose it.
    """

    ticket_id: str
    by_ticket: str
    deadline_ms: int
    reason: str
    policy: str


@_event("ticket.spared")
class TicketSpared(Event, frozen=True):
    """The ticket need not make room any more: it stays."""

    ticket_id: str
    reason: str


@_event("ticket.expiring")
class TicketExpiring(Event, frozen=True):
    """The ticket's time is nearly over: it is released at ``deadline_ms``; it is told now."""

    ticket_id: str
    deadline_ms: int
    reason: str


# --- the queue -------------------------------------------------------------------------------------------------


@_event("queue.policy_changed")
class QueuePolicyChanged(Event, frozen=True):
    """The queue is ordered by another policy from now on."""

    client_id: str
    seq: int
    policy: QueuePolicy


@_event("quota.changed")
class QuotaChanged(Event, frozen=True):
    """A project has a quota, or another one than before. What it holds beyond it stays."""

    client_id: str
    seq: int
    quota: Quota


@_event("quota.removed")
class QuotaRemoved(Event, frozen=True):
    """A project has no quota of its own any more."""

    client_id: str
    seq: int
    project: str


@_event("reservation.created")
class ReservationCreated(Event, frozen=True):
    """Nodes are kept for some gangs, for a time. ``policy`` is the name and version of the policy that chose them."""

    client_id: str
    seq: int
    reservation: Reservation
    policy: str


@_event("reservation.cancelled")
class ReservationCancelled(Event, frozen=True):
    """The reservation's nodes are for everybody again; what was placed there stays."""

    reservation_id: str
    client_id: str
    seq: int


@_event("reservation.ended")
class ReservationEnded(Event, frozen=True):
    """The reservation's time is over."""

    reservation_id: str


# --- actors ----------------------------------------------------------------------------------------------------


@_event("actor.launch_requested")
class ActorLaunchRequested(Event, frozen=True):
    """An agent was told to start an actor. The event's id is the launch's id. Arguments never enter the log."""

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    client_id: str
    seq: int
    spec: ActorSpec


@_event("actor.started")
class ActorStarted(Event, frozen=True):
    """The actor's process is up; ``address`` is where it takes calls (empty for a command).

    ``restarts``: how often it was started again before; in a gang that restarts as a whole, the gang's generation.
    """

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    pid: int
    address: str
    restarts: int = 0


@_event("actor.start_failed")
class ActorStartFailed(Event, frozen=True):
    """The actor did not come up; nothing of it is alive."""

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    reason: str


@_event("actor.exited")
class ActorExited(Event, frozen=True):
    """The actor and all its processes are gone: by exit ``code``, or by ``signal`` (then code is -1).

    ``reason`` is set where its agent killed it: it hung.
    """

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    code: int
    signal: int = 0
    reason: str = ""


@_event("actor.restarting")
class ActorRestarting(Event, frozen=True):
    """The actor failed, nothing of it is alive, and its agent starts it again after ``delay_ms``.

    ``restarts`` counts this one. It ended by ``code`` or ``signal``; ``reason`` says what neither does.
    """

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    restarts: int
    code: int
    signal: int
    reason: str
    delay_ms: int


@_event("actor.halted")
class ActorHalted(Event, frozen=True):
    """The actor was stopped for the restart of its gang, and nothing of it is alive; it waits for the others."""

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    generation: int
    code: int
    signal: int = 0


@_event("actor.lost")
class ActorLost(Event, frozen=True):
    """The actor went down with its node."""

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    reason: str


@_event("actor.stop_requested")
class ActorStopRequested(Event, frozen=True):
    """An agent was told to stop one actor."""

    ticket_id: str
    rank: int
    actor_id: str
    node_id: str
    client_id: str
    seq: int
