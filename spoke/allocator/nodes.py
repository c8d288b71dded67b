"""What agents tell: that a node joins or leaves, and what became of its actors. And what follows when it is lost."""

from __future__ import annotations

from spoke.allocator import restarts
from spoke.allocator.leases import check_lease
from spoke.allocator.tickets import NOBODY, free_nodes, give_back
from spoke.errors import InvalidRequest, NodeRefused
from spoke.events import types as e
from spoke.events.capacity import Amount
from spoke.events.ids import order_of
from spoke.events.model import NodeSpec
from spoke.events.rules import check_labels
from spoke.events.state import ActorState, NodeState, PoolState, TicketState, mask_of
from spoke.protocol import requests as r
from spoke.protocol.version import check_protocol

SEEN_MAX = 100


def register(state: PoolState, asked: r.Envelope, request: r.RegisterNode) -> list[e.Event]:
    """Let a node in. Whoever registers has killed everything that a former agent of the node left behind."""
    spec, node_id = request.spec, request.spec.node_id
    if node_id != asked.node_id:
        raise InvalidRequest(f"node {asked.node_id} registers as {node_id}: the two must be the same")
    check_protocol(f"node {node_id}", spec.protocol, spec.version)
    check_lease(request.lease_ms)
    check_labels(f"node {node_id}", spec.labels)
    joined = e.NodeRegistered(node_id, asked.incarnation, request.lease_ms, spec)
    known = state.nodes.get(node_id)
    if known is None:
        return [joined]
    if known.incarnation == asked.incarnation:
        return []
    events: list[e.Event] = []
    if known.incarnation:
        if known.spec.machine != spec.machine:
            raise NodeRefused(
                f"node id {node_id} belongs to an agent that is alive on {known.spec.host} ({known.spec.address}): "
                f"choose another --node-id, or stop that agent"
            )
        events += lose(state, known, "its agent was started anew")
    return [*events, *_release_misfits(state, known, spec, events), joined]


def _release_misfits(state: PoolState, node: NodeState, spec: NodeSpec, before: list[e.Event]) -> list[e.Event]:
    """Release the tickets of a node that comes back with less than they hold there."""
    ended = {event.ticket_id for event in before if isinstance(event, (e.GangReleasing, e.GangReleased))}
    held = [state.tickets[t] for t in sorted(node.tickets) if t not in ended]
    used = Amount(0, 0, 0)
    gpus = 0
    nics: set[str] = set()
    for ticket in held:
        slots = [slot for slot in ticket.slots if slot.node_id == node.spec.node_id]
        gpus |= mask_of(tuple(index for slot in slots for index in slot.gpu_ids))
        nics.update(name for slot in slots for name in slot.nics)
        for need in map(ticket.need_of, slots):
            used = Amount(0, used.cpu_milli + need.cpu_milli, used.memory + need.memory)
    total = Amount(0, spec.cpu_milli, spec.memory)
    fits = gpus & ~mask_of(tuple(gpu.index for gpu in spec.gpus)) == 0 and total.holds(used) > 0
    if fits and nics <= {nic.name for nic in spec.nics}:
        return []
    events: list[e.Event] = []
    for ticket in held:
        gone = _alive_on(ticket, node.spec.node_id)
        reason = f"node {node.spec.node_id} came back with other resources"
        events += give_back(ticket, reason, NOBODY, dead=gone)
    return events


def leave(state: PoolState, asked: r.Envelope, request: r.LeaveNode) -> list[e.Event]:
    """Let a node go. If tickets still hold slots there it counts as lost, and is theirs again if it comes back."""
    node = _node(state, asked)
    if node is None:
        return []
    reason = request.reason[:500] or "its agent stopped"
    if not node.tickets:
        return [e.NodeRemoved(asked.node_id, reason)]
    events = lose(state, node, reason)
    freed = {event.ticket_id for event in events if isinstance(event, e.GangReleased)}
    return [*events, e.NodeRemoved(asked.node_id, reason)] if node.tickets <= freed else events


