"""The client's spans: from asking for a gang until it is there, and from a launch until the actors are up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from spoke.protocol import requests as r
from spoke.protocol.tracing import Tracing, traceparent

F = TypeVar("F", bound="Future[Any]")
TICKETS_MAX: Final = 1_000


class ClientTracing:
    """Wraps what a client asks in spans. A launch outside of any span belongs to the trace of its gang."""

    def __init__(self, tracing: Tracing, pool: str, client_id: str) -> None:
        self._tracing = tracing
        self._common = {"spoke.pool": pool, "spoke.client_id": client_id}
        self._of_ticket: OrderedDict[str, str] = OrderedDict()

    def allocate(self, request: r.AllocateGang, ask: Callable[[r.AllocateGang], F]) -> F:
        """Ask for a gang within a span, whose context the request carries."""
        attributes = {**self._common, "spoke.gang": request.spec.shape, "spoke.name": request.spec.name}
        span = self._tracing.start("spoke.gang_allocate", kind="client", attributes=attributes)
        context = traceparent(span)

        def granted(gang: Any) -> None:
            span.set_attribute("spoke.ticket_id", gang.ticket_id)
            self._of_ticket[gang.ticket_id] = context
            while len(self._of_ticket) > TICKETS_MAX:
                self._of_ticket.popitem(last=False)

        return self._follow(span, lambda: ask(replace(request, trace=context)), granted)

    def launch(self, ticket_id: str, actors: str, ask: Callable[[str], F]) -> F:
        """Launch within a span, whose context the actors' environment carries."""
        parent = "" if self._tracing.busy() else self._of_ticket.get(ticket_id, "")
        attributes = {**self._common, "spoke.ticket_id": ticket_id, "spoke.actors": actors[:200]}
        span = self._tracing.start("spoke.launch", parent=parent, kind="client", attributes=attributes)
        return self._follow(span, lambda: ask(traceparent(span)), lambda handles: None)

    def _follow(self, span: Any, ask: Callable[[], F], done: Callable[[Any], None]) -> F:
        """End the span when the future is done."""

        def end(future: Future[Any]) -> None:
            if future.cancelled():
                self._tracing.fail(span, "cancelled")
            elif (error := future.exception()) is not None:
                self._tracing.fail(span, error)
            else:
                done(future.result())
            span.end()

        try:
            asked = ask()
        except BaseException as error:
            self._tracing.fail(span, error)
            span.end()
            raise
        asked.add_done_callback(end)
        return asked
