"""``fold(state, recorded)``: the one place where a pool's state changes.

No clock, no randomness, no I/O: the state after is decided by the state before and the event. The state that is
passed in is used up (changed and returned), since copying a pool of ten thousand nodes for every event would cost
more than the event; a caller that needs the old one takes ``state.copy()`` first.

Each event type has one small function below, in the order of ``types.py``; ``_HANDLERS`` maps them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from spoke.errors import InvalidTransition
from spoke.events import types as e
from spoke.events.ids import ms_of
from spoke.events.lifecycle import ACTOR, NODE, TICKET, NodePhase, TicketPhase, advance
from spoke.events.model import Slot
from spoke.events.queueing import amounts_of, project_of
from spoke.events.state import (
    GONE_CLIENTS_KEPT,
    SEQ_WINDOW,
    ActorState,
    ClientState,
    Cordon,
    GpuFault,
    NodeState,
    PoolState,
    TicketState,
    indices_of,
    need_of,
    ticket_number,
)


def fold(state: PoolState, recorded: e.Recorded) -> PoolState:
    """The state after the event. Raises InvalidTransition for an event that cannot follow."""
    event = recorded.event
    kind = type(event)
    _HANDLERS[kind](state, recorded.id, event)
    if state.waiting.aside and event.TYPE.startswith(("node.", "gpu.")):
        state.waiting.recall()
    if kind in _ASKED and event.seq:  # type: ignore[attr-defined]
        _mark_decided(state, event.client_id, event.seq)  # type: ignore[attr-defined]
    state.last_id = recorded.id
    return state


def fold_all(state: PoolState, ids: Iterable[str], events: Iterable[e.Event]) -> None:
    """Fold many events. Raises InvalidTransition; the state is then at the event before."""
    for event_id, event in zip(ids, events, strict=True):
        kind = type(event)
        _HANDLERS[kind](state, event_id, event)
        if kind in _ASKED and event.seq:  # type: ignore[attr-defined]
            _mark_decided(state, event.client_id, event.seq)  # type: ignore[attr-defined]
        state.last_id = event_id


TICKETS_PER_SERVER = 100_000
"""More tickets than a server can lose at its end; the numbers of those are never used again."""


def launch_key(client_id: str, seq: int) -> str:
    """The name of a launch request within its ticket."""
    return f"{client_id}/{seq}"


def _mark_decided(state: PoolState, client_id: str, seq: int) -> None:
    client = state.clients.get(client_id) or state.gone.get(client_id)
    if client is None or seq <= client.seq_floor:
        return
    if seq == client.seq_floor + 1 and not client.seqs:  # in order, as nearly always
        client.seq_floor = seq
        return
    client.seqs.add(seq)
    while client.seq_floor + 1 in client.seqs:
        client.seq_floor += 1
        client.seqs.discard(client.seq_floor)
    if len(client.seqs) > SEQ_WINDOW:  # a request left this far behind never comes any more
        client.seq_floor = min(client.seqs)
        client.seqs.discard(client.seq_floor)


# --- lookups that explain themselves -----------------------------------------------------------------------------


def _node(state: PoolState, event_id: str, event: Any) -> NodeState:
    node = state.nodes.get(event.node_id)
    if node is None:
        advance(NODE, f"node {event.node_id}", None, event_id, event.TYPE)
        raise AssertionError("unreachable")
    return node


def _ticket(state: PoolState, event_id: str, event: Any) -> TicketState:
    ticket = state.tickets.get(event.ticket_id)
    if ticket is None:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about ticket {event.ticket_id}, which is not there"
        )
    return ticket


def _actor(state: PoolState, event_id: str, event: Any) -> tuple[TicketState, ActorState]:
    ticket = _ticket(state, event_id, event)
    actor = ticket.actor(event.rank)
    if actor is None or actor.actor_id != event.actor_id:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about actor {event.actor_id} at rank {event.rank} of ticket "
            f"{event.ticket_id}, which was never launched"
        )
    return ticket, actor


# --- allocator and clients ---------------------------------------------------------------------------------------


def _allocator_elected(state: PoolState, event_id: str, event: e.AllocatorElected) -> None:
    if event.epoch <= state.epoch:
        raise InvalidTransition(
            f"event {event_id} elects {event.holder} for epoch {event.epoch}, but epoch {state.epoch} has begun"
        )
    state.epoch, state.allocator = event.epoch, event.holder


def _server_changed(state: PoolState, event_id: str, event: e.ServerChanged) -> None:
    """Ids of tickets may have been given out that are forgotten now: none of them is given out again."""
    state.server, state.history_end = event.server, event.end
    state.changed = state.changed or bool(event.was)
    if state.next_ticket > 1:
        state.next_ticket = (state.next_ticket // TICKETS_PER_SERVER + 1) * TICKETS_PER_SERVER + 1
    for node in state.nodes.values():
        if node.incarnation:
            node.confirmed = False
            state.index(node)


def _log_regressed(state: PoolState, event_id: str, event: e.LogRegressed) -> None:
    state.history_end = ""  # said once is enough


def _nothing(state: PoolState, event_id: str, event: e.Event) -> None:
    pass


def _client_connected(state: PoolState, event_id: str, event: e.ClientConnected) -> None:
    if event.client_id in state.clients:
        raise InvalidTransition(f"event {event_id} connects client {event.client_id}, which is connected")
    state.clients[event.client_id] = ClientState(
        event.client_id, event.lease_ms, event.user, event.host, event.pid, event.project
    )


def _client_gone(state: PoolState, event_id: str, event: e.ClientLost | e.ClientClosed) -> None:
    client = state.clients.pop(event.client_id, None)
    if client is None:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about client {event.client_id}, which is not there"
        )
    client.tickets = set()
    state.gone[event.client_id] = client
    if len(state.gone) > GONE_CLIENTS_KEPT:
        del state.gone[next(iter(state.gone))]


# --- nodes -------------------------------------------------------------------------------------------------------


def _node_registered(state: PoolState, event_id: str, event: e.NodeRegistered) -> None:
    if event.node_id != event.spec.node_id:
        raise InvalidTransition(f"event {event_id} registers node {event.node_id} as {event.spec.node_id}")
    known = state.nodes.get(event.node_id)
    advance(NODE, f"node {event.node_id}", known.phase if known else None, event_id, event.TYPE)
    cordon = state.cordons.get(event.node_id)
    phase: NodePhase = cordon.phase if cordon is not None else "up"
    node = NodeState.empty(event.spec, phase, event.incarnation, event.lease_ms, not state.changed)
    if known is not None:  # what live tickets hold on the node stays theirs
        for ticket_id in sorted(known.tickets):
            ticket = state.tickets[ticket_id]
            _book(node, ticket, (slot for slot in ticket.slots if slot.node_id == event.node_id), event_id)
    state.apply_faults(node)
    state.nodes[event.node_id] = node
    state.index(node)


def _node_confirmed(state: PoolState, event_id: str, event: e.NodeConfirmed) -> None:
    node = _node(state, event_id, event)
    node.confirmed = True
    state.index(node)


def _node_updated(state: PoolState, event_id: str, event: e.NodeUpdated) -> None:
    node = _node(state, event_id, event)
    node.spec = dataclasses.replace(node.spec, labels=event.labels)
    state.index(node)


def _advance_node(state: PoolState, event_id: str, event: Any) -> NodeState:
    node = _node(state, event_id, event)
    node.phase = advance(NODE, f"node {event.node_id}", node.phase, event_id, event.TYPE)
    state.index(node)
    return node


def _node_lost(state: PoolState, event_id: str, event: e.NodeLost) -> None:
    _advance_node(state, event_id, event).incarnation = ""


def _node_cordoned(state: PoolState, event_id: str, event: e.NodeCordoned) -> None:
    _advance_node(state, event_id, event)
    state.set_cordon(event.node_id, Cordon(user_of(state, event.client_id), event_id, event.reason))


def _node_uncordoned(state: PoolState, event_id: str, event: e.NodeUncordoned) -> None:
    if event.node_id in state.nodes:
        _advance_node(state, event_id, event)
    state.set_cordon(event.node_id, None)


def _node_draining(state: PoolState, event_id: str, event: e.NodeDraining) -> None:
    _advance_node(state, event_id, event)
    known = state.cordons.get(event.node_id)
    cordon = Cordon(
        user_of(state, event.client_id), event_id, event.reason, "draining", event.deadline_ms, event.remove
    )
    if known is not None:
        cordon.waiters = known.waiters
    if event.wait:
        cordon.waiters.append((event.client_id, event.seq))
    state.set_cordon(event.node_id, cordon)


def _node_drained(state: PoolState, event_id: str, event: e.NodeDrained) -> None:
    if _advance_node(state, event_id, event).tickets:
        raise InvalidTransition(f"event {event_id} says that node {event.node_id} is drained, which has tickets")
    _end_drain(state, event.node_id)


def _end_drain(state: PoolState, node_id: str) -> None:
    cordon = state.cordons.get(node_id)
    if cordon is not None and cordon.phase == "draining":
        cordon.phase, cordon.deadline_ms, cordon.waiters = "drained", 0, []
        state.set_cordon(node_id, cordon)


def user_of(state: PoolState, client_id: str) -> str:
    """The user of a client, as far as it is known; else the client's id."""
    client = state.client(client_id)
    return (client.user if client is not None else "") or client_id


