"""Actor calls against the floor that a bare Python socket sets between the same two processes.

    python bench/transport.py [--json] [--rounds N]

Prints for each figure its value, its floor in the same run and their ratio: the p50 of a small call's round trip in
microseconds, small calls per second with 1,000 outstanding, and the echo of a 64 MiB array in GiB/s both ways
together. Floor and figure alternate in short rounds and the median round counts, so that noise meets both.

Where the scheduler puts the two processes decides how much waking costs (several times the rest of a bare ping-pong
on virtual machines), and it may put the floor elsewhere than the figure. So both are pinned: the round trip is
measured with the processes on two processors, where actors live, and again on one, where waking is nearly free.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from spoke.transport import CallServer, Connection, connect

SECRET = b"benchmark-secret" * 2
ARRAY_BYTES = 64 << 20
SMALL = b"x" * 32
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
    buffer = memoryview(bytearray(ARRAY_BYTES))
    while head := sock.recv(LENGTH.size, socket.MSG_WAITALL):
        nbytes = LENGTH.unpack(head)[0]
        receive(sock, buffer[:nbytes])
        sock.sendall(buffer[:nbytes])
    server.close()


def receive(sock: socket.socket, target: memoryview) -> None:
    while target:
        target = target[sock.recv_into(target) :]


def pin(pid: int, cpu: int) -> None:
    """Put every thread of a process on one processor."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {cpu})


class Floor:
    """The bare socket's side of each figure."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.large = memoryview(bytearray(ARRAY_BYTES))

    def round_trip_us(self) -> float:
        """The median round trip of one small message."""
        times = []
        message = LENGTH.pack(len(SMALL)) + SMALL
        for _ in range(500):
            start = time.perf_counter()
            self.sock.sendall(message)
            self.sock.recv(len(SMALL), socket.MSG_WAITALL)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6

    def calls_per_s(self) -> float:
        """Small messages per second, 1,000 at a time."""
        message = LENGTH.pack(len(SMALL)) + SMALL
        start = time.perf_counter()
        for _ in range(1000):
            self.sock.sendall(message)
        receive(self.sock, self.large[: 1000 * len(SMALL)])
        return 1000 / (time.perf_counter() - start)

    def echo_gib_s(self) -> float:
        """Bandwidth of a large message, there and back."""
        start = time.perf_counter()
        self.sock.sendall(LENGTH.pack(ARRAY_BYTES))
        self.sock.sendall(self.large)
        receive(self.sock, self.large)
        return 2 * ARRAY_BYTES / (time.perf_counter() - start) / (1 << 30)


class Calls:
    """The same by actor calls."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.array = np.zeros(ARRAY_BYTES, dtype=np.uint8)

    def round_trip_us(self) -> float:
        """The median round trip of one small message."""
        times = []
        for _ in range(500):
            start = time.perf_counter()
            self.connection.call("echo", (SMALL,)).result()
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6

    def calls_per_s(self) -> float:
        """Small messages per second, 1,000 at a time."""
        start = time.perf_counter()
        futures: list[Future[Any]] = [self.connection.call("echo", (SMALL,)) for _ in range(1000)]
        for future in futures:
            future.result()
        return 1000 / (time.perf_counter() - start)

    def echo_gib_s(self) -> float:
        """Bandwidth of a large message, there and back."""
        start = time.perf_counter()
        self.connection.call("echo", (self.array,)).result()
        return 2 * ARRAY_BYTES / (time.perf_counter() - start) / (1 << 30)


def alternate(rounds: int, figure: Callable[[], float], floor: Callable[[], float]) -> tuple[float, float]:
    """The medians of both over rounds that alternate; the first round only warms up."""
    pairs = [(figure(), floor()) for _ in range(rounds + 1)][1:]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def main() -> None:
    """Run every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default 9)")
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
        with connect(address, SECRET) as connection:
            calls = Calls(connection)
            cpus = sorted(os.sched_getaffinity(0))
            first, last = cpus[0], cpus[-1]
            for figure, unit, ours, bare, peer_cpu in (
                ("call_round_trip_p50", "us", calls.round_trip_us, floor.round_trip_us, last),
                ("call_round_trip_p50_one_cpu", "us", calls.round_trip_us, floor.round_trip_us, first),
                ("calls_1000_outstanding", "calls/s", calls.calls_per_s, floor.calls_per_s, last),
                ("echo_64MiB_array", "GiB/s", calls.echo_gib_s, floor.echo_gib_s, last),
            ):
                pin(os.getpid(), first)
                pin(peer.pid, peer_cpu)
                report(options.json, figure, unit, *alternate(options.rounds, ours, bare))
    finally:
        peer.kill()
        peer.wait()


def report(as_json: bool, figure: str, unit: str, value: float, floor: float) -> None:
    line = {"figure": figure, "value": value, "unit": unit, "floor": floor, "ratio": value / floor}
    if as_json:
        print(json.dumps(line), flush=True)
    else:
        print(f"{figure:28} {value:12,.2f} {unit:8} floor {floor:12,.2f}   ratio {value / floor:.2f}", flush=True)


if __name__ == "__main__":
    main()
