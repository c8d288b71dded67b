"""The garbage collector of an allocator's process: it works when nobody asks, and memory stays bounded all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from spoke.allocator import collector as c
from spoke.allocator.collector import Collector
from spoke.events.model import ActorSpec, Member
from spoke.protocol import requests as r
from tests.builders import MemoryPool, gang, node_spec


class Thing:
    """Something that refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Collector, list[float]]]:
    monkeypatch.setattr(c, "YOUNG", 50)
    now = [0.0]
    before = gc.get_threshold()
    made = Collector(lambda: now[0])
    made.begin()
    yield made, now
    made.end()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def growing() -> tuple[weakref.ref[Thing], list[list[int]]]:
    """A cycle that nobody refers to, old enough for the eldest generation, and much else that lives."""
    found = weakref.ref(Thing())
    return found, [[n] for n in range(50 * c.MIDDLE * 4)]


def test_no_full_collection_begins_by_itself_and_one_is_made_in_a_rest(kept: tuple[Collector, list[float]]) -> None:
    full = gc.get_stats()[2]["collections"]
    lives = growing()
    assert gc.get_stats()[2]["collections"] == full
    kept[0].work()
    assert gc.get_stats()[2]["collections"] == full
    kept[0].rest()
    assert gc.get_stats()[2]["collections"] == full + 1
    assert len(lives[1]) > 1_000
    kept[0].rest()
    assert gc.get_stats()[2]["collections"] == full + 1, "there is nothing new to collect"


def test_a_process_that_never_rests_collects_when_it_has_made_very_much(kept: tuple[Collector, list[float]]) -> None:
    full, lives = gc.get_stats()[2]["collections"], []
    for _ in range(c.BUSY_ROUNDS_MAX):
        lives.append(growing())
        kept[0].work()
    assert gc.get_stats()[2]["collections"] > full


def test_cycles_that_were_frozen_are_found_an_hour_later(kept: tuple[Collector, list[float]]) -> None:
    thing = Thing()
    found = weakref.ref(thing)
    lives = growing()
    kept[0].rest()
    del thing, lives
    kept[0].rest()
    assert found() is not None, "it is frozen"
    kept[1][0] += c.WHOLE_EVERY_S
    kept[0].rest()
    assert found() is None


def test_decisions_leave_no_cycles_behind() -> None:
    pool = MemoryPool()
    agents = [pool.register(node_spec(f"n{number}", 4)) for number in range(4)]
    pool.connect()

    def live() -> None:
        for spec in (gang(2, 1, 2), gang(1, 2, 0.5), gang(1, 3, 1, strict_pack=False), gang(9, 1, 4)):
            answer = pool.allocate("c", spec, 0)
            ticket_id = getattr(answer, "ticket_id", "")
            if ticket_id:
                pool.request("c", r.LaunchActors(ticket_id, ActorSpec("Worker"), (Member(0, "a"),)))
                for agent in agents:
                    pool.deliver(agent)
                pool.request("c", r.ReleaseGang(ticket_id))
                for agent in agents:
                    while pool.deliver(agent):
                        pass
        pool.allocate("c", gang(9, 1, 4), 10)
        pool.pass_time(20)

    live()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            live()
        assert gc.collect() == 0
    finally:
        gc.enable()
