"""The queue through a client: its policy, projects' quotas, reservations, and the priority of a ticket."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from spoke.client.tracking import Ticket
from spoke.errors import InvalidRequest, MalformedData
from spoke.events.model import check_name, parse_bytes
from spoke.events.queueing import ORDERS, Order, QueuePolicy, Quota, Reservation
from spoke.events.terms import DEFAULT, Terms
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """What a project has now, and its quota (None: it has none). ``memory`` is in bytes."""

    project: str
    gpus: float = 0.0
    cpus: float = 0.0
    memory: int = 0
    nodes: int = 0
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The queue at one moment: its policy, how many gangs wait, projects that have quotas or places, reservations."""

    policy: QueuePolicy
    waiting: int
    projects: tuple[ProjectStatus, ...]
    reservations: tuple[Reservation, ...]


def read_queue(redis: Redis, keys: Keys) -> QueueStatus:
    """Read the view of the queue."""
    raw: Any = redis.hgetall(keys.queue)
    fields: Mapping[bytes, bytes] = raw
    try:
        return QueueStatus(
            msgspec.json.decode(fields.get(b"policy", b"{}"), type=QueuePolicy),
            int(fields.get(b"waiting", b"0")),
            msgspec.json.decode(fields.get(b"projects", b"[]"), type=tuple[ProjectStatus, ...]),
            msgspec.json.decode(fields.get(b"reservations", b"[]"), type=tuple[Reservation, ...]),
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedData(
            f"the view of the queue cannot be read ({error}): client and allocator must be of the same release"
        ) from error


def terms_of(
    priority: int,
    project: str,
    expected_duration: float | None,
    max_duration: float | None,
    preemptible: bool,
    reservation: str,
) -> Terms:
    """The terms of a gang, from what users write: durations in seconds. Raises InvalidRequest."""
    untimed = expected_duration is None and max_duration is None
    if untimed and type(priority) is int and not (priority or project or preemptible or reservation):
        return DEFAULT
    return Terms(
        priority=priority,
        project=project,
        expected_ms=_ms("expected_duration", expected_duration),
        max_ms=_ms("max_duration", max_duration),
        preemptible=bool(preemptible),
        reservation=reservation,
    )


def _ms(what: str, seconds: float | None) -> int:
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise InvalidRequest(f"{what} must be None or seconds above 0, not {seconds!r}")
    return max(1, math.ceil(seconds * 1000))


class QueueOperations:
    """The queue's part of ``Client``. Where requests are signed, it needs the key of an operator or administrator."""

    def queue_status(self) -> QueueStatus:
        """The policy, the projects and the reservations, as the views show them.

        >>> client.queue_status().policy.order
        'priority'
        """
        raise NotImplementedError

    def set_queue_policy(
        self,
        order: Order | None = None,
        *,
        backfill: bool | None = None,
        preempt: bool | None = None,
        half_life: float | None = None,
        notice: float | None = None,
        depth: int | None = None,
    ) -> Future[bool]:
        """Order the queue by another policy from now on; what is None stays as it is. False if nothing changes.

        ``order``: ``"fifo"``, ``"priority"`` or ``"fair"``. ``backfill``: later gangs may start first if that delays no
        planned start. ``preempt``: gangs may take the place of preemptible tickets. ``half_life``: seconds after which
        past use counts half. ``notice``: seconds between a notice and the release. ``depth``: how many waiting gangs
        are looked at for backfill.

        >>> client.set_queue_policy("fair", half_life=3600).result()
        True
        """
        if order is not None and order not in ORDERS:
            raise InvalidRequest(f"the queue's order is one of {', '.join(ORDERS)}, not {order!r}")
        given = {
            "order": order,
            "backfill": backfill,
            "preempt": preempt,
            "half_life_ms": None if half_life is None else _ms("half_life", half_life),
            "notice_ms": None if notice is None else round(notice * 1000),
            "depth": depth,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        policy = replace(self.queue_status().policy, **changes)  # type: ignore[arg-type]
        return self._ask(r.SetQueuePolicy(policy))

    def set_quota(
        self,
        project: str,
        *,
        gpus: float | None = None,
        cpus: float | None = None,
        memory: int | str | None = None,
        nodes: int | None = None,
        borrow: bool = True,
        weight: int = 1,
    ) -> Future[bool]:
        """What a project has by right (None: no limit); ``"*"`` stands for all projects without a quota of their own.

        ``borrow``: it may have more while that is idle, in tickets that others can reclaim. ``weight``: its part in a
        fair order. What it holds beyond a new quota stays. False if nothing changes.

        >>> client.set_quota("vision", gpus=4, weight=3).result()
        True
        """
        quota = Quota(
            project,
            None if gpus is None else _milli("gpus", gpus),
            None if cpus is None else _milli("cpus", cpus),
            None if memory is None else parse_bytes(memory),
            nodes,
            borrow,
            weight,
        )
        return self._ask(r.SetQuota(quota))

    def remove_quota(self, project: str) -> Future[bool]:
        """Take a project's quota away; False if it had none.

        >>> client.remove_quota("speech").result()  # it has none
        False
        """
        if project != "*":
            check_name("the project", project)
        return self._ask(r.RemoveQuota(project))

    def set_priority(self, ticket_id: str, priority: int) -> Future[bool]:
        """Give a ticket, waiting or live, another priority; its owner may lower it. False if it has this one.

        >>> client.set_priority(gang.ticket_id, 5).result()
        True
        """
        check_name("the ticket id", ticket_id)
        Terms(priority=priority)
        return self._ask(r.PrioritizeGang(ticket_id, priority))

    def create_reservation(
        self, nodes: int, gpus: int, duration: float, *, start: float = 0.0, project: str = "", name: str = ""
    ) -> Future[bool]:
        """Keep ``nodes`` nodes with ``gpus`` GPUs each for ``duration`` seconds, from ``start`` on.

        ``start`` is in seconds since 1970 (0: now). Gangs use it with ``reservation=`` and its id, which
        ``queue_status`` shows; with ``project`` only that project's. Fails with ReservationRefused.

        >>> client.create_reservation(1, 4, duration=600, project="vision", name="demo").result()
        True
        """
        start_ms = round(start * 1000)
        return self._ask(r.CreateReservation(nodes, gpus, _ms("duration", duration), start_ms, project, name))

    def cancel_reservation(self, reservation_id: str) -> Future[bool]:
        """Give a reservation's nodes back to everybody; what was placed there stays. Fails with UnknownReservation.

        >>> client.cancel_reservation("r-999").result()
        Traceback (most recent call last):
        spoke.errors.UnknownReservation: ...
        """
        check_name("the reservation", reservation_id)
        return self._ask(r.CancelReservation(reservation_id))

    def _ask(self, request: r.Request) -> Future[bool]:
        return self._request(request, lambda message, ticket: bool(message.value))

    def _request(self, request: r.Request, convert: Callable[[Any, Ticket | None], T]) -> Future[T]:
        raise NotImplementedError


class AsyncQueueOperations:
    """The queue's part of ``AsyncClient``: as ``QueueOperations``, with results instead of futures."""

    @property
    def sync(self) -> QueueOperations:
        """The client that does the work.

        >>> client.sync.pool
        'docs'
        """
        raise NotImplementedError

    async def queue_status(self) -> QueueStatus:
        """The policy, the projects and the reservations; see ``Client.queue_status``.

        >>> (await client.queue_status()).policy.order
        'priority'
        """
        return await asyncio.to_thread(self.sync.queue_status)

    async def set_queue_policy(
        self,
        order: Order | None = None,
        *,
        backfill: bool | None = None,
        preempt: bool | None = None,
        half_life: float | None = None,
        notice: float | None = None,
        depth: int | None = None,
    ) -> bool:
        """Order the queue by another policy; see ``Client.set_queue_policy``.

        >>> await client.set_queue_policy("fair", half_life=3600)
        True
        """
        asked = await asyncio.to_thread(
            self.sync.set_queue_policy,
            order,
            backfill=backfill,
            preempt=preempt,
            half_life=half_life,
            notice=notice,
            depth=depth,
        )
        return await asyncio.wrap_future(asked)

    async def set_quota(
        self,
        project: str,
        *,
        gpus: float | None = None,
        cpus: float | None = None,
        memory: int | str | None = None,
        nodes: int | None = None,
        borrow: bool = True,
        weight: int = 1,
    ) -> bool:
        """What a project has by right; see ``Client.set_quota``.

        >>> await client.set_quota("vision", gpus=4, weight=3)
        True
        """
        return await asyncio.wrap_future(
            self.sync.set_quota(project, gpus=gpus, cpus=cpus, memory=memory, nodes=nodes, borrow=borrow, weight=weight)
        )

    async def remove_quota(self, project: str) -> bool:
        """Take a project's quota away; see ``Client.remove_quota``.

        >>> await client.remove_quota("speech")  # it has none
        False
        """
        return await asyncio.wrap_future(self.sync.remove_quota(project))

    async def set_priority(self, ticket_id: str, priority: int) -> bool:
        """Give a ticket another priority; see ``Client.set_priority``.

        >>> await client.set_priority(gang.ticket_id, 5)
        True
        """
        return await asyncio.wrap_future(self.sync.set_priority(ticket_id, priority))

    async def create_reservation(
        self, nodes: int, gpus: int, duration: float, *, start: float = 0.0, project: str = "", name: str = ""
    ) -> bool:
        """Keep nodes for a time; see ``Client.create_reservation``.

        >>> await client.create_reservation(1, 4, duration=600, project="vision", name="demo")
        True
        """
        return await asyncio.wrap_future(
            self.sync.create_reservation(nodes, gpus, duration, start=start, project=project, name=name)
        )

    async def cancel_reservation(self, reservation_id: str) -> bool:
        """Give a reservation's nodes back; see ``Client.cancel_reservation``.

        >>> await client.cancel_reservation("r-999")
        Traceback (most recent call last):
        spoke.errors.UnknownReservation: ...
        """
        return await asyncio.wrap_future(self.sync.cancel_reservation(reservation_id))


def _milli(what: str, number: float) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 2**40:
        raise InvalidRequest(f"{what} must be a number from 0 on, not {number!r}")
    return round(number * 1000)
