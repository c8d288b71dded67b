"""``spoke run --dry-run``: what would be asked, and what the pool would answer now. Nothing is taken or asked for.

It folds the log by itself, as ``spoke explain`` does, and decides as an allocator would.
"""

from __future__ import annotations

import getpass
import math
import os
import shlex
from typing import TYPE_CHECKING

from spoke.cli.output import clean, say, table
from spoke.errors import InvalidRequest

if TYPE_CHECKING:
    from spoke.cli.job.plan import Plan
    from spoke.cli.past import Past
    from spoke.events import types as e

ME = "dry-run"
STEPS_MAX = 1_000


def dry_run(plan: Plan, url: str | None, pool: str | None) -> int:
    """Print all of it; the exit code: 0 if it would be granted, now or later, 1 if it would be refused."""
    from spoke.cli.past import past

    _show_job(plan)
    with past(None, False, url, pool, prints=True) as found:
        return _show_answer(plan, found)


def _show_job(plan: Plan) -> None:
    from spoke.cli.events import gang_words

    say(f"asks for   {clean(gang_words(plan.spec))}")
    what = {name: shlex.join(words) for name, words in plan.commands.items()} | dict(plan.actors)
    for name, words in what.items():
        say(f"{'runs':10} {clean(f'{name}: ' if name else '')}{clean(words)}")
    say(f"in         {clean(plan.cwd)}")
    if plan.env:
        say(f"sets       {clean(' '.join(sorted(plan.env)))}")
    for name, care in plan.supervision.items():
        if care.restart is not None:
            group = f"{name}: " if name else ""
            say(f"restarts   {clean(group)}{care.restart.policy}, at most {care.restart.max_restarts} times")
    if plan.torchrun is not None:
        say("torchrun   its variables are set, too")


def _show_answer(plan: Plan, found: Past) -> int:
    from spoke.allocator import decide as core
    from spoke.allocator.explain import explain
    from spoke.cli.explain import show
    from spoke.events import types as e
    from spoke.events.fold import fold
    from spoke.events.state import ClientState
    from spoke.protocol import requests as r

    state, now_ms = found.log.recover("+"), found.now_ms
    state.clients[ME] = ClientState(ME, 10_000, _user(), project="")
    timeout_s = plan.ask["timeout"]
    request = r.AllocateGang(plan.spec, None if timeout_s is None else math.ceil(timeout_s * 1000))
    events = core.decide(state, r.Envelope(request, ME, 1), now_ms)
    ticket_id, number = "", 0
    for _ in range(STEPS_MAX):
        for event in events:
            if isinstance(event, (e.RequestRefused, e.GangRefused)) and event.client_id == ME:
                say(f"now        it would be refused: {clean(event.reason)}")
                return 1
            if isinstance(event, (e.GangQueued, e.GangAllocated)) and event.client_id == ME:
                ticket_id = event.ticket_id
                if isinstance(event, e.GangAllocated):
                    _show_places(event)
                    return 0
            number += 1
            fold(state, e.Recorded(f"{max(now_ms, _ms(state.last_id)) + 1}-{number}", event))
        events = core.tick(state, now_ms)
        if not events:
            break
    ticket = state.tickets.get(ticket_id)
    if ticket is None:
        raise InvalidRequest("the pool is too busy to say what would become of the job: ask again")
    say("now        it would wait in line:")
    show(explain(state, ticket, now_ms))
    return 0


def _show_places(event: e.GangAllocated) -> None:
    from spoke.cli.output import numbers

    say(f"now        it would be granted ({clean(event.policy)}):")
    columns = (">rank", "node", "host", "GPUs", "group")
    table(
        columns,
        ((str(s.global_rank), s.node_id, s.host, numbers(s.gpu_ids), s.group or "-") for s in event.slots),
    )


def _ms(event_id: str) -> int:
    from spoke.events.ids import ms_of

    return ms_of(event_id)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
