"""RDMA as one of the transports that client and actor may agree on."""

from __future__ import annotations

from typing import ClassVar

from spoke.transport.carrier import Acceptance, Carrier, Offer, Params, Unavailable, Wire
from spoke.transport.endpoint import Endpoint
from spoke.transport.rdma.device import Device, acquire, usable
from spoke.transport.rdma.endpoint import RdmaEndpoint
from spoke.transport.rdma.queue import QueueBroken, QueuePair
from spoke.transport.rdma.verbs import VerbsMissing
from spoke.transport.rdma.wire import check_peer, same_fabric


class _Half:
    """One side's queue pair, until an endpoint owns it."""

    def __init__(self, wire: Wire) -> None:
        choice = usable()
        if isinstance(choice, str):
            raise Unavailable(choice)
        self._wire = wire
        try:
            self._device: Device | None = acquire(choice, wire.scope)
        except VerbsMissing as missing:
            raise Unavailable(str(missing)) from missing
        try:
            self._queue = QueuePair(self._device)
            self.params: Params = self._queue.describe()
        except Exception as error:
            self._device.release()
            raise Unavailable(
                f"{choice.port.name} gives no queue pair ({error}); does the limit of locked memory (ulimit -l) do?"
            ) from error

    def connect(self, found: Params) -> None:
        peer = check_peer(found)
        reason = same_fabric(self.params, peer)
        if reason is not None:
            raise Unavailable(reason)
        try:
            self._queue.connect(peer)
        except QueueBroken as error:
            raise Unavailable(str(error)) from error

    def take(self) -> Endpoint:
        if self._device is None:
            raise Unavailable("the attempt was given up")
        made = RdmaEndpoint(self._device, self._queue, self._wire.sock, self._wire.peer, self._wire.limit_bytes)
        self._device = None
        return made

    def close(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            self._queue.close()
            device.release()


class RdmaOffer(Offer):
    """The client's queue pair, which receives once the server's description has come."""

    def __init__(self, wire: Wire) -> None:
        self._half = _Half(wire)
        self.params = self._half.params

    def complete(self, answer: Params, deadline: float) -> Endpoint:
        """Connect to the server's queue pair; see the interface."""
        self._half.connect(answer)
        return self._half.take()

    def close(self) -> None:
        """Free the queue pair, unless an endpoint has it."""
        self._half.close()


class RdmaAcceptance(Acceptance):
    """The server's queue pair, connected to the client's."""

    def __init__(self, params: Params, wire: Wire) -> None:
        self._half = _Half(wire)
        self.answer = self._half.params
        try:
            self._half.connect(params)
        except BaseException:
            self._half.close()
            raise

    def endpoint(self) -> Endpoint:
        """The endpoint, which owns the queue pair."""
        return self._half.take()

    def close(self) -> None:
        """Free the queue pair, unless an endpoint has it."""
        self._half.close()


class RdmaCarrier(Carrier):
    """Queue pairs of the port that ``spoke.transport.rdma.ports`` chooses."""

    name: ClassVar[str] = "rdma"

    def offer(self, wire: Wire) -> Offer:
        """A queue pair of ours, or why there is none."""
        return RdmaOffer(wire)

    def accept(self, params: Params, wire: Wire) -> Acceptance:
        """A queue pair connected to the client's, or why not."""
        return RdmaAcceptance(params, wire)
