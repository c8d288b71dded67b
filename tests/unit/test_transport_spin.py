"""The spin before a sleep: it looks on where that pays, and ever less where it does not."""

from __future__ import annotations

import os
import time

import pytest

from spoke.transport.spin import Spin


class Source:
    """What is polled: ready after so many looks."""

    def __init__(self) -> None:
        self.looks_until_ready = 0
        self.asked: list[float | None] = []

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        self.asked.append(timeout)
        self.looks_until_ready -= 1
        return [(3, 1)] if self.looks_until_ready <= 0 or timeout != 0 else []

    def slept(self) -> bool:
        """Whether the last wait ended in a sleep, and how it began is forgotten."""
        slept = self.asked[-1] != 0
        self.asked.clear()
        return slept


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def test_an_answer_that_comes_within_the_moment_needs_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)  # on a busy machine the moment may pass between two looks
    spin, source = Spin(), Source()
    source.looks_until_ready = 3
    assert spin.wait(source.poll, None) == [(3, 1)]
    assert source.asked == [0, 0, 0]


def test_spins_in_vain_become_rare_and_one_that_pays_brings_them_back() -> None:
    spin, source = Spin(), Source()
    spun = 0
    for _ in range(1000):
        source.looks_until_ready = 10**9
        assert spin.wait(source.poll, 250) == [(3, 1)]
        spun += len(source.asked) > 1
        assert source.slept()
    assert 5 <= spun <= 15
    for _ in range(300):
        source.looks_until_ready = 1
        spin.wait(source.poll, None)
    source.asked.clear()
    for _ in range(100):
        source.looks_until_ready = 1
        spin.wait(source.poll, None)
        assert not source.slept()


def test_on_one_processor_it_sleeps_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    spin, source = Spin(), Source()
    for _ in range(100):
        source.looks_until_ready = 10**9
        spin.wait(source.poll, None)
        assert source.asked == [None]
        source.asked.clear()
