"""What a client knows of a gang and of an actor without asking: what handles for threads and for asyncio share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spoke.client.bound import Bound
from spoke.client.tracking import ActorExit, Ticket
from spoke.errors import InvalidRequest
from spoke.events.model import Slot
from spoke.protocol.html import html_table
from spoke.protocol.notice import Notice
from spoke.protocol.replies import ActorInfo

NODES_SHOWN = 4


class KnownGang(Bound):
    """A gang, as far as its client has been told."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket

    @property
    def ticket_id(self) -> str:
        """The ticket.

        >>> gang.ticket_id
        't-...'
        """
        return self.ticket.ticket_id

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

        >>> mixed.ranks("worker")
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

        >>> gang.released
        False
        """
        return self.ticket.released

    @property
    def exits(self) -> dict[int, ActorExit]:
        """How the actors ended that have ended so far, by rank.

        >>> {rank: end.code for rank, end in ended.exits.items()}
        {0: 0, 1: 1}
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

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __repr__(self) -> str:
        nodes = list(dict.fromkeys(slot.node_id for slot in self.slots))
        more = f" and {len(nodes) - NODES_SHOWN} more nodes" if len(nodes) > NODES_SHOWN else ""
        return f"<{type(self).__name__} {self._summary()} on {', '.join(nodes[:NODES_SHOWN])}{more}>"

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


class KnownActor(Bound):
    """An actor of a gang, as far as its client has been told."""

    def __init__(self, ticket: Ticket, actor: ActorInfo) -> None:
        self._ticket = ticket
        self._actor = actor

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
        return self._ticket.slots[self._actor.rank]

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
    def exit(self) -> ActorExit | None:
        """How it ended; None while it runs, as far as this client knows.

        >>> worker.exit is None
        True
        """
        known = self._ticket.actors.get(self.rank)
        if known is not None and known.launch_id != self._actor.launch_id:  # the rank was launched again since
            return ActorExit(self.rank, self.id, self.node_id, "exited", reason="another actor has taken its place")
        return self._ticket.exits.get(self.rank)

    @property
    def _latest(self) -> ActorInfo:
        """The actor as it is now; its process may be another one than when the handle was made."""
        known = self._ticket.actors.get(self._actor.rank)
        return known if known is not None and known.launch_id == self._actor.launch_id else self._actor

    def __repr__(self) -> str:
        where = f"ticket={self._ticket.ticket_id} node={self.node_id}"
        return f"<{type(self).__name__} {self.id} rank={self.rank} {where}>"