def _node_removed(state: PoolState, event_id: str, event: e.NodeRemoved) -> None:
    node = _node(state, event_id, event)
    if node.tickets:
        raise InvalidTransition(
            f"event {event_id} removes node {event.node_id}, which still holds {', '.join(sorted(node.tickets))}"
        )
    advance(NODE, f"node {event.node_id}", node.phase, event_id, event.TYPE)
    state.capacity.drop(event.node_id)
    state.domains.drop(event.node_id)
    del state.nodes[event.node_id]
    _end_drain(state, event.node_id)


# --- GPUs --------------------------------------------------------------------------------------------------------


def _gpu_node(state: PoolState, event_id: str, event: e.GpuMarkedUnhealthy | e.GpuMarkedHealthy) -> NodeState:
    node = _node(state, event_id, event)
    if not any(gpu.index == event.index and gpu.uuid == event.uuid for gpu in node.spec.gpus):
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) is about GPU {event.index} ({event.uuid}) of node {event.node_id}, which "
            f"has no such GPU"
        )
    return node


def _gpu_marked_unhealthy(state: PoolState, event_id: str, event: e.GpuMarkedUnhealthy) -> None:
    node = _gpu_node(state, event_id, event)
    by = user_of(state, event.client_id) if event.client_id else ""
    faults = state.faults.setdefault(event.node_id, {})
    faults[event.uuid] = GpuFault(event.kind, event.reason, by, event_id)
    node.mark_unhealthy(event.index)
    state.index(node)