def report_held(state: PoolState, asked: r.Envelope, request: r.ReportHeld) -> list[e.Event]:
    """After a change of servers: what the log knows is adopted as it is, what it does not know is stopped (I9)."""
    node = _node(state, asked)
    if node is None or node.confirmed or request.server != state.server:
        return []
    known = {actor.launch_id for t in node.tickets for actor in _alive_on(state.tickets[t], asked.node_id)}
    launches = tuple(sorted(set(request.launches) - known))
    tickets = tuple(sorted(set(request.tickets) - node.tickets))
    events: list[e.Event] = []
    end = state.history_end
    if end and (launches or tickets or _is_after(request.seen, end)):
        events.append(e.LogRegressed(request.seen, end, asked.node_id))
    if launches or tickets:
        return [*events, e.NodeReconciling(asked.node_id, asked.incarnation, launches, tickets)]
    return [*events, e.NodeConfirmed(asked.node_id, asked.incarnation)]


def report_lost(state: PoolState, asked: r.Envelope, request: r.ReportLost) -> list[e.Event]:
    """After a change of servers: a client has seen what is not in the log, which is said once (I9)."""
    end = state.history_end
    seen = [launch for launch in request.launches if end and _is_after(launch, end)]
    seen += [ticket for ticket in request.tickets if end and ticket not in state.tickets]
    lost = [e.LogRegressed(seen[0][:SEEN_MAX], end, asked.client_id)] if seen else []
    return [*lost, e.RequestAnswered(asked.client_id, asked.seq, request.TYPE, "what the log holds is true")]


def _is_after(seen: str, end: str) -> bool:
    ms, dash, seq = seen.partition("-")
    if not (dash and ms.isdecimal() and seq.isdecimal() and len(seen) < 41):
        return False
    return (int(ms), int(seq)) > order_of(end)


def lose(state: PoolState, node: NodeState, reason: str) -> list[e.Event]:
    """What follows when a node's agent is gone: its actors are dead (I7), its tickets may have failed."""
    node_id = node.spec.node_id
    events: list[e.Event] = [e.NodeLost(node_id, reason)]
    for ticket_id in sorted(node.tickets):
        ticket = state.tickets[ticket_id]
        gone = _alive_on(ticket, node_id)
        why = f"node {node_id} was lost: {reason}"
        events += [e.ActorLost(ticket_id, actor.rank, actor.actor_id, node_id, why) for actor in gone]
        if ticket.phase == "releasing":
            events += free_nodes(ticket, (node_id,), gone)
        elif ticket.spec.on_failure == "release" and gone:
            events += give_back(ticket, why, NOBODY, dead=gone)
        else:
            events += restarts.give_up(ticket, gone)
    return events


def report_started(state: PoolState, asked: r.Envelope, request: r.ReportStarted) -> list[e.Event]:
    """An actor is up, for the first time or again."""
    found = _actor(state, asked, request.ticket_id, request.rank, request.launch_id)
    if found is None or not found[1].alive or request.restarts < found[1].restarts:
        return []
    ticket, actor = found
    events: list[e.Event] = []
    if request.restarts > actor.restarts:
        events += _catch_up(ticket, actor, request.restarts)
    elif actor.phase == "running":
        return []
    elif actor.rank in ticket.halting and request.restarts == ticket.generation:
        events += restarts.halted(ticket, actor, 0, 0)  # and started again, before the log lost that
    return [
        *events,
        e.ActorStarted(
            ticket.ticket_id,
            actor.rank,
            actor.actor_id,
            actor.node_id,
            max(1, request.pid),
            request.address,
            request.restarts,
        ),
    ]


def report_start_failed(
    state: PoolState, asked: r.Envelope, request: r.ReportStartFailed, now_ms: int
) -> list[e.Event]:
    """An actor did not come up."""
    found = _actor(state, asked, request.ticket_id, request.rank, request.launch_id)
    if found is None or not found[1].alive or request.restarts < found[1].restarts:
        return []
    ticket, actor = found
    if actor.phase == "running" and request.restarts == actor.restarts:
        return []
    reason = request.reason[:4000]
    if not request.forgotten:
        again = restarts.restart(state, ticket, actor, 0, 0, reason, now_ms)
        if again:
            return again
    event = e.ActorStartFailed(ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, reason)
    before = _catch_up(ticket, actor, request.restarts)
    how = "did not start again" if actor.restarts else "did not start"
    failed = f"rank {actor.rank} ({actor.actor_id}) {how}: {reason[-300:]}"
    return [*before, event, *_after_end(ticket, actor, failed)]


