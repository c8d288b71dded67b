"""The board: what a live view shows of a pool, as plain frozen values made from a folded state. Pure.

The state is changed in place while the log is followed, so a view never looks at it: it is given a board.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spoke.cli.output import numbers
from spoke.cli.views import needs
from spoke.events.ids import ms_of
from spoke.events.model import GPU_MILLI, GangSpec, Slot
from spoke.events.state import ActorState, NodeState, PoolState, TicketState, ticket_number

CellKind = Literal["free", "held", "shared", "unhealthy"]


@dataclass(frozen=True, slots=True)
class GpuCell:
    """One GPU: by which ticket it is held. ``shared``: some of it is; ``ticket`` is then the first of its holders."""

    kind: CellKind
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node. ``memory`` is in bytes; ``gpus`` in the order of their indices; ``remark`` says why nothing new comes."""

    key: str
    state: str
    gpus: tuple[GpuCell, ...]
    gpus_free: int
    cpus: float
    cpus_free: float
    memory: int
    memory_free: int
    tickets: tuple[str, ...]
    host: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class TicketRow:
    """A ticket. ``place`` is its place in the line (0: not in line), ``since_ms`` when it came to its state."""

    key: str
    state: str
    name: str
    user: str
    client: str
    gang: str
    needs: str
    nodes: tuple[str, ...]
    since_ms: int
    reason: str
    running: int
    actors: int
    place: int = 0
    detached: bool = False


