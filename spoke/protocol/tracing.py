"""Traces by OpenTelemetry: spans, and their context as plain data (W3C ``traceparent``) in requests and launches.

Nothing of OpenTelemetry is imported unless somebody traces: a client does where its program has set a tracer provider,
allocator and agents do with ``--trace``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from spoke.version import release_version

VARIABLE = "TRACEPARENT"
"""The environment variable in which an actor's process finds the context of its launch."""
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")

Kind = Literal["internal", "client", "server", "producer", "consumer"]
Value = str | int | float | bool


class Tracing:
    """Starts spans. ``provider`` is a tracer provider; else the one that the program has set."""

    def __init__(self, provider: Any = None) -> None:
        from opentelemetry import trace

        self._api = trace
        self._tracer = trace.get_tracer("spoke", release_version(), tracer_provider=provider)

    def start(
        self, name: str, *, parent: str = "", kind: Kind = "internal", attributes: Mapping[str, Value] | None = None
    ) -> Any:
        """A span that has begun; its parent is the one that ``parent`` names, else what the caller is doing now."""
        context = None
        if parent:
            found = _TRACEPARENT.match(parent)
            if found is not None:
                remote = self._api.SpanContext(
                    int(found[1], 16), int(found[2], 16), True, self._api.TraceFlags(int(found[3], 16))
                )
                context = self._api.set_span_in_context(self._api.NonRecordingSpan(remote))
        return self._tracer.start_span(
            name, context=context, kind=self._api.SpanKind[kind.upper()], attributes=dict(attributes or {})
        )

    def busy(self) -> bool:
        """Whether the caller is within a span."""
        return bool(self._api.get_current_span().get_span_context().is_valid)

    def fail(self, span: Any, error: BaseException | str) -> None:
        """Note that what a span stands for went wrong."""
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, str(error)[:1_000]))
        span.set_attribute("error.type", error if isinstance(error, str) else type(error).__name__)


def traceparent(span: Any) -> str:
    """The context of a span as plain data."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def is_traceparent(text: str) -> bool:
    """Whether this is the context of a span.

    >>> is_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), is_traceparent("yes")
    (True, False)
    """
    return _TRACEPARENT.match(text) is not None


def in_use() -> Tracing | None:
    """What this program traces with, if it has set a tracer provider; SPOKE_TRACE=0 turns it off."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None or os.environ.get("SPOKE_TRACE") == "0":
        return None
    if isinstance(api.get_tracer_provider(), (api.ProxyTracerProvider, api.NoOpTracerProvider)):
        return None
    return Tracing()
