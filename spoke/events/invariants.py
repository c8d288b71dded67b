"""The invariants of the design that a state alone can show: I1, I2, I3, I10, I11, and that the records agree.

``violations`` looks at everything: the property tests and ``spoke audit verify`` call it. What an event could break
by itself is refused by ``fold`` already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from spoke.events.lifecycle import TICKET_HOLDS_GPUS
from spoke.events.model import GPU_MILLI, Slot
from spoke.events.queueing import NOTHING, Amounts, amounts_of, plus
from spoke.events.state import NodeState, PoolState, TicketState, indices_of, mask_of


def violations(state: PoolState) -> list[str]:
    """What is wrong with the state, one sentence each; empty when all is well."""
    found = [text for ticket in state.tickets.values() for text in ticket_violations(state, ticket)]
    found += [text for node in state.nodes.values() for text in node_violations(state, node)]
    found += queue_violations(state)
    found += cordon_violations(state)
    return found


def ticket_violations(state: PoolState, ticket: TicketState) -> Iterator[str]:
    """What is wrong with one ticket."""
    ticket_id = ticket.ticket_id
    holds = ticket.phase in TICKET_HOLDS_GPUS
    if holds and not ticket.spec.has_size(Counter(slot.group for slot in ticket.slots)):
        yield f"I2: ticket {ticket_id} is {ticket.phase} with {len(ticket.slots)} slots of {ticket.spec.shape}"
    if not holds and (ticket.slots or ticket.held):
        yield f"I2: ticket {ticket_id} is {ticket.phase} and has slots"
    if [slot.global_rank for slot in ticket.slots] != list(range(len(ticket.slots))):
        yield f"I2: ticket {ticket_id} has ranks that are not 0..{len(ticket.slots) - 1}"
    for slot in ticket.slots:
        yield from _slot_violations(ticket, slot)
    for node_id in ticket.held:
        if ticket_id not in state.nodes[node_id].tickets:
            yield f"I3: ticket {ticket_id} holds node {node_id}, which does not know it"
    places = {slot.global_rank: slot.node_id for slot in ticket.slots}
    for actor in ticket.actors:
        if actor.alive and places.get(actor.rank) not in ticket.held:
            yield f"I4: actor {actor.actor_id} of {ticket_id} is {actor.phase} where the ticket holds nothing"
    alive = Counter(actor.node_id for actor in ticket.actors if actor.alive)
    if alive != ticket.alive:
        yield f"I4: ticket {ticket_id} counts {ticket.alive} live actors, but has {dict(alive)}"
    launching = sum(actor.phase == "launching" for actor in ticket.actors)
    if launching != sum(ticket.launches.values()):
        yield f"I5: ticket {ticket_id} waits for {ticket.launches} but {launching} actors are launching"
    yield from _restart_violations(ticket)


def _restart_violations(ticket: TicketState) -> Iterator[str]:
    for rank in ticket.halting:
        actor = ticket.actor(rank)
        if actor is None or actor.phase not in ("launching", "restarting") or actor.restarts != ticket.generation:
            yield f"I11: ticket {ticket.ticket_id} waits for the end of rank {rank}, which is not being restarted"
    for actor in ticket.actors:
        again = actor.phase == "restarting" or (actor.restarts and actor.alive)
        if again and actor.spec.restart is None:
            yield f"I11: actor {actor.actor_id} of {ticket.ticket_id} was started again, and has no restart policy"


def _slot_violations(ticket: TicketState, slot: Slot) -> Iterator[str]:
    resources, whose = ticket.spec.resources_of(slot.group), f"rank {slot.global_rank} of ticket {ticket.ticket_id}"
    if len(slot.gpu_ids) != (1 if resources.is_share else resources.gpu_count):
        yield f"I2: {whose} has {len(slot.gpu_ids)} GPUs"
    if resources.is_share:
        if not max(1, resources.gpu_milli) <= slot.gpu_milli <= GPU_MILLI:
            yield f"I2: {whose} has {slot.gpu_milli} thousandths of a GPU, and asked for {resources.gpu_milli}"
    elif slot.gpu_milli:
        yield f"I2: {whose} has a share of {slot.gpu_milli} thousandths, and asked for none"
    if len(slot.nics) != resources.nics:
        yield f"I2: {whose} has the NICs {slot.nics}, and asked for {resources.nics}"


def node_violations(state: PoolState, node: NodeState) -> Iterator[str]:
    """What is wrong with one node."""
    node_id, need_cpu, need_memory, held, nics = node.spec.node_id, 0, 0, 0, 0
    if node.exclusive and node.tickets != {node.exclusive}:
        yield f"I1: node {node_id} is {node.exclusive}'s alone, and books {', '.join(sorted(node.tickets))}"
    shares: Counter[int] = Counter()
    for ticket_id in node.tickets:
        ticket = state.tickets.get(ticket_id)
        if ticket is None or node_id not in ticket.held:
            yield f"I3: node {node_id} books ticket {ticket_id}, which holds nothing there"
            continue
        for slot in ticket.slots:
            if slot.node_id == node_id:
                gpus = 0 if slot.gpu_milli else mask_of(slot.gpu_ids)
                if slot.gpu_milli:
                    shares[slot.gpu_ids[0]] += slot.gpu_milli
                if held & gpus:
                    yield f"I1: GPUs {indices_of(held & gpus)} of node {node_id} belong to {ticket_id} and another"
                held |= gpus
                mine = node.nics_of(slot.nics) or 0
                if nics & mine:
                    yield f"I1: NICs {slot.nics} of node {node_id} belong to {ticket_id} and another"
                nics |= mine
                need = ticket.need_of(slot)
                need_cpu += need.cpu_milli
                need_memory += need.memory
    total = mask_of(tuple(gpu.index for gpu in node.spec.gpus))
    for index, milli in shares.items():
        if milli > GPU_MILLI or held >> index & 1:
            yield f"I1: GPU {index} of node {node_id} is shared out to {milli} thousandths" + " and held" * (
                held >> index & 1
            )
    if node.shared | node.unhealthy_shared != shares:
        counted = node.shared | node.unhealthy_shared
        yield f"I3: node {node_id} counts shares {counted}, but its tickets have {dict(shares)}"
    held |= mask_of(tuple(shares))
    sick = node.unhealthy
    if held & node.free_gpus or held | node.free_gpus | sick != total:
        yield f"I3: node {node_id}: GPUs used {held:b} + free {node.free_gpus:b} + unhealthy {sick:b} is not {total:b}"
    known = state.faults.get(node_id, {})
    faulty = mask_of(tuple(gpu.index for gpu in node.spec.gpus if gpu.uuid in known))
    if sick != faulty or node.free_gpus & sick or any(sick >> index & 1 for index in node.shared):
        yield (
            f"I10: node {node_id}: GPUs {indices_of(faulty)} are unhealthy, but {indices_of(sick)} are kept back, and "
            f"{indices_of(node.free_gpus)} and the rests of {sorted(node.shared)} can be given out"
        )
    if nics ^ node.free_nics != (1 << len(node.spec.nics)) - 1:
        yield f"I3: node {node_id}: NICs used {nics:b} + free {node.free_nics:b} is not all {len(node.spec.nics)}"
    if need_cpu + node.free_cpu_milli != node.spec.cpu_milli or node.free_cpu_milli < 0:
        yield f"I3: node {node_id}: mCPU used {need_cpu} + free {node.free_cpu_milli} is not {node.spec.cpu_milli}"
    if need_memory + node.free_memory != node.spec.memory or node.free_memory < 0:
        yield f"I3: node {node_id}: memory used {need_memory} + free {node.free_memory} is not {node.spec.memory}"
    cordon = state.cordons.get(node_id)
    expected = ("lost", cordon.phase) if cordon is not None else ("lost", "up")
    if node.phase not in expected:
        yield f"I10: node {node_id} is {node.phase}, but by its cordon it can be {' or '.join(expected)} only"
    if node.phase == "drained" and node.tickets:
        yield f"node {node_id} is drained and holds {', '.join(sorted(node.tickets))}"
    indexed = state.capacity.free(node_id)
    if indexed != (node.free if node.phase == "up" and node.confirmed and not node.exclusive else None):
        yield f"the index has {indexed} free on node {node_id}, which is {node.phase} with {node.free}"


def cordon_violations(state: PoolState) -> Iterator[str]:
    """What is wrong with the list of drains."""
    drains = {node_id for node_id, cordon in state.cordons.items() if cordon.phase == "draining"}
    if drains != state.draining:
        yield f"draining are {sorted(drains)}, but listed {sorted(state.draining)}"


def queue_violations(state: PoolState) -> Iterator[str]:
    """What is wrong with the line, and with who owns what."""
    queued = {ticket_id for ticket_id, ticket in state.tickets.items() if ticket.phase == "queued"}
    if sorted(queued) != sorted(state.queue):
        yield f"the queue is {state.queue}, but queued are {sorted(queued)}"
    listed = {*(key[3] for key in state.waiting.ordered(by_priority=True)), *state.waiting.aside}
    if listed != queued:
        yield f"the order of the queue has {sorted(listed)}, but queued are {sorted(queued)}"
    yield from _account_violations(state)
    for client_id, client in state.clients.items():
        for ticket_id in client.tickets:
            if ticket_id not in state.tickets:
                yield f"client {client_id} owns ticket {ticket_id}, which is not there"


def _account_violations(state: PoolState) -> Iterator[str]:
    held: dict[str, Amounts] = {}
    for ticket in state.tickets.values():
        slots = [slot for slot in ticket.slots if slot.node_id in ticket.held]
        if slots:
            held[ticket.project] = plus(held.get(ticket.project, NOTHING), amounts_of(ticket.spec, slots))
    for project in {*held, *state.queueing.accounts}:
        booked = state.queueing.held(project)
        if booked != held.get(project, NOTHING):
            yield f"project {project} is booked with {booked}, but its tickets hold {held.get(project, NOTHING)}"
