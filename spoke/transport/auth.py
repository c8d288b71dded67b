"""Both sides prove that they know the ticket's secret, before either parses a byte of anything else.

    client: hello(nonce c)              server: hello(nonce s)
    client: HMAC(secret, "client", c, s)     server: 1 byte verdict + HMAC(secret, "server", c, s)

Every message has a fixed size, so that nothing a stranger sends is interpreted, let alone reserves memory. The roles
are part of what is signed: a proof cannot be played back to its sender. What follows on the connection is not
encrypted; the secret keeps strangers out, it does not hide the data from the network.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from spoke.errors import InvalidRequest, MalformedData

NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
_HELLO: Final = b"SPOKE\x00\x00\x02"  # the last byte is the protocol's version
HELLO_BYTES: Final = len(_HELLO) + NONCE_BYTES
VERDICT_BYTES: Final = 1 + PROOF_BYTES
_ACCEPTED, _REFUSED = b"\x01", b"\x00"


class WrongSecret(Exception):
    """The peer does not know the secret, or says that we do not."""


def check_secret(secret: bytes) -> bytes:
    """The secret itself; InvalidRequest for one too short to protect anything."""
    if not isinstance(secret, bytes) or len(secret) < 16:
        raise InvalidRequest("the transport's secret must be at least 16 bytes; a ticket has 32 random ones")
    return secret


def _proof(secret: bytes, role: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return hmac.digest(secret, role + client_nonce + server_nonce, hashlib.sha256)


def _nonce_of(hello: bytes) -> bytes:
    if len(hello) != HELLO_BYTES or not hello.startswith(_HELLO):
        raise MalformedData("the peer does not speak this version of Spoke's transport")
    return hello[len(_HELLO) :]


class ClientHandshake:
    """The caller's side: ``hello``, then ``answer(their hello)``, then ``check(their verdict)``."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._server_nonce = b""
        self.hello = _HELLO + self._nonce

    def answer(self, hello: bytes) -> bytes:
        """Our proof; MalformedData if the peer's hello is none."""
        self._server_nonce = _nonce_of(hello)
        return _proof(self._secret, b"client", self._nonce, self._server_nonce)

    def check(self, verdict: bytes) -> None:
        """Raise WrongSecret unless we were accepted by a peer that knows the secret itself."""
        expected = _proof(self._secret, b"server", self._nonce, self._server_nonce)
        known = hmac.compare_digest(verdict[1:], expected)
        if verdict[:1] != _ACCEPTED or not known:
            raise WrongSecret


class ServerHandshake:
    """The actor's side, which is fed bytes as they come: each step wants ``wanted`` more."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._client_nonce: bytes | None = None
        self._got = b""
        self.wanted = HELLO_BYTES
        self.accepted = False

    def feed(self, data: bytes) -> bytes:
        """What to send in answer; MalformedData for strangers. Once refused, the answer is the last one to send."""
        self._got += data
        self.wanted -= len(data)
        if self.wanted > 0:
            return b""
        got, self._got = self._got, b""
        if self._client_nonce is None:
            self._client_nonce = _nonce_of(got)
            self.wanted = PROOF_BYTES
            return _HELLO + self._nonce
        if not hmac.compare_digest(got, _proof(self._secret, b"client", self._client_nonce, self._nonce)):
            return _REFUSED + bytes(PROOF_BYTES)
        self.accepted = True
        return _ACCEPTED + _proof(self._secret, b"server", self._client_nonce, self._nonce)
