"""Ports for rendezvous (MASTER_PORT), held bound from registration on, so that nobody else can take them.

They lie outside the range from which the kernel picks ports for others. A held socket is bound and does not listen; it
is closed just before rank 0 starts, and bound again when its ticket is closed. The first time it is bound without
SO_REUSEADDR, since two sockets that have it may share a port: so agents on one machine cannot hold the same one.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable
from pathlib import Path

from spoke.errors import SpokeError
from spoke.events.model import PortRange

REGIONS = ((20_000, 29_999), (10_000, 19_999), (61_000, 65_535), (2_048, 32_767), (2_048, 65_535))
"""Where to look, in this order; the last is for a machine whose kernel may pick any port."""

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoFreePorts(SpokeError):
    """No contiguous range of free ports was found."""

    code = "no_free_ports"


def ephemeral_ports(path: Path = _RANGE_FILE) -> range:
    """The ports that the kernel gives to those who ask for any."""
    try:
        first, last = map(int, path.read_text().split())
    except (OSError, ValueError):
        first, last = 32_768, 60_999
    return range(first, last + 1)


def bind(port: int, *, again: bool = False) -> socket.socket | None:
    """A socket that holds the port on every address; None if it is taken. ``again``: connections may still linger."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            held = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # no IPv6
        try:
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if again:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((address, port))
            return held
        except OSError as error:
            held.close()
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                return None
    return None


class HeldPorts:
    """``count`` ports in a row, each held or lent. ``close`` gives all of them up."""

    def __init__(
        self,
        count: int,
        *,
        bind: Callable[..., socket.socket | None] = bind,
        ephemeral: range | None = None,
        chooser: random.Random | None = None,
    ) -> None:
        self._bind = bind
        self._held: dict[int, socket.socket] = {}
        self._lent: set[int] = set()
        self.range = PortRange()
        if count:
            avoid = ephemeral_ports() if ephemeral is None else ephemeral
            self.range = self._take(count, avoid, chooser or random.Random())

    def lend(self, port: int) -> None:
        """Let go of a port, so that rank 0 can bind it."""
        self._lent.add(port)
        held = self._held.pop(port, None)
        if held is not None:
            held.close()

    def hold(self, port: int) -> bool:
        """Hold a lent port again; False if somebody still has it (``hold_lost`` tries again)."""
        self._lent.discard(port)
        if port in self._held or not self.range.first <= port < self.range.first + self.range.count:
            return True
        held = self._bind(port) or self._bind(port, again=True)
        if held is None:
            return False
        self._held[port] = held
        return True

    def hold_lost(self) -> bool:
        """Try to hold what is neither held nor lent; False if something is left."""
        ports = range(self.range.first, self.range.first + self.range.count)
        lost = [port for port in ports if port not in self._held and port not in self._lent]
        return len([port for port in lost if self.hold(port)]) == len(lost)

    def close(self) -> None:
        """Give all ports up."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _take(self, count: int, avoid: range, chooser: random.Random) -> PortRange:
        for low, high in REGIONS:
            if (low, high) == REGIONS[-1]:
                avoid = range(0)
            bases = list(range(low, high - count + 2, count))
            chooser.shuffle(bases)  # agents that start together look in different places
            for base in bases:
                clear = base + count <= avoid.start or base >= avoid.stop or not avoid
                if clear and self._take_all(base, count):
                    return PortRange(base, count)
        raise NoFreePorts(
            f"{count} ports in a row were to be held for rendezvous, and no such range is free: give a smaller --ports"
        )

    def _take_all(self, first: int, count: int) -> bool:
        for port in range(first, first + count):
            held = self._bind(port)
            if held is None:
                self.close()
                return False
            self._held[port] = held
        return True
