"""Agreeing on a transport, over a stream socket whose two ends have proved themselves.

    client: offer     {name: parameters, ...}           what it can do
    server: answer    [name, parameters, {name: why not}]    the best that works for it; an empty name: none
    client: confirm   or another offer, without the one that it could not complete

A message is a length (u32) and msgpack, at most 4 KiB; its length is checked before anything is read. A few rounds
at most. So one transport that fails on either side costs a round trip and not the connection.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from spoke.errors import LimitExceeded, MalformedData, TransportUnavailable
from spoke.transport.carrier import Acceptance, Offer, Params, Transport, Unavailable, Wire
from spoke.transport.choice import NAMES, Choice, better_than
from spoke.transport.endpoint import Endpoint

MESSAGE_BYTES_MAX: Final = 4096
ROUNDS_MAX: Final = len(NAMES) + 1
_LENGTH: Final = struct.Struct("<I")
_REASON_MAX: Final = 400
_OFFER, _CONFIRM = "offer", "confirm"


def encode(message: object) -> bytes:
    """A message with its length; LimitExceeded for one that is too long."""
    body = msgpack.packb(message)
    if len(body) > MESSAGE_BYTES_MAX:
        raise LimitExceeded(f"a message of the negotiation has {len(body)} bytes; the limit is {MESSAGE_BYTES_MAX}")
    return bytes(_LENGTH.pack(len(body)) + body)


class MessageReader:
    """Fed the bytes as they come, never more than ``wanted`` at once; MalformedData is final."""

    def __init__(self) -> None:
        self._got = b""
        self._in_body = False
        self.wanted = _LENGTH.size

    def feed(self, data: bytes) -> Any | None:
        """The message, once it is whole."""
        self._got += data
        self.wanted -= len(data)
        if self.wanted > 0:
            return None
        got, self._got = self._got, b""
        if not self._in_body:
            length = _LENGTH.unpack(got)[0]
            if not 0 < length <= MESSAGE_BYTES_MAX:
                self.wanted = 1
                raise MalformedData(
                    f"a message of the negotiation has {length} bytes; the limit is {MESSAGE_BYTES_MAX}"
                )
            self.wanted, self._in_body = length, True
            return None
        self.wanted, self._in_body = _LENGTH.size, False
        try:
            return msgpack.unpackb(got)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise MalformedData(f"a message of the negotiation cannot be read: {type(error).__name__}") from error


def _params_of(found: object) -> Params:
    if type(found) is not dict or not all(type(name) is str for name in found):
        raise MalformedData("the parameters of a transport must be a map with text keys")
    return found


def _offers_of(message: object) -> dict[str, Params]:
    if type(message) is not list or len(message) != 2 or message[0] != _OFFER:
        raise MalformedData("the peer did not offer what it should: is it of this release?")
    return {name: _params_of(params) for name, params in _params_of(message[1]).items()}


def _answer_of(message: object) -> tuple[str, Params, dict[str, str]]:
    if type(message) is not list or [type(part) for part in message] != [str, dict, dict]:
        raise MalformedData("the peer did not answer the offer as it should: is it of this release?")
    name, params, refused = message
    if not all(type(key) is str and type(why) is str for key, why in refused.items()):
        raise MalformedData("the peer's reasons are not text")
    return name, _params_of(params), refused


class ServerNegotiation:
    """The server's side, which is fed bytes as they come. Its owner closes the socket when it fails."""

    def __init__(self, wire: Wire, choice: Choice) -> None:
        self._wire = wire
        self._choice = choice
        self._reader = MessageReader()
        self._rounds = 0
        self._pending: Acceptance | None = None
        self.endpoint: Endpoint | None = None

    @property
    def wanted(self) -> int:
        """How many bytes it takes next; no more, what comes behind the confirmation is the endpoint's."""
        return self._reader.wanted

    def feed(self, data: bytes) -> bytes:
        """What to send in answer. When the client has confirmed, ``endpoint`` is there and owns the socket.

        Raises MalformedData or Unavailable when there is nothing more to hope for.
        """
        message = self._reader.feed(data)
        if message is None:
            return b""
        if message == [_CONFIRM] and self._pending is not None:
            self.endpoint = self._pending.endpoint()
            self._pending = None
            return b""
        self.close()
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            raise MalformedData("the peer offers again and again")
        return self._answer(_offers_of(message))

    def _answer(self, offers: dict[str, Params]) -> bytes:
        refused: dict[str, str] = {}
        for name in NAMES:
            if name not in offers:
                continue
            try:
                self._pending = self._choice.carrier(name).accept(offers[name], self._wire)
            except (Unavailable, OSError) as error:
                refused[name] = f"the actor's side says: {error}"[:_REASON_MAX]
            else:
                return encode([name, self._pending.answer, refused])
        return encode(["", {}, refused])

    def close(self) -> None:
        """Free what was made for a transport that did not come to be."""
        if self._pending is not None:
            self._pending.close()
            self._pending = None


