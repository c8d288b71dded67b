"""The actors of the examples in the docstrings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import spoke
from tests.integration.examples import run_example


@spoke.register_actor("Worker")
class Worker(spoke.Actor):
    """Does what the examples ask for."""

    def __init__(self, **args: Any) -> None:
        self._buffers: list[spoke.Buffer] = []

    def echo(self, value: Any) -> Any:
        return value

    def add(self, a: float, b: float) -> float:
        return a + b

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def say(self, text: str) -> int:
        return self.ctx.push(text)

    def fail(self) -> None:
        raise ValueError("as asked")

    def buffer(self, content: bytes) -> spoke.BufferHandle:
        self._buffers.append(spoke.Buffer(bytearray(content)))
        return self._buffers[-1].handle

    def read(self, handle: spoke.BufferHandle) -> bytes:
        content = bytearray(handle.nbytes)
        handle.read_into(content).result()
        return bytes(content)

    def example(self, name: str, docstring: str) -> str:
        """Run an example in which ``ctx`` is this actor's; what went wrong."""
        return run_example(name, docstring, {"spoke": spoke, "ctx": self.ctx})
