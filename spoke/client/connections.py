"""The connections of a client to the actors of one gang, and the memory that it lends to them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping

from spoke.client.memory import GangMemory
from spoke.client.renewal import Renewal
from spoke.client.secret import secret_of
from spoke.client.session import Session
from spoke.client.tracking import Ticket
from spoke.protocol.replies import ActorInfo
from spoke.transport import CallServer, Connection, connect
from spoke.transport.mailbox import Mailbox
from spoke.transport.scope import Scope, join, leave

CONNECT_TIMEOUT_S = 10.0


class ActorConnection:
    """The one connection to one actor; opened by the first call, and again should it break."""

    def __init__(self, actor: ActorInfo, secret: Callable[[], bytes], transport: str | None) -> None:
        self._actor = actor
        self._secret = secret
        self._transport = transport
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

    def open(self) -> Connection:
        """The open connection; raises ActorUnreachable."""
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        with self._lock:
            if self._connection is None or self._connection.closed:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                secret = self._secret()
                actor = self._actor
                self._connection = connect(
                    actor.address,
                    secret,
                    timeout_s=CONNECT_TIMEOUT_S,
                    transport=self._transport,
                    name=f"{actor.actor_id} (rank {actor.rank} on {actor.node_id})",
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


class GangConnections:
    """All of one gang. It refers to no ``Gang``: a cycle would keep the ticket until the next collection."""

    def __init__(self, session: Session, ticket: Ticket, transport: str | None) -> None:
        self._session = session
        self._ticket = ticket
        self._transport = transport
        self._lock = threading.Lock()
        self._to: dict[str, ActorConnection] = {}
        self._memory: GangMemory | None = None
        self._renewals: weakref.WeakSet[Renewal] = weakref.WeakSet()

    def mailbox(self, actors: Mapping[int, tuple[ActorInfo, Connection]], capacity: int) -> Mailbox:
        """A mailbox at some actors, by rank, which is opened anew when they are started again."""
        renewal = Renewal(self._session, self._ticket, self, (actor for actor, _ in actors.values()))
        mailbox = Mailbox({rank: connection for rank, (_, connection) in actors.items()}, capacity, renewal)
        self._renewals.add(renewal)  # which the mailbox keeps
        renewal.keep(mailbox)
        return mailbox

    def news(self, rank: int) -> None:
        """The actor of a rank has ended, or is up again."""
        for renewal in list(self._renewals):
            renewal.news(rank)

    def to(self, actor: ActorInfo) -> ActorConnection:
        """The connection to an actor, which all handles on it share; a new one when it was started again."""
        old = None
        with self._lock:
            found = self._to.get(actor.launch_id)
            if found is not None and found.restarts < actor.restarts:
                old, found = found, None
            if found is None:
                found = self._to[actor.launch_id] = ActorConnection(actor, self._secret, self._transport)
                self._session.to_close[self._ticket.ticket_id] = self
        if old is not None:
            old.close()
        return found

    def memory(self) -> CallServer:
        """Where this client's buffers for the gang live; see ``spoke.Buffer``."""
        with self._lock:
            if self._memory is None:
                self._memory = GangMemory(self._secret(), self._ticket.master_addr)
                self._session.to_close[self._ticket.ticket_id] = self
            return self._memory.server

    def _secret(self) -> bytes:
        return secret_of(self._session, self._ticket)

    def __bool__(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._to or self._memory)

    def close(self) -> None:
        """Close them all; takes no lock, and others may add to them meanwhile."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        while self._to:
            try:
                _, connection = self._to.popitem()
            except KeyError:
                return
            connection.close()
