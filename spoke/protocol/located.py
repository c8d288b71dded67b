"""Connections that ask where the pool's primary is whenever they connect: Sentinel's name for it, or a cluster's slot.

A pool lives in one slot, so one connection to the right server is all that anybody needs, whatever stands behind the
URL; the rest of Spoke does not know the difference. When that server is demoted or the slot moves, the answer
(READONLY, MOVED and their like) breaks the connection like a network fault would, and whoever uses it connects anew
and sends again, as after any fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis.exceptions as rx
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot

from spoke.protocol.keys import Keys
from spoke.protocol.url import Address, Place

ASK_TIMEOUT_S = 2.0
NODES_MAX = 64

Locate = Callable[[], Address]
_MOVED_ON = (rx.ReadOnlyError, rx.AskError, rx.ClusterDownError, rx.MasterDownError)


class _Located:
    """Mixed into redis-py's connections: finds the address before it connects, and breaks when that has moved on."""

    def __init__(self, *, locate: Locate, **options: Any) -> None:
        self._locate = locate
        super().__init__(**options)

    def _connect(self) -> Any:
        self.host, self.port = self._locate()
        return super()._connect()  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """The answer; ConnectionError where the server says that it is not (any more) the one to ask."""
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except _MOVED_ON as error:
            self.disconnect()  # type: ignore[attr-defined]
            raise rx.ConnectionError(f"{self.host}:{self.port} is not the pool's primary any more: {error}") from error


class LocatedConnection(_Located, Connection):
    """Over TCP."""


class LocatedTLSConnection(_Located, SSLConnection):
    """Over TLS."""


def locator(place: Place, pool: str) -> Locate:
    """How to find the primary of ``pool`` at a Sentinel's or a cluster's URL."""
    return _Sentinels(place) if place.kind == "sentinel" else _Cluster(place, pool)


class _Sentinels:
    """Asks the sentinels, the one that answered last first, for the address of the service's primary."""

    def __init__(self, place: Place) -> None:
        self._addresses = list(place.addresses)
        self._options, self._service = place.sentinel_options, place.service

    def __call__(self) -> Address:
        failures = []
        for address in tuple(self._addresses):
            try:
                found = _ask(address, self._options, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            except (rx.AuthenticationError, rx.NoPermissionError):
                raise
            except (rx.RedisError, OSError) as error:
                failures.append(f"{_text(address)}: {error}")
                continue
            if found:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return found[0].decode(), int(found[1])
            failures.append(f"{_text(address)}: it knows no service {self._service!r}")
        raise rx.ConnectionError(f"no sentinel says where {self._service!r} is ({'; '.join(failures)})")


class _Cluster:
    """Asks the cluster's nodes who owns the slot of the pool; learns of nodes that the URL does not name."""

    def __init__(self, place: Place, pool: str) -> None:
        self._slot = key_slot(Keys(pool).events.encode())
        self._nodes = list(place.addresses)
        self._options = place.options

    def __call__(self) -> Address:
        failures = []
        for address in tuple(self._nodes):
            try:
                slots = _ask(address, self._options, "CLUSTER", "SLOTS")
            except (rx.AuthenticationError, rx.NoPermissionError):
                raise
            except (rx.RedisError, OSError) as error:
                failures.append(f"{_text(address)}: {error}")
                continue
            owner = self._owner(address, slots)
            if owner is not None:
                self._nodes.remove(address)
                self._nodes.insert(0, address)
                return owner
            failures.append(f"{_text(address)}: no node owns slot {self._slot}")
        raise rx.ConnectionError(f"the cluster does not say who owns the pool's slot ({'; '.join(failures)})")

    def _owner(self, asked: Address, slots: Any) -> Address | None:
        owner = None
        for first, last, *nodes in slots:
            for place, node in enumerate(nodes):
                host = node[0].decode() if node[0] else ""
                address = (host if host not in ("", "?") else asked[0], int(node[1]))
                if address not in self._nodes and len(self._nodes) < NODES_MAX:
                    self._nodes.append(address)
                if place == 0 and first <= self._slot <= last:
                    owner = address
        return owner


def _ask(address: Address, options: dict[str, Any], *command: str) -> Any:
    """One command on a connection of its own."""
    options = dict(options)
    make = options.pop("connection_class", Connection)
    options |= {"socket_timeout": ASK_TIMEOUT_S, "socket_connect_timeout": ASK_TIMEOUT_S, "protocol": 3}
    connection = make(host=address[0], port=address[1], **options)
    try:
        connection.connect()
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


def _text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
