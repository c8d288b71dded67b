"""Simulated time, processes that can be killed and paused, and a network that fails. One seed decides everything.

A process is a greenlet, so the real code runs in it unchanged: whatever it waits for (an answer, a moment) hands
control back to the world, which turns the clock to the next thing that happens.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import greenlet
from redis.exceptions import ConnectionError as Broken
from redis.exceptions import TimeoutError as TooLate

TRACE_KEPT = 400


class SimulationFailed(AssertionError):
    """Something that must hold did not."""


@dataclass
class Faults:
    """How hostile the world is; probabilities are per message."""

    slow: float = 0.01
    reset_before: float = 0.004
    reset_after: float = 0.004
    duplicate: float = 0.004
    slow_s: float = 2.0

    def none(self) -> None:
        """From here on everything works."""
        self.slow = self.reset_before = self.reset_after = self.duplicate = 0.0


class World:
    """The clock, what is to happen, the dice, and the trace."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now_s = 0.0
        self.steps = 0
        self.faults = Faults()
        self.cut: set[str] = set()
        self.trace: deque[str] = deque(maxlen=TRACE_KEPT)
        self.counts: dict[str, int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.hub = greenlet.getcurrent()

    def say(self, who: str, what: str) -> None:
        """One line of the trace."""
        self.trace.append(f"{self.now_s:10.3f} {who:<10} {what}")

    def count(self, what: str, by: int = 1) -> None:
        """Count a fault, a request: for the summary."""
        self.counts[what] = self.counts.get(what, 0) + by

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Let something happen."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_s + max(0.0, delay_s), self._number, act))

    def run(self, until_s: float) -> None:
        """Turn the clock."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._heap)
            self.steps += 1
            act()
        self.now_s = until_s

    def chance(self, probability: float) -> bool:
        """Throw the dice."""
        return probability > 0 and self.dice.random() < probability

    def leg_s(self) -> float:
        """How long a message is under way."""
        if self.chance(self.faults.slow):
            return self.dice.uniform(0.0, self.faults.slow_s)
        return self.dice.uniform(0.0001, 0.002)


class Process:
    """A process: killed it is gone at once, paused (SIGSTOP) it later finds what came meanwhile."""

    def __init__(self, world: World, name: str, main: Callable[[Process], None]) -> None:
        self.world, self.name, self.alive = world, name, True
        self.paused_until_s = 0.0
        self._token = 0
        self._main = main
        self._greenlet = greenlet.greenlet(self._run, parent=world.hub)
        world.after(0.0, self._begin)

    def _begin(self) -> None:
        if self.alive:
            self._greenlet.switch()

    def _run(self) -> None:
        try:
            self._main(self)
        except greenlet.GreenletExit:
            pass
        finally:
            self.alive = False

    def kill(self) -> None:
        """kill -9."""
        if self.alive:
            self.alive = False
            self.world.after(0.0, self._bury)

    def _bury(self) -> None:
        if self._greenlet:
            self._greenlet.throw(greenlet.GreenletExit)

    def wait(self, arm: Callable[[Callable[[Any], None]], None]) -> Any:
        """Wait for one thing: ``arm`` gets the function that wakes this process with a value; the first one counts."""
        self._token += 1
        token = self._token
        arm(lambda value: self._wake(token, value))
        value = self.world.hub.switch()
        if isinstance(value, Exception):
            raise value
        return value

    def _wake(self, token: int, value: Any) -> None:
        if not self.alive or token != self._token:
            return
        if self.world.now_s < self.paused_until_s:
            self.world.after(self.paused_until_s - self.world.now_s, lambda: self._wake(token, value))
            return
        self._token += 1  # the switch itself only ever happens from the hub, else whoever wakes would not get on
        self.world.after(0.0, lambda: self._go_on(value))

    def _go_on(self, value: Any) -> None:
        if self.alive:
            self._greenlet.switch(value)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.wait(lambda wake: self.world.after(seconds, lambda: wake(None)))


Operation = Callable[[Callable[[Any], None]], None]
"""What the server does: it gets the function that sends its answer."""


class Connection:
    """A TCP connection to the server: in order, until it breaks. Answers are taken in the order of what was sent."""

    def __init__(self, process: Process, server: Any, party: str, timeout_s: float = 5.0) -> None:
        self.process, self.world, self.server, self.party = process, process.world, server, party
        self.timeout_s = timeout_s
        self._open = False
        self._connect()

    def _connect(self) -> None:
        self._generation = self.server.generation
        self._there_s = self._back_s = 0.0
        self._slots: deque[list[Any]] = deque()
        self._broken = False
        self._waiting: Callable[[Any], None] | None = None
        self._life = object()

    def send(self, operation: Operation) -> None:
        """Send a command; its answer is taken later."""
        if self._broken:
            raise Broken("the connection was lost")
        slot: list[Any] = []
        self._slots.append(slot)
        world, life = self.world, self._life
        if world.chance(world.faults.reset_before):
            world.count("resets")
            world.after(world.dice.uniform(0, 0.2), lambda: self._break(life))
            return
        reset_after = world.chance(world.faults.reset_after)
        self._there_s = max(self._there_s, world.now_s + world.leg_s())
        generation = self._generation

        def arrive() -> None:
            server = self.server
            if self.party in world.cut:
                return  # lost on the way: whoever waits finds out by its time limit
            if server.down or server.generation != generation:
                self._break(life)
                return
            if reset_after:
                world.count("resets")
                operation(lambda answer: self._break(life))
                return
            operation(lambda answer: self._answer(life, generation, slot, answer))

        world.after(self._there_s - world.now_s, arrive)

    def _answer(self, life: object, generation: int, slot: list[Any], answer: Any) -> None:
        world = self.world
        self._back_s = max(self._back_s, world.now_s + world.leg_s())

        def arrive() -> None:
            if life is not self._life or self.party in world.cut:
                return
            if self.server.generation != generation:
                self._break(life)
                return
            slot.append(answer)
            if self._waiting is not None and self._slots and self._slots[0]:
                self._waiting(None)

        world.after(self._back_s - world.now_s, arrive)

    def _break(self, life: object) -> None:
        if life is self._life and not self._broken:
            self._broken = True
            if self._waiting is not None:
                self._waiting(None)

    def reset(self) -> None:
        """The server went away."""
        life = self._life
        self.world.after(self.world.leg_s(), lambda: self._break(life))

    def take(self, patience_s: float = 0.0) -> Any:
        """The next answer; raises what a client raises when the connection breaks or nothing comes in time."""
        if not self._slots[0] and not self._broken:
            limit_s = self.timeout_s + patience_s

            def arm(wake: Callable[[Any], None]) -> None:
                self._waiting = wake
                self.world.after(limit_s, lambda: wake(TooLate("no answer in time")))

            try:
                self.process.wait(arm)
            except TooLate:
                self._broken = True
                raise
            finally:
                self._waiting = None
        if self._slots[0]:
            answer = self._slots.popleft()[0]
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise Broken("the connection was lost")

    def call(self, operation: Operation, patience_s: float = 0.0) -> Any:
        """Send and take, on a new connection if the last one broke; the usual client."""
        if self._broken or self._generation != self.server.generation:
            self._connect()
            self.process.sleep(self.world.leg_s())
            if self.server.down or self.party in self.world.cut:
                self._broken = True
                raise Broken("nobody answers")
            self._generation = self.server.generation
        self.send(operation)
        return self.take(patience_s)
