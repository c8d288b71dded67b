"""Handing descriptors to another process of this machine: datagrams over Unix sockets of the abstract namespace.

Anyone in the network namespace can send to such a name, so a datagram counts only with a token that its sender learned
over the authenticated stream.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Final, TypeGuard

TOKEN_BYTES: Final = 32
_DATAGRAMS_MAX: Final = 32
_KIND: Final = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


class Inbox:
    """A socket to which descriptors can be sent, by its ``name``."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._sock = socket.socket(socket.AF_UNIX, _KIND)
        self.name = b"\0spoke-" + secrets.token_hex(16).encode()
        try:
            self._sock.bind(self.name)
        except OSError:
            self._sock.close()
            raise

    def receive(self, token: bytes, count: int) -> list[int] | None:
        """The ``count`` descriptors that came with ``token``; None if they are not here."""
        for _ in range(_DATAGRAMS_MAX):
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, TOKEN_BYTES + 1, count)
            except BlockingIOError:
                break
            if len(fds) == count and hmac.compare_digest(data, token):
                return fds
            for fd in fds:  # from a stranger
                os.close(fd)
        return None

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def is_name(name: object) -> TypeGuard[bytes]:
    """Whether a peer named a socket of the abstract namespace."""
    return type(name) is bytes and 2 <= len(name) <= 100 and name[:1] == b"\0"


def hand_over(name: bytes, token: bytes, fds: Sequence[int]) -> None:
    """Send descriptors to the inbox of that name; raises OSError."""
    with socket.socket(socket.AF_UNIX, _KIND) as sock:
        sock.connect(name)
        socket.send_fds(sock, [token], fds)
