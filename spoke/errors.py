"""Every error that Spoke raises, as one tree under :class:`SpokeError`.

An error says three things: what was asked, what was found, what to do. ``code`` is the short stable name that
crosses the wire and stands in the log, so that a program need not read the sentence.
"""

from __future__ import annotations

from typing import ClassVar


class SpokeError(Exception):
    """Base of everything that Spoke raises on purpose.

    >>> try:
    ...     client.gang_allocate(1, 99, spoke.Resources(gpus=1), timeout=0).result()
    ... except spoke.SpokeError as error:
    ...     error.code
    'refused'
    """

    code: ClassVar[str] = "error"


class InvalidRequest(SpokeError, ValueError):
    """The request itself makes no sense: a count below one, a bad name, an absurd size.

    >>> spoke.Resources(gpus=1.5)
    Traceback (most recent call last):
    spoke.errors.InvalidRequest: ...
    """

    code = "invalid"


class ServerError(SpokeError):
    """The Redis server cannot be used: unreachable, too old, read-only, full, or it wants a password.

    >>> try:
    ...     spoke.Client("redis://127.0.0.1:1")
    ... except spoke.ServerError as error:
    ...     error.code
    'server_unreachable'
    """

    code = "server"


class ServerUnreachable(ServerError, ConnectionError):
    """Nothing answers at the server's address.

    >>> spoke.Client("redis://127.0.0.1:1")
    Traceback (most recent call last):
    spoke.errors.ServerUnreachable: ...
    """

    code = "server_unreachable"


class ServerUnsuitable(ServerError):
    """The server answers, but cannot serve a pool as it stands (version, role, memory, rights).

    >>> issubclass(spoke.ServerUnsuitable, spoke.ServerError), spoke.ServerUnsuitable.code
    (True, 'server_unsuitable')
    """

    code = "server_unsuitable"


class AuthenticationFailed(ServerError):
    """The server wants a user or password that was not given, or refuses the one that was.

    >>> issubclass(spoke.AuthenticationFailed, spoke.ServerError), spoke.AuthenticationFailed.code
    (True, 'authentication')
    """

    code = "authentication"


class NoAllocator(SpokeError, TimeoutError):
    """Nobody decides the requests of this pool.

    >>> spoke.Client(pool="empty", allocator_timeout_s=0.2).gang_allocate().result()
    Traceback (most recent call last):
    spoke.errors.NoAllocator: ...
    """

    code = "no_allocator"


class AllocationError(SpokeError):
    """A gang was not granted.

    >>> client.gang_allocate(1, 99, spoke.Resources(gpus=1), timeout=0).result()
    Traceback (most recent call last):
    spoke.errors.AllocationError: ...
    """

    code = "refused"


class AllocationTimeout(AllocationError, TimeoutError):
    """The gang did not fit within the time it was willing to wait.

    >>> held = client.gang_allocate(2, 4, spoke.Resources(gpus=1)).result()
    >>> client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=0.1).result()
    Traceback (most recent call last):
    spoke.errors.AllocationTimeout: ...
    """

    code = "timeout"


class AllocationCancelled(AllocationError):
    """The waiting gang was cancelled.

    >>> client.gang_release(waiting.pending_reason().ticket_id).result()
    True
    >>> waiting.result()
    Traceback (most recent call last):
    spoke.errors.AllocationCancelled: ...
    """

    code = "cancelled"


class Forbidden(SpokeError):
    """The one who asks is known, and may not do this: the ticket is another user's."""

    code = "forbidden"


class LimitExceeded(SpokeError):
    """A configured limit (queue length, outstanding requests, sizes) was reached.

    >>> issubclass(spoke.LimitExceeded, spoke.SpokeError), spoke.LimitExceeded.code
    (True, 'limit')
    """

    code = "limit"


class TicketError(SpokeError):
    """Something is wrong with a ticket.

    >>> try:
    ...     client.gang_release("t-999999").result()
    ... except spoke.TicketError as error:
    ...     error.code
    'unknown_ticket'
    """

    code = "ticket"


class UnknownTicket(TicketError, KeyError):
    """No ticket of this id was ever granted in this pool.

    >>> client.gang_release("t-999999").result()
    Traceback (most recent call last):
    spoke.errors.UnknownTicket: ...
    """

    code = "unknown_ticket"

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class TicketEnded(TicketError):
    """The ticket exists no more, or is on its way out: released, cancelled or lost.

    >>> gang.release().result()
    True
    >>> gang.launch("Worker").result()
    Traceback (most recent call last):
    spoke.errors.TicketEnded: ...
    """

    code = "ticket_ended"


