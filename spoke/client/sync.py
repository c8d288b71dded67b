"""``spoke.Client``: the pool, for programs with threads."""

from __future__ import annotations

import math
import secrets
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, TypeVar, cast

from spoke.client import launching
from spoke.client.asking import gang_spec
from spoke.client.futures import Chain, GangFuture, failed
from spoke.client.gang import Args, Care, Commands, Env, Gang, Ids, Types, close_all
from spoke.client.handle import ActorHandle, Line
from spoke.client.lines import LogLine, batches_of, flat, flat_async
from spoke.client.memory import GangMemory
from spoke.client.operate import Operations
from spoke.client.queue import QueueStatus, read_queue, terms_of
from spoke.client.session import Session
from spoke.client.status import PoolStatus, read_status
from spoke.client.tracing import ClientTracing
from spoke.client.tracking import Ticket
from spoke.errors import InvalidRequest, RankOutOfRange, SpokeError, TicketEnded
from spoke.events.model import OnFailure, Resources, Slot, check_name
from spoke.events.rules import Group, Labels, Strategy
from spoke.events.supervision import Supervision
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.identity import Key, find_key
from spoke.protocol.launch import Torchrun
from spoke.protocol.logs import log_key
from spoke.protocol.server import explained
from spoke.protocol.tracing import VARIABLE, in_use
from spoke.protocol.url import mask_url, resolve_pool, resolve_url
from spoke.transport.choice import Choice
from spoke.transport.closing import Closing

T = TypeVar("T")
TIMEOUT_S_MAX = 10 * 365 * 24 * 3600.0
LEASE_S_MIN, LEASE_S_MAX = 0.5, 24 * 3600.0
CLOSE_TIMEOUT_S = 5.0
ATTACH_TIMEOUT_S = 60.0
SECRET_BYTES = 32
_NO_NEED = Resources()