def report_exited(state: PoolState, asked: r.Envelope, request: r.ReportExited, now_ms: int) -> list[e.Event]:
    """An actor is gone."""
    found = _actor(state, asked, request.ticket_id, request.rank, request.launch_id)
    if found is None or not found[1].alive or request.restarts < found[1].restarts:
        return []
    ticket, actor = found
    reason = request.reason[:4000]
    how = f"was ended by signal {request.signal}" if request.signal else f"exited with code {request.code}"
    failed = ""
    if request.code or request.signal or reason:
        failed = f"rank {actor.rank} ({actor.actor_id}) {how}" + (f": {reason[-300:]}" if reason else "")
        again = restarts.restart(state, ticket, actor, request.code, request.signal, reason, now_ms)
        if again:
            return again
    event = e.ActorExited(
        ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, request.code, request.signal, reason
    )
    return [*_catch_up(ticket, actor, request.restarts), event, *_after_end(ticket, actor, failed)]


def _catch_up(ticket: TicketState, actor: ActorState, count: int) -> list[e.Event]:
    """Restarts that the log had lost with its end."""
    if count <= actor.restarts:
        return []
    return [_restarting(ticket, actor, count, 0, 0, restarts.LOST_IN_THE_LOG, 0)]


def report_restarting(state: PoolState, asked: r.Envelope, request: r.ReportRestarting) -> list[e.Event]:
    """An actor failed, and its agent starts it again."""
    found = _actor(state, asked, request.ticket_id, request.rank, request.launch_id)
    if found is None or not found[1].alive or request.restarts <= found[1].restarts:
        return []
    reason = request.reason[:4000]
    return [_restarting(*found, request.restarts, request.code, request.signal, reason, request.delay_ms)]


def _restarting(
    ticket: TicketState, actor: ActorState, count: int, code: int, signal: int, reason: str, delay_ms: int
) -> e.Event:
    return e.ActorRestarting(
        ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, count, code, signal, reason, max(0, delay_ms)
    )


def report_halted(state: PoolState, asked: r.Envelope, request: r.ReportHalted, now_ms: int) -> list[e.Event]:
    """An actor has ended for the restart of its gang."""
    found = _actor(state, asked, request.ticket_id, request.rank, request.launch_id)
    if found is None or request.restarts < found[1].restarts:
        return []
    ticket, actor = found
    if request.restarts > actor.restarts:  # the log lost the restart: decide it again
        code, signal, generation = request.code, request.signal, request.restarts
        reason = restarts.LOST_IN_THE_LOG
        again = restarts.restart(state, ticket, actor, code, signal, reason, now_ms, generation=generation)
        if again or not actor.alive:
            return again
        event = e.ActorExited(ticket.ticket_id, actor.rank, actor.actor_id, actor.node_id, code, signal, reason)
        return [event, *_after_end(ticket, actor, f"rank {actor.rank} ({actor.actor_id}) ended: {reason}")]
    if actor.rank not in ticket.halting or request.restarts != ticket.generation:
        return []
    return restarts.halted(ticket, actor, request.code, request.signal)


def _after_end(ticket: TicketState, actor: ActorState, failed: str) -> list[e.Event]:
    if ticket.phase == "releasing":
        return free_nodes(ticket, (actor.node_id,), (actor,))
    if failed and ticket.spec.on_failure == "release" and not actor.stopping:
        return give_back(ticket, failed, NOBODY, dead=(actor,))
    if failed and not actor.stopping:
        stopped = restarts.give_up(ticket, [actor])
        if stopped:
            return stopped
    return restarts.resumed(ticket, actor.rank, gone=True)


def _alive_on(ticket: TicketState, node_id: str) -> list[ActorState]:
    return [actor for actor in ticket.actors if actor.node_id == node_id and actor.alive]


def _node(state: PoolState, asked: r.Envelope) -> NodeState | None:
    """The node that speaks, unless it speaks for a run that is over."""
    node = state.nodes.get(asked.node_id)
    return node if node is not None and node.incarnation == asked.incarnation else None


def _actor(
    state: PoolState, asked: r.Envelope, ticket_id: str, rank: int, launch_id: str
) -> tuple[TicketState, ActorState] | None:
    """The actor of a report, unless the report is about a launch that is over."""
    ticket = state.tickets.get(ticket_id)
    actor = ticket.actor(rank) if ticket is not None else None
    if ticket is None or actor is None or actor.launch_id != launch_id or actor.node_id != asked.node_id:
        return None
    return (ticket, actor) if _node(state, asked) is not None else None
