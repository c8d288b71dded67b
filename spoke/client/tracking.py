"""What a client knows of one ticket: its places, its actors, and who waits for their ends. Pure, like the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from spoke.events.model import GangSpec, Slot
from spoke.protocol.notice import Notice
from spoke.protocol.replies import ActorInfo

NOTICES_KEPT = 64
ENDED = frozenset({"exited", "start_failed", "lost"})


@dataclass(frozen=True, slots=True)
class ActorExit:
    """How an actor ended. ``phase`` is exited, start_failed or lost; ``code`` is -1 when ``signal`` ended it.

    ``expected`` says that it had been told to stop. ``reason`` is set where neither code nor signal explains it.

    >>> actors = gang.launch_command(["sh", "-c", "exit 3"]).result()
    >>> end = gang.wait_for_rank(0).result()
    >>> end.phase, end.code, end.ok
    ('exited', 3, False)
    """

    rank: int
    actor_id: str
    node_id: str
    phase: str
    code: int = 0
    signal: int = 0
    reason: str = ""
    expected: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with code 0, or because it was told to.

        >>> spoke.ActorExit(0, "w", "node-0", "exited", code=-1, signal=9).ok
        False
        """
        return self.expected or (self.phase == "exited" and self.code == 0 and not self.signal)


@dataclass(slots=True)
class Ticket:
    """A ticket that was granted to this client, or that it attached to (``owned`` is False then)."""

    ticket_id: str
    spec: GangSpec
    slots: tuple[Slot, ...]
    master_addr: str
    master_port: int
    owned: bool = True
    releasing: str = ""
    """Why the ticket is being given back, once it is."""
    released: bool = False
    dropped: bool = False
    """Whether the user let go of the gang; set by a finalizer, which takes no lock."""
    was_repaired: bool = False
    """Whether its places may have changed since it was granted."""
    secret: bytes = b""
    """What its actors and clients know each other by, once this client has it."""
    actors: dict[int, ActorInfo] = field(default_factory=dict)
    """The latest known actor of each rank."""
    exits: dict[int, ActorExit] = field(default_factory=dict)
    """How the latest actor of each rank ended, if it has."""
    notices: tuple[Notice, ...] = ()
    """The last that was told of it."""
    on_notice: tuple[Callable[[Notice], object], ...] = ()
    """Whom to tell of the next."""
    _waits: dict[int, set[int]] = field(default_factory=dict)
    _wanted: dict[int, frozenset[int]] = field(default_factory=dict)
    """All that each wait is for: a rank that had ended may be started again."""

    def repaired(self, slot: Slot, master_addr: str, master_port: int) -> None:
        """A member has another slot."""
        self.was_repaired = True
        rank = slot.global_rank
        self.slots = (*self.slots[:rank], slot, *self.slots[rank + 1 :])
        self.master_addr, self.master_port = master_addr, master_port

    def noticed(self, notice: Notice) -> None:
        """Take note of a notice."""
        self.notices = (*self.notices[1 - NOTICES_KEPT :], notice)

    def saw(self, actors: Iterable[ActorInfo]) -> list[int]:
        """Take note of actors as the allocator describes them; the waits that are over."""
        over: list[int] = []
        for actor in actors:
            known = self.actors.get(actor.rank)
            if known is not None and known.launch_id == actor.launch_id and actor.rank in self.exits:
                self.actors[actor.rank] = actor  # it ended before the launch as a whole was answered
            elif actor.phase in ENDED:
                over += self.ended(actor, False)
            else:
                self.actors[actor.rank] = actor
                self.exits.pop(actor.rank, None)
        return over

    def restarting(self, actors: Iterable[ActorInfo]) -> list[ActorInfo]:
        """Actors are started again: those that this client knows."""
        mine = [actor for actor in actors if actor.rank in self.actors]
        for actor in mine:
            self.actors[actor.rank] = actor
            self.exits.pop(actor.rank, None)
            for wait_id, ranks in self._wanted.items():
                if actor.rank in ranks:
                    self._waits[wait_id].add(actor.rank)
        return mine

    def restarted(self, actor: ActorInfo) -> None:
        """An actor is up again."""
        known = self.actors.get(actor.rank)
        if known is None or known.launch_id == actor.launch_id:
            self.actors[actor.rank] = actor
            self.exits.pop(actor.rank, None)

    def ended(self, actor: ActorInfo, expected: bool) -> list[int]:
        """Take note of an actor's end; the waits that are over."""
        self.actors[actor.rank] = actor
        return self._exit(
            ActorExit(
                actor.rank,
                actor.actor_id,
                actor.node_id,
                actor.phase,
                actor.code,
                actor.signal,
                actor.reason,
                expected,
            )
        )

    def end(self) -> list[int]:
        """Nothing is left of the ticket; actors whose end was not told went down with it."""
        self.released = True
        over: list[int] = []
        for rank, actor in self.actors.items():
            if rank not in self.exits:
                reason = f"the ticket was released ({self.releasing or 'by its client'})"
                over += self._exit(ActorExit(rank, actor.actor_id, actor.node_id, "lost", 0, 0, reason, True))
        over += list(self._waits)
        self._waits.clear()
        self._wanted.clear()
        return over

    def _exit(self, exit_: ActorExit) -> list[int]:
        self.exits[exit_.rank] = exit_
        over = []
        for wait_id, ranks in self._waits.items():
            ranks.discard(exit_.rank)
            if not ranks:
                over.append(wait_id)
        for wait_id in over:
            self.unwatch(wait_id)
        return over

    def watch(self, wait_id: int, ranks: Iterable[int]) -> bool:
        """Begin a wait; True if there is nothing left to wait for."""
        wanted = frozenset(ranks)
        missing = {rank for rank in wanted if rank not in self.exits}
        if not missing or self.released:
            return True
        self._waits[wait_id], self._wanted[wait_id] = missing, wanted
        return False

    def unwatch(self, wait_id: int) -> None:
        """End a wait that nobody wants any more."""
        self._waits.pop(wait_id, None)
        self._wanted.pop(wait_id, None)

    def exits_of(self, ranks: Iterable[int]) -> list[ActorExit]:
        """The known ends of these ranks, by rank."""
        return [self.exits[rank] for rank in sorted(ranks) if rank in self.exits]
