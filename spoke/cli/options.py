"""What the commands share: the options that say where the pool is, and the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spoke.events.log import EventLog
    from spoke.protocol.keys import Keys
    from spoke.protocol.server import Redis

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server, or file:///PATH of a file with its URL; else SPOKE_URL, else redis://127.0.0.1:6379.",
    ),
]
Pool = Annotated[str | None, typer.Option("--pool", metavar="NAME", help="The pool; else SPOKE_POOL, else `default`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
Ticket = Annotated[str, typer.Argument(metavar="TICKET", help="A ticket's id, like t-7.")]


@dataclass(frozen=True, slots=True)
class Opened:
    """A server that answers, and the keys of the pool in it."""

    url: str
    redis: Redis
    keys: Keys

    @property
    def log(self) -> EventLog:
        """The pool's event log."""
        from spoke.events.log import EventLog

        return EventLog(self.redis, self.keys.events, self.keys.snapshot)


@contextmanager
def opened(url: str | None, pool: str | None) -> Iterator[Opened]:
    """Connect to the pool's server, check it, and put its errors into words; raises SpokeError."""
    from redis.exceptions import RedisError

    from spoke.protocol.keys import Keys
    from spoke.protocol.server import check_server, connect, explain
    from spoke.protocol.url import resolve_pool, resolve_url

    place = resolve_url(url)
    keys = Keys(resolve_pool(pool))
    with closing(connect(place, pool=keys.pool)) as redis:
        check_server(redis, place)
        try:
            yield Opened(place, redis, keys)
        except RedisError as error:  # an OSError may as well come from the terminal: it is not the server's here
            raise explain(error, place) from error


def parse_pairs(option: str, pairs: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` texts as a dict; raises InvalidRequest."""
    from spoke.errors import InvalidRequest

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InvalidRequest(f"{option} {pair!r} cannot be read: write {option} NAME=VALUE")
        found[name] = value
    return found
