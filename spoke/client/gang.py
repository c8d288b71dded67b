"""A gang: the places of a ticket, and what can be done with them as a whole."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from spoke.client.handle import ActorHandle, Line, open_mailbox
from spoke.client.lines import LogLine
from spoke.client.memory import MEMORY, GangMemory
from spoke.client.tracking import ENDED, ActorExit, Ticket
from spoke.errors import InvalidRequest, SpokeError
from spoke.events.model import Slot
from spoke.events.supervision import Supervision
from spoke.protocol.html import html_table
from spoke.protocol.launch import Torchrun
from spoke.protocol.notice import Notice
from spoke.protocol.replies import ActorInfo
from spoke.transport import CallServer
from spoke.transport.mailbox import CAPACITY, Mailbox

if TYPE_CHECKING:
    from spoke.client.sync import Client

NODES_SHOWN = 4
RELEASE_TIMEOUT_S = 60.0
"""How long the end of a ``with gang:`` block waits until everything is confirmed free."""

Args = Mapping[str, Any] | Callable[[Slot], Mapping[str, Any]] | None
Types = str | Mapping[str, str]
"""A registered type, or one for each group of a mixed gang."""
Commands = Sequence[str] | Mapping[str, Sequence[str]]
"""A command's words, or those for each group of a mixed gang."""
Care = Supervision | Mapping[str, Supervision] | None
"""How actors are looked after; in a mixed gang it may be said for each group."""
Ids = Sequence[str] | Callable[[Slot], str] | None
Env = Mapping[str, str] | None


