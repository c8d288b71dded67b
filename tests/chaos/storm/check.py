"""What must hold after a storm: by the log, by the journals of the clients, and by the table of processes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spoke.events import types as e
from spoke.events.audit import verify
from spoke.events.log import EventLog

NEVER = {
    "ActorError": "the method raised, and it does not",
    "AlreadyLaunched": "the rank was launched once",
    "ClientClosed": "the session was used before it was closed",
    "Forbidden": "all tickets are the asker's own",
    "InvalidRequest": "all requests are valid",
    "LimitExceeded": "no limit was near",
    "MalformedData": "nothing malformed was sent",
    "RankOutOfRange": "all ranks exist",
    "UnknownTicket": "the ticket was granted",
}
"""Errors that no fault excuses."""


@dataclass
class Verdict:
    """``problems`` must be empty; ``asked`` and ``errors`` count requests by kind, and error answers by name."""

    problems: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    events: int = 0


def check(directory: Path, log: EventLog, killed: set[str]) -> Verdict:
    """Read everything; ``killed`` are the client processes that were killed, each of which may lack its last answer."""
    verdict = Verdict()
    report = verify(log)
    verdict.events = report.events
    verdict.problems += [f"log: {problem}" for problem in report.problems]
    verdict.problems += [f"two processes on one GPU: {line}" for line in _lines(directory / "double")]
    journal = [json.loads(line) for line in _lines(directory / "journal")]
    _check_answers(verdict, journal, killed)
    _check_calls(verdict, journal, _lines(directory / "executed"))
    _check_tickets(verdict, journal, log)
    return verdict


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _check_answers(verdict: Verdict, journal: list[dict[str, Any]], killed: set[str]) -> None:
    open_: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in journal:
        key = (entry["by"], entry["n"])
        if entry["what"] == "ask":
            verdict.asked[entry["kind"]] += 1
            open_[key] = entry
        elif entry["what"] == "answer":
            verdict.answered[entry["kind"]] += 1
            if open_.pop(key, None) is None:
                verdict.problems.append(f"answered twice: {entry}")
            error = entry.get("error", "")
            if error:
                verdict.errors[f"{entry['kind']}: {error}"] += 1
            if error in NEVER:
                verdict.problems.append(f"{NEVER[error]}, but {entry}")
        else:
            verdict.problems.append(f"{entry['what']}: {entry}")
    for (by, _), entry in open_.items():
        if by.partition(".")[0] not in killed:
            verdict.problems.append(f"never answered: {entry}")


def _check_calls(verdict: Verdict, journal: list[dict[str, Any]], executed: list[str]) -> None:
    times = Counter(executed)
    verdict.problems += [f"call {token} was executed {n} times" for token, n in times.items() if n > 1]
    for entry in journal:
        token = entry.get("token")
        if token and entry.get("value") and not times[token]:
            verdict.problems.append(f"call {token} has an answer and was never executed")


def _check_tickets(verdict: Verdict, journal: list[dict[str, Any]], log: EventLog) -> None:
    """Each grant that a client was told is one event, and so are the starts and the release that it was told."""
    allocated: Counter[str] = Counter()
    started: defaultdict[str, set[int]] = defaultdict(set)
    released: set[str] = set()
    ranks: dict[str, int] = {}
    for recorded in log.read():
        match recorded.event:
            case e.GangAllocated(ticket_id=ticket, slots=slots):
                allocated[ticket] += 1
                ranks[ticket] = len(slots)
            case e.ActorStarted(ticket_id=ticket, rank=rank):
                started[ticket].add(rank)
            case e.GangReleased(ticket_id=ticket):
                released.add(ticket)
            case _:
                pass
    verdict.problems += [f"ticket {ticket} was allocated {n} times" for ticket, n in allocated.items() if n != 1]
    verdict.problems += [f"ticket {ticket} was never released" for ticket in allocated.keys() - released]
    told: Counter[str] = Counter()
    for entry in journal:
        if entry["what"] != "answer" or "error" in entry:
            continue
        ticket = entry["value"] if entry["kind"] == "allocate" else entry.get("ticket", "")
        if entry["kind"] == "allocate":
            told[ticket] += 1
        if ticket and ticket not in allocated:
            verdict.problems.append(f"no event says so: {entry}")
        elif entry["kind"] == "launch" and started[ticket] != set(range(ranks[ticket])):
            verdict.problems.append(f"not all ranks were started: {entry}")
    verdict.problems += [f"ticket {ticket} was granted to {n} requests" for ticket, n in told.items() if n > 1]