@dataclass(frozen=True, slots=True)
class ActorRow:
    """The latest actor of a rank. ``gpus`` are physical indices in words, ``end`` how it ended, in words."""

    key: str
    ticket: str
    rank: int
    node: str
    gpus: str
    state: str
    actor: str
    pid: int
    runs: str
    end: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event: its id, its type, and the rest in words."""

    key: str
    type: str
    text: str


@dataclass(frozen=True, slots=True)
class Board:
    """A pool at one moment. ``now_ms`` is the server's time, ``events`` are the newest, newest first.

    ``allocator`` is empty when nobody decides, ``rate`` is in events a second. ``problem`` says why the board is not
    up to date; empty while it is. ``tickets`` are those that hold places, ``queue`` those that wait, in their order.
    """

    pool: str
    last_id: str = "0-0"
    now_ms: int = 0
    allocator: str = ""
    epoch: int = 0
    rate: float = 0.0
    nodes: tuple[NodeRow, ...] = ()
    tickets: tuple[TicketRow, ...] = ()
    queue: tuple[TicketRow, ...] = ()
    actors: tuple[ActorRow, ...] = ()
    events: tuple[EventRow, ...] = ()
    clients: int = 0
    problem: str = ""

    @property
    def gpus(self) -> int:
        """The number of GPUs of all nodes that are not lost."""
        return sum(len(node.gpus) for node in self.nodes if node.state != "lost")

    @property
    def gpus_free(self) -> int:
        """The number of GPUs that could be given out: free ones of the nodes that are up."""
        return sum(node.gpus_free for node in self.nodes if node.state == "up")

    def ticket(self, ticket_id: str) -> TicketRow | None:
        """The row of a ticket that holds places or waits."""
        return next((row for rows in (self.tickets, self.queue) for row in rows if row.key == ticket_id), None)

    def node(self, node_id: str) -> NodeRow | None:
        """The row of a node."""
        return next((row for row in self.nodes if row.key == node_id), None)


def board_of(state: PoolState, pool: str) -> Board:
    """The state as a board; times, rate, events and the allocator's life are the follower's to add."""
    holders = _holders(state)
    live = sorted((t for t in state.tickets.values() if t.phase != "queued"), key=_order)
    line = [state.tickets[ticket_id] for ticket_id in state.queue]
    return Board(
        pool=pool,
        last_id=state.last_id,
        now_ms=ms_of(state.last_id),
        allocator=state.allocator,
        epoch=state.epoch,
        nodes=tuple(_node(node, state, holders) for _, node in sorted(state.nodes.items())),
        tickets=tuple(_ticket(ticket, state) for ticket in live),
        queue=tuple(_ticket(ticket, state, place) for place, ticket in enumerate(line, start=1)),
        actors=tuple(_actor(ticket, actor) for ticket in live for actor in ticket.actors),
        clients=len(state.clients),
    )


def _order(ticket: TicketState) -> tuple[int, str]:
    return ticket_number(ticket.ticket_id) or 0, ticket.ticket_id


def _holders(state: PoolState) -> dict[tuple[str, int], GpuCell]:
    """Who holds which GPU: (node, index) -> its cell; of a shared one, the ticket with the lowest number."""
    found: dict[tuple[str, int], GpuCell] = {}
    for ticket in sorted(state.tickets.values(), key=_order):
        whole, share = GpuCell("held", ticket.ticket_id), GpuCell("shared", ticket.ticket_id)
        for slot in ticket.slots:
            if slot.node_id in ticket.held:
                cell = share if slot.gpu_milli and slot.gpu_milli < GPU_MILLI else whole
                for index in slot.gpu_ids:
                    found.setdefault((slot.node_id, index), cell)
    return found


_FREE, _UNHEALTHY = GpuCell("free"), GpuCell("unhealthy")


def _node(node: NodeState, state: PoolState, holders: dict[tuple[str, int], GpuCell]) -> NodeRow:
    spec, node_id = node.spec, node.spec.node_id
    cells = []
    for gpu in sorted(spec.gpus, key=lambda gpu: gpu.index):
        held = holders.get((node_id, gpu.index))
        if node.is_unhealthy(gpu.index):
            cells.append(GpuCell("unhealthy", held.ticket) if held else _UNHEALTHY)
        else:
            cells.append(held or _FREE)
    return NodeRow(
        key=node_id,
        state=node.phase,
        gpus=tuple(cells),
        gpus_free=node.free_gpus.bit_count(),
        cpus=spec.cpu_milli / 1000,
        cpus_free=node.free_cpu_milli / 1000,
        memory=spec.memory,
        memory_free=node.free_memory,
        tickets=tuple(sorted(node.tickets, key=lambda t: (len(t), t))),
        host=spec.host,
        remark=_remark(node, state),
    )


def _remark(node: NodeState, state: PoolState) -> str:
    words = []
    cordon = state.cordons.get(node.spec.node_id)
    if cordon is not None:
        words.append(f"{cordon.phase} by {cordon.by or '?'}" + (f": {cordon.reason}" if cordon.reason else ""))
    faults = state.faults.get(node.spec.node_id, {})
    words += [
        f"GPU {g.index}: {faults[g.uuid].reason or faults[g.uuid].kind}" for g in node.spec.gpus if g.uuid in faults
    ]
    if not node.confirmed:
        words.append("has yet to say what runs there")
    return "; ".join(words)


def _ticket(ticket: TicketState, state: PoolState, place: int = 0) -> TicketRow:
    spec = ticket.spec
    return TicketRow(
        key=ticket.ticket_id,
        state=ticket.phase,
        name=spec.name,
        user=state.user_of(ticket.client_id),
        client=ticket.client_id,
        gang=f"{spec.num_nodes}x{spec.actors_per_node}",
        needs=_needs(spec),
        nodes=tuple(dict.fromkeys(slot.node_id for slot in ticket.slots)),
        since_ms=ms_of(ticket.since),
        reason=ticket.reason,
        running=sum(ticket.alive.values()),
        actors=spec.size,
        place=place,
        detached=spec.detached,
    )


def _needs(spec: GangSpec) -> str:
    resources = spec.resources
    return needs(resources.gpus, resources.cpus, resources.memory_bytes, int(resources.gpu_memory))


def _actor(ticket: TicketState, actor: ActorState) -> ActorRow:
    slot = ticket.slots[actor.rank] if actor.rank < len(ticket.slots) else None
    here = slot is not None and slot.node_id == actor.node_id
    return ActorRow(
        key=f"{ticket.ticket_id}/{actor.rank}",
        ticket=ticket.ticket_id,
        rank=actor.rank,
        node=actor.node_id,
        gpus=_gpus(slot) if slot is not None and here else "",
        state="stopping" if actor.stopping and actor.phase == "running" else actor.phase,
        actor=actor.actor_id,
        pid=actor.pid,
        runs=actor.spec.title[:200],
        end=_end(actor),
    )


def _gpus(slot: Slot) -> str:
    share = f"{slot.gpu_milli / GPU_MILLI:g} of " if slot.gpu_milli else ""
    return share + numbers(slot.gpu_ids)


def _end(actor: ActorState) -> str:
    if actor.phase == "exited":
        return f"signal {actor.signal}" if actor.signal else f"code {actor.code}"
    if actor.phase == "restarting" or (actor.phase == "launching" and actor.restarts):
        return f"restart {actor.restarts}"
    return actor.reason if actor.phase in ("start_failed", "lost") else ""
