"""A handle on one actor: calls, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from spoke.client.checks import check_timeout
from spoke.client.futures import failed
from spoke.client.known import KnownActor
from spoke.client.tracking import ActorExit
from spoke.errors import ActorUnreachable, InvalidRequest, SpokeError
from spoke.protocol.replies import ActorInfo
from spoke.transport import Connection, Stream, Transport
from spoke.transport.credit import ITEMS_MAX
from spoke.transport.mailbox import CAPACITY, Mailbox

if TYPE_CHECKING:
    from spoke.client.sync.gang import Gang


class ActorHandle(KnownActor):
    """One actor of a gang. It keeps its gang, and so its GPUs, as long as it is referenced.

    >>> worker = workers[0]
    >>> worker.call("add", 1, 2).result()
    3
    """

    def __init__(self, gang: Gang, actor: ActorInfo, *, timeout_s: float | None = None) -> None:
        super().__init__(gang.ticket, actor)
        self._gang = gang
        self._timeout_s = timeout_s

    @property
    def gang(self) -> Gang:
        """The gang that the actor is a member of.

        >>> len(worker.gang)
        2
        """
        return self._gang

    def options(self, *, timeout_s: float | None) -> ActorHandle:
        """The same actor with other defaults: calls fail with CallTimeout after ``timeout_s`` seconds (None: never).

        >>> worker.options(timeout_s=5).call("echo", "in time").result()
        'in time'
        """
        check_timeout(timeout_s, "timeout_s")
        if timeout_s == 0:
            raise InvalidRequest("timeout_s must be None (no limit) or above 0, not 0")
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

    def _connection(self, method: str) -> Connection:
        self._gang.client.session.check_open()
        latest = self._latest
        if latest.phase == "restarting":
            raise ActorUnreachable(
                f"{self._who} is being started again (restart {latest.restarts}): call again when its handle's phase "
                "is running"
            )
        self._check_callable(repr(method))
        end = self.exit
        if end is not None:
            raise self._ended(end)
        return self._gang.connections.to(latest).open()

    @property
    def is_connected(self) -> bool:
        """Whether the next call goes out without connecting first.

        >>> worker.call("echo", 1).result(), worker.is_connected
        (1, True)
        """
        return self._gang.connections.to(self._latest).is_open

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
        return self._gang.client.stop_actor(self._ticket.ticket_id, self.rank)

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
                f"{what} was called on actor {self.id} of ticket {self._ticket.ticket_id}, which is a command and "
                f"has no methods: launch a class that is registered with @spoke.register_actor instead"
            )

    def _ended(self, end: ActorExit) -> ActorUnreachable:
        how = f"signal {end.signal}" if end.signal else f"code {end.code}" if end.phase == "exited" else end.phase
        reason = f": {end.reason}" if end.reason else ""
        return ActorUnreachable(f"{self._who} has ended ({how}{reason})")

    @property
    def _who(self) -> str:
        return f"actor {self.id} (rank {self.rank} of ticket {self._ticket.ticket_id})"


def open_mailbox(gang: Gang, handles: Sequence[ActorHandle], capacity: int) -> Mailbox:
    """A mailbox at these actors; it keeps the gang."""
    if type(capacity) is not int or not 1 <= capacity <= ITEMS_MAX:
        raise InvalidRequest(f"a mailbox's capacity is from 1 to {ITEMS_MAX} messages, not {capacity!r}")
    actors = {handle.rank: (handle._latest, handle._connection("mailbox")) for handle in handles}
    mailbox = gang.connections.mailbox(actors, capacity)
    mailbox.gang = gang  # type: ignore[attr-defined]
    return mailbox
