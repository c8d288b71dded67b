"""Keys of a pool that belong to nobody any more and do not go by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from spoke.cli.checks.finding import OK, WARNING, Finding, some
from spoke.cli.output import count
from spoke.protocol.keys import client_lease

if TYPE_CHECKING:
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import Redis

LOOKED_AT_MAX: Final = 100_000
SETTLE_S: Final = 0.5
"""Views are written a moment behind: what seems to belong to nobody is looked at twice."""


def check_stale(redis: Redis, keys: Keys) -> Finding:
    """Look through the pool's keys, as many as there are up to a limit."""
    seen, candidates = 0, []
    owned = Owners(redis, keys)
    for key in _scan(redis, keys):
        seen += 1
        if owned.is_stale(key):
            candidates.append(key)
    if candidates:
        time.sleep(SETTLE_S)
        owned = Owners(redis, keys)
        candidates = [key for key in candidates if owned.is_stale(key)]
    return stale(sorted(candidates), seen)


def stale(found: list[str], seen: int) -> Finding:
    """What the keys that belong to nobody mean."""
    if not found:
        return Finding("stale keys", OK, f"none of {count(seen, 'key')}")
    return Finding(
        "stale keys",
        WARNING,
        f"{count(len(found), 'key')} of nodes, clients or tickets that are gone, and without an end: {some(found, 3)}",
        "delete them with redis-cli DEL, while no allocator starts",
    )


def _scan(redis: Redis, keys: Keys) -> Iterator[str]:
    for number, key in enumerate(redis.scan_iter(match=_pattern(keys), count=1_000)):
        if number >= LOOKED_AT_MAX:
            return
        yield key.decode(errors="replace")


def _pattern(keys: Keys) -> str:
    return keys.ticket("").removesuffix("ticket:").replace("[", "\\[") + "*"


class Owners:
    """Who is alive in the pool at this moment."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._prefix = keys.ticket("").removesuffix("ticket:")
        nodes: Any = redis.hkeys(keys.nodes)
        tickets: Any = redis.hkeys(keys.tickets)
        leases: Any = redis.zrange(keys.leases, 0, -1)
        self._nodes = {one.decode(errors="replace") for one in nodes}
        self._tickets = {one.decode(errors="replace") for one in tickets}
        self._leases = {one.decode(errors="replace") for one in leases}

    def is_stale(self, key: str) -> bool:
        """Whether the key's owner is gone, and it does not expire."""
        kind, _, name = key.removeprefix(self._prefix).partition(":")
        match kind:
            case "node" | "logs":
                gone = name not in self._nodes
            case "ticket" | "secret":
                gone = name.rpartition(":")[2] not in self._tickets
            case "reply":
                gone = client_lease(name) not in self._leases
            case _:
                return False
        return gone and int(self._redis.ttl(key)) == -1