def _gpu_marked_healthy(state: PoolState, event_id: str, event: e.GpuMarkedHealthy) -> None:
    node = _gpu_node(state, event_id, event)
    faults = state.faults.get(event.node_id, {})
    if faults.pop(event.uuid, None) is None:
        raise InvalidTransition(f"event {event_id} marks GPU {event.uuid} healthy, which is not unhealthy")
    if not faults:
        del state.faults[event.node_id]
    slots = (slot for ticket_id in node.tickets for slot in state.tickets[ticket_id].slots)
    node.mark_healthy(event.index, any(s.node_id == event.node_id and event.index in s.gpu_ids for s in slots))
    state.index(node)


# --- gangs -------------------------------------------------------------------------------------------------------


def _new_ticket(state: PoolState, event: e.GangQueued | e.GangAllocated, event_id: str) -> TicketState:
    number = ticket_number(event.ticket_id)
    if number is None or number < state.next_ticket:
        raise InvalidTransition(f"event {event_id} ({event.TYPE}) gives out the ticket id {event.ticket_id} again")
    state.next_ticket = number + 1
    ticket = TicketState(
        event.ticket_id, event.client_id, event.seq, event.spec, "queued", event_id, need_of(event.spec)
    )
    state.tickets[event.ticket_id] = ticket
    client = state.clients.get(event.client_id)
    named = event.spec.terms.project
    if client is None:
        ticket.project = named or event.client_id
    else:
        client.tickets.add(event.ticket_id)
        ticket.user = client.user
        ticket.project = project_of(named, client.project, client.user, event.client_id)
    return ticket


def _forget_ticket(state: PoolState, ticket: TicketState) -> None:
    del state.tickets[ticket.ticket_id]
    state.alarms.set(ticket.ticket_id, 0)
    state.releasing.pop(ticket.ticket_id, None)
    client = state.clients.get(ticket.client_id)
    if client is not None:
        client.tickets.discard(ticket.ticket_id)