class Client(Operations, Closing):
    """A session in a pool: asks for gangs, launches actors, and gives everything back when it ends.

    ``url`` (redis://, rediss://, unix://; else SPOKE_URL, else redis://127.0.0.1:6379) and ``pool`` (else SPOKE_POOL,
    else ``default``) say where. The methods may be called from any thread. Those that return a future return at once,
    but for the time it takes to hand the request to the server.

    ``lease_s``: when this process dies without a word, its tickets are released after this many seconds.
    ``retry_s``: for how long a request is sent again when the server cannot be reached, before its future fails with
    ServerUnreachable. ``allocator_timeout_s``: after how many seconds without an allocator in the pool futures fail
    with NoAllocator. ``outstanding_max``: how many requests may wait for their answer; one more raises LimitExceeded.
    ``key`` (else SPOKE_KEY, else the content of the file SPOKE_KEY_FILE) signs the requests, in pools that ask for it.
    ``project``: whom its gangs count for in quotas and fair shares (else the user).
    ``transport`` carries the calls to actors: ``"tcp"``, ``"shm"`` or ``"rdma"`` (else SPOKE_TRANSPORT, else the best
    that works with each actor).

    Raises InvalidRequest, ServerUnreachable, AuthenticationFailed or ServerUnsuitable. Once the lease is lost, every
    method raises LeaseLost; after ``close()`` and in a forked child, ClientClosed.

    >>> with spoke.Client() as client:  # SPOKE_URL and SPOKE_POOL say where
    ...     gang = client.gang_allocate(2, 1, spoke.Resources(gpus=1)).result()
    ...     [slot.node_id for slot in gang]
    ['node-0', 'node-1']
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: str | None = None,
        lease_s: float = 10.0,
        retry_s: float = 30.0,
        allocator_timeout_s: float = 10.0,
        outstanding_max: int = 10_000,
        transport: str | None = None,
        key: str | None = None,
        project: str = "",
        _direct: bool = True,
    ) -> None:
        _check_seconds("lease_s", lease_s, LEASE_S_MIN, LEASE_S_MAX)
        _check_seconds("retry_s", retry_s, 0.0, TIMEOUT_S_MAX)
        _check_seconds("allocator_timeout_s", allocator_timeout_s, 0.1, TIMEOUT_S_MAX)
        if project:
            check_name("the project", project)
        self.transport = Choice(transport).forced
        self._session = Session(
            resolve_url(url),
            resolve_pool(pool),
            lease_s=lease_s,
            retry_s=retry_s,
            allocator_timeout_s=allocator_timeout_s,
            outstanding_max=outstanding_max,
            direct=_direct,
            key=_user_key(key),
            project=project,
        )
        self._session.open()
        tracing = in_use()
        self._tracing = None if tracing is None else ClientTracing(tracing, self.pool, self.client_id)
        self._finalizer = weakref.finalize(self, _close_later, self._session)
        self._finalizer.atexit = False  # the session is closed at exit by itself, while its threads still run

    # --- gangs ---------------------------------------------------------------------------------------------------

    def gang_allocate(
        self,
        num_nodes: int = 1,
        actors_per_node: int = 1,
        resources: Resources = _NO_NEED,
        strict_pack: bool | None = None,
        *,
        timeout: float | None = 300.0,
        detached: bool = False,
        preferred_node: str | None = None,
        gpu_ids: Sequence[int] | None = None,
        gpu_models: Sequence[str] = (),
        on_failure: OnFailure = "report",
        grace_s: float = 5.0,
        name: str = "",
        strategy: Strategy | None = None,
        where: Labels | None = None,
        where_not: Labels | None = None,
        min_gpu_memory: int | str = 0,
        near: str | None = None,
        exclusive: bool = False,
        same: str | None = None,
        prefer_same: str | None = None,
        min_nodes: int | None = None,
        groups: Sequence[Group] = (),
        priority: int = 0,
        project: str = "",
        expected_duration: float | None = None,
        max_duration: float | None = None,
        preemptible: bool = False,
        reservation: str = "",
    ) -> GangFuture[Gang]:
        """Reserve places for ``num_nodes`` x ``actors_per_node`` actors, all of them or none.

        ``strict_pack``: ``actors_per_node`` on one node, on ``num_nodes`` different nodes; False: as dense as it goes.
        ``timeout``: seconds to wait in line (None: for ever, 0: not at all). ``detached``: keep the ticket beyond this
        client. ``preferred_node`` hosts rank 0 if it can. ``gpu_ids``: the physical GPUs to use on every node.
        ``gpu_models``: only on nodes whose GPUs are of one of these models.
        ``on_failure="release"`` gives the gang back when a member fails. ``grace_s``: from SIGTERM to SIGKILL.

        ``strategy``, in Ray's words: ``"pack"`` (the fewest nodes), ``"spread"`` (as many as there are, evenly),
        ``"strict_pack"`` (one node), ``"strict_spread"`` (no two on one node). What it moves is one actor, or, with
        ``strict_pack=True``, the ``actors_per_node`` of a node; ``strict_pack`` None is True without a strategy, False
        with one. ``where``: only on nodes with these labels, like ``{"rack": "r1"}`` (a list: any of the values;
        ``"*"``: any at all); ``where_not``: on none with these. ``min_gpu_memory``: bytes, or ``"40GiB"``, that each
        GPU of a node has. ``near``: beside this node or ticket if it can be. ``exclusive``: nobody else on its nodes,
        as long as it lives. ``same="rack"``: all its nodes have one value of this label; ``prefer_same``: if they can
        (None: one rack, else block, else zone, where nodes have such labels; ``""``: does not matter). ``min_nodes``:
        it may get fewer than ``num_nodes``, down to these. ``groups``: unlike members, placed together or not at all,
        ranked in this order (``spoke.Group``); instead of the numbers and the resources.

        ``priority``: of two waiting gangs the higher goes first. ``project``: whom it counts for (else the client's,
        else the user). ``expected_duration``: how many seconds it will take, as far as is known; gangs that say it may
        go before others whom they do not delay. ``max_duration``: after so many seconds it is released, with a notice
        before. ``preemptible``: gangs of higher priority may take its place, after a notice. ``reservation``: it is
        placed on the nodes of that reservation.

        Raises InvalidRequest. The future fails with AllocationTimeout, AllocationError or AllocationCancelled, whose
        text says what was missing; with NoAllocator; with a ServerError. Cancelling it withdraws the request.

        >>> gang = client.gang_allocate(2, 2, spoke.Resources(gpus=1)).result()
        >>> len(gang), gang.num_nodes
        (4, 2)
        """
        spec = gang_spec(
            num_nodes,
            actors_per_node,
            resources,
            strict_pack,
            strategy=strategy,
            where=where,
            where_not=where_not,
            min_gpu_memory=min_gpu_memory,
            near=near,
            exclusive=exclusive,
            same=same,
            prefer_same=prefer_same,
            min_nodes=min_nodes,
            groups=groups,
            preferred_node=preferred_node,
            gpu_ids=gpu_ids,
            gpu_models=gpu_models,
            detached=detached,
            on_failure=_check_on_failure(on_failure),
            grace_s=grace_s,
            name=name,
            terms=terms_of(priority, project, expected_duration, max_duration, preemptible, reservation),
        )
        request = r.AllocateGang(spec, _timeout_ms(timeout))
        if self._tracing is not None:
            return self._tracing.allocate(
                request, lambda asked: self._request(asked, self._granted, unwanted=Gang.release)
            )
        return self._request(request, self._granted, unwanted=Gang.release)

    def gang_release(self, ticket_id: str, *, timeout: float | None = None) -> Future[bool]:
        """Stop a ticket's actors and give its places back; anyone's ticket, of this pool.

        The future is True once all is confirmed free, and False if the ticket had ended before. It fails with
        UnknownTicket, or with WaitTimeout after ``timeout`` seconds (the release goes on).

        >>> client.gang_release(gang.ticket_id).result()
        True
        """
        check_name("the ticket id", _text("the ticket id", ticket_id))
        seconds = _check_timeout(timeout)
        try:
            return self._session.release(ticket_id, timeout_s=seconds)
        except SpokeError as error:
            return failed(error)

    def attach(self, ticket_id: str) -> Future[Gang]:
        """A ticket that another client was granted, with the actors that run in it. It stays that client's.

        >>> client.attach(gang.ticket_id).result().ticket_id == gang.ticket_id
        True
        """
        check_name("the ticket id", _text("the ticket id", ticket_id))
        return self._request(r.AttachGang(ticket_id), self._granted)

    def gang_repair(self, ticket_id: str, rank: int, *, elsewhere: bool = False) -> Future[Slot]:
        """Give a failed member of a live ticket another place: other GPUs of its node, or another node.

        ``elsewhere``: only another node. The future has the new slot; the others keep theirs. Launch the rank there
        with ``launch_actor``; peers reach it then. The rendezvous address moves with rank 0. It fails with
        AlreadyLaunched if the member is alive, RepairRefused if nothing fits or it has not failed, UnknownTicket,
        TicketEnded, RankOutOfRange.

        >>> failed = gang.launch_command(["false"]).result()[1].wait().result()
        >>> client.gang_repair(gang.ticket_id, failed.rank).result().global_rank
        1
        """
        check_name("the ticket id", _text("the ticket id", ticket_id))
        try:
            launching.check_rank(rank)
        except RankOutOfRange as error:
            return failed(error)
        return self._request(r.RepairGang(ticket_id, rank, elsewhere), lambda message, ticket: message.slot)

    def logs(
        self,
        ticket_id: str,
        rank: int | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | datetime | None = None,
    ) -> Iterator[LogLine]:
        """What the actors of a ticket print, line by line, wherever they run; also after their end.

        ``rank``: only that one's. ``follow``: go on until the actors have ended. ``tail``: only the last lines of each
        rank; ``since``: only what was printed within so many seconds, or since a datetime. The iterator asks the
        agents for more when its lines were taken, raises SpokeErrors (UnknownTicket, RankOutOfRange, Forbidden,
        LogsUnavailable, ServerError), and gives up its connections when it is closed or dropped. What is missing
        because a node is silent or lost is logged. Raises InvalidRequest.

        >>> actors = gang.launch_command(["sh", "-c", "echo hello from $RANK"]).result()
        >>> sorted(line.text for line in client.logs(gang.ticket_id, follow=True))
        ['hello from 0', 'hello from 1']
        """
        self._session.check_open()
        return flat(batches_of(self._session, ticket_id, rank, follow=follow, tail=tail, since=since))

    # --- actors --------------------------------------------------------------------------------------------------

    def launch_actor(
        self,
        ticket_id: str,
        global_rank: int,
        type: str,
        id: str,
        args: Mapping[str, Any] | None = None,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Supervision | None = None,
        timeout: float | None = None,
    ) -> Future[ActorHandle]:
        """Start an actor of a registered type at one rank of a ticket.

        ``args`` (data; see ``ActorHandle.call``) become the keyword arguments of its class. The future has the handle
        once the actor is up, and fails with ActorStartFailed, AlreadyLaunched, RankOutOfRange, TicketEnded,
        UnknownTicket, or WaitTimeout after ``timeout`` seconds (the actor is stopped then). Cancelling it stops the
        actor. Raises InvalidRequest, NotSerializable.

        ``env`` is added to its environment, ``cwd`` is its working directory (relative to the agent's).
        ``supervision`` (``spoke.Supervision``): when it is started again, time limits, checks of its health, what is
        run at its end, limits of its process.

        >>> actor = client.launch_actor(gang.ticket_id, 0, "Worker", "first").result()
        >>> actor.call("echo", "hello").result()
        'hello'
        """
        plan = launching.actor_plan(global_rank, type, id, args, launching.Way(env, cwd, supervision))
        return self._launch(ticket_id, plan, lambda handles: handles[0], timeout)

    def launch_gang(
        self,
        ticket_id: str,
        type: Types,
        args: Args = None,
        *,
        ids: Ids = None,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        timeout: float | None = None,
    ) -> Future[list[ActorHandle]]:
        """Start an actor of a registered type at every rank of a ticket, in one request.

        ``args`` are the same for all, or a function of the slot. ``ids``: one for each rank, or a function of the
        slot; else ``<type>-<rank>``. In a mixed gang ``type`` may be a dict, ``{"controller": "Controller", "worker":
        "Worker"}``: groups that it does not name are not launched. The handles come by rank; otherwise as
        ``launch_actor``.

        >>> [actor.id for actor in client.launch_gang(gang.ticket_id, "Worker").result()]
        ['Worker-0', 'Worker-1']
        """
        plan = launching.gang_plan(type, args, ids, launching.Way(env, cwd, supervision))
        return self._launch(ticket_id, plan, lambda handles: handles, timeout)

    def launch_command(
        self,
        ticket_id: str,
        argv: Commands,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Care = None,
        torchrun: Torchrun | None = None,
        timeout: float | None = None,
    ) -> Future[list[ActorHandle]]:
        """Run a command at every rank of a ticket, on agents that allow commands; otherwise as ``launch_gang``.

        In a mixed gang ``argv`` may be a dict, a command for each group. ``torchrun``: its environment is also that of
        torchrun's workers.

        >>> actors = client.launch_command(gang.ticket_id, ["python3", "-c", "print('hello')"]).result()
        >>> [end.code for end in gang.wait().result()]
        [0, 0]
        """
        plan = launching.command_plan(argv, launching.Way(env, cwd, supervision, torchrun))
        return self._launch(ticket_id, plan, lambda handles: handles, timeout)

    def spawn(
        self,
        type: str,
        id: str,
        resources: Resources = _NO_NEED,
        args: Mapping[str, Any] | None = None,
        *,
        env: Env = None,
        cwd: str | None = None,
        supervision: Supervision | None = None,
        timeout: float | None = 300.0,
        detached: bool = False,
        preferred_node: str | None = None,
        gpu_ids: Sequence[int] | None = None,
        gpu_models: Sequence[str] = (),
        grace_s: float = 5.0,
        name: str = "",
    ) -> GangFuture[ActorHandle]:
        """Start one actor anywhere: a gang of one, allocated and launched. If the launch fails it is released.

        The ticket lives as long as the handle (``handle.gang``), or until ``handle.release()``.

        >>> actor = client.spawn("Worker", "alone", spoke.Resources(gpus=1)).result()
        >>> actor.call("add", 1, 2).result(), actor.release().result()
        (3, True)
        """
        plan = launching.actor_plan(0, type, id, args, launching.Way(env, cwd, supervision))
        chain: Chain[ActorHandle] = Chain()

        def launched(step: Future[ActorHandle], gang: Gang) -> None:
            error = None if step.cancelled() else step.exception()
            if error is None and not step.cancelled() and chain.finish(step.result()):
                return
            self._release_quietly(gang)
            if error is not None:
                chain.fail(error)

        def launch(gang: Gang) -> None:
            if chain.cancelled():
                self._release_quietly(gang)
                return
            step = self._launch(gang.ticket_id, plan, lambda handles: handles[0], None)
            chain.follow(step, lambda done: launched(done, gang))

        def allocated(step: Future[Gang]) -> None:
            if step.cancelled():
                return
            error = step.exception()
            if error is not None:
                chain.fail(error)
                return
            gang = step.result()
            self._session.upkeep.soon(lambda: launch(gang))  # it does I/O, which the reader of replies must not

        step = self.gang_allocate(
            1,
            1,
            resources,
            timeout=timeout,
            detached=detached,
            preferred_node=preferred_node,
            gpu_ids=gpu_ids,
            gpu_models=gpu_models,
            grace_s=grace_s,
            name=name,
        )
        chain.follow(step, allocated)
        return chain

    def stop_actor(self, ticket_id: str, rank: int) -> Future[bool]:
        """Ask the actor at a rank to stop: SIGTERM, then SIGKILL after the gang's grace time. The slot stays.

        The future is True once it was told, False if none runs there; its end is what ``wait`` waits for.

        >>> actors = gang.launch("Worker").result()
        >>> client.stop_actor(gang.ticket_id, 1).result()
        True
        """
        check_name("the ticket id", _text("the ticket id", ticket_id))
        try:
            launching.check_rank(rank)
        except RankOutOfRange as error:
            return failed(error)
        return self._request(r.StopActor(ticket_id, rank), lambda message, ticket: bool(message.value))

    # --- the pool and the session --------------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """The pool's nodes and tickets, read from its views (no request to the allocator). Raises ServerError.

        >>> [(node.node_id, node.gpus) for node in client.status().nodes]
        [('node-0', 4), ('node-1', 4)]
        """
        self._session.check_open()
        with explained(self._session.url):
            return read_status(self._session.redis, self._session.keys)

    def queue_status(self) -> QueueStatus:
        """The queue's policy, projects and reservations, read from the views. Raises ServerError.

        >>> client.queue_status().policy.order
        'priority'
        """
        self._session.check_open()
        with explained(self._session.url):
            return read_queue(self._session.redis, self._session.keys)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """End the session: tickets are released (not detached ones), waiting futures fail with ClientClosed.

        Returns when the allocator has taken note, at the latest after ``timeout`` seconds and a little.

        >>> client = spoke.Client()
        >>> client.close()
        >>> client.is_open
        False
        """
        self._finalizer.detach()
        self._session.close(timeout)

    @property
    def url(self) -> str:
        """The server's URL, without its password.

        >>> client.url
        'redis://127.0.0.1:...'
        """
        return mask_url(self._session.url)

    @property
    def pool(self) -> str:
        """The pool's name.

        >>> client.pool
        'docs'
        """
        return self._session.keys.pool

    @property
    def client_id(self) -> str:
        """The id of this session in the log and in the views.

        >>> client.client_id
        'c-...'
        """
        return self._session.client_id

    @property
    def is_open(self) -> bool:
        """Whether requests can be made.

        >>> client.is_open
        True
        """
        return self._session.is_over is None

    def check_process(self) -> None:
        """Raise ClientClosed in a child that was forked after this client was made."""
        self._session.check_process()

    def __repr__(self) -> str:
        return f"<Client {self.client_id} of pool {self.pool!r} at {self.url}>"

    # --- for gangs and handles -----------------------------------------------------------------------------------

    def logs_async(
        self, ticket_id: str, rank: int | None, *, follow: bool, tail: int | None, since: float | datetime | None
    ) -> AsyncIterator[LogLine]:
        """``logs`` for asyncio; use ``AsyncClient.logs``."""
        self._session.check_open()
        return flat_async(batches_of(self._session, ticket_id, rank, follow=follow, tail=tail, since=since))

    def wait_for_exits(
        self, gang: Gang, ranks: list[int] | None, convert: Callable[[list[int]], T], timeout: float | None
    ) -> Future[T]:
        """A wait for the ends of actors; use ``Gang.wait``."""
        return self._session.wait_for_exits(gang.ticket, ranks, convert, _check_timeout(timeout))

    def dropped(self, ticket: Ticket, lines: dict[str, Line | GangMemory]) -> None:
        """A gang's last reference is gone. Called by a finalizer: takes no lock, does no I/O."""
        session = self._session
        if not session.forked:
            session.drop(ticket)
            if lines:
                session.upkeep.soon(lambda: close_all(lines))

    def secret_of(self, ticket: Ticket) -> bytes:
        """The secret with which the ticket's actors and clients know each other; one round trip the first time.

        While the server is away it is asked again, as long as requests are sent again.
        """
        if ticket.secret:
            return ticket.secret
        session = self._session
        key = session.keys.secret(ticket.ticket_id, session.user)
        made = secrets.token_bytes(SECRET_BYTES)

        def agree() -> bytes:
            # Whoever launches first sets it; all others read it, and so does an attempt after a lost answer.
            if session.redis.set(key, made.hex(), nx=True):
                return made
            raw = cast("bytes | None", session.redis.get(key))
            if raw is None:
                raise TicketEnded(f"ticket {ticket.ticket_id} has ended: its secret is gone; ask for a new gang")
            return bytes.fromhex(raw.decode())

        ticket.secret = session.patiently(agree)
        return ticket.secret

    # --- inside --------------------------------------------------------------------------------------------------

    def _request(
        self,
        request: r.Request,
        convert: Callable[[Any, Ticket | None], T],
        *,
        blobs: bytes = b"",
        timeout: float | None = None,
        unwanted: Callable[[T], object] | None = None,
    ) -> GangFuture[T]:
        try:
            return self._session.request(request, convert, blobs=blobs, timeout_s=timeout, unwanted=unwanted)
        except SpokeError as error:
            return failed(error)

    def _granted(self, message: p.Message, ticket: Ticket | None) -> Gang:
        assert ticket is not None
        return self._gang_of(ticket)

    def _gang_of(self, ticket: Ticket) -> Gang:
        gangs = self._session.gangs
        gang = gangs.get(ticket.ticket_id)
        if gang is None:
            gang = gangs[ticket.ticket_id] = Gang(self, ticket)
        return gang

    def _gang_by_id(self, ticket_id: str) -> Gang:
        """The gang of a ticket, attaching to it if it is another client's."""
        check_name("the ticket id", _text("the ticket id", ticket_id))
        gang = self._session.gangs.get(ticket_id)
        if gang is not None:
            return gang
        ticket = self._session.ticket(ticket_id)
        if ticket is None:
            return self.attach(ticket_id).result(ATTACH_TIMEOUT_S)
        if ticket.owned and not ticket.spec.detached:
            raise TicketEnded(
                f"ticket {ticket_id} is being released, because the last reference to its Gang is gone: keep the gang "
                f"(gang = client.gang_allocate(...).result()) as long as you use it, or allocate it detached"
            )
        return self._gang_of(ticket)

    def _launch(
        self,
        ticket_id: str,
        plan: launching.Plan,
        convert: Callable[[list[ActorHandle]], T],
        timeout: float | None,
    ) -> Future[T]:
        if self._tracing is None:
            return self._launch_plan(ticket_id, plan, convert, timeout)

        def launch(context: str) -> Future[T]:
            traced = launching.with_variable(plan, VARIABLE, context)
            return self._launch_plan(ticket_id, traced, convert, timeout)

        return self._tracing.launch(ticket_id, plan.spec.title, launch)

    def _launch_plan(
        self,
        ticket_id: str,
        plan: launching.Plan,
        convert: Callable[[list[ActorHandle]], T],
        timeout: float | None,
    ) -> Future[T]:
        seconds = _check_timeout(timeout)
        try:
            self._session.check_open()
            gang = self._gang_by_id(ticket_id)
            members, blobs = plan(
                gang.slots, self.secret_of(gang.ticket), log_key(self._session.key, self.pool, ticket_id)
            )
        except (InvalidRequest, TypeError):
            raise
        except SpokeError as error:
            return failed(error)

        def handles(message: p.Launched, ticket: Ticket | None) -> T:
            return convert([gang.handle(actor) for actor in sorted(message.actors, key=lambda actor: actor.rank)])

        request = r.LaunchActors(ticket_id, plan.spec, members, plan.by_group)
        return self._request(request, handles, blobs=blobs, timeout=seconds, unwanted=_stop_all)

    def _release_quietly(self, gang: Gang) -> None:
        future = gang.release()
        future.add_done_callback(lambda done: None if done.cancelled() else done.exception())


def _stop_all(launched: ActorHandle | Iterable[ActorHandle] | Any) -> None:
    for handle in [launched] if isinstance(launched, ActorHandle) else launched:
        handle.stop()


def _close_later(session: Session) -> None:
    if not session.forked:
        session.upkeep.soon(lambda: session.close(CLOSE_TIMEOUT_S))


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be text, not {type(value).__name__}")
    return value


def _user_key(given: str | None) -> Key | None:
    key = find_key(given)
    if key is not None and key.signer.kind == "node":
        raise InvalidRequest(f"the key is {key.signer}'s, an agent's: a client needs one of a user or administrator")
    return key


def _check_seconds(what: str, value: float, at_least: float, at_most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not at_least <= value <= at_most:
        raise InvalidRequest(f"{what} must be from {at_least:g} to {at_most:g} seconds, not {value!r}")


def _check_timeout(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= TIMEOUT_S_MAX:
        raise InvalidRequest(f"timeout must be None (no limit) or seconds from 0 on, not {timeout!r}")
    return float(timeout)


def _timeout_ms(timeout: float | None) -> int | None:
    seconds = _check_timeout(timeout)
    return None if seconds is None else math.ceil(seconds * 1000)


def _check_on_failure(value: str) -> OnFailure:
    if value not in ("release", "report"):
        raise InvalidRequest(f"on_failure must be 'release' or 'report', not {value!r}")
    return value  # type: ignore[return-value]
