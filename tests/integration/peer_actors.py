"""Actors that talk with each other; the tests' agents import this file."""

from __future__ import annotations

import os
import time

import numpy as np

import spoke


@spoke.register_actor("Member")
class Member(spoke.Actor):
    """A member of a gang that talks with the others."""

    is_waiting = False

    def rank(self) -> int:
        return self.ctx.rank

    def ask(self, rank: int) -> int:
        return self.ctx.peer(rank).call("rank").result(20)

    def count(self, end: int):  # type: ignore[no-untyped-def]
        yield from range(end)

    async def sum_of(self, rank: int, end: int) -> int:
        total = 0
        async for number in self.ctx.peer(rank).stream("count", end):
            total += number
        return total

    def all_reduce(self, value: np.ndarray) -> np.ndarray:
        """The sum over all ranks, round the ring."""
        ctx = self.ctx
        right, left = (ctx.rank + 1) % ctx.world_size, (ctx.rank - 1) % ctx.world_size
        total = passed = value.copy()
        for step in range(ctx.world_size - 1):
            sent = ctx.send(right, passed, tag=step)
            passed = ctx.recv(left, tag=step, timeout_s=20).result()
            total = total + passed
            sent.result(20)
        return total

    async def exchange(self, rank: int) -> str:
        sent = self.ctx.send(rank, f"from {self.ctx.rank}", tag=7)
        got = await self.ctx.recv(rank, tag=7, timeout_s=20)
        await sent
        return str(got)

    def recv_nothing(self) -> str:
        try:
            self.ctx.recv(0, tag=99, timeout_s=0.1).result()
        except spoke.WaitTimeout as error:
            return str(error)
        return "something came"

    def recv_forever(self) -> None:
        self.is_waiting = True
        self.ctx.recv(0, tag=98, timeout_s=100).result()

    def wait_for(self, rank: int) -> str:
        """Call a peer that does not answer; what it is called in the error."""
        try:
            self.ctx.peer(rank).call("recv_forever").result(60)
        except spoke.ActorUnreachable as error:
            return str(error)
        return "it answered"

    def waits(self) -> bool:
        return self.is_waiting

    def pid(self) -> int:
        return os.getpid()

    def share(self, nbytes: int) -> spoke.BufferHandle:
        self.buffer = spoke.Buffer(np.full(nbytes, self.ctx.rank, "u1"))
        return self.buffer.handle

    def read(self, handle: spoke.BufferHandle) -> int:
        here = np.empty(handle.nbytes, "u1")
        handle.read_into(here).result(20)
        return int(here.sum())

    def announce(self, value: object, to_caller: bool = False) -> int:
        return self.ctx.push(value, to_caller=to_caller)


@spoke.register_actor("Serial")
class Serial(spoke.Actor):
    max_concurrency = 1

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, number: int) -> None:
        before = list(self.seen)
        time.sleep(0.001 * (number % 3))
        self.seen = [*before, number]

    def noted(self) -> list[int]:
        return self.seen


@spoke.register_actor("Listener")
class Listener(spoke.Actor):
    """Keeps what it is told of its ticket."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def on_notice(self, notice: spoke.Notice) -> None:
        self.kinds.append(notice.kind)

    def heard(self) -> list[str]:
        return self.kinds

    def rank_of(self, rank: int) -> int:
        return self.ctx.peer(rank).call("my_rank").result(20)

    def my_rank(self) -> int:
        return self.ctx.rank
