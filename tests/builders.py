"""A whole pool in memory: the real decide, outbox and fold, without Redis, clocks or processes.

``MemoryPool`` plays the allocator's term; the fake agents in it keep the process table that a real node would have,
so that a test can ask what invariants I4 and I7 ask: is anything still running on a GPU that is handed out?
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from spoke.allocator import decide as core
from spoke.allocator import outbox
from spoke.allocator.effects.kinds import Blobs, Command, DropLease, Effect, ForgetTicket, GrantLease, Tell
from spoke.events import snapshot
from spoke.events import types as e
from spoke.events.codec import decode_event, encode_event
from spoke.events.fold import fold
from spoke.events.invariants import violations
from spoke.events.model import GPU_MILLI, ActorSpec, GangSpec, Gpu, Member, NodeSpec, PortRange, Resources
from spoke.events.state import PoolState
from spoke.protocol import orders as o
from spoke.protocol import replies as p
from spoke.protocol import requests as r
from spoke.protocol.keys import client_lease, node_lease
from spoke.protocol.launch import unpack_blobs


def node_spec(
    node_id: str,
    gpus: int = 4,
    *,
    cpus: float = 64,
    memory: int = 1 << 36,
    ports: int = 16,
    machine: str = "m",
    gpu_memory: int = 80 << 30,
) -> NodeSpec:
    """A node with logical GPUs."""
    return NodeSpec(
        node_id=node_id,
        host=f"host-{node_id}",
        address="127.0.0.1",
        machine=machine,
        gpus=tuple(Gpu(index, f"{node_id}-gpu-{index}", "H100", gpu_memory) for index in range(gpus)),
        cpu_milli=round(cpus * 1000),
        memory=memory,
        ports=PortRange(20_000, ports),
    )


def gang(
    num_nodes: int = 1,
    actors_per_node: int = 1,
    gpus: float = 1,
    *,
    cpus: float = 0.0,
    gpu_memory: int | str = 0,
    **options: object,
) -> GangSpec:
    """What to ask for."""
    resources = Resources(gpus=gpus, cpus=cpus, gpu_memory=gpu_memory)
    return GangSpec(num_nodes, actors_per_node, resources, **options)  # type: ignore[arg-type]


@dataclass
class FakeAgent:
    """An agent's incarnation and its process table: launch id to the order that started it."""

    spec: NodeSpec
    incarnation: str
    processes: dict[str, o.StartActor] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    orders: deque[o.Delivery] = field(default_factory=deque)
    rejected: bool = False

    def running_milli(self) -> Counter[int]:
        """How much of each GPU the running processes were given, in thousandths."""
        found: Counter[int] = Counter()
        for order in self.processes.values():
            for index in order.gpu_ids:
                found[index] += order.gpu_milli or GPU_MILLI
        return found


