"""A log with known answers: grants, shares, a wait, a refusal, failures, a lost node, a lost client, work that goes on.

Hours count from ``START``; whatever an hour brings begins at exactly that hour, an event a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable

from spoke.events import types as e
from spoke.events.chain import FIELD, Chain
from spoke.events.codec import event_args
from spoke.protocol import requests as r
from spoke.protocol.server import Redis
from tests.builders import MemoryPool, gang, node_spec

HOUR = 3_600_000
START = 1_700_000_000_000
END = START + 8 * HOUR
"""Two hours after the last event."""


def golden_pool() -> MemoryPool:
    """The pool after all of it.

    == ======================================================================================================
    h
    == ======================================================================================================
    0  node n1 with 4 GPUs; alice gets t-1: two ranks with a GPU each (GPUs 0 and 1), launched
    1  bob gets t-2: three ranks with a quarter of GPU 2 each; a gang of his is refused
    2  a rank of t-1 fails; bob's t-3 (two GPUs) does not fit and waits
    3  alice releases t-1; when its last actor has ended, t-3 gets GPUs 0 and 1, launched, on_failure=release
    4  node n1 is lost, t-3 with it, but t-2 (nothing was launched) stays
    5  node n1 is back; bob is lost, so that t-2 is given back
    6  alice gets t-4, one GPU (0), and keeps it
    == ======================================================================================================
    """
    pool = MemoryPool()
    _at(pool, 0)
    agent = pool.register(node_spec("n1", 4))
    pool.ask("alice-1", r.ConnectClient(10_000, user="alice"))
    pool.ask("bob-1", r.ConnectClient(10_000, user="bob"))
    pool.allocate("alice-1", gang(1, 2, name="train"))
    pool.launch("alice-1", "t-1", (0, 1))
    pool.settle()
    _at(pool, 1)
    pool.allocate("bob-1", gang(1, 3, 0.25))
    pool.allocate("bob-1", gang(1, 1, 100))
    _at(pool, 2)
    pool.end(agent, min(agent.processes), code=3)
    pool.allocate("bob-1", gang(1, 2, on_failure="release", name="tune"), None)
    _at(pool, 3)
    pool.ask("alice-1", r.ReleaseGang("t-1"))
    pool.settle()
    pool.launch("bob-1", "t-3", (0, 1))
    pool.settle()
    _at(pool, 4)
    pool.expire_node("n1")
    _at(pool, 5)
    pool.register(node_spec("n1", 4))
    pool.expire_client("bob-1")
    _at(pool, 6)
    pool.allocate("alice-1", gang())
    return pool


def _at(pool: MemoryPool, hour: int) -> None:
    pool.now_ms = START + hour * HOUR - 1


def write_log(redis: Redis, key: str, log: Iterable[e.Recorded]) -> None:
    """Put events into a stream, chained as an allocator would."""
    chain = Chain()
    for recorded in log:
        args = event_args(recorded.event)
        link = chain.link(recorded.id, args)
        fields = dict(zip(args[::2], args[1::2], strict=True))
        redis.xadd(key, {**fields, FIELD: link}, id=recorded.id)  # type: ignore[dict-item]
