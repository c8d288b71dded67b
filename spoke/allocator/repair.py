"""Replacing the slot of a failed member in a live ticket; the others keep theirs.

The new slot never has the GPUs of the old one: a member that just crashed can be launched again where it was. It is on
the same node if that has other GPUs free, else on the tightest node that fits. A gang with ``strict_pack`` keeps its
groups on different nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from spoke.allocator.placement import select, topology
from spoke.allocator.placement.domains import distance
from spoke.allocator.placement.pack import count_nodes, describe, has_port
from spoke.allocator.placement.rooms import usable_nics
from spoke.allocator.placement.shares import words
from spoke.allocator.tickets import check_may, check_rank, live
from spoke.errors import AlreadyLaunched, RepairRefused
from spoke.events import types as e
from spoke.events.capacity import Amount
from spoke.events.model import GangSpec, Slot
from spoke.events.state import NodeState, PoolState, TicketState, indices_of, mask_of
from spoke.protocol import requests as r

POLICY = "repair/1"


@dataclass(frozen=True, slots=True)
class _Gpus:
    """The GPUs of the new slot; ``milli`` is 0 for whole ones. ``nics`` are names."""

    ids: tuple[int, ...]
    milli: int = 0
    nics: tuple[str, ...] = ()


def repair(state: PoolState, asked: r.Envelope, request: r.RepairGang) -> list[e.Event]:
    """Give a member that has failed another place, or say why not."""
    ticket = live(state, request.ticket_id)
    check_may(asked, ticket, operators=True)
    check_rank(ticket, request.rank)
    old = ticket.slots[request.rank]
    _check_failed(state, ticket, old)
    for node in _candidates(state, ticket, old, elsewhere=request.elsewhere):
        gpus = _gpus_on(node, ticket.spec.of_group(old.group), old)
        if gpus is None or (old.global_rank == 0 and node.spec.node_id != old.node_id and not has_port(node)):
            continue
        slot = _slot(ticket, old, node, gpus)
        addr, port = _master(ticket, slot, old, node)
        by = (asked.client_id, asked.seq)
        return [e.GangRepaired(ticket.ticket_id, *by, old.global_rank, slot, addr, port, POLICY)]
    raise RepairRefused(_why_not(state, ticket, old, elsewhere=request.elsewhere))


def _check_failed(state: PoolState, ticket: TicketState, old: Slot) -> None:
    rank, actor = old.global_rank, ticket.actor(old.global_rank)
    if actor is not None and actor.alive:
        raise AlreadyLaunched(
            f"rank {rank} of ticket {ticket.ticket_id} was to be replaced, and its actor {actor.actor_id} is "
            f"{actor.phase} on {actor.node_id}: stop it first (stop_actor), and wait for its end"
        )
    node = state.nodes[old.node_id]
    sound = node.phase == "up" and not mask_of(old.gpu_ids) & node.unhealthy
    if actor is None and sound:
        raise RepairRefused(
            f"rank {rank} of ticket {ticket.ticket_id} was to be replaced; it was not launched yet, and its place on "
            f"{old.node_id} is sound: launch it"
        )


def _candidates(state: PoolState, ticket: TicketState, old: Slot, *, elsewhere: bool) -> Iterator[NodeState]:
    """The nodes where the member may go: the same one, then the tightest ones, those of its domain before others."""
    spec, same = ticket.spec.of_group(old.group), state.nodes[old.node_id]
    if not elsewhere and same.phase == "up" and same.confirmed and old.gpu_ids and not spec.gpu_ids:
        yield same
    whole = ticket.need_of(old)
    need = whole if not spec.resources.is_share else Amount(0, whole.cpu_milli, whole.memory)
    taken = _kept_from(ticket, old)
    shut = [state.nodes[node_id] for node_id in sorted(ticket.held)] if ticket.exclusive else []
    fitting = [state.nodes[node_id] for node_id in state.capacity.fitting(need)]
    fitting += [node for node in shut if node.phase == "up" and node.confirmed and node.free.holds(need)]
    left = [node for node in fitting if node.spec.node_id not in taken and _serves(state, ticket, spec, old, node)]
    others = [state.nodes[slot.node_id] for slot in ticket.slots if slot.global_rank != old.global_rank]
    if state.domains.levels and others:
        left.sort(key=lambda node: distance(node, others))
    yield from left


def _kept_from(ticket: TicketState, old: Slot) -> set[str]:
    """The nodes on which the member must not join others: those of its group, if that keeps to its nodes."""
    spec = ticket.spec.of_group(old.group)
    if spec.strict_pack or spec.strategy == "strict_spread":
        return {slot.node_id for slot in ticket.slots if slot.group == old.group}
    return {old.node_id}


def _serves(state: PoolState, ticket: TicketState, spec: GangSpec, old: Slot, node: NodeState) -> bool:
    """Whether the gang's rules allow the node for this member."""
    if select.unsuitable(spec, node) or not node.is_open_to(ticket):
        return False
    if spec.strategy == "strict_pack" and not spec.strict_pack and sum(s.group == old.group for s in ticket.slots) > 1:
        return False
    same = spec.rules.same if spec.rules is not None else ""
    labels = {state.nodes[s.node_id].spec.labels.get(same) for s in ticket.slots if s.global_rank != old.global_rank}
    return not same or not labels or labels == {node.spec.labels.get(same)}


