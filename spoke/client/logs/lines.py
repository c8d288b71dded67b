"""``Gang.logs`` and ``Client.logs``: what actors print, as lines of text, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from spoke.client.logs.output import Member, Places, TicketOutput, read_places
from spoke.client.logs.reading import Begin, LogReader
from spoke.client.patience import log
from spoke.client.session import Session
from spoke.errors import InvalidRequest, LogsUnavailable
from spoke.events.model import check_name
from spoke.protocol.logs import TAIL_LINES_MAX
from spoke.protocol.server import explained

SINCE_S_MAX = 10 * 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of what the actor at a rank printed, without its end; bytes that are no UTF-8 are replaced.

    >>> actors = gang.launch_command(["echo", "hello"]).result()
    >>> next(gang.logs(rank=1, follow=True))
    LogLine(rank=1, text='hello')
    """

    rank: int
    text: str


def batches_of(
    session: Session,
    ticket_id: str,
    rank: int | None,
    *,
    follow: bool,
    tail: int | None,
    since: float | datetime | None,
) -> Iterator[list[LogLine]]:
    """The lines as they come, about once a second at least; see ``Client.logs``. Raises InvalidRequest at once."""
    session.check_open()
    check_name("the ticket id", ticket_id)
    if rank is not None and (type(rank) is not int or rank < 0):
        raise InvalidRequest(f"rank must be None (all of them) or a whole number from 0 on, not {rank!r}")
    return _read(session, ticket_id, rank, _begin(tail, since), follow=follow)


def _read(session: Session, ticket_id: str, rank: int | None, begin: Begin, *, follow: bool) -> Iterator[list[LogLine]]:
    with closing(LogReader(session.url, session.keys.pool, session.key)) as reader, explained(session.url):
        output = TicketOutput(
            session.redis,
            session.keys,
            reader,
            ticket_id,
            rank=rank,
            begin=begin,
            places=lambda: _places(session, ticket_id),
            warn=_warner(ticket_id),
        )
        if output.failed and not output.ranks:
            raise LogsUnavailable(f"nothing of the output of ticket {ticket_id} can be read: {output.problem}")
        for batch in output.batches(follow=follow):
            session.check_open()
            yield [LogLine(line.rank, line.data.decode(errors="replace")) for line in batch]


def _places(session: Session, ticket_id: str) -> Places | None:
    """Where the actors ran: as this client knows it, if the ticket is its own, since views are a moment behind."""
    ticket = session.ticket(ticket_id)
    if ticket is None or not (ticket.owned and ticket.actors):
        found = read_places(session.redis, session.keys, ticket_id)
        if ticket is None or found is not None:
            return found
    members = tuple(
        Member(rank, actor.actor_id, actor.node_id, rank not in ticket.exits)
        for rank, actor in sorted(ticket.actors.items())
    )
    nodes = dict.fromkeys(slot.node_id for slot in ticket.slots)
    return Places(members, tuple(nodes), len(ticket.slots), ticket.released)


def _warner(ticket_id: str) -> Callable[[str], None]:
    def warn(text: str) -> None:
        log.warning("ticket %s: %s", ticket_id, text)

    return warn


def _begin(tail: int | None, since: float | datetime | None) -> Begin:
    if tail is not None and since is not None:
        raise InvalidRequest("tail and since were both given: choose one of them")
    if tail is not None:
        if type(tail) is not int or not 0 <= tail <= TAIL_LINES_MAX:
            raise InvalidRequest(f"tail must be a number of lines from 0 to {TAIL_LINES_MAX}, not {tail!r}")
        return Begin(tail=tail)
    if isinstance(since, datetime):
        return Begin(since_ms=max(0, round(since.timestamp() * 1000)))
    if since is not None:
        if isinstance(since, bool) or not isinstance(since, (int, float)) or not 0 <= since <= SINCE_S_MAX:
            raise InvalidRequest(f"since must be seconds (before now) or a datetime, not {since!r}")
        return Begin(age_ms=round(since * 1000))
    return Begin()


def flat(batches: Iterator[list[LogLine]]) -> Iterator[LogLine]:
    """Line by line."""
    for batch in batches:
        yield from batch


async def flat_async(batches: Iterator[list[LogLine]]) -> AsyncIterator[LogLine]:
    """Line by line, without blocking the event loop: what waits is a thread, for a second at most after it is left."""
    lock = threading.Lock()

    def take() -> list[LogLine] | None:
        with lock:
            return next(batches, None)

    def close() -> None:
        with lock:
            batches.close()  # type: ignore[attr-defined]

    try:
        while (batch := await asyncio.to_thread(take)) is not None:
            for line in batch:
                yield line
    finally:
        threading.Thread(target=close, name="spoke-logs-close", daemon=True).start()
