"""All that ``spoke doctor`` asks the server: first whether it is there, then itself, then the pool in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spoke.cli.checks import pool as of_pool
from spoke.cli.checks import server as of_server
from spoke.cli.checks.finding import ABSENT, BROKEN, WARNING, Finding
from spoke.cli.checks.rights import check_rights
from spoke.cli.checks.stale import check_stale
from spoke.errors import SpokeError

if TYPE_CHECKING:
    from spoke.client.status import PoolStatus
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import Redis

TIMEOUT_S = 5.0


def check_remote(url: str | None, pool: str | None) -> list[Finding]:
    """The server and the pool; one finding alone where there is no server."""
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import check_server, connect, explained
    from spoke.protocol.url import mask_url, parse_place, resolve_pool, resolve_url

    try:
        place = resolve_url(url)
        keys = Keys(resolve_pool(pool))
        user = str(parse_place(place).options.get("username") or "default")
        redis = connect(place, pool=keys.pool, timeout_s=TIMEOUT_S)
    except SpokeError as error:
        return [Finding("server", BROKEN, str(error), "correct --url or SPOKE_URL")]
    with closing(redis):
        try:
            with explained(place):
                check_server(redis, place)
                before = time.time()
                seconds, micros = redis.time()
                after = time.time()
                info: dict[str, Any] = redis.info()
        except SpokeError as error:
            return [Finding("server", BROKEN, str(error), "start one (`spoke up`), or give --url or SPOKE_URL")]
        known = Look(redis, keys, seconds * 1000 + micros // 1000)
        return [
            of_server.version(info, mask_url(place)),
            of_server.eviction(str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))),
            of_server.memory(info),
            of_server.persistence(info, known.config("appendfsync")),
            of_server.replication(info),
            of_server.idle(known.config("timeout")),
            of_server.skew(seconds + micros / 1e6 - (before + after) / 2, after - before),
            *known.each(
                ("rights", lambda: check_rights(redis, keys, user)),
                ("allocator", lambda: of_pool.allocator(known.leader(), known.now_ms, keys.pool)),
                ("inbox", known.inbox),
                ("agents", lambda: of_pool.agents(known.status().nodes, known.leases(), known.now_ms, keys.pool)),
                ("releases", lambda: of_pool.releases(known.status().nodes, known.leader())),
                ("log", known.log),
                ("stale keys", lambda: check_stale(redis, keys)),
            ),
        ]


@dataclass
class Look:
    """Reads what several checks need, once each. ``now_ms`` is the server's time."""

    redis: Redis
    keys: Keys
    now_ms: int
    _status: list[PoolStatus] = field(default_factory=list)

    def each(self, *checks: tuple[str, Callable[[], Finding]]) -> list[Finding]:
        """The findings; where this user may not look, or what is there cannot be read, that is the finding."""
        from redis.exceptions import NoPermissionError, RedisError

        found = []
        for name, check in checks:
            try:
                found.append(check())
            except NoPermissionError as error:
                found.append(
                    Finding(name, ABSENT, f"not looked at: this user of the server may not ({error})",
                            "ask as another user")
                )  # fmt: skip
            except (RedisError, OSError, SpokeError, ValueError) as error:
                found.append(Finding(name, WARNING, f"the check failed: {error}"))
        return found

    def config(self, name: str) -> str:
        """A setting of the server; empty where this user may not ask."""
        from redis.exceptions import RedisError

        try:
            found: Any = self.redis.config_get(name)
        except RedisError:
            return ""
        value = next(iter(found.values()), "") if found else ""
        return value.decode() if isinstance(value, bytes) else str(value)

    def status(self) -> PoolStatus:
        """The nodes and tickets."""
        from spoke.client.status import read_status

        if not self._status:
            self._status.append(read_status(self.redis, self.keys))
        return self._status[0]

    def leases(self) -> dict[str, float]:
        """Each holder's deadline, in the server's milliseconds."""
        found: Any = self.redis.zrange(self.keys.leases, 0, -1, withscores=True)
        return {holder.decode(errors="replace"): float(deadline) for holder, deadline in found}

    def leader(self) -> dict[str, str]:
        """What is written of the allocator."""
        names = ["holder", "deadline", "epoch", "cursor", "release", "protocol"]
        found: Any = self.redis.hmget(self.keys.leader, names)
        return {name: value.decode(errors="replace") for name, value in zip(names, found, strict=True) if value}

    def inbox(self) -> Finding:
        """What lies in the inbox."""
        newest: Any = self.redis.xrevrange(self.keys.requests, count=1)
        length = int(self.redis.xlen(self.keys.requests))
        return of_pool.inbox(
            length, newest[0][0].decode() if newest else "", self.leader().get("cursor", ""), self.now_ms
        )

    def log(self) -> Finding:
        """How long the log is, and what stands behind it."""
        from spoke.errors import LogError
        from spoke.events.log import EventLog, TrimmedLog
        from spoke.events.takeup import take_up, too_late

        log = EventLog(self.redis, self.keys.events, self.keys.snapshot)
        found: Any = self.redis.hget(self.keys.snapshot, "id"), self.redis.hget(self.keys.snapshot, "archived")
        at, archived = (value.decode() if value else "" for value in found)
        length, strays, blocked = int(self.redis.xlen(self.keys.events)), list[str](), ""
        try:
            taken = take_up(log)
            strays = [stray.id for stray in taken.strays]
            blocked = str(too_late(taken, self.now_ms) or "")
        except TrimmedLog:
            pass  # said below
        except LogError as error:
            blocked = str(error)
        return of_pool.log(length, log.first_id(), log.last_id(), at, archived, strays, blocked)
