"""Why a ticket waits, or why it is where it is: one sentence, and a table, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from spoke.protocol.html import html_line, html_table


@dataclass(frozen=True, slots=True)
class Holder:
    """What one ticket holds on a node; ``gpus`` counts shares as fractions, ``memory`` is in bytes.

    ``ends_ms``: when it will end by its expected duration (milliseconds of the server's clock since 1970; 0: unknown).
    """

    ticket_id: str
    name: str
    user: str
    gpus: float
    cpus: float
    memory: int
    ends_ms: int = 0


@dataclass(frozen=True, slots=True)
class NodeReason:
    """One node's part: how many members fit there now, how many are wanted, and what is missing for them.

    For a granted ticket: what was free on the node before the grant, and ``fits`` and ``wanted`` are its members there.
    """

    node_id: str
    fits: int
    wanted: int
    gpus_free: float
    cpus_free: float
    memory_free: int
    gpus_missing: float = 0.0
    cpus_missing: float = 0.0
    memory_missing: int = 0
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """Why a ticket waits (or was refused, or is where it is) at one moment.

    ``place`` is its place in the line of ``waiting`` tickets, from 1 on (0: it is not in line), ``behind`` the first of
    those that must go before it. ``nodes`` are those on which it would take the least to make room, or where it is;
    ``left_out`` says which nodes and GPUs do not count, and why. ``starts_ms`` is when it would start by expected
    durations (0: unknown), ``starts`` says it in words.

    >>> why = client.explain(waiting.pending_reason().ticket_id).result()
    >>> why.state, why.place, why.waiting
    ('queued', 1, 1)
    """

    ticket_id: str
    state: str
    sentence: str
    needs: str = ""
    place: int = 0
    waiting: int = 0
    behind: tuple[str, ...] = ()
    gpus_missing: float = 0.0
    cpus_missing: float = 0.0
    memory_missing: int = 0
    nodes: tuple[NodeReason, ...] = ()
    left_out: tuple[str, ...] = ()
    starts_ms: int = 0
    starts: str = ""
    policy: str = ""

    def __str__(self) -> str:
        """The sentence, and the table below it."""
        return "\n".join([self.sentence, *(_row(node) for node in self.nodes)])

    def __repr__(self) -> str:
        line = f", {self.place} of {self.waiting} in line" if self.place else ""
        return f"<Explanation of {self.ticket_id} ({self.state}{line}): {self.sentence}>"

    def _repr_html_(self) -> str:
        line = f" ({self.place} of {self.waiting} in line)" if self.place else ""
        rows = (
            (
                node.node_id,
                f"{node.fits} of {node.wanted}",
                amount(node.gpus_free, node.cpus_free, node.memory_free),
                amount(node.gpus_missing, node.cpus_missing, node.memory_missing),
                ", ".join(f"{one.ticket_id} ({one.user})" for one in node.holders),
            )
            for node in self.nodes
        )
        table = html_table(("node", ">members fit", "free", "missing", "held by"), rows, caption=self.sentence + line)
        return table + html_line(self.starts)


PendingReason = Explanation
"""What an explanation is called where it is that of a gang which waits."""


def amount(gpus: float, cpus: float, memory: int) -> str:
    """An amount in words; ``memory`` is in bytes.

    >>> amount(2, 0, 3 << 30), amount(0.25, 1.5, 0), amount(0, 0, 0)
    ('2 GPUs, 3 GiB', '0.25 GPUs, 1.5 CPUs', 'nothing')
    """
    words = [f"{gpus:g} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    if cpus:
        words.append(f"{cpus:g} CPU{'' if cpus == 1 else 's'}")
    if memory:
        words.append(f"{memory / 2**30:.3g} GiB")
    return ", ".join(words) or "nothing"


def _row(node: NodeReason) -> str:
    missing = amount(node.gpus_missing, node.cpus_missing, node.memory_missing)
    held = ", ".join(f"{one.ticket_id} ({one.user}): {amount(one.gpus, one.cpus, one.memory)}" for one in node.holders)
    text = f"  {node.node_id}: {node.fits} of {node.wanted} members fit"
    text += f", {missing} missing" if missing != "nothing" else ""
    return text + (f"; held by {held}" if held else "")
