"""A progress bar on standard error while a long log is read; only where somebody looks at it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spoke.events.ids import ms_of

if TYPE_CHECKING:
    from spoke.events.log import EventLog


@contextmanager
def shown(log: EventLog, *, prints: bool) -> Iterator[EventLog]:
    """The log, with a bar for what is read of it. ``prints``: the command prints meanwhile, which a bar would disturb.

    The bar is by the events' times, since nobody knows how many there are in a range. It is gone when a range has been
    read, so that its command can print what it has found.
    """
    if not sys.stderr.isatty() or (prints and sys.stdout.isatty()):
        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from spoke.events.log import WatchedLog

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(  # standard output is the command's own: it may be a file
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    task = bar.add_task("reading", total=None)
    first_ms, end_ms = (ms_of(event_id) for event_id in (log.first_id(), log.last_id()))
    seen = 0

    def tell(events: int, last_id: str) -> None:
        nonlocal seen
        if not last_id:
            bar.stop()
            return
        bar.start()
        ms = ms_of(last_id)
        seen += events
        bar.update(task, description=f"{seen:,} events", completed=ms - first_ms, total=max(1, end_ms - first_ms))

    try:
        yield WatchedLog(log, tell)
    finally:
        bar.stop()