def _gang_queued(state: PoolState, event_id: str, event: e.GangQueued) -> None:
    _phase_after(event.ticket_id, None, event_id, event)
    ticket = _new_ticket(state, event, event_id)
    ticket.reason, ticket.deadline_ms = event.reason, event.deadline_ms
    state.queue.append(event.ticket_id)
    state.wait(ticket)
    state.watch(ticket)


def _gang_allocated(state: PoolState, event_id: str, event: e.GangAllocated) -> None:
    ticket_id, slots, spec = event.ticket_id, event.slots, event.spec
    ticket = state.tickets.get(ticket_id)
    phase = _phase_after(ticket_id, ticket.phase if ticket else None, event_id, event)
    if ticket is None:
        ticket = _new_ticket(state, event, event_id)
    else:
        _leave_queue(state, ticket)
    ticket.phase, ticket.since, ticket.reason, ticket.slots = phase, event_id, "", slots
    ticket.master_addr, ticket.master_port, ticket.policy = event.master_addr, event.master_port, event.policy
    ticket.group_sizes = _group_sizes(slots)
    for slot in slots:
        node = state.nodes.get(slot.node_id)
        if node is None or node.phase != "up":
            how = "not there" if node is None else node.phase
            raise InvalidTransition(f"event {event_id} places {ticket_id} on {slot.node_id}, which is {how}")
        if not node.take(ticket, slot):
            raise _double(ticket, slot, node, event_id)
        ticket.held.add(slot.node_id)
    for node_id in ticket.held:
        state.index(state.nodes[node_id])
    if spec.groups:
        for group in spec.groups:
            members = tuple(slot for slot in slots if slot.group == group.name)
            state.demand.learn(group.resources, members)
    else:
        state.demand.learn(spec.resources, slots)
    terms, queueing = spec.terms, state.queueing
    queueing.charge(ticket.project, amounts_of(spec, slots), 1, ms_of(event_id))
    ticket.at_head, ticket.borrowed = False, event.borrowed
    ticket.ends_ms = ticket.granted_ms + terms.max_ms if terms.max_ms else 0
    reservation = queueing.reservations.get(terms.reservation) if terms.reservation else None
    if reservation is not None:
        ticket.ends_ms = min(ticket.ends_ms or reservation.end_ms, reservation.end_ms)
    state.watch(ticket)


def _phase_after(ticket_id: str, was: TicketPhase | None, event_id: str, event: e.Event) -> TicketPhase:
    """The ticket's phase after the event; the words for an error are made where there is one."""
    phase = TICKET.get((was, event.TYPE))
    return phase if phase is not None else advance(TICKET, f"ticket {ticket_id}", was, event_id, event.TYPE)


def _leave_queue(state: PoolState, ticket: TicketState) -> None:
    state.queue.remove(ticket.ticket_id)
    state.waiting.remove(ticket.ticket_id)


def _group_sizes(slots: tuple[Slot, ...]) -> tuple[int, ...]:
    """How many members each group has, by its rank; a repaired gang may have a group that is empty."""
    if len(slots) == 1:
        return (*(0,) * slots[0].group_rank, 1)
    sizes: dict[int, int] = {}  # a Counter takes three times as long
    for slot in slots:
        sizes[slot.group_rank] = sizes.get(slot.group_rank, 0) + 1
    return tuple(sizes.get(group, 0) for group in range(max(sizes, default=-1) + 1))


