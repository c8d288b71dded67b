"""What a pool is, after all the events so far.

These records are changed by ``fold`` alone, and everything in them comes from the log. What is free on a node follows
from its spec and the tickets on it; it is kept beside them because placement reads it all the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from spoke.events.capacity import Amount, CapacityIndex
from spoke.events.demand import Demand
from spoke.events.domains import DomainIndex
from spoke.events.ids import ms_of
from spoke.events.lifecycle import ACTOR_ALIVE, ActorPhase, NodePhase, TicketPhase
from spoke.events.model import GPU_MILLI, GPUS_PER_NODE_MAX, ActorSpec, GangSpec, NodeSpec, Resources, Slot
from spoke.events.queueing import Queueing
from spoke.events.waiting import Alarms, Waiting

SEQ_WINDOW = 1_024
GONE_CLIENTS_KEPT = 1_000

CordonPhase = Literal["cordoned", "draining", "drained"]


@dataclass(slots=True)
class NodeState:
    """A node and what is free on it. ``free_gpus`` and ``free_ports`` are bit sets (GPU index, offset of the port).

    ``free_gpus`` are the healthy GPUs that nobody uses. ``shared`` holds the healthy ones that are shared: GPU index ->
    how many thousandths of it are taken (at least 1, at most 1000). ``unhealthy`` are the GPUs that are not given out,
    whether or not a ticket still holds them, and ``unhealthy_shared`` what is taken of those that are shared.
    """

    spec: NodeSpec
    phase: NodePhase
    incarnation: str
    free_gpus: int
    free_ports: int
    free_cpu_milli: int
    free_memory: int
    tickets: set[str] = field(default_factory=set)
    shared: dict[int, int] = field(default_factory=dict)
    unhealthy: int = 0
    unhealthy_shared: dict[int, int] = field(default_factory=dict)
    lease_ms: int = 0
    free_nics: int = 0
    """The NICs that no ticket has for itself, a bit set in the order of the spec."""
    exclusive: str = ""
    """The ticket that has the node for itself; empty if none has."""
    confirmed: bool = True
    """False from a change of servers until the agent has said what runs here; nothing is granted meanwhile."""
    gpu_uuids: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    """By the GPU's index. This and the next follow from the spec, and are asked for all the time."""
    plain: bool = field(default=False, compare=False, repr=False)
    """Whether nothing is known of where its GPUs are."""

    @classmethod
    def empty(
        cls, spec: NodeSpec, phase: NodePhase, incarnation: str, lease_ms: int = 0, confirmed: bool = True
    ) -> NodeState:
        """A node on which everything is free."""
        return cls(
            spec=spec,
            phase=phase,
            incarnation=incarnation,
            free_gpus=mask_of(tuple(gpu.index for gpu in spec.gpus)),
            free_ports=(1 << spec.ports.count) - 1,
            free_cpu_milli=spec.cpu_milli,
            free_memory=spec.memory,
            lease_ms=lease_ms,
            free_nics=(1 << len(spec.nics)) - 1,
            confirmed=confirmed,
            gpu_uuids={gpu.index: gpu.uuid for gpu in spec.gpus},
            plain=spec.topology is None and all(gpu.numa_node < 0 for gpu in spec.gpus),
        )

    def take(self, ticket: TicketState, slot: Slot) -> bool:
        """Book a slot of a ticket on this node; False (and nothing booked) if any of it is not free: I1 and I3."""
        share, indices = slot.gpu_milli, slot.gpu_ids
        if indices and not 0 <= min(indices) <= max(indices) < GPUS_PER_NODE_MAX:
            return False  # a broken log may say anything, and a mask has as many bits as the index says
        if share and (share < 0 or len(indices) != 1):
            return False
        spec = ticket.spec
        alone = spec.rules is not None and spec.rules.exclusive
        if (alone or self.exclusive) and not self.is_open_to(ticket):
            return False
        nics = self.nics_of(slot.nics) if slot.nics else 0
        port = 0 if slot.global_rank else self._port_bit(ticket, slot)
        if nics is None or self.free_ports & port != port:
            return False
        if not self.book(ticket.need_of(slot) if spec.groups else ticket.need, indices, share, nics):
            return False
        self.free_ports ^= port
        self.tickets.add(ticket.ticket_id)
        if alone:
            self.exclusive = ticket.ticket_id
        return True

    def book(self, need: Amount, gpu_ids: tuple[int, ...], share: int, nics: int) -> bool:
        """Take GPUs (or a share of one), NICs, CPU and memory; False, and nothing taken, if they are not free."""
        gpus = mask_of(gpu_ids)
        free = self.free_milli(gpu_ids[0]) >= share if share else self.free_gpus & gpus == gpus
        if not free or self.free_nics & nics != nics:
            return False
        if self.free_cpu_milli < need.cpu_milli or self.free_memory < need.memory:
            return False
        if share:
            self.shared[gpu_ids[0]] = self.shared.get(gpu_ids[0], 0) + share
        self.free_gpus &= ~gpus
        self.free_nics ^= nics
        self.free_cpu_milli -= need.cpu_milli
        self.free_memory -= need.memory
        return True

    def is_open_to(self, ticket: TicketState) -> bool:
        """Whether nobody's exclusive use keeps the ticket from the node."""
        if self.exclusive and self.exclusive != ticket.ticket_id:
            return False
        return not ticket.exclusive or self.tickets <= {ticket.ticket_id}

    def nics_of(self, names: tuple[str, ...]) -> int | None:
        """The NICs of these names as a bit set; None if one is not there or named twice."""
        mask = 0
        for name in names:
            at = next((at for at, nic in enumerate(self.spec.nics) if nic.name == name), None)
            if at is None or mask >> at & 1:
                return None
            mask |= 1 << at
        return mask

    def give_back(self, ticket: TicketState, slot: Slot) -> None:
        """Free what ``take`` booked."""
        need = ticket.need_of(slot) if ticket.spec.groups else ticket.need
        if slot.gpu_milli:
            self._give_back_share(slot.gpu_ids[0], slot.gpu_milli)
        else:
            self.free_gpus |= mask_of(slot.gpu_ids) & ~self.unhealthy
        if not slot.global_rank:
            self.free_ports |= self._port_bit(ticket, slot)
        self.free_cpu_milli += need.cpu_milli
        self.free_memory += need.memory
        if slot.nics:
            self.free_nics |= self.nics_of(slot.nics) or 0
        if self.exclusive == ticket.ticket_id:
            self.exclusive = ""
        self.tickets.discard(ticket.ticket_id)

    def _give_back_share(self, index: int, milli: int) -> None:
        shared = self.unhealthy_shared if self.unhealthy >> index & 1 else self.shared
        left = shared[index] - milli
        if left:
            shared[index] = left
        else:
            del shared[index]
            self.free_gpus |= 1 << index & ~self.unhealthy

    def mark_unhealthy(self, index: int) -> None:
        """Give this GPU out no more; what tickets hold of it stays theirs."""
        self.unhealthy |= 1 << index
        self.free_gpus &= ~self.unhealthy
        if index in self.shared:
            self.unhealthy_shared[index] = self.shared.pop(index)

    def mark_healthy(self, index: int, held: bool) -> None:
        """Give this GPU out again; ``held``: a ticket holds all of it."""
        self.unhealthy &= ~(1 << index)
        if index in self.unhealthy_shared:
            self.shared[index] = self.unhealthy_shared.pop(index)
        elif not held:
            self.free_gpus |= 1 << index

    def is_unhealthy(self, index: int) -> bool:
        """Whether the GPU is not given out because it is unhealthy."""
        return bool(self.unhealthy >> index & 1)

    def free_milli(self, index: int) -> int:
        """How many thousandths of a GPU are free."""
        if self.free_gpus >> index & 1:
            return GPU_MILLI
        used = self.shared.get(index)
        return 0 if used is None else GPU_MILLI - used

    def _port_bit(self, ticket: TicketState, slot: Slot) -> int:
        offset = ticket.master_port - self.spec.ports.first
        return 1 << offset if slot.global_rank == 0 and 0 <= offset < self.spec.ports.count else 0

    @property
    def free_gpu_milli(self) -> int:
        """All that is free of the node's GPUs, in thousandths of one."""
        rests = len(self.shared) * GPU_MILLI - sum(self.shared.values()) if self.shared else 0
        return self.free_gpus.bit_count() * GPU_MILLI + rests

    @property
    def total(self) -> Amount:
        """All that the node can give: what it has, without the unhealthy GPUs."""
        return Amount(len(self.spec.gpus) - self.unhealthy.bit_count(), self.spec.cpu_milli, self.spec.memory)

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
    restarts: int = 0
    """How often it was started again; in a gang that restarts as a whole, its generation."""

    @property
    def in_gang_restarts(self) -> bool:
        """Whether a restart of its gang stops it and starts it again."""
        restart = self.spec.restart
        return restart is not None and restart.policy == "gang" and not self.stopping

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
    need: Amount  # of one member; it follows from the spec
    reason: str = ""
    deadline_ms: int = 0
    slots: tuple[Slot, ...] = ()
    master_addr: str = ""
    master_port: int = 0
    policy: str = ""
    group_sizes: tuple[int, ...] = ()
    held: set[str] = field(default_factory=set)
    alive: dict[str, int] = field(default_factory=dict)  # node -> how many of the ticket's actors may run there
    members: list[ActorState | None] = field(default_factory=list)  # by rank; empty until the first launch
    launches: dict[str, int] = field(default_factory=dict)  # launch request -> its actors that are not up yet
    watchers: set[str] = field(default_factory=set)
    release_requests: list[tuple[str, int]] = field(default_factory=list)
    project: str = ""
    """Whom it counts for in quotas and fair shares."""
    user: str = ""
    """The user of its client, who may be gone when somebody asks."""
    at_head: bool = False
    """Whether an operator moved it before all others."""
    borrowed: bool = False
    """Whether its project had more than its quota with it."""
    ends_ms: int = 0
    """When its time is over (server time); 0: never."""
    warned: bool = False
    """Whether it was told that its time is nearly over."""
    preempt_ms: int = 0
    """When it is released to make room; 0: it need not."""
    preempt_for: str = ""
    """The waiting ticket for which it makes room."""
    preempt_reason: str = ""
    generation: int = 0
    """How often all of its members were started again."""
    strikes: int = 0
    """How many of those its restart policy counts now."""
    halting: set[int] = field(default_factory=set)
    """The ranks that must end before all members are started again; empty unless a restart is under way."""
    delay_ms: int = 0
    """How long they wait then."""
    restarted_ms: int = 0
    """When they were last started again."""

    def need_of(self, slot: Slot) -> Amount:
        """What the member of a slot needs, except for its share of a GPU."""
        return self.need if not self.spec.groups else amount_of(self.spec.resources_of(slot.group))

    @property
    def exclusive(self) -> bool:
        """Whether it has its nodes for itself."""
        return self.spec.rules is not None and self.spec.rules.exclusive

    @property
    def actors(self) -> list[ActorState]:
        """The latest actor of every rank that was launched, in rank order."""
        return [actor for actor in self.members if actor is not None]

    @property
    def granted_ms(self) -> int:
        """When it was granted (server time), while it is allocated or active."""
        return ms_of(self.since)

    def actor(self, rank: int) -> ActorState | None:
        """The latest actor of a rank; None if it was never launched."""
        return self.members[rank] if 0 <= rank < len(self.members) else None


