"""Seeds of the simulator that must pass, and bugs that it must find."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spoke.allocator.what_if.compare import what_if
from spoke.allocator.what_if.policy import Trial
from spoke.events.state import PoolState
from tests.sim import bugs
from tests.sim.run import Simulation, simulate
from tests.sim.world import SimulationFailed

SEEDS_PER_TEST = 20
SEEDS_TO_FIND = 120


@pytest.mark.parametrize("first", range(1, 201, SEEDS_PER_TEST))
def test_a_pool_stays_whole_under_faults(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        simulate(seed)


@pytest.mark.parametrize("first", [1, 11])
def test_a_pool_stays_whole_while_operators_work_on_it(first: int) -> None:
    for seed in range(first, first + 10):
        simulate(seed, operators=True)


@pytest.mark.parametrize("first", [1, 11])
def test_a_pool_stays_whole_while_the_server_refuses_at_times(first: int) -> None:
    for seed in range(first, first + 10):
        simulate(seed, refusals=True)


@pytest.mark.parametrize("seed", range(4))
def test_what_if_makes_the_decisions_of_an_allocator_again(seed: int) -> None:
    """Requests are decided many at a time there, the queue moves in between, and allocators come and go."""
    simulation = Simulation(seed, 1_500, lose_tails=False, operators=True)
    log = simulation.oracle.log = []
    simulation.run()
    result = what_if(lambda only: log, PoolState(), Trial(), log[-1].ms)
    assert result.first_difference == ""
    assert result.happened == result.would
    assert result.decisions > 3


@pytest.mark.parametrize("seed", [79, 128])
def test_an_allocator_that_was_overtaken_during_its_election_stands_by(seed: int) -> None:
    """It used to end with InvalidTransition: epoch 1 elected after epoch 2 had begun."""
    simulate(seed, lose_tails=False)


@pytest.mark.parametrize("seed", [77, 160, 1014, 1080])
def test_seeds_that_once_gave_a_gpu_to_two_after_a_lost_tail(seed: int) -> None:
    """Old answers about holdings, old registrations, and old starts that were held back."""
    simulate(seed)


@pytest.mark.parametrize("bug", bugs.ALL, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    for seed in range(1, SEEDS_TO_FIND + 1):
        found = _failure(seed)
        if found:
            assert f"replay: python -m tests.sim.run {seed}" in found
            return
    pytest.fail(f"{bug.__name__} was not found in {SEEDS_TO_FIND} seeds")


def _failure(seed: int) -> str:
    try:
        simulate(seed)
    except SimulationFailed as error:
        return str(error)
    return ""


def test_a_seed_is_a_history() -> None:
    first, second = simulate(5), simulate(5)
    assert (first.steps, first.events, first.counts) == (second.steps, second.events, second.counts)