class RankOutOfRange(TicketError, IndexError):
    """The gang has no such rank.

    >>> client.launch_actor(gang.ticket_id, 7, "Worker", "w").result()
    Traceback (most recent call last):
    spoke.errors.RankOutOfRange: ...
    """

    code = "rank_out_of_range"


class RepairRefused(TicketError):
    """The member's slot is not replaced: nothing else fits, or it has not failed.

    >>> gang.repair(0).result()
    Traceback (most recent call last):
    spoke.errors.RepairRefused: ...
    """

    code = "repair_refused"


class AlreadyLaunched(TicketError):
    """The rank has an actor that is starting or running.

    >>> actors = gang.launch("Worker").result()
    >>> gang.launch("Worker").result()
    Traceback (most recent call last):
    spoke.errors.AlreadyLaunched: ...
    """

    code = "already_launched"


class LeaseLost(SpokeError):
    """The client did not renew its lease in time; its tickets have been released.

    >>> issubclass(spoke.LeaseLost, spoke.SpokeError), spoke.LeaseLost.code
    (True, 'lease_lost')
    """

    code = "lease_lost"


class ClientClosed(SpokeError):
    """The client was closed, or belongs to the process that forked this one.

    >>> client = spoke.Client()
    >>> client.close()
    >>> client.status()
    Traceback (most recent call last):
    spoke.errors.ClientClosed: ...
    """

    code = "client_closed"


class WaitTimeout(SpokeError, TimeoutError):
    """What was waited for did not happen within the time limit that the caller gave.

    >>> worker.wait(timeout=0.1).result()
    Traceback (most recent call last):
    spoke.errors.WaitTimeout: ...
    """

    code = "wait_timeout"


class ActorError(SpokeError):
    """An actor's method raised; the text carries the remote traceback, ``remote_type`` the exception's class name.

    >>> worker.call("fail").result()
    Traceback (most recent call last):
    spoke.errors.ActorError: ...
    """

    code = "actor"
    remote_type: str = ""


class ActorStartFailed(ActorError):
    """The actor's process did not come up; the text says why.

    >>> gang.launch("NoSuchType").result()
    Traceback (most recent call last):
    spoke.errors.ActorStartFailed: ...
    """

    code = "start_failed"


class ActorUnreachable(ActorError, ConnectionError):
    """The actor's process is gone or cannot be reached.

    >>> actor = gang.launch("Worker").result()[0]
    >>> ended = actor.stop().result(), actor.wait().result()
    >>> actor.call("echo", 1).result()
    Traceback (most recent call last):
    spoke.errors.ActorUnreachable: ...
    """

    code = "actor_unreachable"


class TransportUnavailable(ActorUnreachable):
    """The transport that was asked for cannot reach the actor, or none can; the text says why.

    >>> issubclass(spoke.TransportUnavailable, spoke.ActorUnreachable), spoke.TransportUnavailable.code
    (True, 'transport_unavailable')
    """

    code = "transport_unavailable"


class CallTimeout(ActorError, TimeoutError):
    """The call got no answer within its time limit.

    >>> worker.options(timeout_s=0.1).call("sleep", 5).result()
    Traceback (most recent call last):
    spoke.errors.CallTimeout: ...
    """

    code = "call_timeout"


class NotSerializable(SpokeError, TypeError):
    """A value cannot be sent as data; the text names it.

    >>> worker.call("echo", object()).result()
    Traceback (most recent call last):
    spoke.errors.NotSerializable: ...
    """

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
    """The node cannot be removed while tickets hold places there.

    >>> client.remove_node(worker.node_id).result()
    Traceback (most recent call last):
    spoke.errors.NodeBusy: ...
    """

    code = "node_busy"


class UnknownNode(SpokeError, KeyError):
    """No node of this id is registered in this pool.

    >>> client.cordon_node("node-7").result()
    Traceback (most recent call last):
    spoke.errors.UnknownNode: ...
    """

    code = "unknown_node"

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class ProtocolMismatch(SpokeError):
    """Client or agent and the pool's allocator are of releases that do not speak the same protocol.

    >>> issubclass(spoke.ProtocolMismatch, spoke.SpokeError), spoke.ProtocolMismatch.code
    (True, 'protocol')
    """

    code = "protocol"


class LogsUnavailable(SpokeError):
    """The output of an actor cannot be read: its node's agent is gone or does not answer, or it was removed.

    >>> issubclass(spoke.LogsUnavailable, spoke.SpokeError), spoke.LogsUnavailable.code
    (True, 'logs')
    """

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
