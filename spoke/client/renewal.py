"""Mailboxes outlive restarts: an actor that is started again, or is found again, gets the mailbox of its client anew.

The pushes of an actor end with its process, or with the connection to it. Whether more may come says what is known of
the ticket: they are over when the actor has ended for good, or the gang has. Until then a thread waits for news of it,
and threads of their own open the mailbox at the new processes. There are threads only as long as something is awaited.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spoke.client.session import Session
from spoke.client.tracking import Ticket
from spoke.errors import SpokeError
from spoke.protocol.replies import ActorInfo
from spoke.transport.mailbox import Mailbox

if TYPE_CHECKING:
    from spoke.client.connections import GangConnections

UNREACHABLE_S: Final = 30.0
"""An actor that is said to run and is not reached for so long is given up, until there is news of it."""
_PAUSE_S: Final = (0.05, 2.0)
_CONNECTS_MAX: Final = 8


@dataclass(slots=True)
class _Attempt:
    """To reach an actor whose pushes have ended: when the next one is due, and since when they fail."""

    at_s: float
    pause_s: float = _PAUSE_S[0]
    failing_since_s: float = 0.0
    under_way: bool = False


class Renewal:
    """Keeps one mailbox open at some actors of a gang. It refers to no ``Gang``, and weakly to the mailbox."""

    def __init__(
        self, session: Session, ticket: Ticket, connections: GangConnections, actors: Iterable[ActorInfo]
    ) -> None:
        self._session, self._ticket, self._connections = session, ticket, weakref.ref(connections)
        self._launches = {actor.rank: actor.launch_id for actor in actors}
        self._mailbox: weakref.ref[Mailbox] | None = None
        self._changed = threading.Condition()
        self._version = 0
        self._ended: dict[int, _Attempt] = {}
        self._given_up: set[int] = set()
        self._runs = False

    def keep(self, mailbox: Mailbox) -> None:
        """From now on; some pushes may have ended already."""
        self._mailbox = weakref.ref(mailbox)
        self._wake()

    # What the mailbox asks and tells.

    def may_return(self, rank: int) -> bool:
        """Whether an actor whose pushes have ended may push again."""
        return rank not in self._given_up and self._latest(rank) is not None

    def ended(self, rank: int) -> None:
        """The pushes of a rank have ended, for now. Mostly there is news of it in a moment."""
        with self._changed:
            self._ended[rank] = _Attempt(time.monotonic() + _PAUSE_S[0])
        self._wake()

    def closed(self) -> None:
        """Nobody wants pushes any more."""
        with self._changed:
            self._ended.clear()
        self._wake()

    # What the client hears.

    def news(self, rank: int) -> None:
        """The actor of a rank has ended, or is up again. Does not wait for anything."""
        with self._changed:
            self._given_up.discard(rank)
            attempt = self._ended.get(rank)
            if attempt is not None:
                attempt.at_s = attempt.failing_since_s = 0.0
                attempt.pause_s = _PAUSE_S[0]
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._version += 1
            begins = not self._runs and self._mailbox is not None and bool(self._awaited())
            self._runs = self._runs or begins
            self._changed.notify_all()
        if begins:
            threading.Thread(target=self._run, name="spoke-mailbox", daemon=True).start()
        self._tell_mailbox()

    def _tell_mailbox(self) -> None:
        mailbox = self._mailbox() if self._mailbox is not None else None
        if mailbox is not None:
            mailbox._look_again()

    # The thread that waits, and those that connect.

    def _latest(self, rank: int) -> ActorInfo | None:
        """The actor as it is known, if it runs or will run again."""
        ticket, known = self._ticket, self._ticket.actors.get(rank)
        if ticket.released or rank in ticket.exits or self._session.is_over is not None:
            return None
        return known if known is not None and known.launch_id == self._launches[rank] else None

    def _awaited(self) -> dict[int, _Attempt]:
        return {rank: attempt for rank, attempt in self._ended.items() if self.may_return(rank)}

    def _run(self) -> None:
        # Under the lock, so that an attempt is seen either under way or over: else it would be made twice.
        with self._changed:
            while (awaited := self._awaited()) and self._mailbox is not None and self._mailbox() is not None:
                version, next_s = self._version, self._connect_to(awaited)
                self._changed.wait_for(
                    lambda version=version: self._version != version,  # type: ignore[misc]
                    max(0.0, next_s - time.monotonic()),
                )
            self._runs = False
        self._tell_mailbox()

    def _connect_to(self, awaited: dict[int, _Attempt]) -> float:
        """Begin to connect to those that are up; when to look again."""
        now_s = time.monotonic()
        next_s = now_s + _PAUSE_S[1]
        room = _CONNECTS_MAX - sum(attempt.under_way for attempt in awaited.values())
        for rank, attempt in awaited.items():
            actor = self._latest(rank)
            if attempt.under_way or actor is None or actor.phase != "running":
                continue
            if attempt.at_s > now_s:
                next_s = min(next_s, attempt.at_s)
            elif room > 0:
                room -= 1
                attempt.under_way = True
                args = (rank, actor, attempt)
                threading.Thread(target=self._connect, args=args, name="spoke-mailbox-opens", daemon=True).start()
        return next_s

    def _connect(self, rank: int, actor: ActorInfo, attempt: _Attempt) -> None:
        try:
            if not self._opened(rank, actor):
                now_s = time.monotonic()
                attempt.at_s, attempt.pause_s = now_s + attempt.pause_s, min(2 * attempt.pause_s, _PAUSE_S[1])
                attempt.failing_since_s = attempt.failing_since_s or now_s
                if now_s - attempt.failing_since_s > UNREACHABLE_S:
                    self._given_up.add(rank)
        finally:
            attempt.under_way = False
            self._wake()

    def _opened(self, rank: int, actor: ActorInfo) -> bool:
        """Open the mailbox at the actor's process; False where that is not reached."""
        connections, mailbox = self._connections(), self._mailbox() if self._mailbox is not None else None
        if connections is None or mailbox is None:
            return False
        try:
            connection = connections.to(actor).open()
        except SpokeError:
            return False
        with self._changed:
            self._ended.pop(rank, None)
        mailbox._renew(rank, connection)
        return True
