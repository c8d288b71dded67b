"""``spoke audit strike``: an entry of the log that is no event, named to the allocators, which take it out."""

from __future__ import annotations

import getpass
import socket
import time
from typing import TYPE_CHECKING, Annotated

import typer

from spoke.cli.moments import time_option
from spoke.cli.options import Pool, Url, opened
from spoke.cli.output import say
from spoke.errors import LogError

if TYPE_CHECKING:
    from spoke.events.log import EventLog

PAUSE_S = 0.2


def strike(
    entry: Annotated[str, typer.Argument(metavar="ID", help="The entry's id, as the allocator's log names it.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why it is no event: stands in the log.")],
    timeout: Annotated[float, time_option("Wait so long for an allocator to do it.", 30)] = 30.0,
    url: Url = None,
    pool: Pool = None,
) -> None:
    """Take an entry out of the log at which allocators stop, since it was written by hand.

    The next allocator that takes up the log removes it, and records what it said, who had it removed and why. An
    event that an allocator wrote is not taken out. Use the allocator's user of the server.
    """
    from spoke.events.takeup import Strike, name_strike, read_strike

    with opened(url, pool) as place:
        log = place.log
        _check(log, entry)
        name_strike(log, Strike(entry, f"{getpass.getuser()}@{socket.gethostname()}", reason))
        deadline = time.monotonic() + timeout
        while read_strike(log) is not None:
            if time.monotonic() > deadline:
                say(f"Entry {entry} is named; the next allocator of pool {place.keys.pool} takes it out.")
                return
            time.sleep(PAUSE_S)
    say(f"Entry {entry} is out of the log of pool {place.keys.pool}, which says so.")


def _check(log: EventLog, entry: str) -> None:
    """Raise LogError unless the entry is what keeps the log from being taken up."""
    from spoke.events.takeup import BlockedLog, take_up

    asked = f"entry {entry} was to be taken out, but"
    try:
        strays = take_up(log).strays
    except BlockedLog as error:
        if error.written:
            raise LogError(f"{asked} {error}") from error
        if error.entry_id != entry:
            raise LogError(f"{asked} it is entry {error.entry_id} that stands in the way: {error}") from error
        return
    also = f" (an allocator takes out entry {strays[0].id} by itself)" if strays else ""
    raise LogError(f"{asked} the log can be taken up, and nothing in it needs to be taken out{also}")
