"""A handle on one actor: calls, its end, and where it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from spoke.client.futures import failed
from spoke.client.tracking import ActorExit, Ticket
from spoke.errors import ActorUnreachable, InvalidRequest, SpokeError
from spoke.events.model import Slot
from spoke.protocol.replies import ActorInfo
from spoke.transport import Connection, Stream, Transport, connect
from spoke.transport.credit import ITEMS_MAX
from spoke.transport.mailbox import CAPACITY, Mailbox
from spoke.transport.memory import Scope, join, leave

if TYPE_CHECKING:
    from spoke.client.gang import Gang
    from spoke.client.sync import Client

CONNECT_TIMEOUT_S = 10.0


class Line:
    """The one connection of this client to one actor; opened by the first call, and again should it break."""

    def __init__(self, client: Client, ticket: Ticket, actor: ActorInfo) -> None:
        self._client = client
        self._ticket = ticket
        self._actor = actor
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._scope: Scope | None = None

    @property
    def restarts(self) -> int:
        """Which of the actor's processes it leads to: how often the actor was started again before."""
        return self._actor.restarts

    @property
    def is_open(self) -> bool:
        """Whether a call would go out without connecting first."""
        connection = self._connection
        return connection is not None and not connection.closed

    def connection(self) -> Connection:
        """The connection; raises ActorUnreachable."""
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        with self._lock:
            if self._connection is None or self._connection.closed:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                secret = self._client.secret_of(self._ticket)
                self._connection = connect(
                    self._actor.address, secret, timeout_s=CONNECT_TIMEOUT_S, transport=self._client.transport
                )
                if self._scope is None:
                    self._scope = join(secret)  # handles of buffers that its answers hold work here
            return self._connection

    def close(self) -> None:
        """Close the connection; calls under way fail with ActorUnreachable."""
        with self._lock:
            connection, self._connection = self._connection, None
            scope, self._scope = self._scope, None
        if connection is not None:
            connection.close()
        if scope is not None:
            leave(scope)


