"""Dominant shares: what a project uses of the resource of which it uses most, by its weight.

The measure is that of Ghodsi et al., "Dominant Resource Fairness" (NSDI 2011), taken of what a project holds now plus
the decaying average of what it held. The first keeps gangs that are granted in the same moment from all going to one
project, the second makes up for what it had before. Under saturation both lead to holdings in proportion to the
weights.
"""

from __future__ import annotations

from spoke.events.queueing import AVERAGE_BITS, NOTHING, Amounts
from spoke.events.state import PoolState

SHARE = 1 << 40
"""All of a resource, as a share."""


def totals(state: PoolState) -> Amounts:
    """All that the nodes that take work can give."""
    gpus = cpus = memory = nodes = 0
    for total, count in state.capacity.shapes():
        gpus += total.gpus * count
        cpus += total.cpu_milli * count
        memory += total.memory * count
        nodes += count
    return gpus * 1000, cpus, memory, nodes


def dominant_share(state: PoolState, project: str, of: Amounts, now_ms: int, more: Amounts = NOTHING) -> int:
    """The project's weighted dominant share of ``of``, if it had ``more`` than it has."""
    queueing = state.queueing
    account, quota = queueing.accounts.get(project), queueing.quota(project)
    held, average = NOTHING, NOTHING
    if account is not None:
        held, average = account.held, account.averages_at(now_ms, queueing.policy.half_life_ms)
    most = 0
    for at in range(3):
        if of[at]:
            used = ((held[at] + more[at]) << AVERAGE_BITS) + average[at]
            most = max(most, (used * SHARE // of[at]) >> AVERAGE_BITS)
    return most // (quota.weight if quota is not None else 1)
