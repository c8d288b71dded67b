"""The health of GPUs: what agents report of it, and what operators say.

An unhealthy GPU is not given out; what a ticket holds of it stays the ticket's, whose clients and actors are told. What
an operator has said stands until an operator says otherwise; what a source has found, until the source says otherwise
or an operator does.
"""

from __future__ import annotations

from spoke.allocator.operations import REASON_MAX, check_operator, check_there
from spoke.errors import InvalidRequest
from spoke.events import types as e
from spoke.events.model import Gpu
from spoke.events.state import PoolState
from spoke.protocol import requests as r

KIND_MAX = 40
BY_OPERATOR = "operator"


def report(state: PoolState, asked: r.Envelope, request: r.ReportHealth) -> list[e.Event]:
    """Take note of what has changed; a report that comes again changes nothing."""
    node = state.nodes.get(asked.node_id)
    if node is None or node.incarnation != asked.incarnation:
        return []
    known = state.faults.get(asked.node_id, {})
    gpus = {(gpu.index, gpu.uuid) for gpu in node.spec.gpus}
    events: list[e.Event] = []
    for gpu in {one.uuid: one for one in request.gpus}.values():
        fault = known.get(gpu.uuid)
        if (gpu.index, gpu.uuid) not in gpus or (fault is not None and fault.by):
            continue
        kind, reason = gpu.kind[:KIND_MAX], gpu.reason[:REASON_MAX]
        if kind and (fault is None or (fault.kind, fault.reason) != (kind, reason)):
            events.append(e.GpuMarkedUnhealthy(asked.node_id, gpu.index, gpu.uuid, kind, reason))
        elif not kind and fault is not None:
            events.append(e.GpuMarkedHealthy(asked.node_id, gpu.index, gpu.uuid, "its agent finds it healthy"))
    return events


def mark(state: PoolState, asked: r.Envelope, request: r.MarkGpu) -> list[e.Event]:
    """Mark a GPU by hand."""
    check_operator(asked)
    check_there(state, request.node_id)
    gpu = _gpu(state, request)
    fault = state.faults.get(request.node_id, {}).get(gpu.uuid)
    by, reason = (asked.client_id, asked.seq), request.reason[:REASON_MAX]
    if request.healthy:
        if fault is None:
            return [e.RequestAnswered(*by, request.TYPE, f"GPU {gpu.index} of {request.node_id} is healthy")]
        return [e.GpuMarkedHealthy(request.node_id, gpu.index, gpu.uuid, reason, *by)]
    return [e.GpuMarkedUnhealthy(request.node_id, gpu.index, gpu.uuid, BY_OPERATOR, reason, *by)]


def _gpu(state: PoolState, request: r.MarkGpu) -> Gpu:
    gpus = state.nodes[request.node_id].spec.gpus
    for gpu in gpus:
        if gpu.index == request.index:
            return gpu
    has = ", ".join(str(gpu.index) for gpu in gpus) or "none"
    raise InvalidRequest(f"GPU {request.index} of node {request.node_id} was named; the node has GPUs {has}")
