"""RDMA against perftest and against bare pyverbs, on the same device: `make bench-rdma`.

    python bench/rdma.py [--json] [--rounds N]

`handle.write_from` of 1 to 64 MiB into a `spoke.Buffer` of another process, four outstanding, against `ib_write_bw`
with as many; a frame there and back between two endpoints, against the same bytes by pyverbs alone, which is Python's
own floor: one post_send and one successful poll on each side, with work requests made beforehand. Both sides of the
round trip are in one process, so that the scheduler has no part in it. `ib_send_lat` is printed beside it, to show what
the interpreter costs before Spoke does anything; for the same reason, writes of 1 MiB by pyverbs alone are compared
with ib_write_bw. Floor and figure alternate, and the median counts.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

import numpy as np
from transport import report  # the benchmark beside this one

from spoke.transport import CallServer, Connection, connect
from spoke.transport.choice import VARIABLE
from spoke.transport.frames import Kind
from spoke.transport.handles import BufferHandle
from spoke.transport.rdma.device import Device, acquire
from spoke.transport.rdma.endpoint import RdmaEndpoint
from spoke.transport.rdma.pool import Block
from spoke.transport.rdma.queue import QueuePair
from spoke.transport.rdma.wire import SLOTS
from spoke.transport.regions import Buffer, set_home
from spoke.transport.scope import join, leave

MIB = 1 << 20
SMALL = b"x" * 32
PINGS = 100
WARM_UP = 3  # rounds of round trips that do not count: an emulated processor translates what it meets first
PERFTEST_PORT = 18515
PERFTEST_TRIES = 5
SECRET = b"benchmark-secret" * 2


def linked(device: Device) -> tuple[QueuePair, QueuePair]:
    first, second = QueuePair(device), QueuePair(device)
    first.connect(second.describe())
    second.connect(first.describe())
    return first, second


class Owner:
    """The actor that lends memory."""

    def lend(self, nbytes: int) -> BufferHandle:
        """A buffer of this process."""
        self.buffer = Buffer(np.zeros(nbytes, "u1"))
        return self.buffer.handle


def serve() -> None:
    """The other process."""
    server = CallServer(Owner(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1")
    server.start()
    set_home(server)
    print(server.address, flush=True)
    sys.stdin.read()
    server.close()


@contextmanager
def owner() -> Iterator[Connection]:
    """A connection to the other process, over RDMA."""
    os.environ[VARIABLE] = "rdma"
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        scope = join(SECRET)
        try:
            with connect(process.stdout.readline().strip(), SECRET) as connection:
                yield connection
        finally:
            leave(scope)
            process.kill()


def write_mib_s(connection: Connection, nbytes: int) -> float:
    """MiB a second of writes into the other process's buffer, four outstanding."""
    handle: BufferHandle = connection.call("lend", (nbytes,)).result(60)
    source = np.ones(nbytes, "u1")
    handle.write_from(source).result(60)  # registers both sides' memory
    total, posted = max(4, 32 * MIB // nbytes), 0
    outstanding: deque[Future[None]] = deque()
    start = time.perf_counter()
    while posted < total or outstanding:
        while posted < total and len(outstanding) < 4:
            outstanding.append(handle.write_from(source))
            posted += 1
        outstanding.popleft().result(60)
    return total * nbytes / MIB / (time.perf_counter() - start)


def perftest(tool: str, device: Device, column: int, *options: str) -> float:
    """A figure of one of perftest's programs between two processes.

    perftest compares the processor's cycle counter with the clock before it measures. On a busy machine that comparison
    fails ("Correlation coefficient r^2 < 0.9"); it goes on all the same and prints 0 or infinity. So it is asked again.
    """
    choice = device.choice
    common = [tool, "-d", choice.port.device, "-i", str(choice.port.port), "-x", str(choice.gid.index), "-F", *options]
    common += ["-p", str(PERFTEST_PORT)]
    said = ""
    for _ in range(PERFTEST_TRIES):
        server = subprocess.Popen(common, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(20):
                time.sleep(0.3)  # the server says nothing when it listens; the client gives up at once if it does not
                done = subprocess.run([*common, "127.0.0.1"], capture_output=True, text=True, timeout=120, check=False)
                lines = [line.split() for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+\s+\S+", line)]
                if lines or server.poll() is not None:
                    break
            said = done.stdout[-500:] + done.stderr[-500:]
            figure = float(lines[-1][column]) if lines else 0.0
            if 0 < figure < math.inf:
                return figure
        finally:
            server.kill()
            server.wait()
    raise SystemExit(f"{tool} gave no figure in {PERFTEST_TRIES} tries: {said}")


def bare_round_trip_us(device: Device, cleanup: ExitStack) -> Callable[[], float]:
    first, second = linked(device)
    cleanup.callback(second.close)
    cleanup.callback(first.close)

    def one_way(sender: QueuePair, receiver: QueuePair, number: int) -> None:
        sender.post_send(number % SLOTS, 64, number % 8 == 0)
        while not (found := receiver.recv_queue.poll()):
            pass
        receiver.post_recv(found[0].wr_id)
        if number % 8 == 0:
            sender.send_queue.poll()

    def figure() -> float:
        times = []
        for number in range(PINGS):
            start = time.perf_counter()
            one_way(first, second, number)
            one_way(second, first, number)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6

    return figure


def endpoint_round_trip_us(device: Device, cleanup: ExitStack) -> Callable[[], float]:
    queues, socks = linked(device), socket.socketpair()
    first, second = (
        RdmaEndpoint(acquire(device.choice), queue, sock, "peer", 1 << 30)
        for queue, sock in zip(queues, socks, strict=True)
    )
    cleanup.callback(second.close)
    cleanup.callback(first.close)

    def one_way(sender: RdmaEndpoint, receiver: RdmaEndpoint) -> None:
        sender.send(Kind.CALL, 1, SMALL, (), may_wait=True, must=False)
        while not receiver.receive():
            pass

    def figure() -> float:
        times = []
        for _ in range(PINGS):
            start = time.perf_counter()
            one_way(first, second)
            one_way(second, first)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6

    return figure


def bare_write_mib_s(device: Device, nbytes: int) -> float:
    """MiB a second of writes by pyverbs alone, four outstanding: nothing but post_send and poll."""
    with ExitStack() as cleanup:
        first, second = linked(device)
        cleanup.callback(second.close)
        cleanup.callback(first.close)
        access = device.verbs.e.IBV_ACCESS_LOCAL_WRITE | device.verbs.e.IBV_ACCESS_REMOTE_WRITE
        source, target = (Block(nbytes, lambda at, size: device.register(at, size, access)) for _ in range(2))
        cleanup.callback(source.deregister)
        cleanup.callback(target.deregister)
        total, posted, done = max(4, 32 * MIB // nbytes), 0, 0
        start = time.perf_counter()
        while done < total:
            while posted < total and posted - done < 4:
                first.post_write(1, source.address, source.lkey, nbytes, target.address, target.rkey)
                posted += 1
            done += len(first.send_queue.poll())
        return total * nbytes / MIB / (time.perf_counter() - start)


def main() -> None:
    """Run every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    with ExitStack() as cleanup:
        device = acquire()
        cleanup.callback(device.release)
        ours, bare = endpoint_round_trip_us(device, cleanup), bare_round_trip_us(device, cleanup)
        pairs = [(ours(), bare()) for _ in range(WARM_UP + options.rounds)][WARM_UP:]
        value, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
        report(options.json, "rdma_send_round_trip_p50", "us", value, floor)
        latency = 2 * perftest("ib_send_lat", device, 4, "-s", "64", "-n", "500")
        report(options.json, "rdma_bare_pyverbs_round_trip", "us", floor, latency)
        few = ("-s", str(MIB), "-n", "32", "-t", "4", "-Q", "1")
        pairs = [
            (bare_write_mib_s(device, MIB), perftest("ib_write_bw", device, 3, *few)) for _ in range(options.rounds)
        ]
        value, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
        report(options.json, "rdma_bare_pyverbs_write_1MiB", "MiB/s", value, floor)
        connection = cleanup.enter_context(owner())
        for mib in (1, 4, 16, 64):
            count = ("-n", str(max(8, 32 // mib)), "-t", "4", "-Q", "1")
            pairs = []
            for _ in range(options.rounds if mib < 16 else 1 + options.rounds // 3):
                floor = perftest("ib_write_bw", device, 3, "-s", str(mib * MIB), *count)
                pairs.append((write_mib_s(connection, mib * MIB), floor))
            value, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
            report(options.json, f"rdma_write_{mib}MiB", "MiB/s", value, floor)


if __name__ == "__main__":
    main()