def _gang_repaired(state: PoolState, event_id: str, event: e.GangRepaired) -> None:
    ticket = _ticket(state, event_id, event)
    rank, slot = event.rank, event.slot
    ticket.phase = _phase_after(event.ticket_id, ticket.phase, event_id, event)
    actor, node = ticket.actor(rank), state.nodes.get(slot.node_id)
    if not 0 <= rank < len(ticket.slots) or slot.global_rank != rank or (actor is not None and actor.alive):
        raise InvalidTransition(f"event {event_id} replaces rank {rank} of {event.ticket_id}, which cannot be replaced")
    if node is None or node.phase != "up":
        raise InvalidTransition(f"event {event_id} places {event.ticket_id} on {slot.node_id}, which is not up")
    old, before = ticket.slots[rank], amounts_of(ticket.spec, ticket.slots)
    left = state.nodes[old.node_id]
    left.give_back(ticket, old)
    ticket.slots = (*ticket.slots[:rank], slot, *ticket.slots[rank + 1 :])
    ticket.master_addr, ticket.master_port = event.master_addr, event.master_port
    ticket.group_sizes = _group_sizes(ticket.slots)
    if any(other.node_id == old.node_id for other in ticket.slots):
        left.tickets.add(event.ticket_id)
        left.exclusive = event.ticket_id if ticket.exclusive else ""
    else:
        ticket.held.discard(old.node_id)
    if not node.take(ticket, slot):
        raise _double(ticket, slot, node, event_id)
    ticket.held.add(slot.node_id)
    state.queueing.charge(ticket.project, before, -1, ms_of(event_id))
    state.queueing.charge(ticket.project, amounts_of(ticket.spec, ticket.slots), 1, ms_of(event_id))
    state.index(left)
    state.index(node)
    if actor is not None:
        actor.stopping = True  # what ran at the old place is not started there again


def _gang_restarting(state: PoolState, event_id: str, event: e.GangRestarting) -> None:
    ticket = _ticket(state, event_id, event)
    ticket.phase = advance(TICKET, f"ticket {event.ticket_id}", ticket.phase, event_id, event.TYPE)
    if event.generation <= ticket.generation or event.rank not in event.ranks:
        raise InvalidTransition(
            f"event {event_id} restarts {event.ticket_id} as generation {event.generation} for rank {event.rank} among "
            f"{list(event.ranks)[:20]}, but its generation is {ticket.generation}"
        )
    for rank in event.ranks:
        actor = ticket.actor(rank)
        if actor is None or not actor.in_gang_restarts or ticket.slots[rank].node_id != actor.node_id:
            raise InvalidTransition(
                f"event {event_id} restarts rank {rank} of {event.ticket_id}, which has no part in it"
            )
        was = actor.phase
        actor.phase = advance(ACTOR, f"rank {rank} of ticket {event.ticket_id}", was, event_id, event.TYPE)
        if was == "exited":
            ticket.alive[actor.node_id] = ticket.alive.get(actor.node_id, 0) + 1
        actor.restarts, actor.pid, actor.address = event.generation, 0, ""
        if rank == event.rank:
            actor.code, actor.signal, actor.reason = event.code, event.signal, event.reason
    ticket.generation, ticket.strikes, ticket.delay_ms = event.generation, event.strikes, event.delay_ms
    ticket.halting = set(event.ranks)


def _gang_restarted(state: PoolState, event_id: str, event: e.GangRestarted) -> None:
    ticket = _ticket(state, event_id, event)
    ticket.phase = advance(TICKET, f"ticket {event.ticket_id}", ticket.phase, event_id, event.TYPE)
    if event.generation != ticket.generation or ticket.halting:
        raise InvalidTransition(
            f"event {event_id} starts generation {event.generation} of {event.ticket_id}, which is at "
            f"{ticket.generation} and waits for the ranks {sorted(ticket.halting)[:20]} to end"
        )
    ticket.restarted_ms = ms_of(event_id)


def _book(node: NodeState, ticket: TicketState, slots: Iterable[Slot], event_id: str) -> None:
    for slot in slots:
        if not node.take(ticket, slot):
            raise _double(ticket, slot, node, event_id)


def _double(ticket: TicketState, slot: Slot, node: NodeState, event_id: str) -> InvalidTransition:
    if not node.is_open_to(ticket):
        whose = node.exclusive or ", ".join(sorted(node.tickets - {ticket.ticket_id}))
        return InvalidTransition(
            f"event {event_id} places ticket {ticket.ticket_id} on node {slot.node_id} beside {whose}, and one of them "
            f"has its nodes for itself"
        )
    need = ticket.need_of(slot)
    return InvalidTransition(
        f"event {event_id} gives rank {slot.global_rank} of ticket {ticket.ticket_id} GPUs {slot.gpu_ids}"
        f"{f' (a share of {slot.gpu_milli} thousandths)' if slot.gpu_milli else ''}, "
        f"NICs {slot.nics}, {need.cpu_milli} mCPU and {need.memory} bytes of node {slot.node_id}, where GPUs "
        f"{indices_of(node.free_gpus)} (and of {node.shared} the rest), NICs {indices_of(node.free_nics)} (by their "
        f"order), {node.free_cpu_milli} mCPU and "
        f"{node.free_memory} bytes are free: something was handed out twice"
    )


