"""The invariants of the design that a state alone can show: I1, I2, I3, I10, I11, and that the records agree.

``violations`` looks at everything: the property tests call it after every event, ``spoke audit verify`` now and then
(in between it looks at what each event touched: ``inspection.py``). What an event could break by itself is refused by
``fold`` already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from spoke.events.lifecycle import TICKET_HOLDS_GPUS
from spoke.events.model import GPU_MILLI, Slot
from spoke.events.queueing import NOTHING, Amounts, amounts_of, plus
from spoke.events.resources import Resources
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
    groups = _by_group(ticket)
    if holds and not ticket.spec.has_size({name: len(slots) for name, slots in groups.items()}):
        yield f"I2: ticket {ticket_id} is {ticket.phase} with {len(ticket.slots)} slots of {ticket.spec.shape}"
    if not holds and (ticket.slots or ticket.held):
        yield f"I2: ticket {ticket_id} is {ticket.phase} and has slots"
    if [slot.global_rank for slot in ticket.slots] != list(range(len(ticket.slots))):
        yield f"I2: ticket {ticket_id} has ranks that are not 0..{len(ticket.slots) - 1}"
    for group, slots in groups.items():
        yield from _slot_violations(ticket, ticket.spec.resources_of(group), slots)
    for node_id in ticket.held:
        if ticket_id not in state.nodes[node_id].tickets:
            yield f"I3: ticket {ticket_id} holds node {node_id}, which does not know it"
    if ticket.members or ticket.alive or ticket.launches or ticket.halting:
        yield from _actor_violations(ticket)


def _by_group(ticket: TicketState) -> dict[str, Sequence[Slot]]:
    if not ticket.spec.groups and not any(slot.group for slot in ticket.slots):
        return {"": ticket.slots} if ticket.slots else {}
    groups: dict[str, list[Slot]] = {}
    for slot in ticket.slots:
        groups.setdefault(slot.group, []).append(slot)
    return dict(groups)


def _actor_violations(ticket: TicketState) -> Iterator[str]:
    ticket_id = ticket.ticket_id
    places = {slot.global_rank: slot.node_id for slot in ticket.slots}
    alive, launching = Counter[str](), 0
    for actor in ticket.actors:
        launching += actor.phase == "launching"
        if actor.alive:
            alive[actor.node_id] += 1
            if places.get(actor.rank) not in ticket.held:
                yield f"I4: actor {actor.actor_id} of {ticket_id} is {actor.phase} where the ticket holds nothing"
    if alive != ticket.alive:
        yield f"I4: ticket {ticket_id} counts {ticket.alive} live actors, but has {dict(alive)}"
    if launching != sum(ticket.launches.values()):
        yield f"I5: ticket {ticket_id} waits for {ticket.launches} but {launching} actors are launching"
    yield from restart_violations(ticket, {*range(len(ticket.members)), *ticket.halting})


def restart_violations(ticket: TicketState, ranks: Iterable[int]) -> Iterator[str]:
    """What is wrong with the part that some ranks have in restarts."""
    for rank in ranks:
        actor = ticket.actor(rank)
        restarts = actor is not None and actor.phase in ("launching", "restarting")
        if rank in ticket.halting and (actor is None or not restarts or actor.restarts != ticket.generation):
            yield f"I11: ticket {ticket.ticket_id} waits for the end of rank {rank}, which is not being restarted"
        again = actor is not None and (actor.phase == "restarting" or (actor.restarts and actor.alive))
        if actor is not None and again and actor.spec.restart is None:
            yield f"I11: actor {actor.actor_id} of {ticket.ticket_id} was started again, and has no restart policy"


def _slot_violations(ticket: TicketState, resources: Resources, slots: Iterable[Slot]) -> Iterator[str]:
    share, asked, nics = resources.is_share, resources.gpu_milli, resources.nics
    gpus = 1 if share else resources.gpu_count
    for slot in slots:
        whose = f"rank {slot.global_rank} of ticket {ticket.ticket_id}"
        if len(slot.gpu_ids) != gpus:
            yield f"I2: {whose} has {len(slot.gpu_ids)} GPUs"
        if share:
            if not max(1, asked) <= slot.gpu_milli <= GPU_MILLI:
                yield f"I2: {whose} has {slot.gpu_milli} thousandths of a GPU, and asked for {asked}"
        elif slot.gpu_milli:
            yield f"I2: {whose} has a share of {slot.gpu_milli} thousandths, and asked for none"
        if len(slot.nics) != nics:
            yield f"I2: {whose} has the NICs {slot.nics}, and asked for {nics}"


def slots_on(ticket: TicketState, node_id: str) -> Iterable[Slot]:
    """The slots of a ticket on one node."""
    return [slot for slot in ticket.slots if slot.node_id == node_id]


def node_violations(
    state: PoolState, node: NodeState, slots_on: Callable[[TicketState, str], Iterable[Slot]] = slots_on
) -> Iterator[str]:
    """What is wrong with one node. ``slots_on``: for those who know a ticket's slots by their nodes."""
    node_id, need_cpu, need_memory, held, nics = node.spec.node_id, 0, 0, 0, 0
    if node.exclusive and node.tickets != {node.exclusive}:
        yield f"I1: node {node_id} is {node.exclusive}'s alone, and books {', '.join(sorted(node.tickets))}"
    shares: dict[int, int] = {}
    for ticket_id in node.tickets:
        ticket = state.tickets.get(ticket_id)
        if ticket is None or node_id not in ticket.held:
            yield f"I3: node {node_id} books ticket {ticket_id}, which holds nothing there"
            continue
        for slot in slots_on(ticket, node_id):
            if slot.gpu_milli:
                shares[slot.gpu_ids[0]] = shares.get(slot.gpu_ids[0], 0) + slot.gpu_milli
            else:
                for index in slot.gpu_ids:
                    if held >> index & 1:
                        yield f"I1: GPU {index} of node {node_id} belongs to {ticket_id} and another"
                    held |= 1 << index
            if slot.nics:
                mine = node.nics_of(slot.nics) or 0
                if nics & mine:
                    yield f"I1: NICs {slot.nics} of node {node_id} belong to {ticket_id} and another"
                nics |= mine
            need = ticket.need_of(slot) if ticket.spec.groups else ticket.need
            need_cpu += need.cpu_milli
            need_memory += need.memory
    total = 0
    for gpu in node.spec.gpus:
        total |= 1 << gpu.index
    for index, milli in shares.items():
        if milli > GPU_MILLI or held >> index & 1:
            yield f"I1: GPU {index} of node {node_id} is shared out to {milli} thousandths" + " and held" * (
                held >> index & 1
            )
    counted = node.shared | node.unhealthy_shared if node.unhealthy_shared else node.shared
    if counted != shares:
        yield f"I3: node {node_id} counts shares {counted}, but its tickets have {shares}"
    for index in shares:
        held |= 1 << index
    sick = node.unhealthy
    if held & node.free_gpus or held | node.free_gpus | sick != total:
        yield f"I3: node {node_id}: GPUs used {held:b} + free {node.free_gpus:b} + unhealthy {sick:b} is not {total:b}"
    known = state.faults.get(node_id)
    faulty = mask_of(tuple(gpu.index for gpu in node.spec.gpus if gpu.uuid in known)) if known else 0
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
