"""Streams and what is told: in order, no further ahead than allowed, and ended by whoever wants them ended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from spoke.errors import ActorError, ActorUnreachable, CallTimeout, ClientClosed, NotSerializable
from spoke.transport import Connection, connect
from spoke.transport.credit import Window
from tests.integration.test_transport_calls import (  # noqa: F401
    FEWER,
    MIB,
    SECRET,
    Actor,
    carrier,
    nothing_left,
    start,
    until,
)

KINDS = ["count", "async_count"]


@pytest.fixture
def connection(start: Callable[..., Actor]) -> Iterator[Connection]:  # noqa: F811
    with connect(start().address, SECRET) as connection:
        yield connection


@pytest.mark.parametrize("method", KINDS)
def test_a_stream_brings_what_the_method_yields_in_order(connection: Connection, method: str) -> None:
    assert list(connection.stream(method, (1000,))) == list(range(1000))
    assert list(connection.stream(method, (0,))) == []
    assert connection.call("outcomes").result(10) == ["ended", "ended"]


@pytest.mark.parametrize("method", KINDS)
def test_async_iteration(connection: Connection, method: str) -> None:
    async def main() -> None:
        streams = [connection.stream(method, (100,)) for _ in range(5)]

        async def read(stream: AsyncIterator[Any]) -> list[Any]:
            return [item async for item in stream]

        assert await asyncio.gather(*map(read, streams)) == [list(range(100))] * 5

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("method", KINDS)
def test_the_actor_runs_no_further_ahead_than_the_window(connection: Connection, method: str) -> None:
    stream = connection.stream(method, (10_000,), window=Window(items=8))
    assert next(stream) == 0
    until(lambda: connection.call("produced").result(10) >= 8)
    for number in range(1, 200):
        assert next(stream) == number
        assert connection.call("produced").result(10) <= number + 10
    stream.close()
    until(lambda: connection.call("outcomes").result(10) == ["closed"])


def test_large_items_are_limited_by_their_bytes(connection: Connection) -> None:
    stream = connection.stream("blocks", (50, MIB), window=Window(nbytes=2 * MIB))
    first = next(stream)
    assert first.nbytes == MIB
    until(lambda: connection.call("produced").result(10) >= 2)
    assert connection.call("produced").result(10) <= 4
    assert sum(1 for _ in stream) == 49
    huge = connection.stream("blocks", (3, 5 * MIB), window=Window(nbytes=MIB))
    assert [int(block[0]) for block in huge] == [0, 1, 2]


def test_streams_that_nobody_reads_hold_no_thread(start: Callable[..., Actor]) -> None:  # noqa: F811
    with connect(start(workers=2).address, SECRET) as connection:
        end = 1000 // FEWER
        streams = [connection.stream("count", (end,), window=Window(items=4)) for _ in range(20)]
        assert connection.call("echo", (1,)).result(10) == 1
        assert [next(stream) for stream in streams] == [0] * 20
        assert [sum(1 for _ in stream) for stream in streams] == [end - 1] * 20


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("way", ["close", "with", "drop", "cancel"])
def test_leaving_early_runs_the_methods_finally(connection: Connection, method: str, way: str) -> None:
    stream = connection.stream(method, (10**9,), window=Window(items=4))
    assert next(stream) == 0
    if way == "close":
        stream.close()
        assert list(stream) == []
    elif way == "with":
        with stream:
            pass
    elif way == "drop":
        del stream
        gc.collect()
    else:

        async def main() -> None:
            async with stream:
                await asyncio.wait_for(stream.__anext__(), 10)

        asyncio.run(main())
    until(lambda: connection.call("outcomes").result(10) == ["closed"])


@pytest.mark.parametrize("method", ["fail_after", "async_fail_after"])
def test_an_error_comes_after_the_items_before_it_with_the_remote_traceback(
    connection: Connection, method: str
) -> None:
    stream = connection.stream(method, (3,))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ActorError, match=r"Remote traceback[\s\S]*KeyError: 'after 3'") as caught:
        next(stream)
    assert caught.value.remote_type == "KeyError"
    assert list(stream) == []


def test_an_item_that_is_no_data_ends_the_stream(connection: Connection) -> None:
    stream = connection.stream("yield_unsendable")
    assert next(stream) == 1
    with pytest.raises(NotSerializable, match="an item of Target.yield_unsendable"):
        next(stream)
    with pytest.raises(NotSerializable, match=r"args\[0\]"):
        next(connection.stream("count", ({1},)))


@pytest.mark.parametrize("method", ["echo", "async_echo"])
def test_call_and_stream_say_which_one_is_needed(connection: Connection, method: str) -> None:
    with pytest.raises(ActorError, match="cannot be streamed: use call"):
        next(connection.stream(method, ("no stream",)))
    for name in KINDS:
        with pytest.raises(ActorError, match="yields its results: use stream"):
            connection.call(name, (3,)).result(10)


def test_an_item_that_takes_too_long_ends_the_stream(connection: Connection) -> None:
    stream = connection.stream("slow_items", timeout_s=0.2)
    assert next(stream) == 0
    started = time.monotonic()
    with pytest.raises(CallTimeout):
        next(stream)
    assert time.monotonic() - started < 5
    assert list(stream) == []

    async def main() -> None:
        stream = connection.stream("slow_items", timeout_s=0.2)
        assert await anext(stream) == 0
        with pytest.raises(CallTimeout, match="gave no item for 0.2 s"):
            await anext(stream)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_stream_ends_with_its_actor(start: Callable[..., Actor]) -> None:  # noqa: F811
    actor = start()
    with connect(actor.address, SECRET) as connection:
        stream = connection.stream("count", (10**9,), window=Window(items=4))
        assert next(stream) == 0
        actor.signal(signal.SIGKILL)
        with pytest.raises(ActorUnreachable):
            for _ in stream:
                pass


def test_a_server_that_closes_closes_the_generators(start: Callable[..., Actor]) -> None:  # noqa: F811
    actor = start()
    with connect(actor.address, SECRET) as connection:
        streams = [connection.stream(name, (10**9,), window=Window(items=4)) for name in KINDS]
        assert [next(stream) for stream in streams] == [0, 0]
        said = actor.end()
        assert "left []" in said
        assert said.count("count closed") == 2


def test_many_streams_and_calls_at_once(connection: Connection) -> None:
    streams = [connection.stream(KINDS[number % 2], (300 // FEWER,)) for number in range(30)]
    calls = [connection.call("echo", (number,)) for number in range(300)]
    for _ in range(300 // FEWER):
        for stream in streams:
            next(stream)
    assert [call.result(10) for call in calls] == list(range(300))
    assert all(list(stream) == [] for stream in streams)


# What is told.


def test_what_is_told_is_done_in_the_order_of_the_calls(connection: Connection) -> None:
    for number in range(500):
        if number % 2:
            connection.tell("note", (number,))
        else:
            connection.call("note", (number,))
    assert connection.call("noted_later").result(10) == list(range(500))


def test_errors_of_what_is_told_are_logged_at_the_actor(start: Callable[..., Actor]) -> None:  # noqa: F811
    actor = start()
    with connect(actor.address, SECRET) as connection:
        connection.tell("fail", ("nobody hears",))
        connection.tell("no_such_method")
        connection.tell("count", (3,))
        connection.tell("async_count", (3,))
        with pytest.raises(NotSerializable):
            connection.tell("echo", ({1},))
        until(lambda: len(connection.call("logged").result(10)) == 4)
        text = "\n".join(connection.call("logged").result(10))
        assert "KeyError: 'nobody hears'" in text
        assert "'Target.no_such_method' cannot be called" in text
        assert text.count("it yields") + text.count("yields its results") == 2
    with pytest.raises(ActorUnreachable):
        connection.tell("echo", (1,))


def test_what_was_told_is_done_though_its_sender_has_left(start: Callable[..., Actor]) -> None:  # noqa: F811
    actor = start(workers=1)
    with connect(actor.address, SECRET) as other:
        with connect(actor.address, SECRET) as connection:
            connection.tell("sleep", (0.3,))
            connection.tell("append", (7,))
            connection.call("async_echo", (1,)).result(10)
        until(lambda: other.call("noted").result(10) == [7])


def test_arrays_in_streams_and_tells(connection: Connection) -> None:
    connection.tell("keep", (np.arange(MIB),))
    assert int(connection.call("kept").result(10).sum()) == MIB * (MIB - 1) // 2


def test_a_forked_child_leaves_the_connection_to_its_parent(connection: Connection) -> None:
    stream = connection.stream("slow_items")
    assert next(stream) == 0
    waiting, kept = connection.call("sleep", (0.3,)), connection.stream("count", (3,))
    uses: list[Callable[[], object]] = [
        lambda: waiting.result(5),
        lambda: next(stream),
        lambda: list(kept),
        lambda: connection.call("echo", (1,)).result(5),
        waiting.cancel,
        stream.close,
        connection.close,
    ]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for use in uses:
            try:
                told = str(use())
            except BaseException as error:
                told = type(error).__name__
            os.write(writing, told.encode() + b" ")
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        said = file.read().split()
    assert os.waitpid(child, 0)[1] == 0
    refused = [ClientClosed.__name__] * 3
    assert said == [*refused, ActorUnreachable.__name__, "True", "None", "None"]
    assert waiting.result(10) == 0.3
    assert list(kept) == [0, 1, 2]
    assert next(stream) == 1
    stream.close()
    assert connection.call("echo", (2,)).result(10) == 2