def _gang_not_granted(state: PoolState, event_id: str, event: e.GangRefused | e.GangCancelled) -> None:
    if not event.ticket_id:
        return  # refused at once, it never had a ticket
    ticket = _ticket(state, event_id, event)
    ticket.phase = _phase_after(event.ticket_id, ticket.phase, event_id, event)
    _leave_queue(state, ticket)
    _forget_ticket(state, ticket)


def _gang_moved(state: PoolState, event_id: str, event: e.GangMoved) -> None:
    ticket = _ticket(state, event_id, event)
    if ticket.phase != "queued":
        raise InvalidTransition(f"event {event_id} moves ticket {event.ticket_id}, which is {ticket.phase}")
    _leave_queue(state, ticket)
    state.queue.insert(0 if event.to == "head" else len(state.queue), event.ticket_id)
    ticket.at_head = event.to == "head"
    state.wait(ticket)


def _gang_prioritized(state: PoolState, event_id: str, event: e.GangPrioritized) -> None:
    ticket = _ticket(state, event_id, event)
    terms = dataclasses.replace(ticket.spec.terms, priority=event.priority)
    ticket.spec = dataclasses.replace(ticket.spec, terms=terms)
    if ticket.phase == "queued":
        state.waiting.reprioritize(event.ticket_id, event.priority)


def _gang_attached(state: PoolState, event_id: str, event: e.GangAttached) -> None:
    _ticket(state, event_id, event).watchers.add(event.client_id)


def _gang_releasing(state: PoolState, event_id: str, event: e.GangReleasing) -> None:
    ticket = _ticket(state, event_id, event)
    if ticket.phase != "releasing":
        ticket.phase = _phase_after(event.ticket_id, ticket.phase, event_id, event)
        ticket.reason, ticket.since = event.reason, event_id
        ticket.preempt_ms, ticket.preempt_for, ticket.preempt_reason = 0, "", ""
        state.watch(ticket)
    if event.seq:
        ticket.release_requests.append((event.client_id, event.seq))


def _gang_released(state: PoolState, event_id: str, event: e.GangReleased) -> None:
    ticket = _ticket(state, event_id, event)
    _phase_after(event.ticket_id, ticket.phase, event_id, event)
    freed = set(event.nodes)
    if not freed <= ticket.held or event.final != (freed == ticket.held):
        raise InvalidTransition(
            f"event {event_id} frees {sorted(freed)} of ticket {event.ticket_id}, which holds {sorted(ticket.held)}"
        )
    busy = freed & ticket.alive.keys()
    if busy:
        raise InvalidTransition(
            f"event {event_id} frees {sorted(busy)} of ticket {event.ticket_id}, whose actors may still run there"
        )
    gone = [slot for slot in ticket.slots if slot.node_id in freed]
    for slot in gone:
        state.nodes[slot.node_id].give_back(ticket, slot)
    for node_id in freed:
        state.index(state.nodes[node_id])
    ticket.held -= freed
    state.queueing.charge(ticket.project, amounts_of(ticket.spec, gone), -1, ms_of(event_id))
    if event.final:
        _forget_ticket(state, ticket)


def _ticket_preempting(state: PoolState, event_id: str, event: e.TicketPreempting) -> None:
    ticket = _live_ticket(state, event_id, event)
    ticket.preempt_ms, ticket.preempt_for, ticket.preempt_reason = event.deadline_ms, event.by_ticket, event.reason
    state.watch(ticket)


def _ticket_spared(state: PoolState, event_id: str, event: e.TicketSpared) -> None:
    ticket = _live_ticket(state, event_id, event)
    ticket.preempt_ms, ticket.preempt_for, ticket.preempt_reason = 0, "", ""
    state.watch(ticket)


def _ticket_expiring(state: PoolState, event_id: str, event: e.TicketExpiring) -> None:
    ticket = _live_ticket(state, event_id, event)
    ticket.warned = True
    state.watch(ticket)


def _live_ticket(state: PoolState, event_id: str, event: Any) -> TicketState:
    ticket = _ticket(state, event_id, event)
    if ticket.phase not in ("allocated", "active"):
        raise InvalidTransition(f"event {event_id} ({event.TYPE}) is about {event.ticket_id}, which is {ticket.phase}")
    return ticket


