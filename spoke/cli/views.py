"""Nodes and tickets, shown: the present ones from the views, past ones from a folded state, in the same tables."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spoke.cli.output import age, clean, count, local_time, numbers, part_of, say, size, tables

if TYPE_CHECKING:
    from spoke.client.status import NodeStatus, PoolStatus, TicketStatus
    from spoke.events.state import PoolState


def node_table(nodes: Iterable[NodeStatus]) -> None:
    """The nodes, one a line."""
    nodes = tuple(nodes)
    columns: tuple[str, ...] = ("node", "state", "gpus", "free", ">cpus free", ">memory free", "tickets", "host")
    columns = (*columns, "model")
    remarks = [remark_on(node) for node in nodes]
    if any(remarks):
        columns = (*columns, "remarks")
    tables(
        columns,
        (
            (
                node.node_id,
                node.state,
                str(node.gpus),
                free_gpus(node),
                f"{node.cpus_free:g} of {node.cpus:g}",
                part_of(node.memory_free, node.memory),
                " ".join(node.tickets) or "-",
                f"{node.host} {node.address}",
                node.gpu_model,
                remark,
            )[: len(columns)]
            for node, remark in zip(nodes, remarks, strict=True)
        ),
        spare=("host", "model", "memory free", "cpus free"),
    )


def remark_on(node: NodeStatus) -> str:
    """Why a node or some of its GPUs have no new slots, and until when its tickets may stay; empty for most."""
    cordon, remarks = node.cordon, []
    if cordon is not None:
        until = f" until {local_time(cordon.deadline_ms)}" if cordon.deadline_ms else ""
        remarks.append(f"{cordon.state} by {cordon.by or '?'}{until}" + (f": {cordon.reason}" if cordon.reason else ""))
    remarks += [f"GPU {index} unhealthy: {why}" for index, why in node.gpus_unhealthy.items()]
    return "; ".join(remarks)


def ticket_table(tickets: Iterable[TicketStatus], now_s: float | None = None) -> None:
    """The tickets, one a line. ``now_s`` is what their age is counted to (default: now)."""
    now_s = time.time() if now_s is None else now_s
    tables(
        ("ticket", "state", "name", "project", "gang", "per actor", "nodes", ">since", "reason"),
        (
            (
                ticket.ticket_id,
                ticket.state,
                ticket.name or "-",
                (ticket.project or "-") + (" (detached)" if ticket.detached else ""),
                ticket.gang,
                needs(
                    ticket.gpus_per_actor,
                    ticket.cpus_per_actor,
                    ticket.memory_per_actor,
                    ticket.gpu_memory_per_actor,
                    ticket.nics_per_actor,
                )
                if not ticket.groups
                else "by group",
                " ".join(ticket.nodes) or "-",
                age(now_s - ticket.since_ms / 1000),
                ticket.reason,
            )
            for ticket in tickets
        ),
        spare=("per actor", "gang", "name"),
    )


def free_gpus(node: NodeStatus) -> str:
    """The free GPUs by their indices, then what is left of the shared ones."""
    whole = f"{len(node.gpus_free)} ({numbers(node.gpus_free)})" if node.gpus_free else "0"
    return whole + "".join(f" + {share:g} of {index}" for index, share in node.gpus_shared.items() if share)


def needs(gpus: float, cpus: float, memory: int, gpu_memory: int = 0, nics: int = 0) -> str:
    """What one actor needs, in words."""
    whole = isinstance(gpus, int) or gpus.is_integer()
    parts = [count(int(gpus), "GPU") if whole else f"{gpus:g} GPU"] if gpus else []
    if gpu_memory:
        parts.append(f"{size(gpu_memory)} of a GPU's memory")
    if cpus:
        parts.append(f"{cpus:g} CPU")
    if memory:
        parts.append(size(memory))
    if nics:
        parts.append(count(nics, "NIC"))
    return ", ".join(parts) or "nothing"


def show_nodes(nodes: Iterable[NodeStatus], pool: str) -> None:
    """The nodes, or that there are none."""
    nodes = tuple(nodes)
    if nodes:
        node_table(nodes)
    else:
        say(f"No node is registered in pool {pool}. Start an agent: spoke agent --pool {pool} --gpus auto")


def show_tickets(tickets: Iterable[TicketStatus], pool: str, now_s: float | None = None) -> None:
    """The tickets, or that there are none."""
    tickets = tuple(tickets)
    if tickets:
        ticket_table(tickets, now_s)
    else:
        say(f"No ticket is live or waiting in pool {pool}.")


def show_ticket(ticket_id: str, fields: dict[str, Any]) -> None:
    """All of one ticket: its own fields, then its ranks."""
    per_actor = ("gpus_per_actor", "cpus_per_actor", "memory_per_actor", "gpu_memory_per_actor", "nics_per_actor")
    gpus, cpus, memory, gpu_memory, nics = (fields.get(name) or 0 for name in per_actor)
    lines = {
        "ticket": ticket_id,
        "state": fields.get("state"),
        "name": fields.get("name"),
        "gang": f"{fields.get('gang')}"
        + ("" if fields.get("groups") else f", each with {needs(gpus, cpus, memory, gpu_memory, nics)}"),
        "project": fields.get("project"),
        "client": f"{fields.get('client')}{' (detached)' if fields.get('detached') else ''}",
        "master": fields.get("master"),
        "since": local_time(int(fields.get("since_ms") or 0)),
        "reason": fields.get("reason"),
    }
    for name, words in lines.items():
        if words:
            say(f"{name:7}  {clean(str(words))}")
    if fields["ranks"]:
        tables(
            (">rank", "node", "gpus", "state", "actor", ">pid", "runs", "end"),
            (
                (
                    str(rank["rank"]),
                    str(rank.get("node", "")),
                    (f"{rank['gpu_share']:g} of " if rank.get("gpu_share") else "") + numbers(rank.get("gpus") or ()),
                    str(rank.get("state", "not launched")),
                    str(rank.get("actor", "-")),
                    str(rank.get("pid") or "-"),
                    str(rank.get("runs", "")),
                    how_it_ended(rank),
                )
                for rank in fields["ranks"]
            ),
            spare=("actor", "pid"),
        )


def how_it_ended(rank: dict[str, Any]) -> str:
    """The end of a rank's actor in words; empty for one that runs."""
    if rank.get("state") not in ("exited", "start_failed", "lost"):
        return ""
    if rank.get("signal"):
        return f"signal {rank['signal']}"
    return f"code {rank.get('code', 0)}" if rank["state"] == "exited" else str(rank.get("reason", ""))


