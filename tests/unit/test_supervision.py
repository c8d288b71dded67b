"""What can be asked of an agent for an actor, and the errors of what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest

import spoke
from spoke.client.plans import Way
from spoke.errors import InvalidRequest
from spoke.events.model import ActorSpec
from spoke.events.supervision import ExitHook, HealthCheck, Restart, Supervision


def test_each_wait_is_twice_as_long_up_to_the_cap_less_up_to_half() -> None:
    policy = Restart(backoff_s=1.0, backoff_max_s=10.0)
    delays = [policy.delay_s(count, "1-0") for count in range(1, 12)]
    for count, delay_s in enumerate(delays):
        full_s = min(2.0**count, 10.0)
        assert full_s / 2 <= delay_s <= full_s
    assert delays == [policy.delay_s(count, "1-0") for count in range(1, 12)], "no dice but the token"
    assert delays != [policy.delay_s(count, "2-0") for count in range(1, 12)], "others wait for other times"
    assert Restart(backoff_s=0.0).delay_s(5, "x") == 0.0
    assert Restart(backoff_s=1.0, backoff_max_s=60.0).delay_s(10**9, "x") <= 60.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Restart("sometimes"), "there are never, on_failure, gang"),  # type: ignore[arg-type]
        (lambda: Restart(max_restarts=-1), "max_restarts"),
        (lambda: Restart(max_restarts=True), "max_restarts"),
        (lambda: Restart(backoff_s=2.0, backoff_max_s=1.0), "must not be above backoff_max_s"),
        (lambda: Restart(window_s=float("nan")), "window_s"),
        (lambda: HealthCheck(interval_s=0), "interval_s"),
        (lambda: HealthCheck(failures=0), "failures"),
        (lambda: HealthCheck(argv="curl localhost"), "a list of words"),
        (lambda: ExitHook([]), "a list of words"),
        (lambda: ExitHook(["a\0"]), "NUL"),
        (lambda: ExitHook(["x"], timeout_s=0), "timeout_s"),
        (lambda: Supervision(start_timeout_s=-1), "start_timeout_s"),
        (lambda: Supervision(rlimits={"files": 3}), "there is no limit 'files'; there are as, core"),
        (lambda: Supervision(rlimits={"nofile": "many"}), "limit nofile must be a whole number"),  # type: ignore[dict-item]
        (lambda: Supervision(rlimits={"nofile": 3}), "at least 128"),
        (lambda: Supervision(restart="gang"), "restart must be a spoke.Restart"),  # type: ignore[arg-type]
        (lambda: ActorSpec(argv=("x",), supervision=Supervision(health=HealthCheck())), "give the health check one"),
        (lambda: ActorSpec("T", supervision=Supervision(health=HealthCheck(argv=["x"]))), "no command"),
        (lambda: Way(supervision=Restart()).spec("T"), "must be a spoke.Supervision"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(make: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make()


def test_commands_may_be_lists_and_nothing_special_leaves_the_log_as_it_was() -> None:
    assert ExitHook(["rm", "-f", "x"]).argv == ("rm", "-f", "x")
    assert Way(supervision=spoke.Supervision()).spec("T") == ActorSpec("T")
