"""The other process of the transport's tests: an actor that serves until its standard input ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from spoke.transport import CallServer
from spoke.transport.job import CALLER
from spoke.transport.regions import Buffer, set_home
from spoke.transport.scope import join, leave

SECRET = b"transport-tests!" * 2
SERVERS: list[CallServer] = []


class Base:
    _reserved = frozenset({"shutdown"})

    def shutdown(self) -> str:
        return "must not be callable"


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Target(Base):
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.cancelled = threading.Event()
        self.entered = threading.Event()
        self.made = 0
        self.ends: list[str] = []
        self.held: Any = None
        self.log = Log()
        logging.getLogger("spoke.actor").addHandler(self.log)

    @property
    def trap(self) -> str:
        raise AssertionError("asking for a method must not run a property")

    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs] if kwargs or len(args) != 1 else args[0]

    async def async_echo(self, value: Any) -> Any:
        await asyncio.sleep(0.001)
        return value

    def double(self, array: Any) -> Any:
        array *= 2
        return array

    def sleep(self, seconds: float) -> float:
        self.entered.set()
        time.sleep(seconds)
        return seconds

    async def async_sleep(self, seconds: float) -> float:
        self.entered.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return seconds

    def wait_entered(self) -> bool:
        return self.entered.wait(10)

    def wait_cancelled(self) -> bool:
        return self.cancelled.wait(10)

    async def note(self, number: int) -> None:
        self.seen.append(number)

    def noted(self) -> list[int]:
        return self.seen

    def fail(self, text: str) -> None:
        raise KeyError(text)

    async def async_fail(self, text: str) -> None:
        raise ValueError(text + "\ud800")

    def exit(self) -> None:
        sys.exit(3)

    def unsendable(self) -> Any:
        return {"a": [1, {2, 3}]}

    def zeros(self, nbytes: int) -> Any:
        return np.zeros(nbytes, dtype="u1")

    def threads(self) -> int:
        return threading.active_count()

    def fds(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    # Streams.

    def count(self, end: int) -> Iterator[int]:
        try:
            for number in range(end):
                self.made = number + 1
                yield number
            self.ends.append("ended")
        except GeneratorExit:
            self.ends.append("closed")
            print("count closed", flush=True)
            raise

    async def async_count(self, end: int) -> AsyncIterator[int]:
        try:
            for number in range(end):
                self.made = number + 1
                yield number
                if number % 100 == 0:
                    await asyncio.sleep(0)
            self.ends.append("ended")
        except (GeneratorExit, asyncio.CancelledError):
            self.ends.append("closed")
            print("count closed", flush=True)
            raise

    def produced(self) -> int:
        return self.made

    def outcomes(self) -> list[str]:
        return self.ends

    def blocks(self, count: int, nbytes: int) -> Iterator[Any]:
        for number in range(count):
            self.made = number + 1
            yield np.full(nbytes, number, "u1")

    def fail_after(self, count: int) -> Iterator[int]:
        yield from range(count)
        raise KeyError(f"after {count}")

    async def async_fail_after(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise KeyError(f"after {count}")

    def yield_unsendable(self) -> Iterator[Any]:
        yield 1
        yield {2}

    def slow_items(self) -> Iterator[int]:
        yield 0
        time.sleep(1.0)
        yield 1

    # What is told.

    def append(self, number: int) -> None:
        self.seen.append(number)

    async def noted_later(self) -> list[int]:
        return self.seen

    def logged(self) -> list[str]:
        return self.log.messages

    def keep(self, value: Any) -> None:
        self.held = value
        self.entered.set()

    def kept(self) -> Any:
        self.entered.wait(10)
        return self.held

    # Memory and mailboxes.

    def make_buffer(self, nbytes: int, writable: bool) -> Any:
        self.array = np.arange(nbytes, dtype="u1")
        self.buffer = Buffer(self.array, writable=writable)
        return {"nested": [self.buffer.handle]}

    def reserve_buffer(self, nbytes: int, writable: bool) -> Any:
        self.buffer = Buffer(nbytes, writable=writable)
        self.array = np.frombuffer(self.buffer.view, "u1")
        self.array[:] = np.arange(nbytes, dtype="u1")
        return {"nested": [self.buffer.handle]}

    def array_now(self) -> Any:
        return self.array

    def close_buffer(self) -> None:
        self.buffer.close()

    def drop_buffer(self) -> None:
        del self.buffer
        gc.collect()

    def collect(self) -> None:
        gc.collect()

    def add_one(self, handle: Any) -> int:
        here = np.empty(handle.nbytes, "u1")
        handle.read_into(here).result(20)
        handle.write_from(here + np.uint8(1)).result(20)
        return int(here.sum())

    async def add_one_async(self, handle: Any) -> None:
        here = bytearray(handle.nbytes)
        await handle.read_into(here)
        await handle.write_from(bytes(byte + 1 for byte in here))

    def push(self, values: list[Any], only_me: bool = False, wait_s: float = 0.0) -> list[int]:
        to = CALLER.get() if only_me else None
        return [SERVERS[0].push(value, to, timeout_s=wait_s) for value in values]

    def _private(self) -> None:
        raise AssertionError


def main() -> None:
    limit_bytes, workers = int(sys.argv[1]), int(sys.argv[2])
    server = CallServer(
        Target(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1", limit_bytes=limit_bytes, workers=workers
    )
    server.start()
    SERVERS.append(server)
    set_home(server)
    scope = join(SECRET)
    print(server.address, flush=True)
    sys.stdin.read()
    server.close()
    leave(scope)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("spoke")]
    print(f"left {left}", flush=True)


if __name__ == "__main__":
    main()
