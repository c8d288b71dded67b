"""Every error that Spoke raises, as one tree under :class:`SpokeError`.

An error says three things: what was asked, what was found, what to do. ``code`` is the short stable name that
crosses the wire and stands in the log, so that a program need not read the sentence.
"""

from __future__ import annotations

from typing import ClassVar


class SpokeError(Exception):
    """Base of everything that Spoke raises on purpose."""

    code: ClassVar[str] = "error"


class InvalidRequest(SpokeError, ValueError):
    """The request itself makes no sense: a count below one, a bad name, an absurd size."""

    code = "invalid"


class ServerError(SpokeError):
    """The Redis server cannot be used: unreachable, too old, read-only, full, or it wants a password."""

    code = "server"


class ServerUnreachable(ServerError, ConnectionError):
    """Nothing answers at the server's address."""

    code = "server_unreachable"


class ServerUnsuitable(ServerError):
    """The server answers, but cannot serve a pool as it stands (version, role, memory, rights)."""

    code = "server_unsuitable"


class AuthenticationFailed(ServerError):
    """The server wants a user or password that was not given, or refuses the one that was."""

    code = "authentication"


class NoAllocator(SpokeError, TimeoutError):
    """Nobody decides the requests of this pool."""

    code = "no_allocator"


class AllocationError(SpokeError):
    """A gang was not granted."""

    code = "refused"


class AllocationTimeout(AllocationError, TimeoutError):
    """The gang did not fit within the time it was willing to wait."""

    code = "timeout"


class AllocationCancelled(AllocationError):
    """The waiting gang was cancelled."""

    code = "cancelled"


class Forbidden(SpokeError):
    """The one who asks is known, and may not do this: the ticket is another user's."""

    code = "forbidden"


class LimitExceeded(SpokeError):
    """A configured limit (queue length, outstanding requests, sizes) was reached."""

    code = "limit"


class TicketError(SpokeError):
    """Something is wrong with a ticket."""

    code = "ticket"


class UnknownTicket(TicketError, KeyError):
    """No ticket of this id was ever granted in this pool."""

    code = "unknown_ticket"

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class TicketEnded(TicketError):
    """The ticket exists no more, or is on its way out: released, cancelled or lost."""

    code = "ticket_ended"


class RankOutOfRange(TicketError, IndexError):
    """The gang has no such rank."""

    code = "rank_out_of_range"


class RepairRefused(TicketError):
    """The member's slot is not replaced: nothing else fits, or it has not failed."""

    code = "repair_refused"


class AlreadyLaunched(TicketError):
    """The rank has an actor that is starting or running."""

    code = "already_launched"


class LeaseLost(SpokeError):
    """The client did not renew its lease in time; its tickets have been released."""

    code = "lease_lost"


class ClientClosed(SpokeError):
    """The client was closed, or belongs to the process that forked this one."""

    code = "client_closed"


class WaitTimeout(SpokeError, TimeoutError):
    """What was waited for did not happen within the time limit that the caller gave."""

    code = "wait_timeout"


class ActorError(SpokeError):
    """An actor's method raised; the text carries the remote traceback, ``remote_type`` the exception's class name."""

    code = "actor"
    remote_type: str = ""


class ActorStartFailed(ActorError):
    """The actor's process did not come up; the text says why."""

    code = "start_failed"


class ActorUnreachable(ActorError, ConnectionError):
    """The actor's process is gone or cannot be reached."""

    code = "actor_unreachable"


class TransportUnavailable(ActorUnreachable):
    """The transport that was asked for cannot reach the actor, or none can; the text says why."""

    code = "transport_unavailable"


class CallTimeout(ActorError, TimeoutError):
    """The call got no answer within its time limit."""

    code = "call_timeout"


class NotSerializable(SpokeError, TypeError):
    """A value cannot be sent as data; the text names it."""

    code = "not_serializable"


class MalformedData(SpokeError, ValueError):
    """Bytes from outside are not the frame or the value that they should be."""

    code = "malformed"


class NodeRefused(SpokeError):
    """The pool refused an agent's registration."""

    code = "node_refused"


class NodeRemoved(NodeRefused):
    """An operator has removed the node; its agent ends, and should not be started again by itself."""

    code = "node_removed"


class UnknownReservation(SpokeError):
    """There is no such reservation in the pool."""

    code = "unknown_reservation"


class ReservationRefused(SpokeError):
    """Not enough nodes can be reserved at that time."""

    code = "reservation_refused"


class NodeBusy(SpokeError):
    """The node cannot be removed while tickets hold places there."""

    code = "node_busy"


class UnknownNode(SpokeError, KeyError):
    """No node of this id is registered in this pool."""

    code = "unknown_node"

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class LogsUnavailable(SpokeError):
    """The output of an actor cannot be read: its node's agent is gone or does not answer, or it was removed."""

    code = "logs"


class LogError(SpokeError):
    """The event log cannot be read as it stands."""

    code = "log"


class UnknownEvent(LogError):
    """The log holds an event of a type or version that this release does not know."""

    code = "unknown_event"


class InvalidTransition(LogError):
    """An event does not follow from the state before it."""

    code = "invalid_transition"


class Fenced(SpokeError):
    """Another allocator has taken over; this one must not write any more."""

    code = "fenced"


def _tree(root: type[SpokeError]) -> dict[str, type[SpokeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def from_code(code: str, message: str) -> SpokeError:
    """The exception for a ``code`` that came over the wire; a plain SpokeError for one that is not known."""
    return _tree(SpokeError).get(code, SpokeError)(message)
