"""What a pool is, after all the events so far.

These records are changed by ``fold`` alone. Everything in them comes from the log, so that a snapshot is these
records in msgpack, and equal logs give equal bytes. The capacity index is derived and kept beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from spoke.events.capacity import Amount, CapacityIndex
from spoke.events.lifecycle import ACTOR_ALIVE, ActorPhase, NodePhase, TicketPhase
from spoke.events.model import ActorSpec, GangSpec, NodeSpec, Slot

SNAPSHOT_VERSION = 1
SEQ_WINDOW = 1_024


@dataclass(slots=True)
class NodeState:
    """A node and what is free on it. ``free_gpus`` and ``free_ports`` are bit sets (GPU index, offset of the port)."""

    spec: NodeSpec
    phase: NodePhase
    incarnation: str
    free_gpus: int
    free_ports: int
    free_cpu_milli: int
    free_memory: int
    tickets: set[str] = field(default_factory=set)

    @property
    def total(self) -> Amount:
        """All that the node has."""
        return Amount(len(self.spec.gpus), self.spec.cpu_milli, self.spec.memory)

    @property
    def free(self) -> Amount:
        """What no ticket holds."""
        return Amount(self.free_gpus.bit_count(), self.free_cpu_milli, self.free_memory)


@dataclass(slots=True)
class ActorState:
    """The latest actor of a rank. ``launch_id`` is the id of its launch event, ``launch`` the request it came from."""

    actor_id: str
    rank: int
    node_id: str
    launch_id: str
    launch: str
    spec: ActorSpec
    phase: ActorPhase = "launching"
    stopping: bool = False
    pid: int = 0
    address: str = ""
    code: int = 0
    signal: int = 0
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether the actor may hold its GPUs."""
        return self.phase in ACTOR_ALIVE


@dataclass(slots=True)
class TicketState:
    """A gang from its request to its release. ``held`` are the nodes on which it still holds its slots."""

    ticket_id: str
    client_id: str
    seq: int
    spec: GangSpec
    phase: TicketPhase
    since: str
    reason: str = ""
    deadline_ms: int = 0
    slots: tuple[Slot, ...] = ()
    master_addr: str = ""
    master_port: int = 0
    policy: str = ""
    held: set[str] = field(default_factory=set)
    actors: dict[int, ActorState] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)  # launch request -> its actors that are not up yet
    watchers: set[str] = field(default_factory=set)
    release_requests: list[tuple[str, int]] = field(default_factory=list)

    @property
    def need(self) -> Amount:
        """What one member needs."""
        return need_of(self.spec)


@dataclass(slots=True)
class ClientState:
    """A connected client, and which of its requests have been decided."""

    client_id: str
    lease_ms: int
    user: str = ""
    host: str = ""
    pid: int = 0
    tickets: set[str] = field(default_factory=set)
    seq_floor: int = 0
    """All requests up to here count as decided."""
    seqs: set[int] = field(default_factory=set)
    """Decided requests above the floor."""

    def has_decided(self, seq: int) -> bool:
        """Whether the request was decided before, or is so far behind that it must have been."""
        return seq <= self.seq_floor or seq in self.seqs


@dataclass(slots=True)
class PoolState:
    """All of a pool. ``queue`` holds the waiting tickets in their order, ``last_id`` the last folded event's id."""

    last_id: str = "0-0"
    epoch: int = 0
    allocator: str = ""
    next_ticket: int = 1
    nodes: dict[str, NodeState] = field(default_factory=dict)
    tickets: dict[str, TicketState] = field(default_factory=dict)
    clients: dict[str, ClientState] = field(default_factory=dict)
    queue: list[str] = field(default_factory=list)
    capacity: CapacityIndex = field(default_factory=CapacityIndex, compare=False, repr=False)

    def to_snapshot(self) -> bytes:
        """The state as msgpack: equal states give equal bytes."""
        return _ENCODER.encode(
            _Snapshot(
                SNAPSHOT_VERSION,
                self.last_id,
                self.epoch,
                self.allocator,
                self.next_ticket,
                self.nodes,
                self.tickets,
                self.clients,
                self.queue,
            )
        )

    @classmethod
    def from_snapshot(cls, raw: bytes) -> PoolState:
        """The state that ``to_snapshot`` wrote; raises ValueError if the bytes are none, or of another version."""
        read = _DECODER.decode(raw)
        if read.version != SNAPSHOT_VERSION:
            raise ValueError(
                f"the snapshot has version {read.version}; this release reads {SNAPSHOT_VERSION}"
            )
        state = cls(
            read.last_id,
            read.epoch,
            read.allocator,
            read.next_ticket,
            read.nodes,
            read.tickets,
            read.clients,
            read.queue,
        )
        for node in state.nodes.values():
            state.index(node)
        return state

    def copy(self) -> PoolState:
        """An independent copy."""
        return self.from_snapshot(self.to_snapshot())

    def index(self, node: NodeState) -> None:
        """Keep the capacity index in step with a node's state."""
        if node.phase == "up":
            self.capacity.put(node.spec.node_id, node.free, node.total)
        else:
            self.capacity.drop(node.spec.node_id)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    version: int
    last_id: str
    epoch: int
    allocator: str
    next_ticket: int
    nodes: dict[str, NodeState]
    tickets: dict[str, TicketState]
    clients: dict[str, ClientState]
    queue: list[str]


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODER = msgspec.msgpack.Decoder(_Snapshot)


def need_of(spec: GangSpec) -> Amount:
    """What one member of the gang needs."""
    resources = spec.resources
    return Amount(resources.gpus, resources.cpu_milli, resources.memory_bytes)


def mask_of(indices: tuple[int, ...]) -> int:
    """The bit set of some indices."""
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


def indices_of(mask: int) -> tuple[int, ...]:
    """The indices in a bit set, lowest first."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)


def ticket_number(ticket_id: str) -> int | None:
    """The number in a ticket's id; None for a text that is no ticket id."""
    head, _, tail = ticket_id.partition("-")
    return int(tail) if head == "t" and tail.isascii() and tail.isdigit() and len(tail) < 19 else None
