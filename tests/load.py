"""Clients that allocate and release without pause, and remember every answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import spoke
from spoke.errors import ServerUnsuitable
from tests.fakes import eventually

T_S = 90.0


class Load:
    """Threads, each with a client of its own. ``granted`` are all ticket ids, in the order of their answers.

    A request that the server itself refuses (full, read-only) is an answer, too: it is counted and asked again.
    """

    def __init__(self, url: str, pool: str, threads: int = 3) -> None:
        self.granted: list[str] = []
        self.refused = 0
        self.errors: list[BaseException] = []
        self._url, self._pool = url, pool
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(T_S)
            assert not thread.is_alive()

    def goes_on(self, more: int = 50) -> None:
        """Wait for so many answers more."""
        before = len(self.granted)
        eventually(lambda: len(self.granted) >= before + more or self.errors, "the load goes on", T_S)
        assert not self.errors, self.errors

    def _run(self) -> None:
        try:
            with spoke.Client(self._url, pool=self._pool, lease_s=60, retry_s=60, allocator_timeout_s=60) as client:
                while not self._stop.is_set():
                    futures = [client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=T_S) for _ in range(2)]
                    for future in futures:
                        self._take_and_give_back(future)
        except BaseException as error:
            self.errors.append(error)

    def _take_and_give_back(self, future: Future[spoke.Gang]) -> None:
        try:
            gang = future.result(T_S)
        except ServerUnsuitable:
            self._refuse()
            return
        self.granted.append(gang.ticket_id)
        deadline = time.monotonic() + T_S
        while True:
            try:
                gang.release().result(T_S)
                return
            except ServerUnsuitable:
                assert time.monotonic() < deadline
                self._refuse()

    def _refuse(self) -> None:
        self.refused += 1
        self._stop.wait(0.02)
