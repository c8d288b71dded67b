"""Actors that talk to each other: a sum over a gang, passed round a ring of its members, without the client.

    python examples/ring_all_reduce.py                       everything on this machine
    python examples/ring_all_reduce.py --url redis://...     on a pool whose agents --import examples/ring_all_reduce.py

Each of N members cuts its array into N parts. In N - 1 steps every part goes once round the ring and collects what the
members add to it (reduce-scatter); in N - 1 more steps the finished parts go round (all-gather). So each member sends
and receives 2 (N - 1) / N of the array, however many there are (Patarasuk and Yuan, 2009).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import spoke

MEMBERS, ROUNDS = 4, 5
FLOATS = 2_000_003
"""No multiple of the members: the parts differ in size."""
WAIT_S = 60.0

Array = npt.NDArray[np.float32]


def all_reduce(ctx: spoke.ActorContext, array: Array) -> None:
    """Add up the arrays of all members, in place; every member calls this at once."""
    members, rank = ctx.world_size, ctx.rank
    right, left = (rank + 1) % members, (rank - 1) % members
    parts = np.array_split(array, members)  # views
    for step in range(members - 1):
        sent = ctx.send(right, parts[(rank - step) % members], tag=step)
        parts[(rank - step - 1) % members] += ctx.recv(left, tag=step).result(WAIT_S)
        sent.result(WAIT_S)
    for step in range(members - 1):
        sent = ctx.send(right, parts[(rank + 1 - step) % members], tag=members + step)
        parts[(rank - step) % members][:] = ctx.recv(left, tag=members + step).result(WAIT_S)
        sent.result(WAIT_S)


@spoke.register_actor("RingMember")
class RingMember(spoke.Actor):
    """Holds one array of the sum."""

    def fill(self, floats: int) -> None:
        """Begin anew: rank r holds r + 1 everywhere, and its position in the array."""
        self.array = np.arange(floats, dtype=np.float32) % 1000 + self.ctx.rank + 1

    def reduce(self) -> float:
        """Take part in the sum; the seconds that it took."""
        start = time.perf_counter()
        all_reduce(self.ctx, self.array)
        return time.perf_counter() - start

    def sum_is_right(self) -> bool:
        """Whether every number of the array is what it must be."""
        members = self.ctx.world_size
        positions = np.arange(len(self.array), dtype=np.float32) % 1000
        return bool(np.array_equal(self.array, members * positions + members * (members + 1) / 2))

    async def neighbours(self) -> list[int]:
        """Who answers to the left and to the right: a call from member to member."""
        ctx = self.ctx
        around = [ctx.peer((ctx.rank + way) % ctx.world_size) for way in (-1, 1)]
        return [await peer.call("rank") for peer in around]

    async def rank(self) -> int:
        """Its place in the ring."""
        return self.ctx.rank


def main() -> int:
    """Launch the members, let them add up their arrays some times, and check the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the server of a running pool (default: start everything here)")
    parser.add_argument("--pool", default="ring")
    options = parser.parse_args()
    if options.url:
        return ring(options.url, options.pool)
    from digits import everything_here  # the example beside this one

    with everything_here(options.pool, Path(__file__).resolve()) as url:
        return ring(url, options.pool)


def ring(url: str, pool: str) -> int:
    """The example on a pool that runs; 0 if every sum is right."""
    with spoke.Client(url, pool=pool) as client:
        resources = spoke.Resources(gpus=1)
        with client.gang_allocate(1, MEMBERS, resources, name="ring", timeout=WAIT_S).result(WAIT_S) as gang:
            members = gang.launch("RingMember").result(WAIT_S)

            def everyone(method: str, *args: Any) -> list[Any]:
                return [future.result(WAIT_S) for future in [member.call(method, *args) for member in members]]

            for rank, around in enumerate(everyone("neighbours")):
                print(f"rank {rank} sits between {around[0]} and {around[1]}")
            right = True
            for number in range(ROUNDS):
                everyone("fill", FLOATS)
                seconds = max(everyone("reduce"))
                right = right and all(everyone("sum_is_right"))
                print(f"round {number}: {MEMBERS} x {FLOATS * 4 / 1e6:.0f} MB added up in {seconds * 1e3:.0f} ms")
            print(f"every sum is right: {right}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