def _gpus_on(node: NodeState, spec: GangSpec, old: Slot) -> _Gpus | None:
    """GPUs and NICs for the member on a node; None if there are none for it."""
    resources, same = spec.resources, node.spec.node_id == old.node_id
    free_nics = usable_nics(node) | (node.nics_of(old.nics) or 0 if same else 0)
    if free_nics.bit_count() < resources.nics:
        return None
    ids: tuple[int, ...]
    if resources.is_share:
        fits = [
            (free - share, gpu.index, share)
            for gpu in node.spec.gpus
            if (share := resources.share_of(gpu.memory)) and (free := node.free_milli(gpu.index)) >= share
            if not (same and gpu.index in old.gpu_ids)
        ]
        if not fits:
            return None
        ids, milli = (min(fits)[1],), min(fits)[2]
    elif spec.gpu_ids:
        wanted = mask_of(old.gpu_ids)
        if node.free_gpus & wanted != wanted:
            return None
        ids, milli = old.gpu_ids, 0
    elif node.free_gpus.bit_count() < resources.gpu_count:
        return None
    else:
        ids, milli = topology.gpus_for(node, 1, resources.gpu_count)[0], 0
    nics = topology.nics_near(node, ids, indices_of(free_nics), resources.nics)
    return _Gpus(ids, milli, tuple(node.spec.nics[at].name for at in nics))


def _slot(ticket: TicketState, old: Slot, node: NodeState, gpus: _Gpus) -> Slot:
    uuids = {gpu.index: gpu.uuid for gpu in node.spec.gpus}
    slot = replace(
        old,
        node_id=node.spec.node_id,
        host=node.spec.address,
        gpu_ids=gpus.ids,
        gpu_uuids=tuple(uuids[index] for index in gpus.ids),
        gpu_milli=gpus.milli,
        nics=gpus.nics,
        numa_node=topology.numa_node(node, gpus.ids),
        link=topology.farthest_link(node, gpus.ids),
    )
    if slot.node_id == old.node_id:
        return slot
    others = [other for other in ticket.slots if other.global_rank != old.global_rank]
    there = [other for other in others if other.node_id == slot.node_id and other.group == slot.group]
    if there:  # it joins the group that is there
        return replace(slot, group_rank=there[0].group_rank, local_rank=max(o.local_rank for o in there) + 1)
    if any(other.group_rank == old.group_rank for other in others):  # it leaves its group for one of its own
        return replace(slot, group_rank=max(other.group_rank for other in others) + 1, local_rank=0)
    return slot


def _master(ticket: TicketState, slot: Slot, old: Slot, node: NodeState) -> tuple[str, int]:
    """Where rank 0 is found: it moves with rank 0."""
    if slot.global_rank != 0 or slot.node_id == old.node_id:
        return ticket.master_addr, ticket.master_port
    ports = node.free_ports
    return node.spec.address, node.spec.ports.first + (ports & -ports).bit_length() - 1 if ports else 0


def _why_not(state: PoolState, ticket: TicketState, old: Slot, *, elsewhere: bool) -> str:
    spec = ticket.spec.of_group(old.group)
    need = ticket.need_of(old)
    needs = words(spec) if spec.resources.is_share else describe(need, old.gpu_ids if spec.gpu_ids else None)
    taken = _kept_from(ticket, old)
    others = sum(node_id not in taken for node_id in state.nodes if state.capacity.free(node_id) is not None)
    where = f"there is room for it on none of the {count_nodes(others)} besides {', '.join(sorted(taken)[:5])}"
    same = state.nodes[old.node_id]
    if elsewhere:
        here = f"{old.node_id} was ruled out"
    elif same.phase != "up":
        here = f"{old.node_id} is {same.phase}"
    else:
        here = f"{old.node_id} has no other GPUs free for it"
        if not mask_of(old.gpu_ids) & same.unhealthy:
            here += " (its old place is sound: launch it there again)"
    return f"rank {old.global_rank} of ticket {ticket.ticket_id} needs {needs}: {here}, and {where}"
