"""The checks of ``spoke doctor``: each looks at one thing and returns what it found, with the remedy.

A check never raises, changes nothing, and never waits for long. What it makes of what it found is a plain function, so
that a test needs no sick machine.
"""

from __future__ import annotations

from spoke.cli.checks.finding import WARNING, Finding


def check_all(url: str | None, pool: str | None) -> list[Finding]:
    """Every check, in the order in which their troubles should be solved."""
    from spoke.cli.checks import gpu, machine, rdma
    from spoke.cli.checks.remote import check_remote

    found = check_remote(url, pool)
    for check in (*machine.CHECKS, *gpu.CHECKS, *rdma.CHECKS):
        try:
            found.append(check())
        except Exception as error:
            found.append(Finding(check.__name__.strip("_").replace("_", " "), WARNING, f"the check failed: {error}"))
    return found
