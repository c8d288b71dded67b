"""What a transport must do to be chosen: the interface between the negotiation and tcp, shm, rdma.

The stream socket over which both sides have proved themselves comes first and stays. A carrier makes an endpoint
beside it (or, tcp, out of it) in four steps, of which the negotiation takes care:

    client  carrier.offer(...)        -> Offer       what it can do, as plain parameters
    server  carrier.accept(params...) -> Acceptance  its own parameters
    client  offer.complete(answer)    -> Endpoint    then it confirms
    server  acceptance.endpoint()     -> Endpoint

At each step a carrier may raise Unavailable with the reason in words; the next one is tried then, over the same
socket. Whatever a step made belongs to the Offer or Acceptance until an endpoint has taken it over, and is freed by
its ``close``. The socket belongs to the negotiation until there is an endpoint, and to the endpoint from then on.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from spoke.transport.direct import Params, Unavailable
from spoke.transport.endpoint import Endpoint

__all__ = ["Acceptance", "Carrier", "Offer", "Params", "Transport", "Unavailable", "Wire"]


@dataclass(frozen=True, slots=True)
class Wire:
    """The authenticated stream socket between two sides, and what an endpoint over it needs to know.

    ``scope`` names the ticket whose secret both have proved: what one ticket's peers may reach, another's may not.
    """

    sock: socket.socket
    peer: str
    limit_bytes: int
    scope: bytes = b""


class Offer(ABC):
    """The client's side of one attempt. ``params`` crosses to the server."""

    params: Params

    @abstractmethod
    def complete(self, answer: Params, deadline: float) -> Endpoint:
        """The endpoint, ready to receive; Unavailable, or MalformedData for an answer that is none.

        It must not wait beyond ``deadline`` (time.monotonic()), nor use the socket: the confirmation is still to be
        sent over it.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what no endpoint has taken over; more than once does no harm."""


class Acceptance(ABC):
    """The server's side of one attempt. ``answer`` crosses to the client."""

    answer: Params

    @abstractmethod
    def endpoint(self) -> Endpoint:
        """The endpoint, once the client has confirmed; Unavailable ends the connection."""

    @abstractmethod
    def close(self) -> None:
        """Free what no endpoint has taken over; more than once does no harm."""


class Carrier(ABC):
    """One kind of transport."""

    name: ClassVar[str]

    @abstractmethod
    def offer(self, wire: Wire) -> Offer:
        """The client's offer; Unavailable when it cannot be done here at all."""

    @abstractmethod
    def accept(self, params: Params, wire: Wire) -> Acceptance:
        """The server's answer, without waiting for anything; Unavailable when the two do not go together,
        MalformedData for parameters that are none. ``params`` come from an authenticated peer, which may be broken:
        check each.
        """


@dataclass(frozen=True, slots=True)
class Transport:
    """Which transport carries the calls, and why none that is better: ``why_not`` by name.

    >>> print(spoke.Transport("tcp", {"shm": "the actor is on another machine"}))
    tcp (not shm: the actor is on another machine)
    """

    name: str
    why_not: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.why_not.items())
        return f"{self.name} ({reasons})" if reasons else self.name
