"""The other members of a gang, as an actor reaches them: directly, by rank."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any, Final

from spoke.errors import ActorUnreachable, InvalidRequest, SpokeError
from spoke.protocol.notice import Notice
from spoke.transport import CallFuture, Connection, Stream, connect

CONNECT_S: Final = 30.0
_ATTEMPT_S: Final = 5.0
_PAUSE_S: Final = (0.02, 0.5)
_ENDED: Final = ("exited", "start_failed", "lost")
_UNKNOWN: Final = ["", "", ""]  # its state, address and node


class Peers:
    """The connections of one actor to the others of its gang, opened when they are first needed."""

    def __init__(self, rank: int, actor_id: str, ticket_id: str, directory: str, secret: bytes) -> None:
        self._rank = rank
        self._actor_id = actor_id
        self._ticket_id = ticket_id
        self._directory = directory
        self._secret = secret
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}
        self._connections: dict[int, Connection] = {}
        self._ranks: dict[str, list[str]] = {}
        self._closed = False

    def connection(self, rank: int, timeout_s: float = CONNECT_S) -> Connection:
        """The connection to a rank. Waits until the rank runs; ActorUnreachable when it has ended, or does not run
        within ``timeout_s`` seconds.
        """
        known = self._connections.get(rank)
        if known is not None and not known.closed:
            return known
        with self._lock:
            lock = self._locks.setdefault(rank, threading.Lock())
        with lock:
            known = self._connections.get(rank)
            if known is not None and not known.closed:
                return known
            if known is not None:
                known.close()
            made = self._connect(rank, time.monotonic() + timeout_s, fresh=known is not None)
            with self._lock:
                if not self._closed:
                    self._connections[rank] = made
                    return made
        made.close()
        raise ActorUnreachable(f"rank {rank} was not asked for: this actor is ending")

    def _connect(self, rank: int, deadline: float, *, fresh: bool) -> Connection:
        pause_s, last = _PAUSE_S[0], "it was not launched yet"
        while not self._closed:
            state, address, node = self._ranks.get(str(rank), _UNKNOWN)
            if fresh or not address or state in _ENDED:
                self._ranks = self._look_up(deadline)
                state, address, node = self._ranks.get(str(rank), _UNKNOWN)
            if state in _ENDED:
                raise ActorUnreachable(f"rank {rank} of ticket {self._ticket_id}, on {node}, has ended ({state})")
            if address:
                try:
                    return self._open(rank, address, node, min(_ATTEMPT_S, max(0.1, deadline - time.monotonic())))
                except SpokeError as error:
                    last = str(error)
            elif state:
                last = f"it is {state}" if state != "running" else "it is a command, which takes no calls"
            if time.monotonic() + pause_s > deadline:
                break
            time.sleep(pause_s)
            pause_s, fresh = min(2 * pause_s, _PAUSE_S[1]), True
        raise ActorUnreachable(f"rank {rank} of ticket {self._ticket_id} could not be reached in time: {last}")

    def _open(self, rank: int, address: str, node: str, timeout_s: float) -> Connection:
        connection = connect(address, self._secret, timeout_s=timeout_s, name=_name(rank, node, address))
        try:
            mine = {"rank": self._rank, "actor": self._actor_id}
            theirs = connection.ask("identify", [mine], timeout_s=timeout_s).result()
            if theirs != rank:  # the address was another's, in the same gang, a moment ago
                raise ActorUnreachable(f"rank {theirs} answers at {address}, where rank {rank} was")
        except BaseException:
            connection.close()
            raise
        return connection

    def _look_up(self, deadline: float) -> dict[str, list[str]]:
        while True:
            try:
                answer = _ask(self._directory, self._ticket_id)
                if "error" not in answer:
                    ranks: dict[str, list[str]] = answer["ranks"]
                    return ranks
                reason = str(answer["error"])
            except (OSError, ValueError, KeyError) as error:
                reason = f"the agent does not answer ({error})"
            if time.monotonic() + _PAUSE_S[1] > deadline or self._closed:
                raise ActorUnreachable(f"the members of ticket {self._ticket_id} cannot be told: {reason}")
            time.sleep(_PAUSE_S[1])

    def notices(self) -> list[tuple[int, Notice]]:
        """The notices that the agent has for this ticket, each with a number that grows; raises OSError, ValueError."""
        found = _ask(self._directory, f"notices {self._ticket_id}")["notices"]
        return [(number, Notice(**{**told, "ranks": tuple(told["ranks"])})) for number, told in found]

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            self._closed = True
            connections = list(self._connections.values())
            self._connections.clear()
        for connection in connections:
            connection.close()


def _name(rank: int, node: str, address: str) -> str:
    """What errors call a member."""
    return f"rank {rank} on {node} ({address.removeprefix('tcp://')})"


def _ask(directory: str, question: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_ATTEMPT_S)
        sock.connect("\0" + directory)
        sock.sendall(question.encode() + b"\n")
        received = b""
        while piece := sock.recv(1 << 16):
            received += piece
    found: dict[str, Any] = json.loads(received)
    return found


class Peer:
    """Another member of this actor's gang: what a handle is to a client. Futures can be awaited.

    The first use connects, and waits up to 30 s for a rank that does not run yet; in an ``async`` method, ``await
    asyncio.to_thread(peer.connect)`` before keeps the event loop free.
    """

    def __init__(self, peers: Peers, rank: int, timeout_s: float | None = None) -> None:
        self._peers = peers
        self._timeout_s = timeout_s
        self.rank = rank

    def connect(self, timeout_s: float = CONNECT_S) -> None:
        """Connect, unless that is done; raises ActorUnreachable."""
        self._peers.connection(self.rank, timeout_s)

    def options(self, *, timeout_s: float | None) -> Peer:
        """The same member; calls fail with CallTimeout after ``timeout_s`` seconds (None: never)."""
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest(f"timeout_s must be None or above 0, not {timeout_s!r}")
        return Peer(self._peers, self.rank, timeout_s)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> CallFuture:
        """Call a method; as ``ActorHandle.call``, but raises ActorUnreachable when there is no connection."""
        return self._peers.connection(self.rank).call(method, args, kwargs, timeout_s=self._timeout_s)

    def stream(self, method: str, /, *args: Any, **kwargs: Any) -> Stream:
        """Call a method that yields; see ``ActorHandle.stream``."""
        return self._peers.connection(self.rank).stream(method, args, kwargs, timeout_s=self._timeout_s)

    def tell(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """Call a method and wait for nothing; see ``ActorHandle.tell``."""
        self._peers.connection(self.rank).tell(method, args, kwargs)

    def __repr__(self) -> str:
        return f"<Peer rank={self.rank}>"
