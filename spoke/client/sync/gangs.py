"""Gangs through a client: asked for, attached to, repaired, released, and what their actors print."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import TYPE_CHECKING, cast

from spoke.client.checks import check_timeout
from spoke.client.futures import GangFuture, failed
from spoke.client.logs.lines import LogLine, batches_of, flat
from spoke.client.plans import check_rank
from spoke.client.session import Session
from spoke.client.spec import gang_spec, terms_of
from spoke.client.sync.asking import Asking
from spoke.client.sync.gang import Gang
from spoke.client.tracking import Ticket
from spoke.errors import RankOutOfRange, SpokeError, TicketEnded
from spoke.events.model import OnFailure, Resources, Slot, check_name
from spoke.events.rules import Group, Labels, Strategy
from spoke.protocol import replies as p
from spoke.protocol import requests as r

if TYPE_CHECKING:
    from spoke.client.sync.client import Client

ATTACH_TIMEOUT_S = 60.0
_NO_NEED = Resources()


class Gangs(Asking):
    """The part of ``Client`` about gangs."""

    def __init__(self, session: Session, transport: str | None) -> None:
        super().__init__(session, transport)
        self._gangs: weakref.WeakValueDictionary[str, Gang] = weakref.WeakValueDictionary()

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
            on_failure=on_failure,
            grace_s=grace_s,
            name=name,
            terms=terms_of(priority, project, expected_duration, max_duration, preemptible, reservation),
        )
        seconds = check_timeout(timeout)
        request = r.AllocateGang(spec, None if seconds is None else math.ceil(seconds * 1000))

        def ask(asked: r.AllocateGang) -> GangFuture[Gang]:
            return self._ask(asked, self._granted, unwanted=Gang.release)

        return ask(request) if self._tracing is None else self._tracing.allocate(request, ask)

    def gang_release(self, ticket_id: str, *, timeout: float | None = None) -> Future[bool]:
        """Stop a ticket's actors and give its places back; anyone's ticket, of this pool.

        The future is True once all is confirmed free, and False if the ticket had ended before. It fails with
        UnknownTicket, or with WaitTimeout after ``timeout`` seconds (the release goes on).

        >>> client.gang_release(gang.ticket_id).result()
        True
        """
        check_name("the ticket id", ticket_id)
        seconds = check_timeout(timeout)
        try:
            return self.session.release(ticket_id, timeout_s=seconds)
        except SpokeError as error:
            return failed(error)

    def attach(self, ticket_id: str) -> Future[Gang]:
        """A ticket that another client was granted, with the actors that run in it. It stays that client's.

        >>> client.attach(gang.ticket_id).result().ticket_id == gang.ticket_id
        True
        """
        check_name("the ticket id", ticket_id)
        return self._ask(r.AttachGang(ticket_id), self._granted)

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
        check_name("the ticket id", ticket_id)
        try:
            check_rank(rank)
        except RankOutOfRange as error:
            return failed(error)
        return self._ask(r.RepairGang(ticket_id, rank, elsewhere), lambda message, ticket: message.slot)

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
        return flat(batches_of(self.session, ticket_id, rank, follow=follow, tail=tail, since=since))

    def _granted(self, message: p.Message, ticket: Ticket | None) -> Gang:
        assert ticket is not None
        return self._gang_of(ticket)

    def _gang_of(self, ticket: Ticket) -> Gang:
        gang = self._gangs.get(ticket.ticket_id)
        if gang is None:
            gang = self._gangs[ticket.ticket_id] = Gang(cast("Client", self), ticket)
        return gang

    def _gang_by_id(self, ticket_id: str) -> Gang:
        """The gang of a ticket, attaching to it if it is another client's."""
        check_name("the ticket id", ticket_id)
        gang = self._gangs.get(ticket_id)
        if gang is not None:
            return gang
        ticket = self.session.ticket(ticket_id)
        if ticket is None:
            return self.attach(ticket_id).result(ATTACH_TIMEOUT_S)
        if ticket.owned and not ticket.spec.detached:
            raise TicketEnded(
                f"ticket {ticket_id} is being released, because the last reference to its Gang is gone: keep the gang "
                f"(gang = client.gang_allocate(...).result()) as long as you use it, or allocate it detached"
            )
        return self._gang_of(ticket)
