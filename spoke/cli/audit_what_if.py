"""``spoke audit what-if``: the recorded requests under another policy, compared with what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.options import Json, Pool, Url
from spoke.cli.output import clean, count, say, span, table, write_json
from spoke.cli.past import ArchiveDir, Offline, Until, bounds, past

if TYPE_CHECKING:
    from spoke.allocator.what_if import Comparison, Tally


def what_if(
    policy: Annotated[str, typer.Option("--policy", metavar="recorded|pack|stranding", help="How gangs are placed.")],
    until: Until = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """Decide the recorded requests again, in simulated time, and compare waits and utilisation with what happened.

    Tickets last as long as they did, once they are granted. `recorded` is what this release decides by itself: it makes
    the recorded decisions again, or says where it does not. The log is needed from its beginning.
    """
    from typing import cast

    from spoke.allocator.what_if import POLICIES, Policy
    from spoke.allocator.what_if import what_if as run

    if policy not in POLICIES:
        raise typer.BadParameter(f"there is no policy {policy!r}: choose one of {', '.join(POLICIES)}")
    _, end = bounds(None, until)
    with past(archive, offline, url, pool) as found:
        log = found.log
        result = run(lambda: log.read("0-0", end), log.base(), cast(Policy, policy), found.end_ms(end))
    if json:
        write_json({"pool": found.pool, "policy": policy, **document(result)})
    else:
        _show(result, policy)


def document(result: Comparison) -> dict[str, Any]:
    """The comparison as a document."""
    return {
        "decisions": result.decisions,
        "differences": result.differences,
        "first_difference": result.first_difference,
        "node_changes_passed_over": result.passed_over,
        "happened": _tally(result, result.happened),
        "would": _tally(result, result.would),
    }


def _tally(result: Comparison, tally: Tally) -> dict[str, Any]:
    return {
        "granted": len(tally.waits),
        "refused": tally.refused,
        "cancelled": tally.cancelled,
        "wait_mean_ms": round(tally.mean_wait_ms, 3),
        "wait_p50_ms": tally.wait_ms(0.5),
        "wait_p95_ms": tally.wait_ms(0.95),
        "wait_max_ms": tally.wait_ms(1),
        "utilisation": round(result.utilisation(tally), 6),
    }


def _show(result: Comparison, policy: str) -> None:
    happened, would = _tally(result, result.happened), _tally(result, result.would)
    table(
        ("", ">happened", f">{policy}"),
        (
            (name.removesuffix("_ms").replace("_", " "), _words(name, happened), _words(name, would))
            for name in happened
        ),
    )
    if result.differences:
        say(f"{count(result.differences, 'difference')} in {count(result.decisions, 'decision')}; the first:")
        say("  " + clean(result.first_difference))
    else:
        say(f"{count(result.decisions, 'decision')}, every one as it was recorded")
    if result.passed_over:
        say(f"{count(result.passed_over, 'change')} of nodes could not happen in that course of events")


def _words(name: str, tally: dict[str, Any]) -> str:
    value = tally[name]
    if name.endswith("_ms"):
        return span(round(value))
    return f"{value:.1%}" if name == "utilisation" else f"{value:,}"
