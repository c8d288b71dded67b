"""RDMA against perftest and against bare pyverbs, on the same device: `tests/rdma/run.sh $PYTHON bench/rdma.py`.

    python bench/rdma.py [--json] [--rounds N]

Writes of 1 to 64 MiB by our queue pair, against `ib_write_bw`; a frame there and back between two endpoints, against
the same bytes by pyverbs alone, which is Python's own floor: one post_send and one successful poll on each side, with
work requests made beforehand. Both sides of the round trip are in one process, so that the scheduler has no part in
it. `ib_send_lat` is printed beside it, to show what the interpreter costs before Spoke does anything.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable

from transport import report  # the benchmark beside this one

from spoke.transport.frames import Kind
from spoke.transport.rdma.device import Device, acquire
from spoke.transport.rdma.endpoint import RdmaEndpoint
from spoke.transport.rdma.pool import Block
from spoke.transport.rdma.queue import QueuePair
from spoke.transport.rdma.wire import SLOTS

MIB = 1 << 20
SMALL = b"x" * 32
PINGS = 100
PERFTEST_PORT = 18515


def linked(device: Device) -> tuple[QueuePair, QueuePair]:
    first, second = QueuePair(device), QueuePair(device)
    first.connect(second.describe())
    second.connect(first.describe())
    return first, second


def write_mib_s(device: Device, nbytes: int, rounds: int) -> float:
    """MiB a second of one-sided writes, four outstanding."""
    first, second = linked(device)
    e = device.verbs.e
    access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE
    ours, theirs = (Block(nbytes, lambda at, size: device.register(at, size, access)) for _ in range(2))
    figures = []
    for _ in range(rounds):
        total = max(4, 32 * MIB // nbytes)
        posted = finished = 0
        start = time.perf_counter()
        while finished < total:
            while posted < total and posted - finished < 4:
                first.post_write(posted, ours.address, ours.lkey, nbytes, theirs.address, theirs.rkey)
                posted += 1
            for completion in first.send_queue.poll():
                assert completion.status == 0
                finished += 1
        figures.append(total * nbytes / MIB / (time.perf_counter() - start))
    first.close()
    second.close()
    ours.deregister()
    theirs.deregister()
    return statistics.median(figures)


def perftest(tool: str, device: Device, *options: str) -> list[str]:
    """The line of figures of one of perftest's programs between two processes."""
    choice = device.choice
    common = [tool, "-d", choice.port.device, "-i", str(choice.port.port), "-x", str(choice.gid.index), "-F", *options]
    common += ["-p", str(PERFTEST_PORT)]
    server = subprocess.Popen(common, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(20):
            time.sleep(0.3)  # the server says nothing when it listens; the client gives up at once if it does not
            done = subprocess.run([*common, "127.0.0.1"], capture_output=True, text=True, timeout=120, check=False)
            lines = [line.split() for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+\s+[\d.]+", line)]
            if lines:
                return lines[-1]
        raise SystemExit(f"{tool} failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    finally:
        server.kill()
        server.wait()


def bare_round_trip_us(device: Device) -> Callable[[], float]:
    first, second = linked(device)

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


def endpoint_round_trip_us(device: Device) -> Callable[[], float]:
    queues, socks = linked(device), socket.socketpair()
    first, second = (
        RdmaEndpoint(acquire(device.choice), queue, sock, "peer", 1 << 30)
        for queue, sock in zip(queues, socks, strict=True)
    )

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


def main() -> None:
    """Run every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    options = parser.parse_args()
    device = acquire()
    ours, bare = endpoint_round_trip_us(device), bare_round_trip_us(device)
    pairs = [(ours(), bare()) for _ in range(options.rounds + 1)][1:]
    value, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    report(options.json, "rdma_send_round_trip_p50", "us", value, floor)
    latency = 2 * float(perftest("ib_send_lat", device, "-s", "64", "-n", "500")[4])
    report(options.json, "rdma_bare_pyverbs_round_trip", "us", floor, latency)
    for mib in (1, 4, 16, 64):
        count = str(max(8, 32 // mib))
        floor = float(perftest("ib_write_bw", device, "-s", str(mib * MIB), "-n", count, "-t", "4", "-Q", "1")[3])
        report(options.json, f"rdma_write_{mib}MiB", "MiB/s", write_mib_s(device, mib * MIB, options.rounds), floor)


if __name__ == "__main__":
    main()
