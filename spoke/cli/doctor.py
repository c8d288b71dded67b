"""``spoke doctor``: what of this machine and its server would keep Spoke from working, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from spoke.cli.options import Json, Pool, Url
from spoke.cli.output import say, table, write_json

if TYPE_CHECKING:
    from spoke.cli.checks.finding import Finding


def doctor(url: Url = None, pool: Pool = None, json: Json = False) -> None:
    """Check the server, the pool and this machine, each finding with its remedy; exit code 1 when one is broken.

    Nothing is changed. What the user in use may do is found by trying, which a server with users notes in its ACL LOG.
    """
    from spoke.cli.checks import check_all
    from spoke.cli.checks.finding import BROKEN

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