@dataclass(slots=True)
class ClientState:
    """A connected client, and which of its requests have been decided."""

    client_id: str
    lease_ms: int
    user: str = ""
    host: str = ""
    pid: int = 0
    project: str = ""
    tickets: set[str] = field(default_factory=set)
    seq_floor: int = 0
    """All requests up to here count as decided."""
    seqs: set[int] = field(default_factory=set)
    """Decided requests above the floor."""

    def has_decided(self, seq: int) -> bool:
        """Whether the request was decided before, or is so far behind that it must have been."""
        return seq <= self.seq_floor or seq in self.seqs


@dataclass(slots=True)
class Cordon:
    """Why nothing is placed on a node. It belongs to the node's id, and outlives the node itself.

    ``by`` is the user who asked (else the client), ``since`` the event's id, ``waiters`` the requests that are answered
    when the drain is over.
    """

    by: str
    since: str
    reason: str = ""
    phase: CordonPhase = "cordoned"
    deadline_ms: int = 0
    remove: bool = False
    waiters: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GpuFault:
    """Why a GPU is unhealthy. ``by`` is the user who marked it; empty: its agent's source did. ``since``: the event."""

    kind: str
    reason: str
    by: str
    since: str


@dataclass(slots=True)
class PoolState:
    """All of a pool. ``queue`` holds the waiting tickets in their order, ``last_id`` the last folded event's id."""

    last_id: str = "0-0"
    epoch: int = 0
    allocator: str = ""
    server: str = ""
    """The run id of the server that the log was last written on."""
    changed: bool = False
    """Whether the server ever changed: then requests that were decided before may come again."""
    history_end: str = ""
    """Where the log ended when its server changed, as long as nothing shows that more was lost."""
    next_ticket: int = 1
    nodes: dict[str, NodeState] = field(default_factory=dict)
    tickets: dict[str, TicketState] = field(default_factory=dict)
    clients: dict[str, ClientState] = field(default_factory=dict)
    gone: dict[str, ClientState] = field(default_factory=dict)
    """The last clients that left: what they send again is still known, and they cannot come back to life."""
    queue: list[str] = field(default_factory=list)
    cordons: dict[str, Cordon] = field(default_factory=dict)
    """By node id, also of nodes that are not there now."""
    draining: set[str] = field(default_factory=set, compare=False, repr=False)
    """The nodes whose cordon is a drain that is under way; it follows from the cordons."""
    faults: dict[str, dict[str, GpuFault]] = field(default_factory=dict)
    """The unhealthy GPUs: node id -> UUID, also of nodes that are not there now."""
    demand: Demand = field(default_factory=Demand)
    queueing: Queueing = field(default_factory=Queueing)
    capacity: CapacityIndex = field(default_factory=CapacityIndex, compare=False, repr=False)
    derived: dict[type, Any] = field(default_factory=dict, compare=False, repr=False)
    """What placement worked out from this state and keeps for its next decision. Decisions do not depend on it."""
    domains: DomainIndex = field(default_factory=DomainIndex, compare=False, repr=False)
    waiting: Waiting = field(default_factory=Waiting, compare=False, repr=False)
    alarms: Alarms = field(default_factory=Alarms, compare=False, repr=False)
    preemptible: dict[str, None] = field(default_factory=dict, compare=False, repr=False)
    """The live tickets that may be preempted, or borrow. This and the next two follow from the tickets."""
    preempting: dict[str, None] = field(default_factory=dict, compare=False, repr=False)
    """The live tickets that were told to make room."""
    releasing: dict[str, None] = field(default_factory=dict, compare=False, repr=False)

    def set_cordon(self, node_id: str, cordon: Cordon | None) -> None:
        """Keep new slots off a node, or no longer; and note whether it is being drained."""
        if cordon is None:
            self.cordons.pop(node_id, None)
        else:
            self.cordons[node_id] = cordon
        if cordon is not None and cordon.phase == "draining":
            self.draining.add(node_id)
        else:
            self.draining.discard(node_id)

    def apply_faults(self, node: NodeState) -> None:
        """Mark the GPUs of a node that are known to be unhealthy, once its tickets are booked."""
        known = self.faults.get(node.spec.node_id)
        if known:
            for gpu in node.spec.gpus:
                if gpu.uuid in known:
                    node.mark_unhealthy(gpu.index)

    def client(self, client_id: str) -> ClientState | None:
        """A client that is connected, or left not long ago."""
        return self.clients.get(client_id) or self.gone.get(client_id)

    def user_of(self, client_id: str) -> str:
        """The user of a client, as far as it is known; else the client's id."""
        client = self.client(client_id)
        return (client.user if client is not None else "") or client_id

    @contextmanager
    def unindexed(self) -> Iterator[None]:
        """While many events are folded and none is decided, leave the capacity index alone; make it anew at the end."""
        self.capacity.suspended = True
        try:
            yield
        finally:
            self.capacity = CapacityIndex()
            self.derived.clear()
            for node in self.nodes.values():
                self.index(node)

    def watch(self, ticket: TicketState) -> None:
        """Keep alarms, and the list of those that may be preempted, in step with a ticket."""
        live = ticket.phase in ("allocated", "active")
        self.alarms.set(ticket.ticket_id, self._alarm_ms(ticket, live))
        _note(self.preemptible, ticket, live and (ticket.borrowed or ticket.spec.terms.preemptible))
        _note(self.preempting, ticket, live and ticket.preempt_ms != 0)
        _note(self.releasing, ticket, ticket.phase == "releasing")

    def _alarm_ms(self, ticket: TicketState, live: bool) -> int:
        if ticket.phase == "queued":
            return ticket.deadline_ms
        if not live:
            return 0
        if not ticket.ends_ms:
            return ticket.preempt_ms
        lasts_ms = ticket.ends_ms - ticket.granted_ms
        before_ms = 0 if ticket.warned else min(self.queueing.policy.notice_ms, lasts_ms // 2)
        return min(ticket.preempt_ms or ticket.ends_ms, ticket.ends_ms - before_ms)

    def wait(self, ticket: TicketState) -> None:
        """Enter a queued ticket among those that wait."""
        self.waiting.add(ticket.ticket_id, ticket.project, ticket.spec.terms.priority, ticket.at_head)

    def index(self, node: NodeState) -> None:
        """Keep the capacity index in step with a node's state."""
        self.domains.put(node.spec.node_id, node.spec.labels)
        if self.capacity.suspended:
            return
        if node.phase != "up" or not node.confirmed:
            self.capacity.drop(node.spec.node_id)
        elif node.exclusive:
            self.capacity.close(node.spec.node_id, node.total)
        else:
            self.capacity.put(node.spec.node_id, node.free, node.total, node.spec)


def _note(those: dict[str, None], ticket: TicketState, belongs: bool) -> None:
    if belongs:
        those[ticket.ticket_id] = None
    elif those:
        those.pop(ticket.ticket_id, None)


def need_of(spec: GangSpec) -> Amount:
    """What one member of the gang needs, except for its share of a GPU."""
    return amount_of(spec.resources)


def amount_of(resources: Resources) -> Amount:
    """What one member with these resources needs, except for its share of a GPU."""
    gpus = resources.gpus
    return Amount(gpus if type(gpus) is int else 0, round(resources.cpus * 1000), int(resources.memory))


def mask_of(indices: tuple[int, ...]) -> int:
    """The bit set of some indices."""
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


def indices_of(mask: int, at_most: int = GPUS_PER_NODE_MAX) -> tuple[int, ...]:
    """The indices in a bit set, lowest first."""
    found: list[int] = []
    while mask and len(found) < at_most:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)


def ticket_number(ticket_id: str) -> int | None:
    """The number in a ticket's id; None for a text that is no ticket id."""
    tail = ticket_id[2:]
    good = ticket_id.startswith("t-") and tail.isascii() and tail.isdigit() and len(tail) < 19
    return int(tail) if good else None
