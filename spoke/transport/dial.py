"""Reaching an actor: connect, prove the secret, agree on a transport."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from spoke.errors import ActorUnreachable, InvalidRequest, MalformedData
from spoke.transport.auth import HELLO_BYTES, VERDICT_BYTES, ClientHandshake, WrongSecret, check_secret
from spoke.transport.carrier import Wire
from spoke.transport.choice import Choice
from spoke.transport.endpoint import Endpoint
from spoke.transport.frames import FRAME_BYTES_MAX
from spoke.transport.handles import scope_id
from spoke.transport.negotiate import ClientNegotiation
from spoke.transport.tcp import tune


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of tcp://host:port; InvalidRequest for anything else."""
    try:
        parts = urlsplit(address)
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise InvalidRequest(f"{address!r:.200} is no address of an actor; it looks like tcp://host:port")


def dial(
    address: str, secret: bytes, *, timeout_s: float, limit_bytes: int = FRAME_BYTES_MAX, transport: str | None = None
) -> Endpoint:
    """An endpoint whose peer has proved itself; raises ActorUnreachable within ``timeout_s``, TransportUnavailable
    when no transport works (or not the one that was asked for).
    """
    host, port = parse_address(address)
    choice = Choice(transport)
    check_secret(secret)
    choice.prepare()
    deadline = time.monotonic() + timeout_s
    try:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise ActorUnreachable(f"nothing answers at {address} ({error}); is the actor still running?") from error
    try:
        tune(sock)
        handshake = ClientHandshake(secret)
        sock.sendall(handshake.hello)
        sock.sendall(handshake.answer(_receive_exactly(sock, HELLO_BYTES, deadline)))
        handshake.check(_receive_exactly(sock, VERDICT_BYTES, deadline))
        wire = Wire(sock, address, limit_bytes, scope_id(secret))
        return ClientNegotiation(wire, choice, lambda n: _receive_exactly(sock, n, deadline), deadline).run()
    except WrongSecret:
        sock.close()
        raise ActorUnreachable(f"{address} does not accept this ticket's secret; it serves another ticket") from None
    except (OSError, MalformedData, EOFError) as error:
        sock.close()
        raise ActorUnreachable(
            f"the handshake with {address} failed ({error}); is the actor alive, and of this release?"
        ) from error
    except BaseException:
        sock.close()
        raise


def _receive_exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    got = b""
    while len(got) < count:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        sock.settimeout(left_s)
        piece = sock.recv(count - len(got))
        if not piece:
            raise EOFError("the peer ended the connection")
        got += piece
    return got
