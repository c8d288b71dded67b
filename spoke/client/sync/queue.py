"""The queue through a client: its policy, projects' quotas, reservations, and the priority of a ticket."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from spoke.client.checks import duration_ms
from spoke.client.queue import QueueStatus, read_queue
from spoke.client.sync.asking import Asking
from spoke.errors import InvalidRequest
from spoke.events.model import check_name, parse_bytes
from spoke.events.queueing import ORDERS, Order, Quota, Reservation
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from spoke.protocol.server import explained


class QueueOperations(Asking):
    """The queue's part of ``Client``. Where requests are signed, it needs the key of an operator or administrator."""

    def queue_status(self) -> QueueStatus:
        """The queue's policy, projects and reservations, read from the views. Raises ServerError.

        >>> client.queue_status().policy.order
        'priority'
        """
        self.session.check_open()
        with explained(self.session.url):
            return read_queue(self.session.redis, self.session.keys)

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
            "half_life_ms": None if half_life is None else duration_ms("half_life", half_life),
            "notice_ms": None if notice is None else _from_0_ms("notice", notice),
            "depth": depth,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        policy = replace(self.queue_status().policy, **changes)  # type: ignore[arg-type]
        return self._ask_whether(r.SetQueuePolicy(policy))

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
        priority_max: int | None = None,
    ) -> Future[bool]:
        """What a project has by right (None: no limit); ``"*"`` stands for all projects without a quota of their own.

        ``borrow``: it may have more while that is idle, in tickets that others can reclaim. ``weight``: its part in a
        fair order. ``priority_max``: the highest priority that its gangs may ask for; with more they are refused. What
        it holds beyond a new quota stays. False if nothing changes.

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
            priority_max,
        )
        return self._ask_whether(r.SetQuota(quota))

    def remove_quota(self, project: str) -> Future[bool]:
        """Take a project's quota away; False if it had none.

        >>> client.remove_quota("speech").result()  # it has none
        False
        """
        if project != "*":
            check_name("the project", project)
        return self._ask_whether(r.RemoveQuota(project))

    def set_priority(self, ticket_id: str, priority: int) -> Future[bool]:
        """Give a ticket, waiting or live, another priority; its owner may lower it. False if it has this one.

        >>> client.set_priority(gang.ticket_id, 5).result()
        True
        """
        check_name("the ticket id", ticket_id)
        Terms(priority=priority)
        return self._ask_whether(r.PrioritizeGang(ticket_id, priority))

    def create_reservation(
        self, nodes: int, gpus: int, duration: float, *, start: float = 0.0, project: str = "", name: str = ""
    ) -> Future[Reservation]:
        """Keep ``nodes`` nodes with ``gpus`` GPUs each for ``duration`` seconds, from ``start`` on.

        ``start`` is in seconds since 1970 (0: now). Gangs use it with ``reservation=`` and its ``reservation_id``; with
        ``project`` only that project's. Fails with ReservationRefused.

        >>> kept = client.create_reservation(1, 4, duration=600, project="vision", name="demo").result()
        >>> len(kept.nodes), kept.end_ms - kept.start_ms, kept.reservation_id.startswith("r-")
        (1, 600000, True)
        """
        length_ms, start_ms = duration_ms("duration", duration), _from_0_ms("start", start)
        request = r.CreateReservation(nodes, gpus, length_ms, start_ms, project, name)
        return self._ask(request, lambda message, ticket: _reservation(message))

    def cancel_reservation(self, reservation_id: str) -> Future[bool]:
        """Give a reservation's nodes back to everybody; what was placed there stays. Fails with UnknownReservation.

        >>> client.cancel_reservation("r-999").result()
        Traceback (most recent call last):
        spoke.errors.UnknownReservation: ...
        """
        check_name("the reservation", reservation_id)
        return self._ask_whether(r.CancelReservation(reservation_id))


def _reservation(message: Any) -> Reservation:
    found: Reservation = message.reservation
    return found


def _milli(what: str, number: float) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 2**40:
        raise InvalidRequest(f"{what} must be a number from 0 on, not {number!r}")
    return round(number * 1000)


def _from_0_ms(what: str, seconds: float) -> int:
    """Seconds, or a moment in seconds, in milliseconds; raises InvalidRequest."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 2**40:
        raise InvalidRequest(f"{what} must be seconds from 0 on, not {seconds!r}")
    return round(seconds * 1000)