class ActorHandle:
    """One actor of a gang. It keeps its gang, and so its GPUs, as long as it is referenced.

    >>> worker = workers[0]
    >>> worker.call("add", 1, 2).result()
    3
    """

    def __init__(self, gang: Gang, actor: ActorInfo, *, timeout_s: float | None = None) -> None:
        self._gang = gang
        self._actor = actor
        self._timeout_s = timeout_s

    @property
    def gang(self) -> Gang:
        """The gang that the actor is a member of.

        >>> len(worker.gang)
        2
        """
        return self._gang

    @property
    def id(self) -> str:
        """The actor's id, as it was launched.

        >>> [worker.id for worker in workers]
        ['Worker-0', 'Worker-1']
        """
        return self._actor.actor_id

    @property
    def rank(self) -> int:
        """The global rank.

        >>> [worker.rank for worker in workers]
        [0, 1]
        """
        return self._actor.rank

    @property
    def slot(self) -> Slot:
        """The place: node, host, ranks, GPUs.

        >>> worker.slot.node_id
        'node-0'
        """
        return self._gang.slots[self._actor.rank]

    @property
    def node_id(self) -> str:
        """The node that the actor runs on.

        >>> worker.node_id
        'node-0'
        """
        return self._actor.node_id

    @property
    def pid(self) -> int:
        """The process id on its node; 0 while it is started again.

        >>> worker.pid > 1
        True
        """
        return self._latest.pid

    @property
    def address(self) -> str:
        """Where it takes calls; empty for a command, and while it is started again.

        >>> worker.address
        '...127.0.0.1...'
        """
        return self._latest.address

    @property
    def phase(self) -> str:
        """What is known of it: running, restarting, exited, start_failed or lost.

        >>> worker.phase
        'running'
        """
        end = self.exit
        return self._latest.phase if end is None else end.phase

    @property
    def restarts(self) -> int:
        """How often it was started again, as far as this client knows.

        >>> worker.restarts
        0
        """
        return self._latest.restarts

    @property
    def _latest(self) -> ActorInfo:
        """The actor as it is now; its process may be another one than when the handle was made."""
        known = self._gang.ticket.actors.get(self._actor.rank)
        return known if known is not None and known.launch_id == self._actor.launch_id else self._actor

    @property
    def exit(self) -> ActorExit | None:
        """How it ended; None while it runs, as far as this client knows.

        >>> worker.exit is None
        True
        """
        ticket = self._gang.ticket
        known = ticket.actors.get(self.rank)
        if known is not None and known.launch_id != self._actor.launch_id:  # the rank was launched again since
            return ActorExit(self.rank, self.id, self.node_id, "exited", reason="another actor has taken its place")
        return ticket.exits.get(self.rank)

    def options(self, *, timeout_s: float | None) -> ActorHandle:
        """The same actor with other defaults: calls fail with CallTimeout after ``timeout_s`` seconds (None: never).

        >>> worker.options(timeout_s=5).call("echo", "in time").result()
        'in time'
        """
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest(f"timeout_s must be None or above 0, not {timeout_s!r}")
        return ActorHandle(self._gang, self._actor, timeout_s=timeout_s)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method of the actor; the future has its result.

        It fails with ActorError (the method raised; with the remote traceback), ActorUnreachable or CallTimeout. A call
        on an actor that was started again goes to its new process; until that is up it fails with ActorUnreachable.
        Raises NotSerializable for arguments that are not data, InvalidRequest for an actor that is a command. The
        first call opens the connection, for which it may take up to 10 s.

        >>> worker.call("add", 1, b=2).result()
        3
        """
        try:
            connection = self._connection(method)
        except InvalidRequest:
            raise
        except SpokeError as error:
            return failed(error)
        future = connection.call(method, args, kwargs, timeout_s=self._timeout_s)
        future.gang = self._gang  # type: ignore[attr-defined]  # whoever waits for the result keeps the actor
        return future

    def stream(self, method: str, /, *args: Any, **kwargs: Any) -> Stream:
        """Call a method that yields; iterate over the stream, with ``for`` or ``async for``, to get what it yields.

        The actor runs ahead by at most 64 items or 8 MiB. Leaving the loop early is an end, too: close the stream (or
        use it in a ``with`` block), and the method's ``finally`` runs. Iterating raises ActorError (the method raised),
        ActorUnreachable, or CallTimeout when an item takes longer than the handle's ``timeout_s``. Raises, besides what
        ``call`` raises, ActorUnreachable.

        >>> list(worker.stream("count", 3))
        [0, 1, 2]
        """
        stream = self._connection(method).stream(method, args, kwargs, timeout_s=self._timeout_s)
        stream.gang = self._gang  # type: ignore[attr-defined]  # whoever reads keeps the actor
        return stream

    def tell(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """Call a method and wait for nothing, neither for a result nor for an error: those are logged at the actor.

        It starts after everything this client called before on this actor, and is sent at most once: a ``call`` that
        is answered later says that all that was told before has arrived. Raises ActorUnreachable where the actor is
        known to be gone, LimitExceeded where it does not read, and what ``call`` raises.

        >>> worker.tell("echo", "nobody waits for this")
        """
        self._connection(method).tell(method, args, kwargs)

    def mailbox(self, capacity: int = CAPACITY) -> Mailbox:
        """A mailbox for what this actor pushes from now on (``ctx.push``); see ``Gang.mailbox``.

        >>> with worker.mailbox() as mailbox:
        ...     worker.tell("say", "hello")
        ...     mailbox.get().value
        'hello'
        """
        return open_mailbox(self._gang, [self], capacity)

    def connection(self, what: str) -> Connection:
        """The connection to the actor; raises ActorUnreachable, InvalidRequest for a command. ``what`` it is for."""
        return self._connection(what)

    def _connection(self, method: str) -> Connection:
        self._gang.client.check_process()
        latest = self._latest
        if latest.phase == "restarting":
            raise ActorUnreachable(
                f"actor {self.id} (rank {self.rank} of ticket {self._gang.ticket_id}) is being started again (restart "
                f"{latest.restarts}): call again when its handle's phase is running"
            )
        self._check_callable(repr(method))
        end = self.exit
        if end is not None:
            raise self._ended(end)
        return self._gang.line(latest).connection()

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes out without connecting first.

        >>> worker.call("echo", 1).result(), worker.is_connected
        (1, True)
        """
        return self._gang.line(self._latest).is_open

    @property
    def transport(self) -> Transport:
        """What carries the calls (``.name``), and why nothing better does (``.why_not``); ``str()`` says both.

        Opens the connection if no call has yet; raises what that raises.

        >>> worker.transport.name in ("tcp", "shm", "rdma")
        True
        """
        return self._connection("transport").transport

    def stop(self) -> Future[bool]:
        """Ask the actor to stop (SIGTERM, then SIGKILL after the gang's grace time); its slot stays the gang's.

        >>> actor = gang.launch("Worker").result()[1]
        >>> actor.stop().result(), actor.wait().result().ok
        (True, True)
        """
        return self._gang.client.stop_actor(self._gang.ticket_id, self.rank)

    def wait(self, timeout: float | None = None) -> Future[ActorExit]:
        """The actor's end. Fails with WaitTimeout after ``timeout`` seconds (None: never).

        >>> actor = gang.launch_command(["true"]).result()[0]
        >>> actor.wait(timeout=30).result().code
        0
        """
        end = self.exit
        if end is not None:
            done: Future[ActorExit] = Future()
            done.set_result(end)
            return done
        return self._gang.wait_for_rank(self.rank, timeout)

    def release(self) -> Future[bool]:
        """Give back the whole gang of this actor; meant for those that ``spawn`` made.

        >>> client.spawn("Worker", "alone").result().release().result()
        True
        """
        return self._gang.release()

    def _check_callable(self, what: str) -> None:
        if not self._latest.address and not self._actor.address:
            raise InvalidRequest(
                f"{what} was called on actor {self.id} of ticket {self._gang.ticket_id}, which is a command and "
                f"has no methods: launch a class that is registered with @spoke.register_actor instead"
            )

    def _ended(self, end: ActorExit) -> ActorUnreachable:
        how = f"signal {end.signal}" if end.signal else f"code {end.code}" if end.phase == "exited" else end.phase
        reason = f": {end.reason}" if end.reason else ""
        return ActorUnreachable(
            f"actor {self.id} (rank {self.rank} of ticket {self._gang.ticket_id}) has ended ({how}{reason})"
        )

    def __repr__(self) -> str:
        return f"<ActorHandle {self.id} rank={self.rank} ticket={self._gang.ticket_id} node={self.node_id}>"


def open_mailbox(gang: Gang, handles: Sequence[ActorHandle], capacity: int) -> Mailbox:
    """A mailbox at these actors; it keeps the gang."""
    if type(capacity) is not int or not 1 <= capacity <= ITEMS_MAX:
        raise InvalidRequest(f"a mailbox's capacity is from 1 to {ITEMS_MAX} messages, not {capacity!r}")
    mailbox = Mailbox({handle.rank: handle.connection("mailbox") for handle in handles}, capacity)
    mailbox.gang = gang  # type: ignore[attr-defined]
    return mailbox
