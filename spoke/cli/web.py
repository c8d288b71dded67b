"""``spoke web``: the pool in a browser, now and at any moment of the past."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spoke.cli.options import Opened, Pool, Url, opened
from spoke.cli.output import say
from spoke.cli.top import missing
from spoke.errors import InvalidRequest
from spoke.events.ids import ms_of

if TYPE_CHECKING:
    from spoke.cli.sight.board import Board, EventRow
    from spoke.cli.sight.rewind import Rewinder
    from spoke.events.codec import Fields
    from spoke.protocol.explanation import Explanation

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_LENGTH_MIN = 16


def web(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="PORT", help="The port; 0: any that is free.")] = 8470,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Allow drain, uncordon and release to whoever knows the token in this file."),
    ] = None,
    logs: Annotated[
        bool | None,
        typer.Option("--logs/--no-logs", help="Show what actors print (default: only at an address of this machine)."),
    ] = None,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Show the pool in a browser: as `spoke top`, with a slider that goes back in time. Needs the extra `web`.

    Whoever reaches the address can read; without --token-file nobody can change anything.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise missing("spoke web", error.name or "starlette", "web") from None
    from spoke.cli.sight.actions import perform
    from spoke.cli.sight.follower import Follower
    from spoke.cli.sight.rewind import Rewinder
    from spoke.cli.sight.site import Site
    from spoke.cli.sight.tails import follow_output

    token = read_token(token_file) if token_file is not None else ""
    with opened(url, pool) as place:
        place.redis.ping()
        name = place.keys.pool
    with (
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener,
        Follower(url, pool, name) as follower,
    ):
        hosts = ("127.0.0.1", "localhost", "[::1]") if host in LOOPBACK else ("*",)
        shows_logs = host in LOOPBACK if logs is None else logs
        site = Site(
            follower,
            LoggedPast(url, pool, Rewinder()),
            lambda action: perform(action, url, pool),
            token,
            hosts,
            (lambda ticket, rank: follow_output(url, pool, ticket, rank)) if shows_logs else None,
        )
        config = uvicorn.Config(
            site.app(), log_level="warning", lifespan="off", server_header=False, timeout_graceful_shutdown=1
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/ shows pool {name}" + (", read-only" if not token else ""))
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])


def read_token(path: Path) -> str:
    """The token in a file; raises InvalidRequest for one that is easy to guess."""
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < TOKEN_LENGTH_MIN or not token.isascii() or not token.isprintable():
        raise InvalidRequest(
            f"the token in {path} must be at least {TOKEN_LENGTH_MIN} printable ASCII characters: "
            f"python3 -c 'import secrets; print(secrets.token_urlsafe())' > {path}"
        )
    return token


@dataclass(frozen=True, slots=True)
class LoggedPast:
    """The past of a pool, from its log; each question has a connection of its own."""

    url: str | None
    pool: str | None
    rewinder: Rewinder = field(repr=False)

    def span(self) -> tuple[int, int]:
        """From the oldest event that is still there to the newest, in milliseconds since 1970."""
        with opened(self.url, self.pool) as place:
            first, last = place.log.first_id(), place.log.last_id()
        return ms_of(first), ms_of(last)

    def board_at(self, ms: int) -> Board:
        """The board after the last event up to a moment."""
        from spoke.cli.sight.board import board_of

        with opened(self.url, self.pool) as place:
            state = self.rewinder.at(place.log, str(ms))
            events = newest_events(place, ms)
        return replace(board_of(state, place.keys.pool), now_ms=ms, events=events)

    def explain(self, ticket_id: str, ms: int | None) -> Explanation:
        """Why a ticket was as it was at a moment, or is as it is."""
        from spoke.cli.explain import explained
        from spoke.cli.past import Past

        with opened(self.url, self.pool) as place:
            seconds, micros = place.redis.time()
            found = Past(place.log, place.keys.pool, int(seconds) * 1000 + int(micros) // 1000)
            return explained(found, ticket_id, "+" if ms is None else str(ms))


def newest_events(place: Opened, ms: int) -> tuple[EventRow, ...]:
    """The last events up to a moment, newest first; those that this release does not know are left out."""
    from spoke.cli.sight.follower import EVENTS_KEPT, event_row
    from spoke.errors import LogError

    found: list[tuple[bytes, Fields]] = place.redis.xrevrange(place.keys.events, str(ms), "-", count=EVENTS_KEPT)  # type: ignore[assignment]
    rows = []
    for event_id, fields in found:
        with suppress(LogError):
            rows.append(event_row(event_id.decode(), fields))
    return tuple(rows)