class Gang:
    """A granted gang. Keep it, or one of its handles: when the last reference goes, the ticket is released.

    A detached gang, and one that this client only attached to, stay when the reference goes. As a context manager it
    is released at the end of the block, whichever it is.

    >>> with client.gang_allocate(2, 1, spoke.Resources(gpus=1), name="resnet").result() as gang:
    ...     gang
    <Gang t-... 'resnet': 2 slots on node-0, node-1>
    """

    def __init__(self, client: Client, ticket: Ticket) -> None:
        self.client = client
        self.ticket = ticket
        self.ticket_id = ticket.ticket_id
        self._lines: dict[
            str, Line | GangMemory
        ] = {}  # refers to no gang: a cycle would keep the ticket until the next collection
        self._lines_lock = threading.Lock()
        if ticket.owned and not ticket.spec.detached:
            weakref.finalize(self, client.dropped, ticket, self._lines).atexit = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The places, by rank. ``repair`` changes one of them.

        >>> [(slot.global_rank, slot.node_id, len(slot.gpu_ids)) for slot in gang.slots]
        [(0, 'node-0', 1), (1, 'node-1', 1)]
        """
        return self.ticket.slots

    @property
    def master_addr(self) -> str:
        """The address of rank 0's node, for rendezvous.

        >>> gang.master_addr
        '127.0.0.1'
        """
        return self.ticket.master_addr

    @property
    def master_port(self) -> int:
        """A port on rank 0's node that its agent keeps free for this gang.

        >>> gang.master_port > 1024
        True
        """
        return self.ticket.master_port

    @property
    def num_nodes(self) -> int:
        """How many nodes it got, counted by group; an elastic gang may have fewer than it asked for.

        >>> gang.num_nodes
        2
        """
        return len({slot.group_rank for slot in self.slots})

    def ranks(self, group: str) -> range:
        """The ranks of a group of a mixed gang; raises InvalidRequest if it has no such group.

        >>> groups = [spoke.Group("controller"), spoke.Group("worker", num_nodes=2, resources=spoke.Resources(gpus=1))]
        >>> client.gang_allocate(groups=groups).result().ranks("worker")
        range(1, 3)
        """
        found = [slot.global_rank for slot in self.slots if slot.group == group]
        if not found:
            known = ", ".join(dict.fromkeys(slot.group for slot in self.slots if slot.group)) or "none"
            raise InvalidRequest(f"ticket {self.ticket_id} has no group {group!r}; its groups: {known}")
        return range(found[0], found[-1] + 1)

    @property
    def releasing(self) -> str:
        """Why the gang is being given back; empty while it is not, as far as this client knows.

        >>> gang.releasing
        ''
        """
        return self.ticket.releasing

    @property
    def released(self) -> bool:
        """Whether nothing is left of it.

        >>> gang.released, gang.release().result(), gang.released
        (False, True, True)
        """
        return self.ticket.released

    @property
    def actors(self) -> list[ActorHandle]:
        """Handles on the actors that are known to run, by rank.

        >>> actors = gang.launch("Worker").result()
        >>> [actor.id for actor in gang.actors]
        ['Worker-0', 'Worker-1']
        """
        known = sorted(self.ticket.actors.copy().items())
        return [self.handle(actor) for _, actor in known if actor.phase not in ENDED]

    @property
    def exits(self) -> dict[int, ActorExit]:
        """How the actors ended that have ended so far, by rank.

        >>> actors = gang.launch_command(["false"]).result()
        >>> ends = gang.wait().result()
        >>> {rank: end.code for rank, end in gang.exits.items()}
        {0: 1, 1: 1}
        """
        return dict(sorted(self.ticket.exits.copy().items()))

    @property
    def notices(self) -> tuple[Notice, ...]:
        """The last notices that came, oldest first: a node is being drained, and the like; see ``Notice``.

        >>> gang.notices
        ()
        """
        return self.ticket.notices

    def on_notice(self, tell: Callable[[Notice], object]) -> None:
        """Call ``tell`` with each notice from now on, in a thread of the client; without any, they are logged.

        It may use the client, and should not block for long. It must not refer to the gang if the gang is to be given
        back with its last reference.

        >>> gang.on_notice(lambda notice: print(notice.kind, notice.reason))
        """
        self.ticket.on_notice = (*self.ticket.on_notice, tell)

    def launch(
        self,
        type: Types,
        args: Args = None,
        *,
        ids: Ids = None,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
    ) -> Future[list[ActorHandle]]:
        """Start one actor of a registered type at every rank; see ``Client.launch_gang``.

        >>> actors = gang.launch("Worker", {"lr": 0.1}, ids=["left", "right"]).result()
        >>> [actor.id for actor in actors]
        ['left', 'right']
        """
        return self.client.launch_gang(self.ticket_id, type, args, ids=ids, env=env, cwd=cwd, supervision=supervision)

    def launch_command(
        self,
        argv: Commands,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        torchrun: Torchrun | None = None,
    ) -> Future[list[ActorHandle]]:
        """Run a command at every rank; see ``Client.launch_command``.

        >>> actors = gang.launch_command(["sh", "-c", "exit $RANK"]).result()
        >>> [end.code for end in gang.wait().result()]
        [0, 1]
        """
        return self.client.launch_command(
            self.ticket_id, argv, env=env, cwd=cwd, supervision=supervision, torchrun=torchrun
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

        return self.client.wait_for_exits(self, chosen, ends_of, timeout)

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

        return self.client.wait_for_exits(self, [rank], end_of, timeout)

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

    def handle(self, actor: ActorInfo) -> ActorHandle:
        """The handle on one of its actors."""
        return ActorHandle(self, actor)

    def line(self, actor: ActorInfo) -> Line:
        """The connection to one of its actors, which all handles on it share; a new one when it was started again."""
        old = None
        with self._lines_lock:
            line = self._lines.get(actor.launch_id)
            if isinstance(line, Line) and line.restarts < actor.restarts:
                old, line = line, None
            if not isinstance(line, Line):
                line = self._lines[actor.launch_id] = Line(self.client, self.ticket, actor)
        if old is not None:
            old.close()
        return line

    def memory_home(self) -> CallServer:
        """Where this client's buffers for the gang live; see ``spoke.Buffer``."""
        with self._lines_lock:
            memory = self._lines.get(MEMORY)
            if not isinstance(memory, GangMemory):
                memory = self._lines[MEMORY] = GangMemory(self.client.secret_of(self.ticket), self.master_addr)
            return memory.server

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

    @property
    def has_lines(self) -> bool:
        """Whether a connection to an actor was made."""
        return bool(self._lines)

    def close_lines(self) -> None:
        """Close the connections to its actors."""
        close_all(self._lines)

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.released and self.client.is_open:
            self.release().result(RELEASE_TIMEOUT_S)

    def __repr__(self) -> str:
        nodes = list(dict.fromkeys(slot.node_id for slot in self.slots))
        more = f" and {len(nodes) - NODES_SHOWN} more nodes" if len(nodes) > NODES_SHOWN else ""
        return f"<Gang {self._summary()} on {', '.join(nodes[:NODES_SHOWN])}{more}>"

    def _summary(self) -> str:
        name = f" {self.ticket.spec.name!r}" if self.ticket.spec.name else ""
        state = ", released" if self.released else f", releasing: {self.releasing}" if self.releasing else ""
        return f"{self.ticket_id}{name}: {len(self)} slots{state}"

    def _repr_html_(self) -> str:
        actors, exits = self.ticket.actors.copy(), self.exits
        rows = []
        for slot in self.slots:
            actor, end = actors.get(slot.global_rank), exits.get(slot.global_rank)
            how = "" if end is None else f"signal {end.signal}" if end.signal else f"code {end.code} {end.reason}"
            rows.append(
                (
                    slot.global_rank,
                    slot.node_id,
                    ", ".join(map(str, slot.gpu_ids)),
                    actor.actor_id if actor is not None else "",
                    (end.phase if end is not None else actor.phase) if actor is not None else "not launched",
                    (actor.pid or "") if actor is not None else "",
                    how.strip(),
                )
            )
        columns = (">rank", "node", "GPUs", "actor", "state", ">pid", "end")
        return html_table(columns, rows, caption=self._summary())


def close_all(lines: dict[str, Line | GangMemory]) -> None:
    """Close all of these connections, also while others add to them."""
    while lines:
        try:
            _, line = lines.popitem()
        except KeyError:
            return
        line.close()
