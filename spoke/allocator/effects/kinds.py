"""The kinds of effects, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from spoke.protocol import orders as o
from spoke.protocol import replies as p


class Tell(NamedTuple):
    """A reply to a client's request ``seq``, or a notice (``seq`` 0)."""

    client_id: str
    seq: int
    message: p.Message


class Command(NamedTuple):
    """An order to an agent. ``stranger``: its node is not known, and may never be."""

    node_id: str
    delivery: o.Delivery
    stranger: bool = False


class GrantLease(NamedTuple):
    """A lease that runs from the moment of the commit."""

    holder: str
    lease_ms: int


class DropLease(NamedTuple):
    """A lease that ends."""

    holder: str


class ForgetTicket(NamedTuple):
    """A ticket that has ended: its secret goes."""

    ticket_id: str
    owner: str = ""


Effect = Tell | Command | GrantLease | DropLease | ForgetTicket
Blobs = Mapping[int, bytes]
"""The opaque parts of a launch, by rank."""
