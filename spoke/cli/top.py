"""``spoke top``: a live, full-screen view of a pool, with keys for what operators do."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from spoke.cli.options import Pool, Url, opened
from spoke.errors import InvalidRequest


def top(
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only look: no drain, uncordon or release from here.")
    ] = False,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Watch a pool: nodes with a cell for each GPU, tickets, the queue, actors and events, as they change.

    Keys: Tab between the panes, 1 to 4 for the list below, / filter, d drain, u uncordon, r release, x explain, l logs,
    ? help, q quit. Needs the extra `top`.
    """
    try:
        import textual  # noqa: F401
    except ImportError:
        raise missing("spoke top", "textual", "top") from None
    from spoke.cli.sight.actions import perform
    from spoke.cli.sight.follower import Follower
    from spoke.cli.sight.screen import Hands, Top
    from spoke.cli.sight.tails import follow_output

    with opened(url, pool) as place:
        place.redis.ping()
        name = place.keys.pool
    act = None if read_only else (lambda action: perform(action, url, pool))
    hands = Hands(
        lambda ticket: explanation(ticket, url, pool), lambda ticket, rank: follow_output(url, pool, ticket, rank), act
    )
    with Follower(url, pool, name) as follower:
        Top(follower, hands).run()


def explanation(ticket_id: str, url: str | None, pool: str | None) -> str:
    """What `spoke explain` says of a ticket, in lines; raises SpokeError."""
    from spoke.cli.explain import explained
    from spoke.cli.past import Past

    with opened(url, pool) as place:  # not `past`, which would draw a progress bar into the view
        seconds, micros = place.redis.time()
        found = Past(place.log, place.keys.pool, int(seconds) * 1000 + int(micros) // 1000)
        return str(explained(found, ticket_id, "+"))


def missing(command: str, package: str, extra: str) -> InvalidRequest:
    """The error for a command whose extra is not installed."""
    return InvalidRequest(
        f"{command} was asked for, but the package {package} is not installed: "
        f"pip install 'spoke-scheduler[{extra}]' (into {sys.prefix})"
    )
