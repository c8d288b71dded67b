"""Actor calls over shared memory and TCP, against what bare sockets and a memcpy take between the same two processes.

    python bench/transport.py [--json] [--rounds N] [--only shm|tcp]

Prints for each transport, with the floor of the same run and the ratio of the two:

- call_round_trip_p50: a small call and its answer, in microseconds. Floor: a raw socket ping-pong.
- calls_1000_outstanding: small calls per second while 1,000 are outstanding all the time. Floor: a raw socket that
  sends 1,000 messages and receives 1,000, again and again.
- echo_64MiB: the echo of an array of 64 MiB, in GiB/s per direction. Floor: for shm a memcpy of 64 MiB; for tcp a
  sendall and a recv_into of 64 MiB, there and then back: as for the call, nothing overlaps.

Floor and figure alternate in short rounds and the median round counts, so that noise meets both. Where the scheduler
puts the two processes decides how much a wake-up costs (on virtual machines several times the rest of a bare
ping-pong), and it may put the floor elsewhere than the figure. So both are pinned to two processors, where actors live;
the round trip is measured on one, too, where waking is nearly free and what is left is the interpreter.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from spoke.transport import CallServer, Connection, connect

SECRET = b"benchmark-secret" * 2
ARRAY_BYTES = 64 << 20
GIB = 1 << 30
SMALL = b"x" * 32
OUTSTANDING = 1000
CALLS = 5000
TRIPS = 500
LENGTH = struct.Struct("<Q")


class Echo:
    """The actor."""

    def echo(self, value: Any) -> Any:
        """The value itself."""
        return value


def serve() -> None:
    """The other process: the actor, and a bare socket beside it."""
    server = CallServer(Echo(), secret=SECRET, host="127.0.0.1", advertise="127.0.0.1")
    server.start()
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps([server.address, listener.getsockname()[1]]), flush=True)
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = large_memory()
    while head := sock.recv(LENGTH.size, socket.MSG_WAITALL):
        nbytes = LENGTH.unpack(head)[0]
        receive(sock, buffer[:nbytes])
        sock.sendall(buffer[:nbytes])
    server.close()


def large_memory() -> memoryview:
    """64 MiB that are there already, in huge pages where the system has them: the floor has what our frames have."""
    area = mmap.mmap(-1, ARRAY_BYTES)
    area.madvise(mmap.MADV_HUGEPAGE)
    memory = memoryview(area)
    np.frombuffer(memory, np.uint8)[:] = 1
    return memory


def receive(sock: socket.socket, target: memoryview) -> None:
    """Fill the target."""
    while target:
        target = target[sock.recv_into(target) :]


def pin(pid: int, cpu: int) -> None:
    """Put every thread of a process on one processor."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {cpu})


class Floor:
    """What the same takes without actors."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.large, self.copy = large_memory(), large_memory()

    def round_trip_us(self) -> float:
        """The median round trip of one small message."""
        message = LENGTH.pack(len(SMALL)) + SMALL

        def trip() -> None:
            self.sock.sendall(message)
            self.sock.recv(len(SMALL), socket.MSG_WAITALL)

        return median_us(trip)

    def messages_per_s(self) -> float:
        """Small messages per second, 1,000 at a time."""
        message = LENGTH.pack(len(SMALL)) + SMALL
        start = time.perf_counter()
        for _ in range(CALLS // OUTSTANDING):
            for _ in range(OUTSTANDING):
                self.sock.sendall(message)
            receive(self.sock, self.large[: OUTSTANDING * len(SMALL)])
        return CALLS / (time.perf_counter() - start)

    def echo_gib_s(self) -> float:
        """Bandwidth of a large message by a bare socket, per direction."""
        start = time.perf_counter()
        self.sock.sendall(LENGTH.pack(ARRAY_BYTES))
        self.sock.sendall(self.large)
        receive(self.sock, self.large)
        return 2 * ARRAY_BYTES / (time.perf_counter() - start) / GIB

    def memcpy_gib_s(self) -> float:
        """Bandwidth of copying a large message within memory."""
        start = time.perf_counter()
        self.copy[:] = self.large
        return ARRAY_BYTES / (time.perf_counter() - start) / GIB


class Calls:
    """The same by actor calls."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.array = np.frombuffer(large_memory(), np.uint8)

    def round_trip_us(self) -> float:
        """The median round trip of one small call."""
        return median_us(lambda: self.connection.call("echo", (SMALL,)).result())

    def calls_per_s(self) -> float:
        """Small calls per second; whenever one is answered the next one is made."""
        start = time.perf_counter()
        futures: deque[Future[Any]] = deque()
        for _ in range(CALLS):
            if len(futures) == OUTSTANDING:
                futures.popleft().result()
            futures.append(self.connection.call("echo", (SMALL,)))
        for future in futures:
            future.result()
        return CALLS / (time.perf_counter() - start)

    def echo_gib_s(self) -> float:
        """Bandwidth of a large array, per direction."""
        start = time.perf_counter()
        self.connection.call("echo", (self.array,)).result()
        return 2 * ARRAY_BYTES / (time.perf_counter() - start) / GIB


def median_us(trip: Callable[[], object]) -> float:
    """The median of many round trips."""
    times = []
    for _ in range(TRIPS):
        start = time.perf_counter()
        trip()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def alternate(rounds: int, figure: Callable[[], float], floor: Callable[[], float]) -> tuple[float, float]:
    """The medians of both over rounds that alternate; the first round only warms up."""
    pairs = [(figure(), floor()) for _ in range(rounds + 1)][1:]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def main() -> None:
    """Run every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default 9)")
    parser.add_argument("--only", choices=("shm", "tcp"), help="one transport instead of both")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    peer = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert peer.stdout is not None
        address, port = json.loads(peer.stdout.readline())
        floor = Floor(port)
        cpus = sorted(os.sched_getaffinity(0))
        for transport in [options.only] if options.only else ["shm", "tcp"]:
            with connect(address, SECRET, transport=transport) as connection:
                measure(options, peer.pid, cpus, transport, Calls(connection), floor)
    finally:
        peer.kill()
        peer.wait()


def measure(
    options: argparse.Namespace, peer: int, cpus: list[int], transport: str, calls: Calls, floor: Floor
) -> None:
    """All figures of one transport."""
    large_floor = floor.memcpy_gib_s if transport == "shm" else floor.echo_gib_s
    for figure, unit, ours, bare, peer_cpu in (
        ("call_round_trip_p50", "us", calls.round_trip_us, floor.round_trip_us, cpus[-1]),
        ("call_round_trip_p50_one_cpu", "us", calls.round_trip_us, floor.round_trip_us, cpus[0]),
        ("calls_1000_outstanding", "calls/s", calls.calls_per_s, floor.messages_per_s, cpus[-1]),
        ("echo_64MiB", "GiB/s", calls.echo_gib_s, large_floor, cpus[-1]),
    ):
        pin(os.getpid(), cpus[0])
        pin(peer, peer_cpu)
        report(options.json, f"{transport}_{figure}", unit, *alternate(options.rounds, ours, bare))


def report(as_json: bool, figure: str, unit: str, value: float, floor: float) -> None:
    """One figure, for programs or for people."""
    line = {"figure": figure, "value": value, "unit": unit, "floor": floor, "ratio": value / floor}
    if as_json:
        print(json.dumps(line), flush=True)
    else:
        print(f"{figure:32} {value:12,.2f} {unit:8} floor {floor:12,.2f}   ratio {value / floor:.2f}", flush=True)


if __name__ == "__main__":
    main()
