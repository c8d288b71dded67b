"""Stand-ins for what a client talks to: an allocator that answers as it is told, and an agent without processes.

``FakeAllocator`` decides nothing: every gang fits. It answers requests in a thread, each once, and can be muted,
scripted per request type, and asked what it has seen. ``FakeAgent`` speaks the agent's side of the real protocol to a
real allocator; its "actors" are call servers in this process.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError

from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.errors import SpokeError
from spoke.events.model import GangSpec, Slot
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys, client_lease
from spoke.protocol.launch import decode_blob
from spoke.protocol.orders import decode_order
from spoke.protocol.requests import Envelope, decode_request, encode_request
from spoke.protocol.server import connect, read_stream
from spoke.transport import CallServer, unpack
from tests.builders import node_spec

DEADLINE_S = 20.0


def eventually(what: Callable[[], Any], message: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """What ``what`` returns once it is true; AssertionError when it is not within the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, message or f"{what} did not come true within {deadline_s} s"
        time.sleep(0.01)


def slots_of(spec: GangSpec) -> tuple[Slot, ...]:
    """Places for a gang on made-up nodes."""
    per = spec.actors_per_node
    return tuple(
        Slot(rank, rank % per, rank // per, f"n{rank // per}", f"host-n{rank // per}", (rank % per,), (f"gpu-{rank}",))
        for rank in range(spec.size)
    )


def granted(ticket_id: str, spec: GangSpec, actors: tuple[p.ActorInfo, ...] = ()) -> p.Granted:
    """A grant of made-up places."""
    return p.Granted(ticket_id, slots_of(spec), "127.0.0.1", 20_000, spec, actors)


Reply = tuple[int, p.Message]
Script = Callable[[Envelope], list[Reply]]


class FakeAllocator:
    """Answers requests in a thread. ``scripts`` maps a request type to what answers it instead."""

    def __init__(self, url: str, pool: str) -> None:
        self.keys = Keys(pool)
        self.scripts: dict[type[r.Request], Script] = {}
        self.seen: list[Envelope] = []
        self.muted = threading.Event()
        self.tickets: dict[str, Envelope] = {}
        self._answered: dict[tuple[str, int], list[Reply]] = {}
        self._numbers = itertools.count(1)
        self._redis = connect(url)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-allocator", daemon=True)

    def __enter__(self) -> FakeAllocator:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        self._redis.close()

    def kinds(self) -> list[str]:
        """The types of the requests seen, in order; each request once."""
        return [asked.request.TYPE for asked in self.seen]

    def requests(self, kind: type[r.Request]) -> list[Any]:
        """The requests of one type, in order."""
        return [asked.request for asked in self.seen if isinstance(asked.request, kind)]

    def tell(self, client_id: str, seq: int, message: p.Message) -> None:
        """Write a reply, or a notice with ``seq`` 0."""
        self._patiently(lambda: self._redis.xadd(self.keys.reply(client_id), {seq: p.encode_message(message)}))

    def _patiently(self, write: Callable[[], object]) -> None:
        """Write, again as long as a test keeps the server away; what was written twice does no harm."""
        while not self._stopping.is_set():
            try:
                write()
                return
            except (RedisError, OSError):
                self._stopping.wait(0.01)

    def drop_lease(self, client_id: str) -> None:
        """Let the client's lease run out."""
        self._redis.zrem(self.keys.leases, client_lease(client_id))

    def _run(self) -> None:
        after = "0-0"
        while not self._stopping.is_set():
            try:
                entries = read_stream(self._redis, self.keys.requests, after, block_ms=100)
            except (RedisError, OSError):
                self._stopping.wait(0.05)
                continue
            if self.muted.is_set():
                self._stopping.wait(0.01)
                continue
            for entry_id, fields in entries:
                self._handle(fields)
                after = entry_id.decode()

    def _handle(self, fields: dict[bytes, bytes]) -> None:
        asked = decode_request(fields)
        assert isinstance(asked, Envelope), asked
        key = (asked.client_id, asked.seq)
        if key in self._answered:
            return
        self.seen.append(asked)
        self._answered[key] = replies = self.scripts.get(type(asked.request), self._answer)(asked)
        for seq, message in replies:
            self.tell(asked.client_id, seq, message)

    def new_ticket(self) -> str:
        """The next ticket id."""
        return f"t-{next(self._numbers)}"

    def _grant_lease(self, client_id: str, lease_ms: int) -> None:
        seconds, micros = self._redis.time()  # type: ignore[misc]
        self._redis.zadd(self.keys.leases, {client_lease(client_id): seconds * 1000 + micros // 1000 + lease_ms})

    def _answer(self, asked: Envelope) -> list[Reply]:
        request = asked.request
        if isinstance(request, r.ConnectClient):
            self._patiently(lambda: self._grant_lease(asked.client_id, request.lease_ms))
        if isinstance(request, r.AllocateGang):
            ticket_id = self.new_ticket()
            self.tickets[ticket_id] = asked
            return [(asked.seq, granted(ticket_id, request.spec))]
        if isinstance(request, r.ReleaseGang):
            known = self.tickets.pop(request.ticket_id, None) is not None
            return [(asked.seq, p.Done(known))]
        if isinstance(request, r.LaunchActors):
            actors = tuple(
                p.ActorInfo(m.rank, m.actor_id, "n0", f"{asked.seq}-{m.rank}", "running", 4000 + m.rank)
                for m in request.members
            )
            return [(asked.seq, p.Launched(request.ticket_id, actors))]
        return [(asked.seq, p.Done())]


@contextmanager
def real_allocator(url: str, pool: str) -> Iterator[Allocator]:
    """The real allocator, in a thread."""
    allocator = Allocator(AllocatorConfig(url=url, pool=pool))
    thread = threading.Thread(target=allocator.run, name="allocator", daemon=True)
    thread.start()
    try:
        assert allocator.leading.wait(DEADLINE_S)
        yield allocator
    finally:
        allocator.stop()
        thread.join(10)


class FakeAgent:
    """A node that does as it is told, without processes. ``targets`` makes what answers calls to an actor."""

    def __init__(self, url: str, pool: str, node_id: str = "n1", gpus: int = 8) -> None:
        self.keys = Keys(pool)
        self.node_id = node_id
        self.started: list[tuple[o.StartActor, Any]] = []
        self.refuse: Callable[[o.StartActor], str] = lambda order: ""
        self.targets: Callable[[o.StartActor, Any], object] = _Echo
        self._live: dict[str, tuple[o.StartActor, CallServer | None]] = {}
        self._redis = connect(url)
        self._incarnation = f"i-{time.monotonic_ns()}"
        self._spec = node_spec(node_id, gpus, ports=gpus)
        self._stopping = threading.Event()
        self.welcome = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fake-agent-{node_id}", daemon=True)

    def __enter__(self) -> FakeAgent:
        self._ask(r.RegisterNode(self._spec, 60_000))
        self._thread.start()
        assert self.welcome.wait(DEADLINE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        for _, server in self._live.values():
            if server is not None:
                server.close()
        self._redis.close()

    def end(self, rank: int, code: int = 0, signal: int = 0) -> None:
        """Let an actor end."""
        for launch_id, (order, _) in list(self._live.items()):
            if order.rank == rank:
                self._end(launch_id, code, signal)

    def _ask(self, request: r.Request) -> None:
        raw = encode_request(Envelope(request, node_id=self.node_id, incarnation=self._incarnation))
        self._redis.xadd(self.keys.requests, raw)  # type: ignore[arg-type]

    def _run(self) -> None:
        after = "0-0"
        while not self._stopping.is_set():
            try:
                entries = read_stream(self._redis, self.keys.node(self.node_id), after, block_ms=100)
            except (RedisError, OSError):
                self._stopping.wait(0.05)
                continue
            for entry_id, fields in entries:
                after = entry_id.decode()
                delivery = decode_order(fields)
                if delivery.incarnation == self._incarnation:
                    self._obey(delivery)

    def _obey(self, delivery: o.Delivery) -> None:
        order = delivery.order
        if isinstance(order, o.Welcome):
            self.welcome.set()
        elif isinstance(order, o.ReportHoldings):
            tickets = {start.ticket_id for start, _ in self._live.values()}
            self._ask(r.ReportHeld(order.server, tuple(self._live), tuple(sorted(tickets))))
        elif isinstance(order, o.StartActor):
            self._start(order, delivery.blob)
        elif isinstance(order, o.StopActor):
            self._end(order.launch_id, -1, 15)
        elif isinstance(order, o.CloseTicket):
            for launch_id, (start, _) in list(self._live.items()):
                if start.ticket_id == order.ticket_id:
                    self._end(launch_id, -1, 15)

    def _start(self, order: o.StartActor, raw: bytes) -> None:
        blob = decode_blob(raw)
        args = unpack(blob.args) if blob.args else None
        self.started.append((order, args))
        reason = self.refuse(order)
        if reason:
            self._ask(r.ReportStartFailed(order.ticket_id, order.rank, order.launch_id, reason))
            return
        server = None
        if order.spec.type_name:
            server = CallServer(self.targets(order, args), secret=blob.secret, host="127.0.0.1", advertise="127.0.0.1")
            server.start()
        self._live[order.launch_id] = (order, server)
        address = server.address if server else ""
        self._ask(r.ReportStarted(order.ticket_id, order.rank, order.launch_id, 4000 + order.rank, address))

    def _end(self, launch_id: str, code: int, signal: int) -> None:
        order, server = self._live.pop(launch_id, (None, None))
        if order is None:
            return
        if server is not None:
            server.close()
        self._ask(r.ReportExited(order.ticket_id, order.rank, launch_id, code, signal))


class _Echo:
    def __init__(self, order: o.StartActor, args: Any) -> None:
        self._order = order
        self._args = args

    def echo(self, value: Any) -> Any:
        return value

    def told(self) -> Any:
        return self._args

    def rank(self) -> int:
        return self._order.rank

    def fail(self) -> None:
        raise ValueError("as asked")

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


__all__ = ["FakeAgent", "FakeAllocator", "SpokeError", "eventually", "granted", "real_allocator", "slots_of"]