class MemoryPool:
    """One pool: send requests, let agents act, look at answers."""

    def __init__(self) -> None:
        self.state = PoolState()
        self.now_ms = 1_000_000
        self.log: list[e.Recorded] = []
        self.answers: dict[tuple[str, int], list[p.Message]] = defaultdict(list)
        self.notices: dict[str, list[p.Message]] = defaultdict(list)
        self.agents: dict[str, FakeAgent] = {}
        self.sent: set[tuple[str, int]] = set()
        self.leases: dict[str, int] = {}
        self.seqs: dict[str, int] = defaultdict(int)
        self._incarnations = 0
        self.record([e.AllocatorElected("memory", 1)])

    # --- requests ---

    def request(self, client_id: str, request: r.Request, blobs: bytes = b"", seq: int | None = None) -> int:
        """Send a request of a client; the seq under which the answer comes."""
        if seq is None:
            self.seqs[client_id] += 1
            seq = self.seqs[client_id]
        self.sent.add((client_id, seq))
        self.handle(r.Envelope(request, client_id, seq, blobs=blobs))
        return seq

    def answer(self, client_id: str, seq: int) -> p.Message | None:
        """The answer to a request, if there is one yet."""
        found = self.answers[client_id, seq]
        assert len(found) <= 1, f"request {seq} of {client_id} was answered {len(found)} times: {found}"
        return found[0] if found else None

    def ask(self, client_id: str, request: r.Request, blobs: bytes = b"") -> p.Message | None:
        """Send a request and take its answer."""
        return self.answer(client_id, self.request(client_id, request, blobs))

    def connect(self, client_id: str = "c", lease_ms: int = 10_000) -> None:
        self.ask(client_id, r.ConnectClient(lease_ms))

    def allocate(self, client_id: str, spec: GangSpec, timeout_ms: int | None = 0) -> p.Message | None:
        return self.ask(client_id, r.AllocateGang(spec, timeout_ms))

    def launch(self, client_id: str, ticket_id: str, ranks: tuple[int, ...]) -> int:
        members = tuple(Member(rank, f"actor-{rank}") for rank in ranks)
        return self.request(client_id, r.LaunchActors(ticket_id, ActorSpec("Worker"), members))

    # --- agents ---

    def register(self, spec: NodeSpec) -> FakeAgent:
        """A new run of a node's agent: its machine is clean, and it asks to join."""
        self._incarnations += 1
        agent = FakeAgent(spec, f"i{self._incarnations}")
        self.agents[spec.node_id] = agent
        self.handle(r.Envelope(r.RegisterNode(spec, 10_000), node_id=spec.node_id, incarnation=agent.incarnation))
        return agent

    def report(self, agent: FakeAgent, request: r.Request) -> None:
        self.handle(r.Envelope(request, node_id=agent.spec.node_id, incarnation=agent.incarnation))

    def deliver(self, agent: FakeAgent) -> bool:
        """Let an agent read and obey its next order; False if there is none."""
        while agent.orders:
            delivery = agent.orders.popleft()
            if delivery.incarnation != agent.incarnation:
                continue
            self._obey(agent, delivery.order)
            return True
        return False

    def _obey(self, agent: FakeAgent, order: o.Order) -> None:
        match order:
            case o.StartActor():
                agent.processes[order.launch_id] = order
            case o.StopActor(launch_id=launch_id):
                self.end(agent, launch_id, code=-1, signal=15)
            case o.CloseTicket(ticket_id=ticket_id):
                for launch_id in [i for i, s in agent.processes.items() if s.ticket_id == ticket_id]:
                    self.end(agent, launch_id, code=-1, signal=15)
            case o.Reject():
                agent.processes.clear()
                agent.rejected = True
            case _:
                pass

    def start(self, agent: FakeAgent, launch_id: str) -> None:
        """A launched process reports that it is up."""
        order = agent.processes[launch_id]
        agent.started.add(launch_id)
        self.report(agent, r.ReportStarted(order.ticket_id, order.rank, launch_id, 4711, "tcp://127.0.0.1:1"))

    def fail(self, agent: FakeAgent, launch_id: str) -> None:
        """A launched process dies before it is up."""
        order = agent.processes.pop(launch_id)
        self.report(agent, r.ReportStartFailed(order.ticket_id, order.rank, launch_id, "no such type"))

    def end(self, agent: FakeAgent, launch_id: str, code: int = 0, signal: int = 0) -> None:
        """A process ends; the agent has seen it dead before it says so."""
        order = agent.processes.pop(launch_id, None)
        if order is not None:
            self.report(agent, r.ReportExited(order.ticket_id, order.rank, launch_id, code, signal))

    def settle(self) -> None:
        """Let agents obey everything, and start everything they were told to."""
        busy = True
        while busy:
            busy = False
            for agent in self.agents.values():
                busy = self.deliver(agent) or busy
                for launch_id in [i for i in agent.processes if i not in agent.started]:
                    self.start(agent, launch_id)
                    busy = True

    # --- time and leases ---

    def expire_client(self, client_id: str) -> None:
        self.record(core.expire(self.state, client_lease(client_id)))
        self.advance_line()

    def expire_node(self, node_id: str) -> None:
        """A node's lease runs out. By I7 its agent has killed everything before that."""
        agent = self.agents[node_id]
        agent.processes.clear()
        self.record(core.expire(self.state, node_lease(node_id, agent.incarnation)))
        self.advance_line()

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        self.advance_line()

    # --- the term ---

    def handle(self, asked: r.Asked) -> None:
        """Decide one request, as the allocator's turn does."""
        events = core.decide(self.state, asked, self.now_ms)
        blobs: Blobs = {}
        launched = bool(events) and isinstance(events[0], e.ActorLaunchRequested)
        if launched and isinstance(asked, r.Envelope) and isinstance(asked.request, r.LaunchActors):
            ranks = [m.rank for m in asked.request.members]
            blobs = dict(zip(ranks, unpack_blobs(asked.blobs, len(ranks)), strict=True))
        self.record(events, blobs)
        self.advance_line()

    def advance_line(self) -> None:
        while events := core.tick(self.state, self.now_ms):
            self.record(events)

    def record(self, events: list[e.Event], blobs: Blobs | None = None) -> None:
        for event in events:
            self.now_ms += 1
            recorded = e.Recorded(f"{self.now_ms}-0", event)
            self._check_nothing_runs_where(event)
            for effect in outbox.effects(self.state, recorded, blobs or {}):
                self._effect(effect)
            self.log.append(recorded)
            fold(self.state, recorded)

    def _check_nothing_runs_where(self, event: e.Event) -> None:
        """I4: a GPU that is handed out has no process of an old ticket on it."""
        if isinstance(event, (e.GangAllocated, e.GangRepaired)):
            slots = event.slots if isinstance(event, e.GangAllocated) else (event.slot,)
            given = {slot.node_id: self.agents[slot.node_id].running_milli() for slot in slots}
            for slot in slots:
                for index in slot.gpu_ids:
                    given[slot.node_id][index] += slot.gpu_milli or GPU_MILLI
                    milli = given[slot.node_id][index]
                    assert milli <= GPU_MILLI, f"I4: {event.ticket_id} gets GPU {index} of {slot.node_id}: {milli}"

    def _effect(self, effect: Effect) -> None:
        match effect:
            case Tell(client_id, 0, message):
                self.notices[client_id].append(message)
            case Tell(client_id, seq, message):
                self.answers[client_id, seq].append(message)
            case Command(node_id, delivery):
                if node_id in self.agents:  # a refusal may go to a node that nobody ever was
                    self.agents[node_id].orders.append(delivery)
            case GrantLease(holder, lease_ms):
                self.leases[holder] = lease_ms
            case DropLease(holder):
                self.leases.pop(holder, None)
            case ForgetTicket():
                pass

    # --- checks ---

    def check(self) -> None:
        """All invariants that hold at any moment."""
        assert violations(self.state) == []
        for key, found in self.answers.items():
            assert len(found) <= 1, f"I5: {key} was answered {found}"

    def check_replay(self, cut: int) -> None:
        """I8: a snapshot and the later events give what all events give, byte for byte; also through the codec."""
        early = PoolState()
        for recorded in self.log[:cut]:
            fold(early, recorded)
        late = snapshot.decode(snapshot.encode(early))
        assert late == early
        for recorded in self.log[cut:]:
            raw = {
                key.encode(): value if isinstance(value, bytes) else str(value).encode()
                for key, value in encode_event(recorded.event).items()
            }
            decoded = decode_event(recorded.id, raw)
            assert decoded == recorded
            fold(late, decoded)
        assert late == self.state
        assert snapshot.encode(late) == snapshot.encode(self.state)
