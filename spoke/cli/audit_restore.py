"""``spoke audit restore``: an archive, verified, as the log of a new pool."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spoke.cli.options import Pool, Url, opened
from spoke.cli.output import count, say
from spoke.cli.progress import shown

if TYPE_CHECKING:
    from spoke.events.log import EventLog
    from spoke.events.walk import Report
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import Redis

HOLDER = "spoke audit restore"
HOLD_MS = 24 * 3600 * 1000
"""No allocator may lead the pool for so long, unless the restore ends before."""
WRITE_COUNT = 500


def restore(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `spoke audit archive` wrote.")],
    pool_from: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="The archived pool's name, if it is another one.")
    ] = None,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Write an archive's events into the log of a pool that is empty, after every check of `audit verify`.

    Use the allocator's user of the server, and start allocators afterwards. Tickets that were live are live again:
    agents that no longer hold them are found lost, and clients that do not come back lose them.
    """
    from spoke.errors import LogError
    from spoke.events.archive import Archive
    from spoke.events.archived import StoredLog
    from spoke.events.audit import verify
    from spoke.protocol.url import resolve_pool

    stored = StoredLog(Archive(directory, pool_from or resolve_pool(pool)))
    with shown(stored, prints=False) as log:
        report = verify(log, jobs=len(os.sched_getaffinity(0)))
    if not report.ok:
        raise LogError(
            f"the archive in {directory} was to be restored, but it does not verify: {report.problems[0]} "
            f"({count(len(report.problems), 'problem')}; `spoke audit verify --offline` lists them)"
        )
    with opened(url, pool) as place, shown(stored, prints=False) as log:
        written = write_back(place.redis, place.keys, log, report)
    say(f"pool {place.keys.pool}: {count(written, 'event')} restored, up to event {report.last_id}")


def write_back(redis: Redis, keys: Keys, stored: EventLog, report: Report) -> int:
    """Write a verified log into an empty pool; the number of events. Raises LogError if the pool is not empty.

    ``report`` is what verifying it found: the state at its end becomes the snapshot from which allocators begin.
    """
    from spoke.allocator.leader import Elected, elect
    from spoke.errors import LogError
    from spoke.events import snapshot

    def refuse(found: str) -> LogError:
        return LogError(
            f"pool {keys.pool} was to be restored, but it is not empty: {found}. Choose another with --pool, or stop "
            f"its allocators and delete its keys (spoke:{{{keys.pool}}}:*)"
        )

    for name, size in (("log", redis.xlen(keys.events)), ("inbox", redis.xlen(keys.requests))):
        if size:
            raise refuse(f"its {name} holds {count(int(size), 'entry').replace('entrys', 'entries')}")
    if redis.hget(keys.snapshot, "state") or redis.hget(keys.leader, "holder"):
        raise refuse("an allocator has led it")
    elected = elect(redis, keys, HOLDER, HOLD_MS)
    if not isinstance(elected, Elected):
        raise refuse(f"{elected.leader} leads it")
    base, written = stored.base(), 0
    if base.last_id != "0-0":
        state, link = snapshot.encode(base), stored.base_hash()
        redis.hset(keys.snapshot, mapping={"base": state, "base_h": link, "state": state, "h": link})
    pipe = redis.pipeline(transaction=False)
    for event_id, fields in stored.raw():
        pipe.xadd(keys.events, dict(fields.items()), id=event_id)
        written += 1
        if written % WRITE_COUNT == 0:
            pipe.execute()
    pipe.execute()
    state, last_id = snapshot.encode(report.state), stored.last_id()
    redis.hset(keys.snapshot, mapping={"id": last_id, "state": state, "h": report.last_hash, "archived": last_id})
    redis.hset(keys.leader, mapping={"epoch": report.state.epoch, "deadline": 0, "holder": ""})
    return written
