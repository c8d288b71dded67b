"""Notices: what a ticket's clients and actors are told though the ticket goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened around a ticket. ``kind`` is a short stable name, ``reason`` says it in words.

    ``node_draining``: a node is being drained; the ticket will be released at ``deadline_ms`` (milliseconds of the
    server's clock since 1970; 0: it may stay). ``node_drain_ended``: it may stay after all.
    ``preempting``: the ticket must make room and is released at ``deadline_ms``; ``spared``: it need not after all.
    ``expiring``: its time is over at ``deadline_ms``.
    ``gpu_unhealthy``, ``gpu_healthy``: a GPU that the ticket holds. ``member_repaired`` (to actors): a member
    has another slot. ``restarting`` (to clients): a member failed, and the ``ranks`` are started again.
    ``ranks`` are those that the notice is about.

    >>> spoke.Notice("t-7", "node_draining", "node node-1 is being drained", node_id="node-1", ranks=(0, 1)).kind
    'node_draining'
    """

    ticket_id: str
    kind: str
    reason: str
    node_id: str = ""
    ranks: tuple[int, ...] = ()
    deadline_ms: int = 0