class ClientNegotiation:
    """The client's side, in a straight line: it blocks, until ``deadline`` at most."""

    def __init__(self, wire: Wire, choice: Choice, receive: Callable[[int], bytes], deadline: float) -> None:
        """``receive(n)`` returns exactly n bytes from the socket, or raises within the deadline."""
        self._wire = wire
        self._choice = choice
        self._receive = receive
        self._deadline = deadline
        self._offers: dict[str, Offer] = {}
        self._why_not: dict[str, str] = dict(choice.excluded)

    def run(self) -> Endpoint:
        """The endpoint, which owns the socket from then on. Raises TransportUnavailable when no transport works, and
        OSError, EOFError, MalformedData when the peer fails; the socket is its owner's to close then.
        """
        try:
            for name in self._choice.names:
                self._attempt(name)
            while self._offers:
                endpoint = self._round()
                if endpoint is not None:
                    return self._confirmed(endpoint)
            raise TransportUnavailable(self._nothing_works())
        finally:
            for offer in self._offers.values():
                offer.close()

    def _attempt(self, name: str) -> None:
        try:
            self._offers[name] = self._choice.carrier(name).offer(self._wire)
        except (Unavailable, OSError) as error:
            self._why_not[name] = str(error)

    def _round(self) -> Endpoint | None:
        self._send([_OFFER, {name: offer.params for name, offer in self._offers.items()}])
        name, answer, refused = _answer_of(self._message())
        for other, reason in refused.items():
            if other in self._offers:
                self._why_not[other] = reason[:_REASON_MAX]
                self._offers.pop(other).close()
        if not name:
            return None
        if name not in self._offers:
            raise MalformedData(f"the peer chose a transport that was not offered: {name!r:.40}")
        try:
            return self._offers[name].complete(answer, self._deadline)
        except (Unavailable, OSError) as error:
            self._why_not[name] = str(error)
            self._offers.pop(name).close()
            return None

    def _confirmed(self, endpoint: Endpoint) -> Endpoint:
        try:
            self._send([_CONFIRM])
            self._wire.sock.settimeout(None)
        except BaseException:
            endpoint.close()
            raise
        better = better_than(endpoint.transport)
        endpoint.why_not = {name: why for name, why in self._why_not.items() if name in better}
        return endpoint

    def _send(self, message: object) -> None:
        self._wire.sock.settimeout(max(0.001, self._deadline - time.monotonic()))
        self._wire.sock.sendall(encode(message))

    def _message(self) -> Any:
        reader = MessageReader()
        message = None
        while message is None:
            message = reader.feed(self._receive(reader.wanted))
        return message

    def _nothing_works(self) -> str:
        asked = f"only {self._choice.forced} may be used" if self._choice.forced else "no transport works"
        reasons = "; ".join(f"{name}: {self._why_not.get(name, 'no reason given')}" for name in self._choice.names)
        return f"{self._wire.peer} cannot be called, since {asked}, and it cannot: {reasons}"


def transport_of(endpoint: Endpoint) -> Transport:
    """What users are told about an endpoint."""
    why_not: Mapping[str, str] = endpoint.why_not
    return Transport(endpoint.transport, why_not)
