"""A log with known answers: all that can become of a gang, and of what it runs on.

Grants, shares, waits, refusals, an elastic and a mixed gang, a repair, a preemption, failures, a lost node, a lost
client, a GPU that falls ill and recovers, work that goes on.

Hours count from ``START``; whatever an hour brings begins at exactly that hour, an event a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable

from spoke.events import types as e
from spoke.events.chain import FIELD, Chain
from spoke.events.codec import event_args
from spoke.events.model import GangSpec, Resources
from spoke.events.rules import Group
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from spoke.protocol.server import Redis
from tests.builders import FakeAgent, MemoryPool, gang, node_spec

HOUR = 3_600_000
START = 1_700_000_000_000
END = START + 15 * HOUR
"""Two hours after the last hour with events."""


def first_hours() -> MemoryPool:
    """The pool after the hours up to 6 of these:

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
    7  node n2 with 4 GPUs; carol (project vision) gets t-5, 2 of 1 to 3 nodes with 2 ranks each: n1 (1, 2), n2 (0, 1)
    8  dave gets t-6, preemptible, for project speech: a head without GPUs on n1, two workers on n2 (2, 3)
    9  GPU 3 of n1 falls ill, so that a gang of carol's is refused
    10 rank 0 of t-5 is killed; GPU 3 is well again; the rank gets that in place of GPU 1, and is launched anew
    11 erin's t-7 (priority 10, two GPUs) preempts t-6, which has 30 s, and gets its GPUs
    12 dave's t-8 waits for ten minutes in vain; his t-9 has its priority raised, and is cancelled
    13 carol closes, so that t-5 is given back
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


def golden_pool() -> MemoryPool:
    """The pool after all of it."""
    pool = first_hours()
    _later_hours(pool, pool.agents["n1"])
    return pool


def _later_hours(pool: MemoryPool, n1: FakeAgent) -> None:
    _at(pool, 7)
    pool.register(node_spec("n2", 4))
    pool.ask("carol-1", r.ConnectClient(10_000, user="carol", project="vision"))
    pool.allocate("carol-1", gang(3, 2, min_nodes=1, name="sweep"))
    pool.launch("carol-1", "t-5", (0, 1, 2, 3))
    pool.settle()
    _at(pool, 8)
    pool.ask("dave-1", r.ConnectClient(10_000, user="dave"))
    groups = (Group("head", 1, 1, Resources(gpus=0, cpus=1.0)), Group("worker", 1, 2, Resources(gpus=1)))
    terms = Terms(preemptible=True, project="speech")
    pool.allocate("dave-1", GangSpec(2, 1, Resources(gpus=0), name="serve", groups=groups, terms=terms))
    _at(pool, 9)
    pool.report(n1, r.ReportHealth((r.GpuReport(3, "n1-gpu-3", "xid", "Xid 79: the GPU has fallen off the bus"),)))
    pool.allocate("carol-1", gang())
    _at(pool, 10)
    pool.end(n1, next(i for i, order in n1.processes.items() if order.rank == 0), signal=9)
    pool.report(n1, r.ReportHealth((r.GpuReport(3, "n1-gpu-3"),)))
    pool.ask("carol-1", r.RepairGang("t-5", 0))
    pool.launch("carol-1", "t-5", (0,))
    pool.settle()
    _at(pool, 11)
    pool.ask("erin-1", r.ConnectClient(10_000, user="erin"))
    pool.allocate("erin-1", gang(1, 2, name="urgent", terms=Terms(priority=10)), None)
    pool.pass_time(30_000)
    _at(pool, 12)
    pool.allocate("dave-1", gang(1, 2, name="late"), 600_000)
    pool.allocate("dave-1", gang(1, 3, name="whim"), None)
    pool.ask("dave-1", r.PrioritizeGang("t-9", 5))
    pool.pass_time(600_000)
    pool.ask("dave-1", r.ReleaseGang("t-9"))
    _at(pool, 13)
    pool.ask("carol-1", r.CloseClient())
    pool.settle()


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
