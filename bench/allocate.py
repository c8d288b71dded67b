"""What an allocation costs, against the floor that Redis and Python leave: the same three hops with nothing decided.

The floor is a client that XADDs, a bare Python reader that answers each entry, and the client's wake-up; pipelined for
the throughput figures. The figures are the real client and the real allocator, in processes of their own as the
floor's reader is, on the same server in the same run.

    python bench/allocate.py [--json] [--seconds 4] [--large] [--appendfsync always]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import spoke
from spoke.allocator.service import Allocator, AllocatorConfig
from spoke.cli.embedded import EmbeddedServer
from spoke.events.model import Gpu, NodeSpec, PortRange
from spoke.protocol import requests as r
from spoke.protocol.keys import Keys
from spoke.protocol.orders import Welcome, decode_order
from spoke.protocol.server import connect, read_stream

OUTSTANDING = 256
LEASE_MS = 86_400_000
POOL_SIZES = (10, 1_000, 10_000)
LARGE = {
    "one GPU": (spoke.Resources(gpus=1, cpus=2), (1, 2, 3)),
    "a quarter of a GPU": (spoke.Resources(gpus=0.25, cpus=2), (1, 0.5, 0.3, 2)),
}
"""What is asked for in the large pool, and the pieces in which it was filled before."""
ROUNDS = 5
SPAWN = multiprocessing.get_context("spawn")


# --- the floor ---------------------------------------------------------------------------------------------------


def _bare_reader(url: str, stop: Any) -> None:
    """Answer every entry: no decoding, no decision, no state; as much in one pipeline as one read brought."""
    client, last = connect(url), "0-0"
    while not stop.is_set():
        entries = read_stream(client, "floor:in", last, block_ms=100)
        if not entries:
            continue
        with client.pipeline(transaction=False) as pipe:
            for entry_id, fields in entries:
                pipe.xadd("floor:out", {b"seq": fields[b"seq"], b"body": fields[b"body"]}, maxlen=10_000)
                last = entry_id.decode()
            pipe.execute()


class Floor:
    """A client of the bare reader."""

    def __init__(self, url: str) -> None:
        self._client, self._reader = connect(url), connect(url)
        self._last = "0-0"
        self._seq = 0
        self._body = b"x" * 200

    def round_trip(self) -> None:
        """One request, one answer."""
        self._send(1)
        while not self._receive():
            pass

    def _send(self, count: int) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for _ in range(count):
                self._seq += 1
                pipe.xadd("floor:in", {"seq": self._seq, "body": self._body}, maxlen=10_000)
            pipe.execute()

    def _receive(self) -> int:
        entries = read_stream(self._reader, "floor:out", self._last, block_ms=1_000)
        if entries:
            self._last = entries[-1][0].decode()
        return len(entries)

    def rate(self, seconds: float) -> float:
        """Answers a second with OUTSTANDING requests always under way."""
        self._send(OUTSTANDING)
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            got = self._receive()
            done += got
            self._send(got)
        spent = time.perf_counter() - began
        left = OUTSTANDING
        while left > 0:
            left -= self._receive()
        return done / spent


# --- the figures -------------------------------------------------------------------------------------------------


def _allocator(url: str, pool: str, stop: Any) -> None:
    service = Allocator(AllocatorConfig(url, pool, own_process=True))

    def end() -> None:
        stop.wait()
        service.stop()

    threading.Thread(target=end, daemon=True).start()
    service.run()


def register_nodes(url: str, pool: str, count: int, gpus: int = 8) -> None:
    """Register nodes that no agent serves, with a lease that outlives the run."""
    client, keys = connect(url), Keys(pool)
    for first in range(0, count, 500):
        with client.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + 500, count)):
                spec = NodeSpec(
                    node_id=f"node-{number}",
                    host="bench",
                    address="127.0.0.1",
                    gpus=tuple(Gpu(index, f"gpu-{number}-{index}") for index in range(gpus)),
                    cpu_milli=64_000,
                    memory=1 << 39,
                    ports=PortRange(20_000, 256),
                )
                asked = r.Envelope(r.RegisterNode(spec, LEASE_MS), node_id=spec.node_id, incarnation="bench")
                pipe.xadd(keys.requests, r.encode_request(asked))  # type: ignore[arg-type]
            pipe.execute()
    last, deadline = keys.node(f"node-{count - 1}"), time.monotonic() + 60
    while True:
        entries = read_stream(client, last, "0-0", block_ms=1_000)
        if any(isinstance(decode_order(fields).order, Welcome) for _, fields in entries):
            return
        assert time.monotonic() < deadline, "the nodes were not registered within a minute"


def allocate_and_release(client: spoke.Client, gpus: int = 1) -> None:
    """One gang of one actor, and back."""
    gang = client.gang_allocate(1, 1, spoke.Resources(gpus=gpus), timeout=0).result(10)
    gang.release().result(10)


class Load:
    """Keeps OUTSTANDING requests under way: each grant is released, each release is followed by the next request."""

    def __init__(self, client: spoke.Client, resources: spoke.Resources = spoke.Resources(gpus=1)) -> None:  # noqa: B008
        self._client, self._resources = client, resources
        self._lock = threading.Lock()
        self._stop = False
        self._idle = threading.Semaphore(0)
        self.done = 0
        self.failed: list[BaseException] = []

    def run(self, seconds: float) -> float:
        """Requests (allocations and releases) a second."""
        self.begin()
        began_at, began = self.done, time.perf_counter()
        time.sleep(seconds)
        rate = (self.done - began_at) / (time.perf_counter() - began)
        self.end()
        return rate

    def begin(self) -> None:
        """Ask, and go on until ``end``."""
        for _ in range(OUTSTANDING):
            self._allocate()

    def end(self) -> None:
        """Ask no more, and wait for the answers."""
        self._stop = True
        for _ in range(OUTSTANDING):
            assert self._idle.acquire(timeout=30), "a request was never answered"
        assert not self.failed, self.failed[0]

    def _allocate(self) -> None:
        if self._stop:
            self._idle.release()
            return
        future = self._client.gang_allocate(1, 1, self._resources, timeout=None)
        future.add_done_callback(self._granted)

    def _granted(self, future: Any) -> None:
        if future.exception() is not None:
            self.failed.append(future.exception())
            self._idle.release()
            return
        with self._lock:
            self.done += 1
        future.result().release().add_done_callback(self._released)

    def _released(self, future: Any) -> None:
        with self._lock:
            self.done += 1
        self._allocate()


def fill(client: spoke.Client, gpus: int, pieces: tuple[float, ...]) -> list[spoke.Gang]:
    """Take three quarters of the GPUs in gangs of 10 nodes, and give gangs back until half is taken: fragmented."""
    rng, granted, taken = random.Random(gpus), [], 0.0
    while taken < gpus * 0.75:
        asked = [(rng.randint(1, 2), rng.choice(pieces), rng.choice((2, 4, 8))) for _ in range(100)]
        found = [client.gang_allocate(10, n, spoke.Resources(gpus=size, cpus=c), timeout=60) for n, size, c in asked]
        granted += [(future.result(60), 10 * n * size) for future, (n, size, _) in zip(found, asked, strict=True)]
        taken += sum(10 * n * size for n, size, _ in asked)
    rng.shuffle(granted)
    given_back = []
    while taken > gpus * 0.5:
        gang, size = granted.pop()
        given_back.append(gang.release())
        taken -= size
    for future in given_back:
        future.result(60)
    return [gang for gang, _ in granted]


@contextmanager
def running(target: Callable[..., None], *args: Any) -> Iterator[None]:
    """A process for as long as the block lasts."""
    stop = SPAWN.Event()
    process = SPAWN.Process(target=target, args=(*args, stop), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(15)
        if process.is_alive():
            process.kill()


def p50_us(action: Callable[[], None], count: int) -> float:
    """The median duration of an action."""
    spent = []
    for _ in range(count):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) * 1e6


def figure(name: str, value: float, unit: str, floor: float, as_json: bool) -> None:
    """Print a figure beside its floor."""
    ratio = value / floor
    if as_json:
        row = {
            "figure": name,
            "value": round(value, 2),
            "unit": unit,
            "floor": round(floor, 2),
            "ratio": round(ratio, 3),
        }
        print(json.dumps(row), flush=True)
    else:
        print(f"{name:<58} {value:>11,.1f} {unit:<11} floor {floor:>11,.1f}   ratio {ratio:.2f}", flush=True)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--large", action="store_true", help="only the rates with 10,000 nodes")
    parser.add_argument("--appendfsync", choices=["everysec", "always", "no"], default="everysec")
    options = parser.parse_args()
    sync = ("--appendfsync", options.appendfsync)
    with tempfile.TemporaryDirectory(prefix="spoke-bench-") as data, EmbeddedServer(Path(data), options=sync) as server:
        url = server.url
        with running(_bare_reader, url), running(_allocator, url, "bench"):
            register_nodes(url, "bench", 64)
            floor = Floor(url)
            floor.round_trip()
            if options.large:
                _large(url, floor, options.seconds, options.json)
                return
            with spoke.Client(url, pool="bench") as client:
                allocate_and_release(client)
                _latency(client, floor, options.json)
                _throughput(client, floor, options.seconds, options.json)
        base = 0.0
        for size in POOL_SIZES:
            pool = f"bench-{size}"
            with running(_allocator, url, pool):
                register_nodes(url, pool, size)
                with spoke.Client(url, pool=pool) as client:
                    allocate_and_release(client, 8)
                    value = p50_us(lambda: allocate_and_release(client, 8), 300)
            base = base or value
            figure(f"allocate 8 GPUs + release, p50, {size} nodes", value, "us", base, options.json)
        with running(_bare_reader, url):
            _large(url, floor, options.seconds, options.json)


def _latency(client: spoke.Client, floor: Floor, as_json: bool) -> None:
    """Alternate figure and floor, so that both see the same machine."""
    allocated, floors = [], []
    for _ in range(ROUNDS):
        floors.append(p50_us(floor.round_trip, 300))
        gangs: list[spoke.Gang] = []

        def ask() -> None:
            gangs.append(client.gang_allocate(1, 1, spoke.Resources(gpus=1), timeout=0).result(10))  # noqa: B023

        spent = []
        for _ in range(300):
            began = time.perf_counter()
            ask()
            spent.append(time.perf_counter() - began)
            gangs.pop().release().result(10)
        allocated.append(statistics.median(spent) * 1e6)
    figure("allocate -> answer, p50", statistics.median(allocated), "us", statistics.median(floors), as_json)


def _throughput(client: spoke.Client, floor: Floor, seconds: float, as_json: bool) -> None:
    rates, floors = [], []
    for _ in range(3):
        floors.append(floor.rate(seconds / 2))
        rates.append(Load(client).run(seconds))
    name = f"requests a second, {OUTSTANDING} outstanding"
    figure(name, statistics.median(rates), "requests/s", statistics.median(floors), as_json)


def _large(url: str, floor: Floor, seconds: float, as_json: bool) -> None:
    """Rates in the largest pool, half full and fragmented; the leases of its nodes are not renewed meanwhile."""
    size = POOL_SIZES[-1]
    for number, (what, (resources, pieces)) in enumerate(LARGE.items()):
        pool = f"large-{number}"
        with running(_allocator, url, pool):
            register_nodes(url, pool, size)
            with spoke.Client(url, pool=pool) as client:
                held = fill(client, 8 * size, pieces)
                floors = floor.rate(seconds / 2)
                rate = Load(client, resources).run(seconds)
                name = f"allocations and releases a second, {what}, {size} nodes"
                figure(name, rate, "requests/s", floors, as_json)
                assert held, "the pool is half full"


if __name__ == "__main__":
    main()
