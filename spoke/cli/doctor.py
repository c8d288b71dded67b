"""``spoke doctor``: what of this machine and its server would keep Spoke from working, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from spoke.cli.options import Json, Pool, Url
from spoke.cli.output import say, table, write_json

if TYPE_CHECKING:
    from spoke.cli.checks import Finding


def doctor(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """Check the server and this machine; exit code 1 when something that is needed is broken."""
    from spoke.cli.checks import BROKEN, check_all

    found = check_all(url, pool)
    if json:
        write_json([asdict(finding) for finding in found])
    else:
        _show(found)
    if any(finding.level == BROKEN for finding in found):
        raise typer.Exit(1)


def _show(found: list[Finding]) -> None:
    table(
        ("check", "result", "found", "what to do"),
        [(finding.check, finding.level, finding.found, finding.remedy) for finding in found],
    )
    counts = {level: sum(finding.level == level for finding in found) for level in ("broken", "warning")}
    say(f"{counts['broken']} broken, {counts['warning']} to look at, {len(found)} checks")
