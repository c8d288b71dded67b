"""The checker of the storm finds what it is there for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.storm.check import Verdict, _check_answers, _check_calls


def entry(what: str, n: int, **more: Any) -> dict[str, Any]:
    return {"by": "c1-1.0", "what": what, "n": n, "kind": "call", **more}


@pytest.mark.parametrize(
    ("journal", "killed", "found"),
    [
        ([entry("ask", 1), entry("answer", 1, value=True)], set(), None),
        ([entry("ask", 1)], {"c1-1"}, None),
        ([entry("ask", 1)], {"c1-2"}, "never answered"),
        ([entry("ask", 1), entry("answer", 1), entry("answer", 1)], set(), "answered twice"),
        ([entry("ask", 1), entry("answer", 1, error="UnknownTicket")], set(), "the ticket was granted"),
        ([entry("ask", 1), entry("answer", 1, error="LeaseLost")], set(), None),
        ([entry("ask", 1), entry("lost", 1)], {"c1-1"}, "lost"),
        ([entry("broken", 0, error="KeyError()")], {"c1-1"}, "KeyError"),
    ],
)
def test_answers(journal: list[dict[str, Any]], killed: set[str], found: str | None) -> None:
    verdict = Verdict()
    _check_answers(verdict, journal, killed)
    assert (found is None and not verdict.problems) or (found and found in verdict.problems[0])


def test_a_call_that_was_executed_twice_or_never_is_found() -> None:
    verdict = Verdict()
    answers = [entry("answer", n, token=token, value="done") for n, token in enumerate(("once", "twice", "never"))]
    _check_calls(verdict, answers, ["once", "twice", "twice"])
    assert verdict.problems == [
        "call twice was executed 2 times",
        "call never has an answer and was never executed",
    ]