# --- the queue ---------------------------------------------------------------------------------------------------


def _queue_policy_changed(state: PoolState, event_id: str, event: e.QueuePolicyChanged) -> None:
    state.queueing.settle(ms_of(event_id))
    state.queueing.policy = event.policy
    for ticket in state.tickets.values():
        state.watch(ticket)


def _quota_changed(state: PoolState, event_id: str, event: e.QuotaChanged) -> None:
    state.queueing.quotas[event.quota.project] = event.quota
    state.waiting.recall()


def _quota_removed(state: PoolState, event_id: str, event: e.QuotaRemoved) -> None:
    if state.queueing.quotas.pop(event.project, None) is None:
        raise InvalidTransition(f"event {event_id} removes the quota of {event.project}, which has none")
    state.waiting.recall()


def _reservation_created(state: PoolState, event_id: str, event: e.ReservationCreated) -> None:
    name = event.reservation.reservation_id
    if name in state.queueing.reservations:
        raise InvalidTransition(f"event {event_id} creates the reservation {name} again")
    state.queueing.reservations[name] = event.reservation
    state.queueing.next_reservation += 1
    state.waiting.recall()


def _reservation_over(state: PoolState, event_id: str, event: e.ReservationCancelled | e.ReservationEnded) -> None:
    if state.queueing.reservations.pop(event.reservation_id, None) is None:
        raise InvalidTransition(f"event {event_id} ends the reservation {event.reservation_id}, which is not there")
    state.waiting.recall()


# --- actors ------------------------------------------------------------------------------------------------------


def _actor_launch_requested(state: PoolState, event_id: str, event: e.ActorLaunchRequested) -> None:
    ticket = _ticket(state, event_id, event)
    if ticket.phase != "active":
        ticket.phase = _phase_after(event.ticket_id, ticket.phase, event_id, event)
    what = f"rank {event.rank} of ticket {event.ticket_id}"
    if not 0 <= event.rank < len(ticket.slots):
        raise InvalidTransition(f"event {event_id} launches {what}, which has {len(ticket.slots)} ranks")
    if event.node_id != ticket.slots[event.rank].node_id:
        raise InvalidTransition(
            f"event {event_id} launches {what} on node {event.node_id}, but its place is on "
            f"{ticket.slots[event.rank].node_id}"
        )
    known = ticket.actor(event.rank)
    phase = advance(ACTOR, what, known.phase if known else None, event_id, event.TYPE)
    key = launch_key(event.client_id, event.seq)
    if not ticket.members:
        ticket.members = [None] * len(ticket.slots)
    actor = ActorState(event.actor_id, event.rank, event.node_id, event_id, key, event.spec, phase)
    ticket.members[event.rank] = actor
    ticket.launches[key] = ticket.launches.get(key, 0) + 1
    ticket.alive[event.node_id] = ticket.alive.get(event.node_id, 0) + 1


def _moved(state: PoolState, event_id: str, event: Any) -> ActorState:
    ticket, actor = _actor(state, event_id, event)
    if event.node_id != actor.node_id:
        raise InvalidTransition(
            f"event {event_id} ({event.TYPE}) has actor {event.actor_id} of ticket {event.ticket_id} on node "
            f"{event.node_id}, but it was launched on {actor.node_id}"
        )
    was = actor.phase
    phase = ACTOR.get((was, event.TYPE))
    if phase is None:  # the words for an error are made where there is one: this is the hot path of a replay
        phase = advance(ACTOR, f"actor {event.actor_id} of ticket {event.ticket_id}", was, event_id, event.TYPE)
    actor.phase = phase
    if was == "launching" and phase != was:
        ticket.launches[actor.launch] -= 1
        if not ticket.launches[actor.launch]:
            del ticket.launches[actor.launch]
    if not actor.alive:
        ticket.halting.discard(actor.rank)
        ticket.alive[event.node_id] -= 1
        if not ticket.alive[event.node_id]:
            del ticket.alive[event.node_id]
    return actor


def _actor_started(state: PoolState, event_id: str, event: e.ActorStarted) -> None:
    actor = _moved(state, event_id, event)
    actor.pid, actor.address = event.pid, event.address
    actor.code, actor.signal, actor.reason, actor.restarts = 0, 0, "", event.restarts


