"""The interface between calls and the wire: what each transport implements.

An endpoint is one authenticated, ordered, reliable way to one peer, in frames. It owns no thread. Whoever uses it
waits for ``readable_fd`` (a socket, an eventfd, a completion channel: all can be polled), lets ONE thread at a time
read, and lets any number of threads send.
"""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from spoke.transport.direct import Lendable, Params, Reach, Unavailable
from spoke.transport.frames import Incoming, Kind


class EndpointClosed(Exception):
    """The peer is gone, or this side was shut down; the text says which."""


class Endpoint(ABC):
    """One connection to one peer. ``shutdown`` may be called by any thread at any time; ``close`` comes after it."""

    transport: ClassVar[str]
    flush_events: ClassVar[int] = select.EPOLLOUT
    """What ``flush_fd`` polls when ``flush`` can make progress."""
    why_not: Mapping[str, str] = {}
    """Why none of the better transports was taken, by their names; set by the side that asked."""
    peer: str
    limit_bytes: int
    wants_flush: Callable[[], None]
    """Set by the user of the endpoint: called when bytes were kept back and ``flush`` is needed on ``flush_fd``."""

    @abstractmethod
    def readable_fd(self) -> int:
        """A descriptor that polls readable when ``receive`` has something to do."""

    @abstractmethod
    def flush_fd(self) -> int:
        """Another descriptor, which polls ``flush_events`` when ``flush`` can make progress."""

    @abstractmethod
    def receive(self) -> list[Incoming]:
        """What has come, without waiting; raises EndpointClosed at the end, MalformedData for a broken stream."""

    @abstractmethod
    def send(
        self, kind: Kind, call_id: int, header: bytes, buffers: Sequence[memoryview], *, may_wait: bool, must: bool
    ) -> None:
        """Hand one frame over, whole and in order.

        With ``may_wait`` it waits while the peer takes bytes, and for at most a second in which it takes none; what
        is left then is copied and goes out by ``flush``. When it returns the buffers may be changed. A backlog that
        is full raises LimitExceeded, unless the frame ``must`` go. Over the frame limit: LimitExceeded. In both
        cases nothing is sent. EndpointClosed when the peer is gone.
        """

    @abstractmethod
    def flush(self) -> bool:
        """Send of the backlog what fits without waiting; True when nothing is left."""

    @property
    @abstractmethod
    def backlog_bytes(self) -> int:
        """How much is kept back because the peer does not take it."""

    def lend(self, memory: Lendable, wishes: Params) -> Params:
        """Let the peer reach memory of this process by itself: what it must know for that, as plain data.

        ``wishes`` come from the peer's ``Reach``, which may be broken: check each. Unavailable when it cannot be done.
        """
        raise Unavailable(f"over {self.transport} all memory goes through calls")

    def reach(self) -> Reach | None:
        """The other side of ``lend``, for one piece of the peer's memory; None when this transport cannot do it."""
        return None

    @abstractmethod
    def shutdown(self) -> None:
        """End the connection and wake every thread that waits in it; frees nothing."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. The caller makes sure that no thread reads any more; senders are waited for."""
