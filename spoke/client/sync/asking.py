"""Base of the parts of ``Client``: what they ask goes through one session, and what goes wrong is in the future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from spoke.client.futures import GangFuture, failed
from spoke.client.session import Session
from spoke.client.tracing import ClientTracing
from spoke.client.tracking import Ticket
from spoke.errors import SpokeError
from spoke.protocol import requests as r
from spoke.protocol.tracing import in_use

T = TypeVar("T")


class Asking:
    """What asks the allocator. ``session`` is for the client's own gangs and handles."""

    def __init__(self, session: Session, transport: str | None) -> None:
        self.session = session
        self.transport = transport
        tracing = in_use()
        self._tracing = None if tracing is None else ClientTracing(tracing, session.keys.pool, session.client_id)

    def _ask(
        self,
        request: r.Request,
        convert: Callable[[Any, Ticket | None], T],
        *,
        blobs: bytes = b"",
        timeout_s: float | None = None,
        unwanted: Callable[[T], object] | None = None,
    ) -> GangFuture[T]:
        try:
            return self.session.request(request, convert, blobs=blobs, timeout_s=timeout_s, unwanted=unwanted)
        except SpokeError as error:
            return failed(error)

    def _ask_whether(self, request: r.Request) -> Future[bool]:
        return self._ask(request, lambda message, ticket: bool(message.value))
