"""``--trace``: send a daemon's spans wherever OpenTelemetry's own variables say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spoke.errors import InvalidRequest

if TYPE_CHECKING:
    from spoke.protocol.tracing import Tracing

Trace = Annotated[
    bool,
    typer.Option(
        "--trace", envvar="SPOKE_TRACE", help="Send traces by OpenTelemetry; its OTEL_… variables say where to."
    ),
]
GROUP = "opentelemetry_traces_exporter"


@contextmanager
def traced(wanted: bool, service: str) -> Iterator[Tracing | None]:
    """What to trace with, until the end of the block; None where it is not wanted. Raises InvalidRequest."""
    if not wanted:
        yield None
        return
    from spoke.protocol.tracing import Tracing

    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidRequest("--trace needs OpenTelemetry: pip install 'spoke-scheduler[otel]'") from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(provider)
    finally:
        provider.shutdown()


def _exporters() -> list[Any]:
    """The exporters that OTEL_TRACES_EXPORTER names (default: otlp), from whichever packages are installed."""
    found = []
    for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        name = exporter_name(name.strip())
        if name in ("", "none"):
            continue
        known = list(entry_points(group=GROUP, name=name))
        if not known:
            package = name.replace("otlp_", "opentelemetry-exporter-otlp-").replace("_", "-")
            raise InvalidRequest(
                f"--trace: there is no exporter {name!r} here: pip install {package}, or name another one in "
                f"OTEL_TRACES_EXPORTER (console writes to standard output)"
            )
        found.append(known[0].load()())
    return found


def exporter_name(name: str) -> str:
    """The name of an exporter as packages register it: ``otlp`` goes by the protocol that is wanted."""
    if name != "otlp":
        return name
    generally = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", generally)
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
