"""Quotas: what a project has by right, what it may borrow, and what it must wait for."""

from __future__ import annotations

from typing import Literal

from spoke.errors import LimitExceeded
from spoke.events.model import GangSpec
from spoke.events.queueing import NOTHING, Amounts, Quota, demand_of, plus
from spoke.events.state import PoolState, TicketState

Standing = Literal["by right", "borrows", "over"]


def standing(state: PoolState, project: str, spec: GangSpec, more: Amounts = NOTHING) -> Standing:
    """How a gang stands to its project's quota, if the project had ``more`` than it has. No quota: all by right."""
    queueing = state.queueing
    if not queueing.quotas:
        return "by right"
    quota = queueing.quota(project)
    if quota is None or not quota.exceeded(plus(plus(queueing.held(project), more), demand_of(spec))):
        return "by right"
    return "borrows" if quota.borrow else "over"


def over_reason(state: PoolState, project: str, spec: GangSpec) -> str:
    """Why a gang must wait for its project's quota, in words."""
    quota = state.queueing.quota(project)
    if quota is None:
        return ""
    name = quota.exceeded(plus(state.queueing.held(project), demand_of(spec)))
    return f"would exceed the quota of project {project}: {words(quota)}, which may not borrow (by {name})"


def check_priority(state: PoolState, project: str, spec: GangSpec) -> None:
    """Raise LimitExceeded for a priority above what the project's quota allows."""
    quota = state.queueing.quota(project)
    if quota is not None and quota.priority_max is not None and spec.terms.priority > quota.priority_max:
        raise LimitExceeded(
            f"priority {spec.terms.priority} was asked for; gangs of project {project} may ask for "
            f"{quota.priority_max} at most, by its quota: ask for less, or have an operator raise the ticket's "
            f"(`spoke ticket priority`)"
        )


def can_reclaim(state: PoolState, ticket: TicketState) -> bool:
    """Whether a waiting gang has a right to what others borrow: a quota covers it."""
    quota = state.queueing.quotas.get(ticket.project)
    return quota is not None and standing(state, ticket.project, ticket.spec) == "by right"


def is_over(state: PoolState, project: str, without: Amounts = NOTHING) -> bool:
    """Whether a project has more than its quota, not counting ``without``."""
    quota = state.queueing.quota(project)
    held = state.queueing.held(project)
    left = (held[0] - without[0], held[1] - without[1], held[2] - without[2], held[3] - without[3])
    return quota is not None and bool(quota.exceeded(left))


def words(quota: Quota) -> str:
    """A quota in words."""
    parts = []
    if quota.gpu_milli is not None:
        parts.append(f"{quota.gpu_milli / 1000:g} GPUs")
    if quota.cpu_milli is not None:
        parts.append(f"{quota.cpu_milli / 1000:g} CPUs")
    if quota.memory is not None:
        parts.append(f"{quota.memory / 2**30:.3g} GiB of memory")
    if quota.nodes is not None:
        parts.append(f"{quota.nodes} nodes")
    return ", ".join(parts) or "no limit"
