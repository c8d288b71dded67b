"""What operators set while the pool works: the queue's policy, quotas, and the priority of a ticket."""

from __future__ import annotations

from spoke.allocator.operations import check_operator
from spoke.allocator.tickets import find
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.queueing import QUOTAS_MAX
from spoke.events.state import PoolState
from spoke.events.terms import Terms
from spoke.protocol import requests as r
from spoke.protocol.identity import owner_of


def set_policy(state: PoolState, asked: r.Envelope, request: r.SetQueuePolicy) -> list[e.Event]:
    """Order the queue by another policy from now on."""
    check_operator(asked)
    if request.policy == state.queueing.policy:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"the policy is {request.policy.order}")]
    return [e.QueuePolicyChanged(asked.client_id, asked.seq, request.policy)]


def set_quota(state: PoolState, asked: r.Envelope, request: r.SetQuota) -> list[e.Event]:
    """Give a project a quota, or another one."""
    check_operator(asked)
    quotas = state.queueing.quotas
    if quotas.get(request.quota.project) == request.quota:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, "the quota is as asked")]
    if len(quotas) >= QUOTAS_MAX and request.quota.project not in quotas:
        raise InvalidRequest(f"{QUOTAS_MAX} projects have a quota, which is the limit: remove some")
    return [e.QuotaChanged(asked.client_id, asked.seq, request.quota)]


def remove_quota(state: PoolState, asked: r.Envelope, request: r.RemoveQuota) -> list[e.Event]:
    """Take a project's quota away."""
    check_operator(asked)
    if request.project not in state.queueing.quotas:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"{request.project:.100} has no quota")]
    return [e.QuotaRemoved(asked.client_id, asked.seq, request.project)]


def prioritize(state: PoolState, asked: r.Envelope, request: r.PrioritizeGang) -> list[e.Event]:
    """Give a ticket another priority. Its owner may lower it."""
    ticket = find(state, request.ticket_id)
    Terms(priority=request.priority)  # raises for one that is out of range
    own = asked.signer is not None and owner_of(ticket.client_id) == asked.signer.name
    if not (own and request.priority <= ticket.spec.terms.priority):
        check_operator(asked)
    if ticket.spec.terms.priority == request.priority:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"{ticket.ticket_id} has this priority")]
    return [e.GangPrioritized(ticket.ticket_id, asked.client_id, asked.seq, request.priority)]
