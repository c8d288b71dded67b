"""Actors as users write them: a class with methods, registered under a name.

>>> @register_actor("Greeter")
... class Greeter(Actor):
...     def greet(self, name):
...         return f"hello {name}, from rank {self.ctx.rank}"
>>> registered_actors()["Greeter"].__name__
'Greeter'
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from spoke.errors import InvalidRequest
from spoke.events.names import check_name

if TYPE_CHECKING:
    from spoke.agent.inbox import Expected
    from spoke.agent.peers import Peer
    from spoke.agent.runtime import Runtime
    from spoke.protocol.notice import Notice
    from spoke.transport import CallFuture

MAIL_S: Final = 300.0
_LOOK_S: Final = 0.5
_REGISTERED: dict[str, type[Actor]] = {}


@dataclass(frozen=True, slots=True)
class ActorContext:
    """Where, and as whom, an actor runs. ``gpu_ids`` are physical indices; inside the process GPUs count from 0.

    ``gpu_milli`` is 0 for whole GPUs; else the actor has that many thousandths of its one GPU. ``nics`` are the RDMA
    ports that it has for itself, ``numa_node`` is where its GPUs are (-1: on several, or not known). In a mixed gang
    ``group`` is its group's name, ``rank_in_group`` counts the ``group_size`` members of it.

    ``restarts``: how often it was started again (of a gang that restarts as a whole: how often the gang was).
    ``stopping`` is set when the actor is told to stop (SIGTERM); what is left then is the ticket's grace time.

    >>> ctx.rank, ctx.world_size, ctx.actor_id, ctx.node_id  # in an actor: self.ctx
    (0, 2, 'Worker-0', 'node-0')
    """

    rank: int
    local_rank: int
    group_rank: int
    world_size: int
    local_world_size: int
    num_nodes: int
    gpu_ids: tuple[int, ...]
    gpu_uuids: tuple[str, ...]
    ticket_id: str
    actor_id: str
    node_id: str
    pool: str
    master_addr: str
    master_port: int
    gpu_milli: int = 0
    nics: tuple[str, ...] = ()
    numa_node: int = -1
    group: str = ""
    rank_in_group: int = 0
    group_size: int = 0
    restarts: int = 0
    stopping: threading.Event = field(default_factory=threading.Event, compare=False)
    _runtime: list[Runtime] = field(default_factory=list, compare=False, repr=False)

    def peer(self, rank: int) -> Peer:
        """Another member of the gang: ``ctx.peer(1).call("method", ...)``, ``.stream``, ``.tell``, directly between the
        two actors. Raises RankOutOfRange.

        >>> ctx.peer(1).call("add", 1, 2).result()
        3
        """
        return self._running().peer(rank)

    def send(self, rank: int, value: Any, tag: int = 0, *, timeout_s: float | None = MAIL_S) -> CallFuture:
        """Send a value to another member, which gets it by ``recv``. It may be changed when ``send`` has returned.

        The future, which can be awaited, is done when the value has arrived; when more than 64 MiB of this actor wait
        there, only when it is received. It fails with ActorUnreachable, or CallTimeout after ``timeout_s`` seconds.
        Raises ActorUnreachable when the member has ended, or does not run within 30 s.

        >>> ctx.send(0, "a note to itself").result()
        >>> ctx.recv(0).result()
        'a note to itself'
        """
        return self._running().send(rank, value, tag, timeout_s)

    def recv(self, rank: int, tag: int = 0, *, timeout_s: float | None = MAIL_S) -> Expected:
        """The future, which can be awaited, of the next value that a member sends with this tag, in order of sending.

        It fails with WaitTimeout after ``timeout_s`` seconds (None: never), also when the member has ended meanwhile.

        >>> arrived = ctx.send(0, [1, 2], tag=7)
        >>> ctx.recv(0, tag=7).result()
        [1, 2]
        """
        return self._running().recv(rank, tag, timeout_s)

    def push(self, value: Any, *, to_caller: bool = False, timeout_s: float = 0.0) -> int:
        """Put a value into the mailboxes that clients have opened at this actor; how many took it.

        With ``to_caller``, only into those of whoever called the method that runs. A mailbox that is full does not take
        it: that is counted as lost there, unless there is room within ``timeout_s`` seconds. Clients that are gone are
        passed over.

        >>> ctx.push("nobody has opened a mailbox")
        0
        """
        return self._running().push(value, to_caller, timeout_s)

    def _running(self) -> Runtime:
        if not self._runtime:
            raise InvalidRequest("this context is not that of a running actor: only its own process has its peers")
        return self._runtime[0]


class Actor:
    """Base of all actors.

    ``ctx`` and ``args`` (the launch's arguments) are there before ``__init__`` runs; an ``__init__`` that takes
    arguments is given ``args`` as keywords. Public methods, plain or ``async``, can be called from outside while
    ``run`` goes on in the main thread. Calls of one caller start in the order in which they were made: plain methods in
    up to ``max_concurrency`` threads, async ones on one event loop, of which each runs until it first awaits before the
    next one starts. With ``max_concurrency = 1`` plain methods run one at a time, strictly in order.

    >>> @spoke.register_actor("Greeter")
    ... class Greeter(spoke.Actor):
    ...     def __init__(self, greeting="hello"):
    ...         self.greeting = greeting
    ...
    ...     def greet(self, name):
    ...         return f"{self.greeting} {name}, from rank {self.ctx.rank}"
    """

    max_concurrency: ClassVar[int] = 16

    ctx: ActorContext
    args: Mapping[str, Any]

    _reserved: ClassVar[tuple[str, ...]] = ("ctx", "args", "run", "on_notice", "healthy", "max_concurrency")

    def run(self) -> Any:
        """The actor's main body: when it returns, the actor exits with code 0; when it raises, with code 1.

        This one serves calls until the actor is told to stop. It may be ``async``.

        >>> class Trainer(spoke.Actor):
        ...     def run(self):
        ...         while not self.ctx.stopping.is_set():
        ...             self.train_a_step()
        """
        while not self.ctx.stopping.wait(_LOOK_S):
            pass  # SIGTERM may have been taken by another thread, which does not end this one's wait

    def healthy(self) -> bool:
        """Whether the actor is well; called, in a thread of its own, when its launch asks for health checks.

        False, or an exception, counts as a failed check, and so does no answer in time. This one is always well.

        >>> class Engine(spoke.Actor):
        ...     def healthy(self):
        ...         return self.queue_length < 1_000
        """
        return True

    def on_notice(self, notice: Notice) -> None:
        """Called, in a thread of its own, with what the ticket's clients are told, too: its node is drained, say.

        What it raises is printed to the actor's log. This one does nothing.

        >>> class Trainer(spoke.Actor):
        ...     def on_notice(self, notice):
        ...         self.checkpoint_soon = notice.kind == "node_draining" and notice.deadline_ms > 0
        """


_A = TypeVar("_A", bound=type[Actor])


def register_actor(name: str) -> Callable[[_A], _A]:
    """Class decorator: let clients launch this actor class as ``name``.

    Raises InvalidRequest for a name that is unusable or taken by another class, and for what is no Actor.

    >>> @spoke.register_actor("Echo")
    ... class Echo(spoke.Actor):
    ...     def echo(self, value):
    ...         return value
    """
    if not isinstance(name, str):
        raise InvalidRequest(f'@spoke.register_actor needs a name, not {name!r}: write @spoke.register_actor("Name")')
    check_name("the actor type", name)

    def register(cls: _A) -> _A:
        if not isinstance(cls, type) or not issubclass(cls, Actor):
            raise InvalidRequest(f"@spoke.register_actor({name!r}) needs a subclass of spoke.Actor, not {cls!r}")
        known = _REGISTERED.get(name)
        if known is not None and _origin(known) != _origin(cls):
            raise InvalidRequest(
                f"the actor type {name!r} is registered twice, by {_told(known)} and by {_told(cls)}: rename one"
            )
        _REGISTERED[name] = cls
        return cls

    return register


def registered_actors() -> Mapping[str, type[Actor]]:
    """The actor classes that are known in this process, by name."""
    return MappingProxyType(_REGISTERED)


def _origin(cls: type) -> tuple[str, str]:
    """Where the class was written: a file that is imported under two names defines it twice, and means it once."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


def _told(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
