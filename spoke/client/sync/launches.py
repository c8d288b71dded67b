"""Actors through a client: launched in a gang or alone, and stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from spoke.client import plans
from spoke.client.checks import check_timeout
from spoke.client.futures import Chain, GangFuture, failed
from spoke.client.plans import Args, Care, Commands, Env, Ids, Types
from spoke.client.secret import secret_of
from spoke.client.sync.gang import Gang
from spoke.client.sync.gangs import Gangs
from spoke.client.sync.handle import ActorHandle
from spoke.client.tracking import Ticket
from spoke.errors import InvalidRequest, RankOutOfRange, SpokeError
from spoke.events.model import Resources, check_name
from spoke.events.supervision import Supervision
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.launch import Torchrun
from spoke.protocol.logs import log_key
from spoke.protocol.tracing import VARIABLE

T = TypeVar("T")
_NO_NEED = Resources()


class Launches(Gangs):
    """The part of ``Client`` about actors."""

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
        plan = plans.actor_plan(global_rank, type, id, args, plans.Way(env, cwd, supervision))
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
        plan = plans.gang_plan(type, args, ids, plans.Way(env, cwd, supervision))
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
        plan = plans.command_plan(argv, plans.Way(env, cwd, supervision, torchrun))
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
        plan = plans.actor_plan(0, type, id, args, plans.Way(env, cwd, supervision))
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
            self.session.upkeep.soon(lambda: launch(gang))  # it does I/O, which the reader of replies must not

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
        check_name("the ticket id", ticket_id)
        try:
            plans.check_rank(rank)
        except RankOutOfRange as error:
            return failed(error)
        return self._ask_whether(r.StopActor(ticket_id, rank))

    def _launch(
        self,
        ticket_id: str,
        plan: plans.Plan,
        convert: Callable[[list[ActorHandle]], T],
        timeout: float | None,
    ) -> Future[T]:
        if self._tracing is None:
            return self._launch_plan(ticket_id, plan, convert, timeout)

        def launch(context: str) -> Future[T]:
            traced = plans.with_variable(plan, VARIABLE, context)
            return self._launch_plan(ticket_id, traced, convert, timeout)

        return self._tracing.launch(ticket_id, plan.spec.title, launch)

    def _launch_plan(
        self,
        ticket_id: str,
        plan: plans.Plan,
        convert: Callable[[list[ActorHandle]], T],
        timeout: float | None,
    ) -> Future[T]:
        seconds = check_timeout(timeout)
        try:
            self.session.check_open()
            gang = self._gang_by_id(ticket_id)
            members, blobs = plan(
                gang.slots,
                secret_of(self.session, gang.ticket),
                log_key(self.session.key, self.session.keys.pool, ticket_id),
            )
        except (InvalidRequest, TypeError):
            raise
        except SpokeError as error:
            return failed(error)

        def handles(message: p.Launched, ticket: Ticket | None) -> T:
            return convert([ActorHandle(gang, actor) for actor in sorted(message.actors, key=lambda actor: actor.rank)])

        request = r.LaunchActors(ticket_id, plan.spec, members, plan.by_group)
        return self._ask(request, handles, blobs=blobs, timeout_s=seconds, unwanted=_stop_all)

    def _release_quietly(self, gang: Gang) -> None:
        future = gang.release()
        future.add_done_callback(lambda done: None if done.cancelled() else done.exception())


def _stop_all(launched: ActorHandle | Iterable[ActorHandle] | Any) -> None:
    for handle in [launched] if isinstance(launched, ActorHandle) else launched:
        handle.stop()
