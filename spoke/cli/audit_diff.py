"""``spoke audit replay --diff A B``: what changed between two moments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spoke.cli.output import count, iso_time, say, tables
from spoke.cli.past import state_at
from spoke.events.ids import ms_of

if TYPE_CHECKING:
    from spoke.events.diff import Change
    from spoke.events.log import EventLog


def diff_document(log: EventLog, first: str, second: str, pool: str) -> dict[str, Any]:
    """What changed between two moments, and the events in between by their types.

    Raises InvalidRequest where the second moment is before the first, LogError where the log does not reach back.
    """
    from spoke.cli.moments import last_id_at
    from spoke.errors import InvalidRequest
    from spoke.events.diff import changes, facts
    from spoke.events.entries import end_of
    from spoke.events.fold import fold

    begin, end = last_id_at(first), last_id_at(second)
    if end_of(end) < end_of(begin):
        raise InvalidRequest(f"the change from {first} to {second} was asked for, but {second} is before: swap them")
    state = state_at(log, begin)
    begin_id, before = state.last_id, facts(state)
    counts: Counter[str] = Counter()
    for recorded in log.read(begin_id, end):
        fold(state, recorded)
        counts[recorded.event.TYPE] += 1
    return {
        "pool": pool,
        "from": _moment(begin_id),
        "to": _moment(state.last_id),
        "events": dict(sorted(counts.items())),
        "changes": [_change(change) for change in changes(before, facts(state))],
    }


def _moment(event_id: str) -> dict[str, str]:
    ms = ms_of(event_id)
    return {"id": event_id, "time": iso_time(ms) if ms else ""}


def _change(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "name": change.name,
        "change": change.change,
        "before": change.before,
        "after": change.after,
    }


def show_diff(found: dict[str, Any]) -> None:
    """A diff for people."""
    begin, end = (f"{moment['id']} ({moment['time'] or 'the beginning'})" for moment in (found["from"], found["to"]))
    say(f"pool {found['pool']} from event {begin} to {end}: {count(sum(found['events'].values()), 'event')}")
    if not found["changes"]:
        say("nothing is different")
    tables(("kind", "name", "what", "before", "after"), _rows(found["changes"]))


def _rows(changes: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for change in changes:
        head = (change["kind"], change["name"])
        if change["change"] == "changed":
            for field, was in change["before"].items():
                yield (*head, field, _words(was), _words(change["after"][field]))
        else:
            said = {field: value for field, value in (change["before"] or change["after"]).items() if value}
            summary = ", ".join(f"{field} {_words(value)}" for field, value in said.items())
            yield (*head, change["change"], *((summary, "") if change["before"] else ("", summary)))


def _words(value: Any) -> str:
    match value:
        case list():
            return " ".join(map(str, value)) or "none"
        case dict():
            return " ".join(f"{key}={part}" for key, part in value.items()) or "none"
    return str(value) if value not in ("", None) else "-"
