"""What ``Client.status()`` returns: the pool as its views show it. Fields that a newer release adds are ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from spoke.client.vitals import Leader, read_leader
from spoke.errors import MalformedData
from spoke.events.moments import moment, ms_at
from spoke.protocol.html import html_line, html_table
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis

T = TypeVar("T")
_MOMENTS = frozenset({"since", "ends", "deadline"})


@dataclass(frozen=True, slots=True)
class CordonStatus:
    """Why nothing new is placed on a node. ``state`` is cordoned, draining or drained; ``by`` is who asked for it.

    Times are in milliseconds of the server's clock since 1970; ``deadline_ms`` is 0 for a drain that waits for ever.
    """

    state: str = ""
    by: str = ""
    reason: str = ""
    since_ms: int = 0
    deadline_ms: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class NodeStatus:
    """A node. ``state`` is up, cordoned, draining, drained or lost; ``memory`` is in bytes.

    ``gpus_free`` are physical indices; ``gpus_shared`` says of each shared GPU, by its index, what fraction of it
    is free; ``gpus_unhealthy`` why GPUs are not given out; ``version`` is the release of its agent,
    ``protocol`` the version of the protocol that it speaks (0: not said).

    >>> client.status().nodes[0]
    <NodeStatus node-0 up, 4 of 4 GPUs free>
    """

    node_id: str = ""
    state: str = ""
    gpus: int = 0
    gpus_free: tuple[int, ...] = ()
    gpus_shared: Mapping[str, float] = field(default_factory=dict)
    gpus_unhealthy: Mapping[str, str] = field(default_factory=dict)
    gpu_model: str = ""
    cpus: float = 0.0
    cpus_free: float = 0.0
    memory: int = 0
    memory_free: int = 0
    tickets: tuple[str, ...] = ()
    host: str = ""
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    version: str = ""
    protocol: int = 0
    cordon: CordonStatus | None = None

    def __repr__(self) -> str:
        return f"<NodeStatus {self.node_id} {self.state}, {len(self.gpus_free)} of {self.gpus} GPUs free>"

    def _repr_html_(self) -> str:
        return nodes_html((self,))


@dataclass(frozen=True, slots=True, repr=False)
class TicketStatus:
    """A ticket. ``state`` is queued, allocated, active or releasing; ``since_ms`` is the server's time, since 1970.

    ``project`` is whom it counts for, ``borrowed`` whether that project had more than its quota with it; at ``ends_ms``
    it is released, by its ``max_duration`` or to make room (0: never).

    >>> spoke.TicketStatus("t-7", "queued", gang="2x4", reason="needs 2 nodes with 4 GPUs free")
    <TicketStatus t-7 queued 2x4: needs 2 nodes with 4 GPUs free>
    """

    ticket_id: str = ""
    state: str = ""
    name: str = ""
    client: str = ""
    gang: str = ""
    actors: int = 0
    gpus_per_actor: int | float = 0
    cpus_per_actor: float = 0.0
    memory_per_actor: int = 0
    gpu_memory_per_actor: int = 0
    nics_per_actor: int = 0
    groups: tuple[str, ...] = ()
    strategy: str = "pack"
    exclusive: bool = False
    detached: bool = False
    nodes: tuple[str, ...] = ()
    since_ms: int = 0
    reason: str = ""
    project: str = ""
    priority: int = 0
    preemptible: bool = False
    borrowed: bool = False
    ends_ms: int = 0
    reservation: str = ""

    def __repr__(self) -> str:
        words = [f"{self.ticket_id} {self.state} {self.gang}", *([repr(self.name)] if self.name else [])]
        words += [f"on {_first(self.nodes)}"] if self.nodes else []
        return f"<TicketStatus {' '.join(words)}{f': {self.reason}' if self.reason else ''}>"

    def _repr_html_(self) -> str:
        return tickets_html((self,))


@dataclass(frozen=True, slots=True, repr=False)
class PoolStatus:
    """A pool at one moment. ``allocator`` names who decides in it; empty when nobody does.

    >>> client.status()
    <PoolStatus docs: 2 nodes, 8 of 8 GPUs free, ... tickets, led by ...>
    """

    pool: str
    allocator: str
    nodes: tuple[NodeStatus, ...]
    tickets: tuple[TicketStatus, ...]

    @property
    def gpus(self) -> int:
        """The number of GPUs of the nodes that are up.

        >>> client.status().gpus
        8
        """
        return sum(node.gpus for node in self.nodes if node.state == "up")

    @property
    def gpus_free(self) -> int:
        """The number of GPUs, of the nodes that are up, of which nobody has even a share.

        >>> client.status().gpus_free
        8
        """
        return sum(len(node.gpus_free) for node in self.nodes if node.state == "up")

    def __repr__(self) -> str:
        return f"<PoolStatus {self._summary()}>"

    def _summary(self) -> str:
        return (
            f"{self.pool}: {len(self.nodes)} nodes, {self.gpus_free} of {self.gpus} GPUs free, "
            f"{len(self.tickets)} tickets, {f'led by {self.allocator}' if self.allocator else 'no allocator'}"
        )

    def _repr_html_(self) -> str:
        nodes = nodes_html(self.nodes) if self.nodes else ""
        return html_line(self._summary()) + nodes + (tickets_html(self.tickets) if self.tickets else "")


def nodes_html(nodes: Iterable[NodeStatus]) -> str:
    """Nodes as a table for a notebook."""
    rows = (
        (
            node.node_id,
            node.state,
            f"{len(node.gpus_free)} of {node.gpus}",
            node.gpu_model,
            f"{node.cpus_free:g} of {node.cpus:g}",
            f"{node.memory_free / 2**30:.3g} of {node.memory / 2**30:.3g} GiB",
            _first(node.tickets),
            "; ".join(
                [*([node.cordon.reason] if node.cordon is not None else [])]
                + [f"GPU {index}: {why}" for index, why in node.gpus_unhealthy.items()]
            ),
        )
        for node in nodes
    )
    return html_table(
        ("node", "state", ">GPUs free", "model", ">CPUs free", ">memory free", "tickets", "remarks"), rows
    )


def tickets_html(tickets: Iterable[TicketStatus]) -> str:
    """Tickets as a table for a notebook."""
    rows = (
        (
            ticket.ticket_id,
            ticket.state,
            ticket.name,
            ticket.gang,
            f"{ticket.gpus_per_actor:g}",
            _first(ticket.nodes),
            moment(ticket.since_ms),
            ticket.project,
            ticket.reason,
        )
        for ticket in tickets
    )
    return html_table(("ticket", "state", "name", "gang", ">GPUs each", "nodes", "since", "project", "reason"), rows)


def _first(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_status(redis: Redis, keys: Keys) -> PoolStatus:
    """Read the views, which under load are a moment behind what the allocator has answered."""
    nodes: Any = redis.hgetall(keys.nodes)
    tickets: Any = redis.hgetall(keys.tickets)
    leader: Leader | None = read_leader(redis, keys)
    return PoolStatus(
        pool=keys.pool,
        allocator=leader.holder if leader is not None and leader.silent_s <= 0 else "",
        nodes=tuple(sorted(_rows(NodeStatus, "node_id", nodes), key=lambda node: node.node_id)),
        tickets=tuple(sorted(_rows(TicketStatus, "ticket_id", tickets), key=lambda t: (len(t.ticket_id), t.ticket_id))),
    )


def _rows(cls: type[T], id_field: str, rows: dict[bytes, bytes]) -> list[T]:
    return [row_of(cls, id_field, name.decode(errors="replace"), line) for name, line in rows.items()]


def row_of(cls: type[T], id_field: str, name: str, line: bytes) -> T:
    """A line of a view as a value; raises MalformedData."""
    try:
        plain = with_ms(msgspec.json.decode(line))
        return msgspec.convert({**plain, id_field: name}, cls, strict=False)
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError) as error:
        raise MalformedData(
            f"the view of {name!r} cannot be read ({error}): client and allocator must be of the same release"
        ) from error


def with_ms(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A view's fields with its moments, which stand there in words, as milliseconds since 1970: what programs want.

    >>> with_ms({"state": "active", "since": "2023-11-14T22:13:20.123Z"})
    {'state': 'active', 'since_ms': 1700000000123}
    """
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if name in _MOMENTS:
            found[f"{name}_ms"] = ms_at(value)
        elif name == "cordon" and value:
            found[name] = with_ms(value)
        else:
            found[name] = value
    return found
