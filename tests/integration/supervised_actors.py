"""Actors that fail, hang and come back; the tests' agents import this file."""

from __future__ import annotations

import os
import resource
import signal
import threading

import spoke


@spoke.register_actor("Fragile")
class Fragile(spoke.Actor):
    def __init__(self) -> None:
        self.sick = False
        if self.args.get("fails_at") == self.ctx.restarts:
            raise RuntimeError("it does not come up this time")

    def where(self) -> list[int]:
        return [os.getpid(), self.ctx.restarts, int(os.environ["SPOKE_RESTART_COUNT"])]

    def push(self, value: object) -> int:
        return self.ctx.push(value)

    def peer_pid(self, rank: int) -> int:
        return int(self.ctx.peer(rank).call("where").result(20)[0])

    def die(self, number: int = signal.SIGKILL) -> None:
        os.kill(os.getpid(), number)

    def exit(self, code: int) -> None:
        os._exit(code)

    def hang(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def be_sick(self) -> None:
        self.sick = True

    def block(self) -> None:
        threading.Event().wait(600)

    def healthy(self) -> bool:
        return not self.sick

    def cwd(self) -> str:
        return os.getcwd()

    def limits(self) -> dict[str, list[int]]:
        return {
            name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))) for name in ("nofile", "core")
        }