def status_of_state(state: PoolState, pool: str) -> PoolStatus:
    """A folded state as the views would show it."""
    from spoke.allocator.views import node_line, ticket_line
    from spoke.client.status import NodeStatus, PoolStatus, TicketStatus, row_of

    nodes = [
        row_of(NodeStatus, "node_id", node_id, node_line(node, state)) for node_id, node in sorted(state.nodes.items())
    ]
    tickets = [
        row_of(TicketStatus, "ticket_id", ticket_id, ticket_line(ticket))
        for ticket_id, ticket in sorted(state.tickets.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    return PoolStatus(pool, state.allocator, tuple(nodes), tuple(tickets))


def ticket_document(ticket_id: str, raw: dict[bytes, bytes]) -> dict[str, Any]:
    """The hash of one ticket as a document: JSON fields read, moments in ms, all fields there, the ranks as a list."""
    import orjson

    from spoke.client.status import TicketStatus, with_ms

    fields: dict[str, Any] = {}
    ranks: list[dict[str, Any]] = []
    for key, value in raw.items():
        name, text = key.decode(errors="replace"), value.decode(errors="replace")
        try:
            read = orjson.loads(text)
        except orjson.JSONDecodeError:
            read = text
        if name.startswith("rank.") and isinstance(read, dict):
            ranks.append({"rank": int(name[5:]), **read})
        else:
            fields[name] = text if name in _TEXTS else read
    if fields.get("state") == "ended":  # its last view was written before the ends of all its actors were known
        ranks = [{**rank, "state": "ended"} if rank.get("state") in RUNS else rank for rank in ranks]
    fields = {**asdict(TicketStatus(ticket_id)), **with_ms(fields)}
    return {**fields, "ranks": sorted(ranks, key=lambda rank: int(rank["rank"]))}


RUNS = frozenset({"launching", "running", "restarting"})
_TEXTS = frozenset(
    {"state", "since", "ends", "name", "client", "project", "gang", "strategy", "reservation", "reason", "master"}
)
