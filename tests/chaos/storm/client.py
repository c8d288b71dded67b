"""A client process of the storm: asks without pause until SIGTERM, and writes down each request and its answer.

    python -m tests.chaos.storm.client URL POOL NAME SEED

The journal has two lines for each request, ``ask`` before it and ``answer`` after it, so that a checker sees what was
lost when this process is killed, and what was never answered when it was not.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import spoke
from spoke.errors import SpokeError
from tests.chaos.storm.gpus import note

THREADS = 2
LEASE_S = 3.0
ANSWER_S = 120.0
"""By then every request must have an answer; all that is asked for has a time limit well below."""
COMMAND = str(Path(__file__).with_name("gpus.py"))


class Asker:
    """One thread with one session at a time."""

    def __init__(self, url: str, pool: str, name: str, seed: str, stop: threading.Event) -> None:
        self._url, self._pool, self._name, self._stop = url, pool, name, stop
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    client = spoke.Client(
                        self._url,
                        pool=self._pool,
                        lease_s=LEASE_S,
                        retry_s=30,
                        allocator_timeout_s=30,
                        transport="tcp",  # shared memory would pass through a partition
                    )
                except SpokeError:  # parted from the server right now
                    self._stop.wait(0.2)
                    continue
                with client:
                    while client.is_open and not self._stop.is_set():
                        self._use_a_gang(client)
        except BaseException as error:
            self._say("broken", 0, error=repr(error))
            raise

    def _say(self, what: str, number: int, **more: object) -> None:
        note("journal", json.dumps({"by": self._name, "what": what, "n": number, "at": round(time.time(), 3), **more}))

    def _ask(self, kind: str, start: Callable[[], Future[Any]], **about: object) -> Any:
        """The answer's value; None for an error, which is an answer too."""
        number = next(self._numbers)
        self._say("ask", number, kind=kind, **about)
        try:
            value = start().result(ANSWER_S)
        except SpokeError as error:
            self._say("answer", number, kind=kind, error=type(error).__name__, text=str(error)[:300], **about)
            return None
        except TimeoutError:
            self._say("lost", number, kind=kind, **about)
            raise
        said = value.ticket_id if isinstance(value, spoke.Gang) else value
        self._say("answer", number, kind=kind, value=said if isinstance(said, (str, bool)) else True, **about)
        return value

    def _use_a_gang(self, client: spoke.Client) -> None:
        draw = self._random
        nodes, per_node = draw.choice([(1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
        resources = spoke.Resources(gpus=draw.choice([1, 1, 2]))
        failure = draw.choice(["report", "release"])
        gang = self._ask(
            "allocate",
            lambda: client.gang_allocate(nodes, per_node, resources, timeout=20, on_failure=failure, grace_s=1),
        )
        if gang is None:
            self._stop.wait(0.05)
            return
        ticket = gang.ticket_id
        way = draw.random()
        if way < 0.35:
            self._command(client, gang, ticket)
        elif way < 0.75:
            self._actors(client, gang, ticket)
        if draw.random() < 0.1:
            return  # dropped: its finalizer gives it back
        self._ask("release", lambda: client.gang_release(ticket, timeout=60), ticket=ticket)

    def _command(self, client: spoke.Client, gang: spoke.Gang, ticket: str) -> None:
        argv = [sys.executable, "-S", COMMAND, f"{self._random.uniform(0, 0.5):.2f}"]
        started = self._ask("launch", lambda: client.launch_command(ticket, argv, timeout=30), ticket=ticket)
        if started is not None:
            self._ask("wait", lambda: gang.wait(60), ticket=ticket)

    def _actors(self, client: spoke.Client, gang: spoke.Gang, ticket: str) -> None:
        actors = self._ask("launch", lambda: client.launch_gang(ticket, "Worker", timeout=30), ticket=ticket)
        for round in range(self._random.randint(3, 30) if actors else 0):
            for actor in actors:
                token = f"{self._name}/{ticket}/{actor.rank}/{round}"
                patient = actor.options(timeout_s=20)
                answer = self._ask("call", lambda a=patient, t=token: a.call("work", t), token=token)
                if answer is None:
                    return
                assert answer == f"done {token}", answer
        if actors and self._random.random() < 0.3:
            self._ask("call", lambda: actors[0].call("grandchild"), token="")


def main(url: str, pool: str, name: str, seed: str) -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    askers = [Asker(url, pool, f"{name}.{i}", f"{seed}/{i}", stop) for i in range(THREADS)]
    threads = [threading.Thread(target=asker.run, daemon=True) for asker in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
    note("ended", f"{name} {os.getpid()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
