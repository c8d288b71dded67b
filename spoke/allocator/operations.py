"""What operators do: cordon, drain, uncordon and remove nodes, and move waiting tickets in the line.

A cordon belongs to the node's id: it outlives the agent, and even the node's removal. While requests are signed, these
are for operators and administrators.
"""

from __future__ import annotations

from collections.abc import Iterator

from spoke.allocator.tickets import NOBODY, find, give_back
from spoke.errors import Forbidden, InvalidRequest, NodeBusy, UnknownNode
from spoke.events import types as e
from spoke.events.names import check_name
from spoke.events.state import Cordon, PoolState
from spoke.protocol import requests as r
from spoke.protocol.identity import owner_of

REASON_MAX = 500
DEADLINE_MS_MAX = 365 * 24 * 3600 * 1000


def cordon(state: PoolState, asked: r.Envelope, request: r.CordonNode) -> list[e.Event]:
    """Place nothing new on a node; said again, it changes the reason."""
    check_operator(asked)
    check_there(state, request.node_id)
    known = state.cordons.get(request.node_id)
    reason = request.reason[:REASON_MAX]
    if known is not None and known.phase == "cordoned" and known.reason == reason:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"{request.node_id} is cordoned")]
    return [e.NodeCordoned(request.node_id, asked.client_id, asked.seq, reason)]


def uncordon(state: PoolState, asked: r.Envelope, request: r.UncordonNode) -> list[e.Event]:
    """Let a node have new slots again."""
    check_operator(asked)
    check_name("the node id", request.node_id)
    if request.node_id not in state.cordons:
        check_there(state, request.node_id)
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"{request.node_id} is not cordoned")]
    return [e.NodeUncordoned(request.node_id, asked.client_id, asked.seq)]


def drain(state: PoolState, asked: r.Envelope, request: r.DrainNode, now_ms: int) -> list[e.Event]:
    """Cordon a node until its tickets have gone. A drain that is under way gets the new deadline and reason."""
    check_operator(asked)
    check_there(state, request.node_id)
    known = state.cordons.get(request.node_id)
    if known is not None and known.phase == "drained" and not state.nodes[request.node_id].tickets:
        return [e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, f"{request.node_id} is drained")]
    left_ms = request.deadline_ms
    if left_ms is not None and not 0 <= left_ms <= DEADLINE_MS_MAX:
        raise InvalidRequest(f"a deadline of {left_ms} ms was given: use 0 up to a year, or none at all")
    deadline_ms = 0 if left_ms is None else now_ms + left_ms
    reason = request.reason[:REASON_MAX]
    remove = known is not None and known.remove
    return [
        e.NodeDraining(request.node_id, asked.client_id, asked.seq, reason, deadline_ms, remove, request.wait),
    ]


def remove(state: PoolState, asked: r.Envelope, request: r.RemoveNode, now_ms: int) -> list[e.Event]:
    """Take a node out of the pool; with ``force`` its tickets are released first."""
    check_operator(asked)
    check_there(state, request.node_id)
    node_id, reason = request.node_id, request.reason[:REASON_MAX] or "an operator removed it"
    tickets = sorted(state.nodes[node_id].tickets)
    if not tickets:
        return [e.NodeRemoved(node_id, reason, asked.client_id, asked.seq)]
    if not request.force:
        names = ", ".join(tickets[:5]) + (f" and {len(tickets) - 5} more" if len(tickets) > 5 else "")
        raise NodeBusy(
            f"node {node_id} was to be removed, and {names} hold places there: drain it first (spoke node drain "
            f"{node_id}), or use --force, which releases them"
        )
    return [e.NodeDraining(node_id, asked.client_id, asked.seq, reason, now_ms, True, True)]


def move(state: PoolState, asked: r.Envelope, request: r.MoveGang) -> list[e.Event]:
    """Move a waiting ticket to the head of the line or to its tail. To the tail its owner may, too."""
    ticket = find(state, request.ticket_id)
    own = asked.signer is not None and owner_of(ticket.client_id) == asked.signer.name
    if not (request.to == "tail" and own):
        check_operator(asked)
    if ticket.phase != "queued":
        raise InvalidRequest(f"ticket {ticket.ticket_id} is {ticket.phase}: only a ticket that waits can be moved")
    return [e.GangMoved(ticket.ticket_id, asked.client_id, asked.seq, request.to)]


def advance(state: PoolState, now_ms: int) -> list[e.Event]:
    """The next step of the drains: the tickets of one that is out of time are released, an empty node is drained."""
    for node_id in sorted(state.draining):
        cordon, node = state.cordons[node_id], state.nodes.get(node_id)
        if node is None:
            continue
        if not node.tickets:
            return [e.NodeRemoved(node_id, cordon.reason) if cordon.remove else e.NodeDrained(node_id)]
        if cordon.deadline_ms and cordon.deadline_ms <= now_ms:
            events = list(_release_all(state, node_id, cordon))
            if events:
                return events
    return []


def deadlines(state: PoolState) -> Iterator[int]:
    """When something must be done about a drain (server time)."""
    for node_id in sorted(state.draining):
        cordon, node = state.cordons[node_id], state.nodes.get(node_id)
        if node is not None and cordon.deadline_ms and any(_goes_on(state, t) for t in node.tickets):
            yield cordon.deadline_ms


def _release_all(state: PoolState, node_id: str, cordon: Cordon) -> Iterator[e.Event]:
    what = "is being removed" if cordon.remove else "is drained, and its deadline has come"
    reason = f"node {node_id} {what}" + (f": {cordon.reason}" if cordon.reason else "")
    for ticket_id in sorted(state.nodes[node_id].tickets):
        if _goes_on(state, ticket_id):
            yield from give_back(state.tickets[ticket_id], reason, NOBODY)


def _goes_on(state: PoolState, ticket_id: str) -> bool:
    return state.tickets[ticket_id].phase != "releasing"


def check_operator(asked: r.Envelope) -> None:
    """Where requests are signed, operations are for operators and administrators."""
    signer = asked.signer
    if signer is not None and not signer.is_operator:
        raise Forbidden(
            f"{asked.request.TYPE}: {signer} asked, and this is for operators: use a key from `spoke key issue "
            f"operator NAME`"
        )


def check_there(state: PoolState, node_id: str) -> None:
    """Raise UnknownNode for a node that is not registered."""
    check_name("the node id", node_id)
    if node_id not in state.nodes:
        known = sorted(state.nodes)
        names = ", ".join(known[:10]) + (", …" if len(known) > 10 else "") or "none"
        raise UnknownNode(f"there is no node {node_id} in this pool; registered are: {names}. See `spoke nodes`")
