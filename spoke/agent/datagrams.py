"""Datagrams with descriptors, as keeper and scribe get them. Standard library only, since both import it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

DATAGRAM_BYTES_MAX = 64 * 1024


def hear_all(sock: socket.socket, fds_max: int, take: Callable[[bytes, list[int]], None]) -> bool:
    """Pass on each datagram that has come, with its descriptors, which are ``take``'s then; False: the peer is gone."""
    while True:
        try:
            raw, fds, _, _ = socket.recv_fds(sock, DATAGRAM_BYTES_MAX, fds_max)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not raw:
            return False
        for fd in fds:  # recv_fds passes no flags on, so that MSG_CMSG_CLOEXEC would do nothing
            os.set_inheritable(fd, False)
        take(raw, fds)
