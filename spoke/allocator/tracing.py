"""The allocator's spans: from reading a request for a gang until its decision is committed, and the wait in line.

Only requests that carry the context of a span are traced. The contexts are in no event: who waits over a change of the
leader loses its span of the wait, and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Final

from spoke.allocator.gate import Gate
from spoke.events import types as e
from spoke.events.state import PoolState
from spoke.protocol import requests as r
from spoke.protocol.tracing import Tracing, Value, is_traceparent, traceparent

OPEN_MAX: Final = 10_000


class AllocatorTracing:
    """One allocator's spans, over all its terms; a ``Watcher``."""

    def __init__(self, tracing: Tracing, pool: str) -> None:
        self._tracing = tracing
        self._pool = pool
        self._deciding: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._waiting: OrderedDict[str, Any] = OrderedDict()
        self._decided: list[Any] = []
        self._committing: deque[list[Any]] = deque()

    def gate(self, gate: Gate) -> TracingGate:
        """The same gate, which tells of the requests that come through it."""
        return TracingGate(gate, self)

    def admitted(self, asked: r.Envelope) -> None:
        """A request was read."""
        request = asked.request
        if type(request) is not r.AllocateGang or not is_traceparent(request.trace):
            return
        attributes: dict[str, Value] = {
            "spoke.pool": self._pool,
            "spoke.client_id": asked.client_id,
            "spoke.seq": asked.seq,
        }
        span = self._tracing.start("spoke.decide", parent=request.trace, kind="server", attributes=attributes)
        _keep(self._deciding, (asked.client_id, asked.seq), span)

    # --- as a watcher ----------------------------------------------------------------------------------------------

    def event(self, event: e.Event, before: PoolState, now_ms: int, event_id: str) -> None:
        """An event may be what a span waits for."""
        if isinstance(event, e.GangQueued):
            span = self._end_decision(event, event_id, event.reason)
            if span is not None:
                attributes = {"spoke.pool": self._pool, "spoke.ticket_id": event.ticket_id}
                wait = self._tracing.start("spoke.wait", parent=traceparent(span), attributes=attributes)
                _keep(self._waiting, event.ticket_id, wait)
        elif isinstance(event, e.GangAllocated):
            self._end_decision(event, event_id, event.policy)
            self._end_wait(event.ticket_id, event, event_id)
        elif isinstance(event, e.GangRefused):
            self._end_decision(event, event_id, event.reason)
            self._end_wait(event.ticket_id, event, event_id)
        elif isinstance(event, e.GangCancelled):
            self._end_wait(event.ticket_id, event, event_id)

    def commit_sent(self) -> None:
        """What was decided is on its way to the log."""
        self._committing.append(self._decided)
        self._decided = []

    def commit_ended(self) -> None:
        """What the oldest commit holds is in the log, and its answers are out."""
        for span in self._committing.popleft():
            span.end()

    def answer(self, state: PoolState, now_ms: int) -> None:
        """A turn is over."""

    def begin_term(self) -> None:
        """What an earlier term had under way is void; what it had not committed is decided anew."""
        self._forget()

    def end_term(self) -> None:
        """This allocator leads no more."""
        self._forget()

    def _forget(self) -> None:
        self._decided = []
        for some in (self._deciding, self._waiting, self._committing):
            some.clear()

    def _end_decision(self, event: e.GangQueued | e.GangAllocated | e.GangRefused, event_id: str, why: str) -> Any:
        span = self._deciding.pop((event.client_id, event.seq), None)
        if span is not None:
            self._end(span, event, event_id)
            span.set_attribute("spoke.reason", why[:500])
        return span

    def _end_wait(self, ticket_id: str, event: e.Event, event_id: str) -> None:
        span = self._waiting.pop(ticket_id, None)
        if span is not None:
            self._end(span, event, event_id)

    def _end(self, span: Any, event: e.Event, event_id: str) -> None:
        """The span ends with the commit that has the event."""
        span.set_attributes({"spoke.event": event.TYPE, "spoke.event_id": event_id})
        if isinstance(event, e.GangRefused):
            self._tracing.fail(span, event.code)
        elif ticket_id := getattr(event, "ticket_id", ""):
            span.set_attribute("spoke.ticket_id", ticket_id)
        self._decided.append(span)


class TracingGate(Gate):
    """A gate that tells of the requests that come through it."""

    def __init__(self, gate: Gate, tracing: AllocatorTracing) -> None:
        self._gate, self._tracing = gate, tracing

    def admit(self, raw: Mapping[bytes, bytes]) -> r.Asked:
        """The request, or why it is none."""
        asked = self._gate.admit(raw)
        if isinstance(asked, r.Envelope):
            self._tracing.admitted(asked)
        return asked


def _keep(spans: OrderedDict[Any, Any], key: Any, span: Any) -> None:
    """Remember a span; the oldest is forgotten when there are too many, and a request that was sent twice is one."""
    spans.setdefault(key, span)
    while len(spans) > OPEN_MAX:
        spans.popitem(last=False)
