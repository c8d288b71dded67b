"""Run a storm: `python -m tests.chaos.storm.run --seconds 600 --seed 7`, as root."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from spoke.errors import InvalidTransition, SpokeError
from spoke.events.log import EventLog
from spoke.protocol.keys import Keys
from tests.chaos.storm.check import Verdict, check
from tests.chaos.storm.faults import Faults
from tests.chaos.storm.machines import AGENTS, CLIENTS, MACHINES, REPLICA, Machines
from tests.chaos.storm.network import Network
from tests.chaos.storm.planted import BUGS

START_S = 60.0
CALM_S = 60.0
"""After the last fault, everything must be in order within this time."""


def storm(
    directory: Path, seconds: float, seed: int, *, planted: str = "", calm_s: float = CALM_S
) -> tuple[Verdict, Counter[str]]:
    """Faults for so many seconds, then calm, then the verdict. ``planted`` names a bug of ``planted.py``."""
    pool = f"storm-{secrets.token_hex(4)}"
    keys = Keys(pool)
    with Network(MACHINES) as network, Machines(network, directory, pool, seed, planted) as machines:
        problems: list[str] = []

        def log() -> EventLog:
            return EventLog(machines.admin, keys.events, keys.snapshot)

        def not_whole() -> str:
            try:
                state = log().recover()
            except InvalidTransition as error:
                return f"the log makes no sense: {error}"
            free = sorted(n.spec.node_id for n in state.nodes.values() if n.phase == "up" and n.free == n.total)
            left = {pid: _command(pid) for pid in machines.actors()}
            if free == sorted(AGENTS) and not state.tickets and not left:
                return ""
            return f"nodes up and free: {free}, tickets: {sorted(state.tickets)}, processes of actors: {left}"

        for name in (MACHINES[0], REPLICA, *MACHINES[1:]):
            machines.start(name)
        _within(START_S, lambda: _granted(directory) > 0, "the first gang is granted", problems)
        faults = Faults(machines, seed)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            faults.step()
            machines.revive()
            time.sleep(0.05)
        faults.end_all()
        before = _granted(directory)
        _within(calm_s, lambda: _granted(directory) >= before + 10, "the load goes on after the storm", problems)
        machines.stop(list(CLIENTS))
        _within(calm_s, lambda: not not_whole(), "no tickets, no actors, and every GPU free", problems)
        problems += filter(None, [not_whole()])
        verdict = check(directory, log(), machines.killed_clients)
        machines.stop([name for name in MACHINES if name != "server"])
        left = machines.leftovers()
        problems += [f"process {pid} outlived everything: {_command(pid)}" for pid in left]
        problems += machines.ended
    problems += [f"{path.name} has a traceback" for path in directory.glob("*.log") if "Traceback" in path.read_text()]
    verdict.problems[:0] = problems
    return verdict, faults.counts


def _granted(directory: Path) -> int:
    path = directory / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum('"kind": "allocate", "value"' in line for line in lines)


def _within(seconds: float, condition: Callable[[], bool], what: str, problems: list[str]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(SpokeError, RedisError):
            if condition():
                return
        time.sleep(0.2)
    problems.append(f"never came true within {seconds:g} s: {what}")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "gone by now"


def show(verdict: Verdict, faults: Counter[str], seed: int) -> str:
    """A few lines for people."""
    asked, answered = sum(verdict.asked.values()), sum(verdict.answered.values())
    lines = [
        f"seed {seed}: {sum(faults.values())} faults, {asked} requests and calls, {answered} answers, "
        f"{verdict.events} events, {len(verdict.problems)} problems",
        "  faults:   " + ", ".join(f"{kind} {n}" for kind, n in sorted(faults.items())),
        "  requests: " + ", ".join(f"{kind} {n}" for kind, n in sorted(verdict.asked.items())),
        "  errors:   " + ", ".join(f"{kind} {n}" for kind, n in sorted(verdict.errors.items())),
    ]
    return "\n".join(lines + [f"  PROBLEM {problem}" for problem in verdict.problems[:40]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--planted", choices=sorted(BUGS), default="", help="a bug that the checker must find")
    parser.add_argument("--calm", type=float, default=CALM_S, help="seconds after which all must be in order again")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that namespaces and processes go
    directory = Path(tempfile.mkdtemp(prefix="storm-"))
    print(f"seed {given.seed}, logs and journals in {directory} (kept if there are problems)", flush=True)
    verdict, faults = storm(directory, given.seconds, given.seed, planted=given.planted, calm_s=given.calm)
    print(show(verdict, faults, given.seed))
    if verdict.problems:
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
