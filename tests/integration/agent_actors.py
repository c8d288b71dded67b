"""Actors for the agent's tests; the tests' agents import this file."""

from __future__ import annotations

import os
import sys
import time

import spoke


@spoke.register_actor("Plain")
class Plain(spoke.Actor):
    def where(self) -> list[object]:
        ctx = self.ctx
        return [ctx.rank, ctx.world_size, list(ctx.gpu_ids), ctx.actor_id, ctx.ticket_id, dict(self.args), os.getpid()]

    def env(self, name: str) -> str | None:
        return os.environ.get(name)

    def modules(self) -> list[str]:
        return sorted(sys.modules)

    async def slowly(self) -> str:
        return "done"


@spoke.register_actor("WithArgs")
class WithArgs(spoke.Actor):
    def __init__(self, name: str, count: int = 1) -> None:
        self.greeting = f"{name} x {count} on rank {self.ctx.rank}"

    def greet(self) -> str:
        return self.greeting


@spoke.register_actor("Finishes")
class Finishes(spoke.Actor):
    def run(self) -> None:
        print("work done")


@spoke.register_actor("Raises")
class Raises(spoke.Actor):
    def run(self) -> None:
        raise ValueError("the run went wrong")


@spoke.register_actor("FailsToBuild")
class FailsToBuild(spoke.Actor):
    def __init__(self) -> None:
        raise RuntimeError("no such checkpoint")


@spoke.register_actor("SlowToBuild")
class SlowToBuild(spoke.Actor):
    def __init__(self) -> None:
        time.sleep(60)


@spoke.register_actor("DiesInInit")
class DiesInInit(spoke.Actor):
    def __init__(self) -> None:
        print("about to die")
        sys.stdout.flush()
        os._exit(7)
