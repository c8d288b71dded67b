"""What stands behind an actor's ``ctx``: its server, its peers, its inbox."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from spoke.agent.inbox import Expected, Inbox
from spoke.agent.peers import Peer, Peers
from spoke.errors import InvalidRequest, RankOutOfRange
from spoke.transport import CallFuture, CallServer
from spoke.transport.job import CALLER, Job
from spoke.transport.regions import set_home
from spoke.transport.scope import join, leave

_TROUBLE_CHARACTERS_MAX = 500


class Runtime:
    """Made before the actor is built, so that its ``__init__`` may reach its peers; ``serve`` when it can be called."""

    def __init__(self, rank: int, world_size: int, peers: Peers, secret: bytes) -> None:
        self._rank = rank
        self._world_size = world_size
        self._peers = peers
        self._inbox = Inbox()
        self._server: CallServer | None = None
        self._scope = join(secret)

    def serve(self, server: CallServer, healthy: Callable[[], bool]) -> None:
        """From now on the actor can be called, and lend memory. ``healthy`` asks it how it is."""
        self._server = server
        self._ask_health = healthy
        server.offer("identify", self._identify)
        server.offer("mail", self._mail)
        server.offer("healthy", self._healthy)
        set_home(server)

    def close(self, timeout_s: float) -> None:
        """End everything."""
        self._inbox.close()
        self._peers.close()
        if self._server is not None:
            self._server.close(timeout_s)
        leave(self._scope)

    def peer(self, rank: int) -> Peer:
        """See ``ActorContext.peer``."""
        return Peer(self._peers, self._checked(rank))

    def send(self, rank: int, value: Any, tag: int, timeout_s: float | None) -> CallFuture:
        """See ``ActorContext.send``."""
        connection = self._peers.connection(self._checked(rank))
        return connection.ask("mail", [_checked_tag(tag), value], timeout_s=timeout_s)

    def recv(self, rank: int, tag: int, timeout_s: float | None) -> Expected:
        """See ``ActorContext.recv``."""
        return self._inbox.expect(self._checked(rank), _checked_tag(tag), timeout_s)

    def push(self, value: Any, to_caller: bool, timeout_s: float) -> int:
        """See ``ActorContext.push``."""
        if self._server is None:
            return 0
        caller = CALLER.get() if to_caller else None
        if to_caller and caller is None:
            raise InvalidRequest("push(to_caller=True) answers a caller: use it in a method that was called")
        return self._server.push(value, caller, timeout_s=timeout_s)

    def _checked(self, rank: int) -> int:
        if type(rank) is not int or not 0 <= rank < self._world_size:
            raise RankOutOfRange(f"rank {rank!r} was asked for; the gang has ranks 0 to {self._world_size - 1}")
        return rank

    # What peers ask of this actor's server.

    def _identify(self, job: Job) -> None:
        assert self._server is not None
        (said,) = job.args if len(job.args) == 1 else (None,)
        if not isinstance(said, dict) or type(said.get("rank")) is not int:
            self._server.fail(job, InvalidRequest("a peer must say which rank it is"))
            return
        job.caller.identity = said
        self._server.answer(job, self._rank)

    def _healthy(self, job: Job) -> None:
        """What the actor says of its health. Not by a worker: they may all be busy, which is no illness."""

        def ask() -> None:
            server = self._server
            assert server is not None
            try:
                said = bool(self._ask_health())
            except Exception as error:
                server.answer(job, f"healthy() raised {type(error).__name__}: {error}"[:_TROUBLE_CHARACTERS_MAX])
            else:
                server.answer(job, "" if said else "healthy() returned False")

        threading.Thread(target=ask, name="spoke-healthy", daemon=True).start()

    def _mail(self, job: Job) -> None:
        server = self._server
        assert server is not None
        rank = job.caller.identity.get("rank")
        if rank is None or len(job.args) != 2 or type(job.args[0]) is not int:
            server.fail(job, InvalidRequest("only a member of the gang sends mail, with a tag and a value"))
            return
        tag, value = job.args
        self._inbox.put(rank, tag, value, job.nbytes, lambda: server.answer(job, None))


def _checked_tag(tag: int) -> int:
    if type(tag) is not int or not 0 <= tag < 1 << 63:
        raise InvalidRequest(f"a tag is a whole number from 0 on, not {tag!r}")
    return tag
