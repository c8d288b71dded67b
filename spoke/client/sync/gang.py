"""A gang: the places of a ticket, and what can be done with them as a whole."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from spoke.client.checks import check_timeout
from spoke.client.connections import GangConnections
from spoke.client.known import KnownGang
from spoke.client.logs.lines import LogLine
from spoke.client.plans import Args, Care, Commands, Env, Ids, Types
from spoke.client.session import Session
from spoke.client.sync.handle import ActorHandle, open_mailbox
from spoke.client.tracking import ENDED, ActorExit, Ticket
from spoke.errors import InvalidRequest, SpokeError
from spoke.events.model import Slot
from spoke.protocol.launch import Torchrun
from spoke.transport import CallServer
from spoke.transport.mailbox import CAPACITY, Mailbox

if TYPE_CHECKING:
    from spoke.client.sync.client import Client

RELEASE_TIMEOUT_S = 60.0
"""How long the end of a ``with gang:`` block waits until everything is confirmed free."""


class Gang(KnownGang):
    """A granted gang. Keep it, or one of its handles: when the last reference goes, the ticket is released.

    A detached gang, and one that this client only attached to, stay when the reference goes. As a context manager it
    is released at the end of the block, whichever it is.

    >>> with client.gang_allocate(2, 1, spoke.Resources(gpus=1), name="resnet").result() as gang:
    ...     gang
    <Gang t-... 'resnet': 2 slots on node-0, node-1>
    """

    def __init__(self, client: Client, ticket: Ticket) -> None:
        super().__init__(ticket)
        self.client = client
        self.connections = GangConnections(client.session, ticket, client.transport)
        if ticket.owned and not ticket.spec.detached:
            weakref.finalize(self, _dropped, client.session, ticket, self.connections).atexit = False

    @property
    def actors(self) -> list[ActorHandle]:
        """Handles on the actors that are known to run, by rank.

        >>> actors = gang.launch("Worker").result()
        >>> [actor.id for actor in gang.actors]
        ['Worker-0', 'Worker-1']
        """
        known = sorted(self.ticket.actors.copy().items())
        return [ActorHandle(self, actor) for _, actor in known if actor.phase not in ENDED]

    def launch(
        self,
        type: Types,
        args: Args = None,
        *,
        ids: Ids = None,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        timeout: float | None = None,
    ) -> Future[list[ActorHandle]]:
        """Start one actor of a registered type at every rank; see ``Client.launch_gang``.

        >>> actors = gang.launch("Worker", {"lr": 0.1}, ids=["left", "right"]).result()
        >>> [actor.id for actor in actors]
        ['left', 'right']
        """
        return self.client.launch_gang(
            self.ticket_id, type, args, ids=ids, env=env, cwd=cwd, supervision=supervision, timeout=timeout
        )

    def launch_command(
        self,
        argv: Commands,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        torchrun: Torchrun | None = None,
        timeout: float | None = None,
    ) -> Future[list[ActorHandle]]:
        """Run a command at every rank; see ``Client.launch_command``.

        >>> actors = gang.launch_command(["sh", "-c", "exit $RANK"]).result()
        >>> [end.code for end in gang.wait().result()]
        [0, 1]
        """
        return self.client.launch_command(
            self.ticket_id, argv, env=env, cwd=cwd, supervision=supervision, torchrun=torchrun, timeout=timeout
        )

    def wait(self, timeout: float | None = None, *, ranks: Sequence[int] | None = None) -> Future[list[ActorExit]]:
        """The ends of all actors that were launched, or of those at ``ranks``.

        Fails with WaitTimeout after ``timeout`` seconds (None: never); raises InvalidRequest if there is none to wait
        for.

        >>> actors = gang.launch_command(["true"]).result()
        >>> all(end.ok for end in gang.wait(timeout=30).result())
        True
        """
        if ranks is not None and not all(type(rank) is int and 0 <= rank < len(self) for rank in ranks):
            raise InvalidRequest(f"ranks must be from 0 to {len(self) - 1}, not {list(ranks)[:20]!r}")
        if not (self.ticket.actors if ranks is None else ranks):
            raise InvalidRequest(f"no actor of ticket {self.ticket_id} was launched yet: launch before you wait")
        chosen = None if ranks is None else sorted(set(ranks))

        def ends_of(found: list[int]) -> list[ActorExit]:  # refers to the gang, so that the wait keeps it
            return self.ticket.exits_of(found)

        return self.client.session.wait_for_exits(self.ticket, chosen, ends_of, check_timeout(timeout))

    def wait_for_rank(self, rank: int, timeout: float | None = None) -> Future[ActorExit]:
        """The end of the actor at one rank.

        >>> actors = gang.launch_command(["true"]).result()
        >>> gang.wait_for_rank(1).result().code
        0
        """

        def end_of(ranks: Sequence[int]) -> ActorExit:
            found = self.ticket.exits_of(ranks)
            if not found:
                raise SpokeError(f"ticket {self.ticket_id} was released, and the end of rank {rank} was not told")
            return found[0]

        return self.client.session.wait_for_exits(self.ticket, [rank], end_of, check_timeout(timeout))

    def logs(
        self,
        rank: int | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | datetime | None = None,
    ) -> Iterator[LogLine]:
        """What its actors print, line by line; see ``Client.logs``.

        >>> actors = gang.launch_command(["sh", "-c", "echo hello from $RANK"]).result()
        >>> sorted(line.text for line in gang.logs(follow=True))
        ['hello from 0', 'hello from 1']
        """
        return self.client.logs(self.ticket_id, rank, follow=follow, tail=tail, since=since)

    def mailbox(self, capacity: int = CAPACITY) -> Mailbox:
        """A mailbox for what the gang's running actors push from now on (``ctx.push``); see ``spoke.Mailbox``.

        Raises ActorUnreachable when one of them cannot be reached, InvalidRequest when none runs. Close it, or use it
        in a ``with`` block.

        >>> with worker.gang.mailbox() as mailbox:
        ...     worker.call("say", "hello").result()
        ...     mailbox.get()
        1
        Push(rank=0, value='hello')
        """
        handles = [handle for handle in self.actors if handle.address]
        if not handles:
            raise InvalidRequest(f"no actor of ticket {self.ticket_id} runs that could push: launch before you listen")
        return open_mailbox(self, handles, capacity)

    def memory_home(self) -> CallServer:
        """Where this client's buffers for the gang live; see ``spoke.Buffer``."""
        return self.connections.memory()

    def repair(self, rank: int, *, elsewhere: bool = False) -> Future[Slot]:
        """Give the failed member at a rank another place; see ``Client.gang_repair``.

        >>> failed = gang.launch_command(["false"]).result()[1].wait().result()
        >>> gang.repair(failed.rank).result().node_id
        'node-1'
        """
        return self.client.gang_repair(self.ticket_id, rank, elsewhere=elsewhere)

    def release(self) -> Future[bool]:
        """Give everything back; see ``Client.gang_release``.

        >>> gang.release().result()
        True
        """
        return self.client.gang_release(self.ticket_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.released and self.client.is_open:
            self.release().result(RELEASE_TIMEOUT_S)


def _dropped(session: Session, ticket: Ticket, connections: GangConnections) -> None:
    """A gang's last reference is gone. Called by a finalizer: takes no lock, does no I/O."""
    if not session.forked:
        session.drop(ticket)
        if connections:
            session.upkeep.soon(connections.close)
