"""What happens to the pool: faults from a seeded deck, each with its end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.chaos.storm.machines import AGENTS, ALLOCATORS, CLIENTS, LEASE_S, Machines

AT_ONCE_MAX = 3
PAUSE_S = (0.3, 1.5)
"""Between two faults."""
Undo = Callable[[], None]


@dataclass(frozen=True)
class Fault:
    """One that is on: ``touched`` machines or links are left alone until it is over."""

    touched: str
    until_s: float
    undo: Undo


class Faults:
    """Deals each kind of fault once, in an order drawn anew for each round, so that a short storm has all of them."""

    def __init__(self, machines: Machines, seed: int) -> None:
        self._machines, self._random = machines, random.Random(f"faults/{seed}")
        self._deck: list[str] = []
        self._on: list[Fault] = []
        self._next_s = 0.0
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        """End what is over, and begin the next if it is time."""
        now = time.monotonic()
        self._end([fault for fault in self._on if fault.until_s <= now])
        if now < self._next_s or len(self._on) >= AT_ONCE_MAX:
            return
        self._next_s = now + self._random.uniform(*PAUSE_S)
        if not self._deck:
            self._deck = list(KINDS)
            self._random.shuffle(self._deck)
        self._begin(self._deck.pop())

    def end_all(self) -> None:
        """Heal everything."""
        self._end(list(self._on))

    def _end(self, faults: list[Fault]) -> None:
        for fault in faults:
            self._on.remove(fault)
            fault.undo()

    def _begin(self, kind: str) -> None:
        verb, places = KINDS[kind]
        touched = "|".join(self._random.choice(choices) for choices in places)
        # Half of the outages are shorter than a lease, half are longer.
        lasts_s = self._random.uniform(0.2, 2 * LEASE_S)
        if any(fault.touched == touched for fault in self._on):
            return
        undo = verb(self._machines, touched, self._random)
        if undo is not None:
            self.counts[kind] += 1
            self._on.append(Fault(touched, time.monotonic() + lasts_s, undo))


def _nothing() -> None:
    pass


def _kill(machines: Machines, name: str, draw: random.Random) -> Undo:
    machines.kill(name)
    return lambda: machines.start(name)


def _restart(machines: Machines, name: str, draw: random.Random) -> Undo:
    machines.stop([name])
    return lambda: machines.start(name)


def _pause(machines: Machines, name: str, draw: random.Random) -> Undo:
    machines.signal(name, signal.SIGSTOP)
    return lambda: machines.signal(name, signal.SIGCONT)


def _fail_over(machines: Machines, name: str, draw: random.Random) -> Undo | None:
    return _nothing if name in machines.running and machines.fail_over() else None


def _part(machines: Machines, link: str, draw: random.Random) -> Undo:
    one, other = link.split("|")
    machines.network.part(one, other)
    return lambda: machines.network.join(one, other)


def _kill_keeper(machines: Machines, agent: str, draw: random.Random) -> Undo | None:
    pid = machines.keeper(agent) if agent in machines.running else 0
    return _nothing if pid and _signal(pid, signal.SIGKILL) else None


def _kill_actor(machines: Machines, _: str, draw: random.Random) -> Undo | None:
    pids = machines.actors()
    return _nothing if pids and _signal(draw.choice(pids), signal.SIGKILL) else None


def _pause_actor(machines: Machines, _: str, draw: random.Random) -> Undo | None:
    pids = machines.actors()
    pid = draw.choice(pids) if pids else 0
    return (lambda: _signal(pid, signal.SIGCONT) and None) if pid and _signal(pid, signal.SIGSTOP) else None


def _signal(pid: int, number: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


_SERVER = ("server",)
_Places = tuple[tuple[str, ...], ...]
KINDS: dict[str, tuple[Callable[[Machines, str, random.Random], Undo | None], _Places]] = {
    "kill client": (_kill, (CLIENTS,)),
    "pause client": (_pause, (CLIENTS,)),
    "kill agent": (_kill, (AGENTS,)),
    "restart agent": (_restart, (AGENTS,)),
    "pause agent": (_pause, (AGENTS,)),
    "kill keeper": (_kill_keeper, (AGENTS,)),
    "kill actor": (_kill_actor, (("actor",),)),
    "pause actor": (_pause_actor, (("actor",),)),
    "kill allocator": (_kill, (ALLOCATORS,)),
    "restart allocator": (_restart, (ALLOCATORS,)),
    "pause allocator": (_pause, (ALLOCATORS,)),
    "kill server": (_kill, (_SERVER,)),
    "restart server": (_restart, (_SERVER,)),
    "pause server": (_pause, (_SERVER,)),
    "fail over": (_fail_over, (_SERVER,)),
    "part agent from server": (_part, (AGENTS, _SERVER)),
    "part client from server": (_part, (CLIENTS, _SERVER)),
    "part allocator from server": (_part, (ALLOCATORS, _SERVER)),
    "part client from actors": (_part, (CLIENTS, AGENTS)),
}
