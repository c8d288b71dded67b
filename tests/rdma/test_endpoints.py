"""What calls over real queue pairs have of their own; the rest is in the suite that all transports share."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from spoke.errors import ActorUnreachable
from spoke.transport import Connection, connect
from spoke.transport.rdma import device
from spoke.transport.scope import join, leave
from tests.integration.test_transport_calls import MIB, SECRET, Actor, carrier, nothing_left, start, took_s, until  # noqa: F401
from tests.rdma.counters import check_receivers_were_ready

# ruff: noqa: F811


@pytest.fixture(autouse=True)
def no_device_left(nothing_left: None) -> Iterator[None]:
    yield
    assert not device._open
    check_receivers_were_ready()


@pytest.fixture
def actor(start: Callable[..., Actor]) -> Actor:
    return start(workers=4)


@pytest.fixture
def connection(actor: Actor) -> Iterator[Connection]:
    scope = join(SECRET)
    with connect(actor.address, SECRET) as connection:
        assert connection.transport.name == "rdma"
        yield connection
    leave(scope)


def test_received_arrays_are_views_whose_memory_comes_back_when_they_are_collected(connection: Connection) -> None:
    pool = next(iter(device._open.values())).landing
    found = connection.call("zeros", (4 * MIB,)).result(30)
    assert pool.lent_bytes >= 4 * MIB
    part = found[10:20]
    del found
    gc.collect()
    assert pool.lent_bytes >= 4 * MIB
    part[0] = 7  # writable
    del part
    gc.collect()
    assert pool.lent_bytes == 0
    kept = connection.call("zeros", (MIB,)).result(30)
    connection.close()
    assert kept.sum() == 0  # it outlives its connection


def test_memory_is_registered_once_and_for_as_long_as_it_lives(connection: Connection) -> None:
    handle = connection.call("make_buffer", (MIB, True)).result(30)["nested"][0]
    here = np.empty(MIB, "u1")
    for _ in range(3):
        handle.read_into(here).result(20)
        handle.write_from(here).result(20)
    memory = next(iter(device._open.values())).users_memory
    assert len(memory._open) == 1
    del here
    gc.collect()
    assert not memory._open


@pytest.mark.parametrize("state", ["alive", "stopped", "dead"])
def test_closing_in_the_middle_of_one_sided_transfers(actor: Actor, connection: Connection, state: str) -> None:
    handle = connection.call("make_buffer", (32 * MIB, True)).result(30)["nested"][0]
    here = np.empty(32 * MIB, "u1")
    scope = join(SECRET)
    handle.read_into(here).result(20)
    own = scope._owners[actor.address].connection
    if state == "stopped":
        actor.stop()
    transfers = [handle.read_into(here) for _ in range(30)]
    if state == "dead":
        actor.signal(signal.SIGKILL)
    scope._closed = True  # so that what fails is not tried again over a new connection
    try:
        assert took_s(own.close) < 8
        # Which of them were done by then is the device's affair.
        assert {type(transfer.exception(20)) for transfer in transfers} <= {ActorUnreachable, type(None)}
    finally:
        scope._closed = False
        leave(scope)
        if state == "stopped":
            actor.signal(signal.SIGCONT)


def test_a_killed_user_of_memory_leaves_nothing_at_its_owner(actor: Actor, connection: Connection) -> None:
    handle = connection.call("make_buffer", (MIB, True)).result(30)["nested"][0]
    before = connection.call("fds").result(30)
    script = (
        "import os, signal; from spoke.transport.handles import BufferHandle; from spoke.transport.scope import join\n"
        f"join({SECRET!r}); handle = BufferHandle{tuple(handle.as_data())!r}\n"
        f"here = bytearray({MIB}); handle.read_into(here).result(30); assert here[77] == 77\n"
        "[handle.write_from(here) for _ in range(50)]; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    until(lambda: connection.call("fds").result(30) <= before)
    handle.read_into(bytearray(10)).result(10)


def test_a_program_that_closes_nothing_ends_quietly(actor: Actor) -> None:
    script = (
        "from spoke.transport import connect\n"
        f"connection = connect({actor.address!r}, {SECRET!r})\n"
        f"kept = [connection.call('zeros', ({MIB},)).result(30), connection.call('sleep', (30,))]"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 45
