"""Memory that a peer reaches by itself: the interface between buffers and the transports that can do that.

The owner of a buffer never speaks first. Who wants to read or write asks for the buffer by its key, over a connection
on which both sides have proved that they know the ticket's secret:

    user   endpoint.reach()               -> Reach     what it needs, as plain parameters
    owner  endpoint.lend(memory, wishes)  -> grant     registered, or handed over; as plain data
    user   reach.opened(grant)            -> RemoteMemory    kept for the next transfers
    user   remote.begin(copy, call_id)                 one transfer; the owner's process has no part in it

A handle holds nothing of this, so that it may be passed on and logged: it is worth nothing without the secret.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

Params = dict[str, Any]
"""What crosses: text keys; None, bool, int, float, str, bytes and lists of these."""


class Unavailable(Exception):
    """It cannot be done here, or between these two; the text is the reason, for people."""


class Gone(Exception):
    """The peer does not let this memory be reached any more: ask it once more, by a call."""


class Loan(Protocol):
    """What stands between memory and who may reach it."""

    open: bool

    def close(self) -> None:
        """When this returns nobody reaches the memory by it any more; more than once does no harm."""


class Lendable(Protocol):
    """Memory of this process as ``Endpoint.lend`` takes it; it is the memory's owner who locks and closes."""

    area: memoryview | None
    writable: bool
    shared: Any  # the memfd that it lies in, if it does
    loans: dict[object, Loan]


class Copy(NamedTuple):
    """One transfer between memory of the peer, from ``offset`` on, and all of ``view``.

    ``value`` is the object that the user gave, whose memory ``view`` is: while it lives, so does the memory.
    """

    value: object
    view: memoryview
    offset: int
    write: bool


class RemoteMemory(ABC):
    """Memory of the peer that this side reaches by itself."""

    waits: bool
    """Whether ``begin`` copies before it returns."""

    @abstractmethod
    def begin(self, copy: Copy, call_id: int) -> bool:
        """Start a transfer; True when it is done already. Else the endpoint's ``receive`` tells of the end (``Done``).

        Raises Gone, Unavailable, or EndpointClosed; the caller has checked the range.
        """

    @abstractmethod
    def forget(self, call_id: int) -> None:
        """Nobody waits for that transfer any more: do no more of it than is under way."""


class Reach(ABC):
    """One question for a piece of the peer's memory. ``params`` crosses to the owner."""

    params: Params

    @abstractmethod
    def opened(self, grant: Params) -> RemoteMemory:
        """The memory that the owner granted; Unavailable, or MalformedData for a grant that is none."""

    @abstractmethod
    def close(self) -> None:
        """Free what nobody has taken over."""
