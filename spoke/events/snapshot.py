"""A folded state as bytes. Equal states give equal bytes, and ``decode(encode(state)) == state``.

What is free on each node is not written: it follows from the tickets, and booking them again on reading checks that
no GPU is held twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from spoke.errors import LogError
from spoke.events.demand import Demand, Usual
from spoke.events.ids import ms_of
from spoke.events.lifecycle import NodePhase
from spoke.events.model import NodeSpec
from spoke.events.queueing import Queueing, amounts_of, project_of
from spoke.events.state import ClientState, Cordon, GpuFault, NodeState, PoolState, TicketState

VERSION = 1


class BadSnapshot(LogError):
    """The bytes are no snapshot that this release can read."""

    code = "bad_snapshot"


@dataclass(frozen=True, slots=True)
class _Node:
    spec: NodeSpec
    phase: NodePhase
    incarnation: str
    lease_ms: int = 0
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class _Demand:
    members: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    shares: tuple[tuple[int, int], ...]
    usual: Usual
    next_at: int
    shares_granted: int = 0
    models: tuple[tuple[tuple[str, ...], int], ...] = ()


@dataclass(frozen=True, slots=True)
class _Snapshot:
    version: int
    last_id: str
    epoch: int
    allocator: str
    next_ticket: int
    nodes: dict[str, _Node]
    tickets: dict[str, TicketState]
    clients: dict[str, ClientState]
    gone: list[ClientState]
    queue: list[str]
    server: str = ""
    changed: bool = False
    history_end: str = ""
    learned: _Demand | None = None
    cordons: dict[str, Cordon] = field(default_factory=dict)
    faults: dict[str, dict[str, GpuFault]] = field(default_factory=dict)
    queueing: Queueing = field(default_factory=Queueing)


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODER = msgspec.msgpack.Decoder(_Snapshot)


def encode(state: PoolState) -> bytes:
    """The state as msgpack."""
    nodes = {
        node_id: _Node(node.spec, node.phase, node.incarnation, node.lease_ms, node.confirmed)
        for node_id, node in state.nodes.items()
    }
    return _ENCODER.encode(
        _Snapshot(
            VERSION,
            state.last_id,
            state.epoch,
            state.allocator,
            state.next_ticket,
            nodes,
            state.tickets,
            state.clients,
            list(state.gone.values()),
            state.queue,
            state.server,
            state.changed,
            state.history_end,
            learned=_written(state.demand),
            cordons=state.cordons,
            faults=state.faults,
            queueing=state.queueing,
        )
    )


def decode(raw: bytes) -> PoolState:
    """The state that ``encode`` wrote; raises BadSnapshot for anything else."""
    try:
        read = _DECODER.decode(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadSnapshot(f"the snapshot cannot be read: {error}") from error
    if read.version != VERSION:
        raise BadSnapshot(f"the snapshot has version {read.version}, this release reads {VERSION}: upgrade spoke")
    state = PoolState(
        last_id=read.last_id,
        epoch=read.epoch,
        allocator=read.allocator,
        next_ticket=read.next_ticket,
        server=read.server,
        changed=read.changed,
        history_end=read.history_end,
        nodes={
            node_id: NodeState.empty(n.spec, n.phase, n.incarnation, n.lease_ms, n.confirmed)
            for node_id, n in read.nodes.items()
        },
        tickets=read.tickets,
        clients=read.clients,
        gone={client.client_id: client for client in read.gone},
        queue=read.queue,
        demand=_read(read.learned),
        cordons=read.cordons,
        faults=read.faults,
        queueing=read.queueing,
    )
    try:
        _rebuild(state)
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        raise BadSnapshot(f"the snapshot does not hold together: {error!r}") from error
    return state


def _rebuild(state: PoolState) -> None:
    """Work out all that follows from what a snapshot holds."""
    for node_id, cordon in state.cordons.items():
        state.set_cordon(node_id, cordon)
    for ticket in state.tickets.values():
        for slot in ticket.slots:
            if slot.node_id in ticket.held:
                node = state.nodes.get(slot.node_id)
                if node is None or not node.take(ticket, slot):
                    raise BadSnapshot(
                        f"the snapshot holds ticket {ticket.ticket_id} at {slot.node_id} GPUs {slot.gpu_ids}, "
                        f"which are not there or taken twice"
                    )
    for node in state.nodes.values():
        state.apply_faults(node)
        state.index(node)
    if not state.queueing.accounts:  # written by a release that did not count for projects
        _open_accounts(state)
    for ticket in state.tickets.values():  # oldest first, as they were granted
        if ticket.phase != "queued":
            state.watch(ticket)
    for ticket_id in reversed(state.queue):
        ticket = state.tickets[ticket_id]
        if ticket.at_head:
            state.wait(ticket)
    for ticket_id in state.queue:
        ticket = state.tickets[ticket_id]
        state.watch(ticket)
        if not ticket.at_head:
            state.wait(ticket)


def _written(known: Demand) -> _Demand:
    sums = (known.members, known.gpu_milli, known.cpu_milli, known.memory_mib)
    shares, models = tuple(sorted(known.shares.items())), tuple(sorted(known.models.items()))
    return _Demand(*sums, shares, known.usual, known.next_at, known.shares_granted, models)


def _read(known: _Demand | None) -> Demand:
    if known is None:
        return Demand()
    sums = (known.members, known.gpu_milli, known.cpu_milli, known.memory_mib)
    return Demand(*sums, dict(known.shares), known.shares_granted, dict(known.models), known.usual, known.next_at)


def _open_accounts(state: PoolState) -> None:
    now_ms = ms_of(state.last_id)
    for ticket in state.tickets.values():
        client = state.clients.get(ticket.client_id)
        user = client.user if client is not None else ""
        ticket.project = ticket.project or project_of(ticket.spec.terms.project, "", user, ticket.client_id)
        slots = [slot for slot in ticket.slots if slot.node_id in ticket.held]
        if slots:
            state.queueing.charge(ticket.project, amounts_of(ticket.spec, slots), 1, now_ms)


def copy(state: PoolState) -> PoolState:
    """An independent copy of a state."""
    return decode(encode(state))
