"""``spoke audit what-if``: the recorded requests under another policy, compared with what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.cli.options import Json, Pool, Url
from spoke.cli.output import clean, count, say, span, table, write_json
from spoke.cli.past import ArchiveDir, Offline, Until, bounds, past

if TYPE_CHECKING:
    from spoke.allocator.what_if.compare import Comparison
    from spoke.allocator.what_if.tally import Tally, Waits


def what_if(
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="NAME[,NAME]",
            help="recorded; or an order of the queue (fifo, priority, fair), a placement (pack, stranding), or both.",
        ),
    ] = "recorded",
    backfill: Annotated[
        bool | None, typer.Option("--backfill/--no-backfill", help="Whether later gangs may start first.")
    ] = None,
    preempt: Annotated[
        bool | None, typer.Option("--preempt/--no-preempt", help="Whether gangs may take the place of others.")
    ] = None,
    until: Until = None,
    archive: ArchiveDir = None,
    offline: Offline = False,
    url: Url = None,
    pool: Pool = None,
    json: Json = False,
) -> None:
    """Decide the recorded requests again, in simulated time, and compare waits and utilisation with what happened.

    Each recorded decision is made again until one is another; from there on tickets last as long as they did, once
    they are granted. `recorded` is what this release decides by itself. The log is needed from its beginning.
    """
    from spoke.allocator.what_if.compare import what_if as run
    from spoke.allocator.what_if.policy import trial
    from spoke.errors import InvalidRequest

    try:
        tried = trial(policy, backfill, preempt)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error)) from None
    _, end = bounds(None, until)
    with past(archive, offline, url, pool) as found:
        log = found.log
        result = run(lambda only: log.read("0-0", end, only), log.base(), tried, found.end_ms(end))
    if json:
        write_json({"pool": found.pool, "policy": tried.name, **document(result)})
    else:
        _show(result, tried.name)


def document(result: Comparison) -> dict[str, Any]:
    """The comparison as a document."""
    return {
        "same_decisions": result.decisions,
        "first_difference": result.first_difference,
        "differs_at": result.differs_at,
        "changes_passed_over": result.passed_over,
        "happened": _tally(result, result.happened),
        "would": _tally(result, result.would),
    }


def _tally(result: Comparison, tally: Tally) -> dict[str, Any]:
    return {
        "granted": len(tally.waits.ms),
        "refused": tally.refused,
        "cancelled": tally.cancelled,
        "preempted": tally.preempted,
        **_waits(tally.waits),
        "by_gpus": {name: {"granted": len(waits.ms), **_waits(waits)} for name, waits in tally.by_size.items()},
        "utilisation": round(result.utilisation(tally), 6),
    }


def _waits(waits: Waits) -> dict[str, Any]:
    p50, p99, most = waits.at(0.5, 0.99, 1)
    return {"wait_mean_ms": round(waits.mean_ms, 3), "wait_p50_ms": p50, "wait_p99_ms": p99, "wait_max_ms": most}


def _show(result: Comparison, policy: str) -> None:
    happened, would = _tally(result, result.happened), _tally(result, result.would)
    sizes = happened.pop("by_gpus"), would.pop("by_gpus")
    rows = [(_title(name), _words(name, happened), _words(name, would)) for name in happened]
    for size, had in sizes[0].items():
        if had["granted"] or sizes[1][size]["granted"]:
            noun = "GPU" if size.endswith(" 1") else "GPUs"
            rows += [
                (f"{size} {noun}: {_title(name)}", _words(name, had), _words(name, sizes[1][size]))
                for name in ("granted", "wait_p50_ms", "wait_p99_ms")
            ]
    table(("", ">happened", f">{policy}"), rows)
    if result.first_difference:
        say(f"{count(result.decisions, 'decision')} as recorded, then at event {result.differs_at} another:")
        say("  " + clean(result.first_difference))
    else:
        say(f"{count(result.decisions, 'decision')}, every one as it was recorded")
    if result.passed_over:
        say(f"{count(result.passed_over, 'change')} could not happen in that course of events")


def _title(name: str) -> str:
    return name.removesuffix("_ms").replace("_", " ")


def _words(name: str, tally: dict[str, Any]) -> str:
    value = tally[name]
    if name.endswith("_ms"):
        return span(round(value))
    return f"{value:.1%}" if name == "utilisation" else f"{value:,}"
