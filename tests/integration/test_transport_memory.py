"""Buffers of another process, and what an actor pushes into its callers' mailboxes."""

# ruff: noqa: F811

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spoke.errors import ActorUnreachable, CallTimeout, ClientClosed, InvalidRequest, WaitTimeout
from spoke.transport import CallServer, Connection, connect
from spoke.transport.mailbox import Mailbox, Push
from spoke.transport.regions import Buffer
from spoke.transport.scope import join, leave
from tests.integration.test_transport_calls import MIB, SECRET, Actor, carrier, nothing_left, start, until  # noqa: F401


@pytest.fixture
def actor(start: Callable[..., Actor]) -> Iterator[Actor]:
    scope = join(SECRET)
    yield start()
    leave(scope)


@pytest.fixture
def connection(actor: Actor) -> Iterator[Connection]:
    with connect(actor.address, SECRET) as connection:
        yield connection


class Gang:
    """What a client's gang does for its buffers."""

    def __init__(self) -> None:
        self.server = CallServer(object(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1")
        self.server.start()

    def memory_home(self) -> CallServer:
        return self.server


@pytest.fixture
def gang() -> Iterator[Gang]:
    gang = Gang()
    yield gang
    gang.server.close()


def handle_of(connection: Connection, nbytes: int, writable: bool = True, method: str = "make_buffer") -> Any:
    return connection.call(method, (nbytes, writable)).result(20)["nested"][0]


KINDS = pytest.mark.parametrize("method", ["make_buffer", "reserve_buffer"])


def is_one_sided(carrier: str, method: str) -> bool:
    """Whether the owner's process has no part in transfers."""
    return carrier == "rdma" or (carrier == "shm" and method == "reserve_buffer")


@KINDS
@pytest.mark.parametrize("nbytes", [0, 1, 20_000, 8 * MIB, 30 * MIB + 3])
def test_an_actors_buffer_is_read_and_written(connection: Connection, nbytes: int, method: str) -> None:
    handle = handle_of(connection, nbytes, method=method)
    assert handle.nbytes == nbytes
    found = np.empty(nbytes, "u1")
    handle.read_into(found).result(30)
    assert (found == np.arange(nbytes, dtype="u1")).all()
    handle.write_from(found[::-1].copy()).result(30)
    assert (connection.call("array_now").result(30) == found[::-1]).all()


@KINDS
def test_parts_of_a_buffer(connection: Connection, method: str) -> None:
    handle = handle_of(connection, 100, method=method)
    part = bytearray(10)
    handle.read_into(part, 40).result(10)
    assert part == bytes(range(40, 50))
    handle.write_from(b"\xff\xfe", 98).result(10)
    assert connection.call("array_now").result(10)[97:].tolist() == [97, 255, 254]
    for offset in (-1, 91, 1 << 70, 1.5):
        with pytest.raises(InvalidRequest, match="the buffer has 100"):
            handle.read_into(part, offset)
    with pytest.raises(InvalidRequest, match="read-only"):
        handle.read_into(bytes(3))
    with pytest.raises(InvalidRequest, match="not contiguous"):
        handle.write_from(np.zeros((4, 4), "u1").T[:2])


def test_the_owner_checks_for_itself(connection: Connection) -> None:
    handle = handle_of(connection, 100, writable=False)
    for name, args, words in [
        ("memory.read", (handle.key, 90, 11), "the buffer has 100"),
        ("memory.read", (handle.key, -1, 1), "the buffer has 100"),
        ("memory.read", (b"x" * 16, 0, 1), "no such buffer"),
        ("memory.read", (handle.key, 0), "fields"),
        ("memory.read", ("a", "b", "c"), "fields"),
        ("memory.write", (handle.key, 0, memoryview(b"x")), "only be read"),
        ("memory.grow", (), "nothing called 'memory.grow'"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            connection.ask(name, args).result(10)
    with pytest.raises(InvalidRequest, match="only be read"):
        handle.write_from(b"x")
    assert connection.call("array_now").result(10)[0] == 0


def test_a_clients_buffer_is_used_by_the_actor(connection: Connection, gang: Gang) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3 * MIB, dtype=torch.uint8)
    with Buffer(tensor, gang) as buffer:
        assert connection.call("add_one", (buffer.handle,)).result(30) == 0
        assert connection.call("add_one", (buffer.handle,)).result(30) == 3 * MIB
        assert int(tensor.max()) == int(tensor.min()) == 2
    with Buffer(16, gang) as reserved:
        connection.call("add_one_async", (reserved.handle,)).result(20)
        assert bytes(reserved.view) == b"\x01" * 16


@KINDS
def test_closed_and_collected_buffers_are_out_of_reach(carrier: str, connection: Connection, method: str) -> None:
    for end in ("close_buffer", "drop_buffer"):
        for known in (False, True):
            handle = handle_of(connection, 10, method=method)
            if known:
                handle.read_into(bytearray(10)).result(10)
            connection.call(end).result(10)
            if carrier == "rdma":  # the thread that answers this takes what was collected from the device, before
                with pytest.raises(InvalidRequest, match="no such buffer"):
                    connection.ask("memory.read", (handle.key, 0, 1)).result(10)
            for _ in range(2):
                with pytest.raises(InvalidRequest, match="closed"):
                    handle.read_into(bytearray(10)).result(10)
                with pytest.raises(InvalidRequest, match="closed"):
                    handle.write_from(b"x").result(10)
    assert connection.call("array_now").result(10)[0] == 0
    handle = handle_of(connection, 10, method=method)
    handle.read_into(found := bytearray(10)).result(10)  # others go on
    assert found == bytes(range(10))


@KINDS
def test_transfers_of_others_do_not_suffer_from_a_buffer_that_is_gone(connection: Connection, method: str) -> None:
    gone = handle_of(connection, MIB, method=method)
    gone.read_into(bytearray(10)).result(10)
    kept = handle_of(connection, MIB, method=method)  # takes the place of the other one, which is collected
    connection.call("collect").result(10)
    kept.read_into(bytearray(10)).result(10)
    targets = [bytearray(MIB) for _ in range(10)]
    transfers = [(gone.read_into(bytearray(MIB)), kept.read_into(target)) for target in targets]
    for (failing, working), target in zip(transfers, targets, strict=True):
        assert isinstance(failing.exception(20), InvalidRequest)
        working.result(20)
        assert target[:256] == bytes(range(256))


@KINDS
def test_transfers_under_way_fail_or_are_whole_when_the_owner_closes_the_buffer(
    connection: Connection, method: str
) -> None:
    handle = handle_of(connection, 16 * MIB, method=method)
    handle.write_from(bytes(16 * MIB)).result(20)
    ones = np.full(16 * MIB, 1, "u1")
    transfers = [handle.write_from(ones) for _ in range(3)]
    connection.call("close_buffer").result(20)
    before = connection.call("array_now").result(20).copy()
    for transfer in transfers:
        assert isinstance(transfer.exception(20), InvalidRequest | None)
    assert (connection.call("array_now").result(20) == before).all()  # nobody wrote after the buffer was closed


@KINDS
def test_memory_that_may_only_be_read_is_not_written_by_a_forged_handle(connection: Connection, method: str) -> None:
    handle = handle_of(connection, MIB, writable=False, method=method)
    handle.read_into(bytearray(MIB)).result(10)
    with pytest.raises(InvalidRequest, match="only be read"):
        replace(handle, writable=True).write_from(b"x").result(10)
    assert connection.call("array_now").result(10)[0] == 0
    handle.read_into(bytearray(MIB)).result(10)


@KINDS
def test_the_owners_process_has_no_part_in_one_sided_transfers(
    actor: Actor,
    connection: Connection,
    carrier: str,
    method: str,
) -> None:
    handle = handle_of(connection, 3 * MIB, method=method)
    handle.read_into(bytearray(1)).result(10)
    actor.stop()
    here, there = bytearray(3 * MIB), np.full(2 * MIB, 7, "u1")
    transfers = [handle.read_into(here, timeout_s=1), handle.write_from(there, 5, timeout_s=1)]
    errors = [transfer.exception(10) for transfer in transfers]
    actor.signal(signal.SIGCONT)
    if is_one_sided(carrier, method):
        assert errors == [None, None]
        assert here[:100] == bytes(range(100))
        assert connection.call("array_now").result(10)[[4, 5, 2 * MIB + 4, 2 * MIB + 5]].tolist() == [4, 7, 7, 5]
    else:
        assert [type(error) for error in errors] == [CallTimeout, CallTimeout]


@KINDS
def test_memory_of_a_dead_process_is_an_error(actor: Actor, connection: Connection, method: str) -> None:
    handle = handle_of(connection, MIB, method=method)
    handle.read_into(bytearray(10)).result(10)
    actor.signal(signal.SIGKILL)
    actor.process.wait(10)
    for transfer in (handle.read_into(bytearray(10)), handle.write_from(bytes(MIB)), handle.read_into(bytearray(MIB))):
        started = time.monotonic()
        assert isinstance(transfer.exception(15), ActorUnreachable)
        assert time.monotonic() - started < 12


def test_many_transfers_at_once_of_many_buffers(connection: Connection, gang: Gang) -> None:
    buffers = [Buffer(size, gang) for size in (1, 4096, MIB, 3 * MIB) * 4]
    calls = [connection.call("add_one", (buffer.handle,)) for buffer in buffers]
    assert [call.result(60) for call in calls] == [0] * len(calls)
    for buffer in buffers:
        assert set(bytes(buffer.view)) == {1}
        buffer.close()


def test_awaiting_transfers(connection: Connection) -> None:
    handle = handle_of(connection, MIB)

    async def main() -> None:
        parts = [bytearray(1000) for _ in range(50)]
        await asyncio.gather(*(handle.read_into(part, 1000 * n) for n, part in enumerate(parts)))
        assert b"".join(parts) == np.arange(50_000, dtype="u1").tobytes()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_cancelled_transfer_wakes_who_waits_and_others_go_on(
    actor: Actor, connection: Connection, carrier: str
) -> None:
    handle = handle_of(connection, 64 * MIB)
    handle.read_into(bytearray(10)).result(10)
    actor.stop()
    transfer = handle.read_into(bytearray(64 * MIB))
    cancelled = transfer.cancel()
    actor.signal(signal.SIGCONT)
    assert cancelled or carrier == "rdma"  # where the owner has no part in it
    assert wait([transfer], 10).done
    found = bytearray(100)
    handle.read_into(found).result(20)
    assert found == bytes(range(100))


def test_transfers_fail_when_the_owner_dies_or_stands_still(
    actor: Actor,
    connection: Connection,
    carrier: str,
) -> None:
    handle = handle_of(connection, 64 * MIB)
    handle.read_into(bytearray(10)).result(10)
    actor.stop()
    standing = handle.read_into(bytearray(64 * MIB), timeout_s=0.3)
    # Over RDMA the owner has no part in it, so it may be done, or not, when its time is up.
    assert isinstance(standing.exception(10), (CallTimeout, type(None)) if carrier == "rdma" else CallTimeout)
    under_way = [handle.read_into(bytearray(64 * MIB)) for _ in range(8)]
    actor.signal(signal.SIGKILL)
    errors = [transfer.exception(15) for transfer in under_way]
    failed = [error for error in errors if error is not None or carrier != "rdma"]
    assert {type(error) for error in failed} <= {ActorUnreachable}
    actor.process.wait(20)  # until then the kernel may still let its memory be reached
    started = time.monotonic()
    assert isinstance(handle.read_into(bytearray(10)).exception(15), ActorUnreachable)
    assert time.monotonic() - started < 12


def test_a_buffer_needs_an_owner_and_memory(gang: Gang) -> None:
    with pytest.raises(InvalidRequest, match=r"spoke.Buffer\(data, gang\)"):
        Buffer(10)
    for wrong in ("text", b"bytes", np.zeros((3, 3)).T, -1, np.array([None])):
        with pytest.raises(InvalidRequest, match="buffer"):
            Buffer(wrong, gang)
    assert Buffer(b"bytes", gang, writable=False).nbytes == 5
    handle = Buffer(5, gang).handle
    with pytest.raises(InvalidRequest, match="no part in the ticket"):
        handle.read_into(bytearray(5))


# Mailboxes.


def test_what_is_pushed_comes_in_order_to_every_open_mailbox(actor: Actor, connection: Connection) -> None:
    with connect(actor.address, SECRET) as other, Mailbox({3: connection}) as box, Mailbox({4: other}) as far:
        until(lambda: connection.call("push", (["open?"],)).result(10) == [2])  # each until both are open
        connection.call("push", (["hello"],)).result(10)
        connection.call("push", ([np.arange(5000), *range(500)],)).result(10)
        connection.call("push", (["for me"], True)).result(10)
        got = list(itertools.islice((push.value for push in box if str(push.value) != "open?"), 503))
        assert got[0] == "hello"
        assert got[1].sum() == 4999 * 2500
        assert got[2:] == [*range(500), "for me"]
        assert next(push for push in far if str(push.value) != "open?") == Push(4, "hello")
        with pytest.raises(WaitTimeout):
            box.get(0.05)
    with pytest.raises(ClientClosed):
        box.get(1)
    until(lambda: connection.call("push", (["nobody"],)).result(10) == [0])


def test_a_full_mailbox_loses_and_counts_and_the_actor_may_wait_for_room(connection: Connection) -> None:
    with Mailbox({0: connection}, capacity=8) as box:
        until(lambda: connection.call("push", ([-1],)).result(10) == [1])
        assert box.get(10).value == -1
        taken = connection.call("push", (list(range(20)),)).result(10)
        assert 6 <= sum(taken) <= 8
        assert [box.get(10).value for _ in range(sum(taken))] == list(range(sum(taken)))
        waiting = connection.call("push", (list(range(30)), False, 10.0))
        assert [box.get(10).value for _ in range(30)] == list(range(30))
        assert waiting.result(10) == [1] * 30
        assert box.lost == 20 - sum(taken)


def test_async_mailbox_and_the_end_of_its_actor(actor: Actor, connection: Connection) -> None:
    async def main() -> None:
        async with Mailbox({1: connection}) as box:
            while await connection.call("push", (["x", "y"],)) != [1, 1]:
                await asyncio.sleep(0.01)
            assert await anext(box) == Push(1, "x")
            assert (await box.get_async(10)).value == "y"
            with pytest.raises(WaitTimeout):
                await box.get_async(0.05)
            os.kill(actor.process.pid, signal.SIGKILL)
            with pytest.raises(ActorUnreachable):
                await box.get_async(10)

    asyncio.run(asyncio.wait_for(main(), 30))