def _actor_exited(state: PoolState, event_id: str, event: e.ActorExited) -> None:
    actor = _moved(state, event_id, event)
    actor.code, actor.signal, actor.reason = event.code, event.signal, event.reason


def _actor_restarting(state: PoolState, event_id: str, event: e.ActorRestarting) -> None:
    _, actor = _actor(state, event_id, event)
    if event.restarts <= actor.restarts:
        raise InvalidTransition(
            f"event {event_id} starts actor {event.actor_id} of ticket {event.ticket_id} again for the "
            f"{event.restarts}th time, but that was done {actor.restarts} times"
        )
    _moved(state, event_id, event)
    actor.code, actor.signal, actor.reason = event.code, event.signal, event.reason
    actor.restarts, actor.pid, actor.address = event.restarts, 0, ""


def _actor_halted(state: PoolState, event_id: str, event: e.ActorHalted) -> None:
    ticket, actor = _actor(state, event_id, event)
    if actor.rank not in ticket.halting or event.generation != ticket.generation:
        raise InvalidTransition(
            f"event {event_id} halts rank {event.rank} of ticket {event.ticket_id} for generation {event.generation}, "
            f"which is not waited for"
        )
    _moved(state, event_id, event)
    actor.code, actor.signal = event.code, event.signal
    ticket.halting.discard(actor.rank)


def _actor_failed(state: PoolState, event_id: str, event: e.ActorStartFailed | e.ActorLost) -> None:
    _moved(state, event_id, event).reason = event.reason


def _actor_stop_requested(state: PoolState, event_id: str, event: e.ActorStopRequested) -> None:
    _, actor = _actor(state, event_id, event)
    actor.stopping = True


_HANDLERS: dict[type[e.Event], Callable[[PoolState, str, Any], None]] = {
    e.AllocatorElected: _allocator_elected,
    e.ServerChanged: _server_changed,
    e.LogRegressed: _log_regressed,
    e.RequestRefused: _nothing,
    e.RequestAnswered: _nothing,
    e.ClientConnected: _client_connected,
    e.ClientLost: _client_gone,
    e.ClientClosed: _client_gone,
    e.NodeRegistered: _node_registered,
    e.NodeReconciling: _nothing,
    e.NodeConfirmed: _node_confirmed,
    e.NodeUpdated: _node_updated,
    e.NodeLost: _node_lost,
    e.NodeCordoned: _node_cordoned,
    e.NodeUncordoned: _node_uncordoned,
    e.NodeDraining: _node_draining,
    e.NodeDrained: _node_drained,
    e.NodeRemoved: _node_removed,
    e.GpuMarkedUnhealthy: _gpu_marked_unhealthy,
    e.GpuMarkedHealthy: _gpu_marked_healthy,
    e.GangQueued: _gang_queued,
    e.GangAllocated: _gang_allocated,
    e.GangRefused: _gang_not_granted,
    e.GangCancelled: _gang_not_granted,
    e.GangMoved: _gang_moved,
    e.GangExplained: _nothing,
    e.GangPrioritized: _gang_prioritized,
    e.GangAttached: _gang_attached,
    e.GangRepaired: _gang_repaired,
    e.GangRestarting: _gang_restarting,
    e.GangRestarted: _gang_restarted,
    e.GangReleasing: _gang_releasing,
    e.GangReleased: _gang_released,
    e.TicketPreempting: _ticket_preempting,
    e.TicketSpared: _ticket_spared,
    e.TicketExpiring: _ticket_expiring,
    e.QueuePolicyChanged: _queue_policy_changed,
    e.QuotaChanged: _quota_changed,
    e.QuotaRemoved: _quota_removed,
    e.ReservationCreated: _reservation_created,
    e.ReservationCancelled: _reservation_over,
    e.ReservationEnded: _reservation_over,
    e.ActorLaunchRequested: _actor_launch_requested,
    e.ActorStarted: _actor_started,
    e.ActorStartFailed: _actor_failed,
    e.ActorExited: _actor_exited,
    e.ActorRestarting: _actor_restarting,
    e.ActorHalted: _actor_halted,
    e.ActorLost: _actor_failed,
    e.ActorStopRequested: _actor_stop_requested,
}
_ASKED = frozenset(cls for cls in _HANDLERS if "seq" in cls.__struct_fields__)
