"""``--metrics``: serve a process's figures to Prometheus over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from spoke.errors import InvalidRequest

log = logging.getLogger("spoke.cli")

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Measured(Protocol):
    """What has figures to serve."""

    registry: CollectorRegistry


MetricsAddress = Annotated[
    str | None,
    typer.Option(
        "--metrics", metavar="[ADDRESS:]PORT", help="Serve Prometheus here (default: nowhere; address: 127.0.0.1)."
    ),
]


@contextmanager
def serving(where: str | None, meters: Measured | None) -> Iterator[None]:
    """Serve figures at ``ADDRESS:PORT``, in a thread that ends with the block; without either, do nothing.

    Raises InvalidRequest for an address that cannot be read or used.
    """
    if where is None or meters is None:
        yield
        return
    from prometheus_client import start_http_server

    address, port = parse_listen(where)
    try:
        server, thread = start_http_server(port, address, meters.registry)
    except OSError as error:
        raise InvalidRequest(
            f"--metrics {where}: cannot listen at {address} port {port}: {error.strerror or error}; choose another port"
        ) from error
    try:
        log.info("figures for Prometheus at http://%s:%d/metrics", address, server.server_address[1])
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(3.0)


def parse_listen(text: str) -> tuple[str, int]:
    """``PORT`` or ``ADDRESS:PORT`` (an IPv6 address in brackets); raises InvalidRequest.

    >>> parse_listen("9090"), parse_listen("[::]:9090")
    (('127.0.0.1', 9090), ('::', 9090))
    """
    address, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536) or (":" in address and address[0] != "["):
        raise InvalidRequest(f"--metrics {text!r} cannot be read: give a port, or an address and a port: 0.0.0.0:9090")
    return address.strip("[]") or "127.0.0.1", int(port)
