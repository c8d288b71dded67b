"""The memory that a client lends to a gang: a server without methods, whose buffers the gang's actors reach."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from spoke.transport import CallServer
from spoke.transport.scope import join, leave

CLOSE_S: Final = 2.0


class GangMemory:
    """Serves this client's buffers for one gang, where its nodes reach this machine."""

    def __init__(self, secret: bytes, towards: str) -> None:
        address = _address_towards(towards)
        loopback = ipaddress.ip_address(address).is_loopback
        host = address if loopback else "::" if ":" in address else "0.0.0.0"
        self.server = CallServer(object(), secret=secret, host=host, advertise=address)
        self.server.start()
        self._scope = join(secret)

    def close(self) -> None:
        """Withdraw the buffers: who uses one gets an error."""
        self.server.close(CLOSE_S)
        leave(self._scope)


def _address_towards(host: str) -> str:
    """This machine's address on the way to a host; the loopback where there is no way."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return "127.0.0.1"
