"""Who asks: the keys with which users and nodes sign their requests, and how a signature is checked.

Whoever runs the pool holds a master key. From it follows one key for each name: ``user:alice``, ``operator:bob``,
``admin:ops``, ``node:n1`` (``node:*`` for any node). Whoever holds a key signs each request with it; the allocator,
which knows the master, derives the key of the name that a request carries and checks. So there is no list of users to
keep, and a request cannot be made in another's name without that name's key. A signature covers the pool and every
field, so a copy is of no use elsewhere, and in its own pool the idempotency key makes it harmless.

Keys of administrators and nodes have a second half, by which a node knows an administrator who asks for what its actors
print, although it does not know the master: all administrators hold one reading key, and each node's follows from that.

A key derived from a master is HMAC-SHA256 (RFC 2104) over the name, a signature keyed BLAKE2b (RFC 7693) of 16 bytes.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from spoke.errors import InvalidRequest
from spoke.events.names import check_name

Kind = Literal["user", "admin", "operator", "node"]
KINDS: tuple[Kind, ...] = ("user", "admin", "operator", "node")
_READERS = ("admin", "node")
MASTER_BYTES = 32
KEY_BYTES = 32
MASTERS_MAX = 16
FILE_BYTES_MAX = 16_384
SIGNATURE_BYTES = 16
_KNOWN_MAX = 100_000
_SIGNED = ("type", "v", "client_id", "seq", "node_id", "incarnation", "by", "body", "blobs")
_SIGNED_BYTES = tuple(name.encode() for name in _SIGNED)
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")

Value = str | bytes | int


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose signature a request carries."""

    kind: Kind
    name: str

    @property
    def is_operator(self) -> bool:
        """Whether it may do what operators do."""
        return self.kind in ("operator", "admin")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Key:
    """A key of one user, administrator or node. ``text`` is how it is handed out.

    ``reading`` proves to a node, or to any, that an administrator asks for output.
    """

    signer: Signer
    secret: bytes = field(repr=False)
    reading: bytes = field(default=b"", repr=False)

    @property
    def text(self) -> str:
        """``kind:name:hex``."""
        return f"{self.signer}:{(self.secret + self.reading).hex()}"

    def reading_of(self, node_id: str) -> bytes:
        """What administrators sign with when they ask this node for output; empty for whom that is not for."""
        if self.signer.kind == "node" and self.signer.name == node_id:
            return self.reading
        if self.signer.kind == "admin" or self.signer == Signer("node", "*"):
            return _reading(self.reading, node_id)
        return b""

    def sign(self, pool: str, fields: Mapping[str, Value]) -> dict[str, Value]:
        """The two fields that make a request a signed one."""
        by = str(self.signer)
        values = (_bytes(by if name == "by" else fields.get(name, b"")) for name in _SIGNED)
        return {"by": by, "mac": _mac(self.secret, pool, values)}


def parse_key(text: str) -> Key:
    """The key that a text holds; raises InvalidRequest."""
    kind, _, rest = text.strip().partition(":")
    name, _, digits = rest.rpartition(":")
    try:
        signer, secret = _signer(kind, name), bytes.fromhex(digits)
    except (ValueError, InvalidRequest):
        secret = b""
    if len(secret) != KEY_BYTES * (1 + (kind in _READERS)):
        raise InvalidRequest("the key cannot be read: it looks like user:NAME:HEX, and `spoke key issue` makes it")
    return Key(signer, secret[:KEY_BYTES], secret[KEY_BYTES:])


def find_key(given: str | None = None) -> Key | None:
    """The key of this process: the argument, else SPOKE_KEY, else what stands in the file SPOKE_KEY_FILE."""
    if given is not None and not isinstance(given, str):
        raise InvalidRequest(f"the key must be text, not {type(given).__name__}")
    text = given or os.environ.get("SPOKE_KEY")
    if text:
        return parse_key(text)
    path = os.environ.get("SPOKE_KEY_FILE")
    return parse_key(_read(Path(path))) if path else None


def issue(master: bytes, kind: str, name: str) -> Key:
    """The key of a name; raises InvalidRequest for a name that cannot be one."""
    signer = _signer(kind, name)
    secret = hmac.digest(master, b"spoke key 1 " + str(signer).encode(), "sha256")
    if kind not in _READERS:
        return Key(signer, secret)
    reading = hmac.digest(master, b"spoke reading 1", "sha256")
    return Key(signer, secret, _reading(reading, name) if kind == "node" and name != "*" else reading)


def new_master(path: Path) -> None:
    """Write a new master key into a file that only its owner can read; raises InvalidRequest if the file exists."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidRequest(f"the master key cannot be written to {path}: {error}") from error
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(MASTER_BYTES) + "\n")


def read_masters(path: Path) -> tuple[bytes, ...]:
    """The master keys in a file, one in a line; the first makes new keys, all are accepted. Raises InvalidRequest."""
    lines = [line.strip() for line in _read(path).splitlines() if line.strip() and not line.startswith("#")]
    try:
        masters = tuple(bytes.fromhex(line) for line in lines)
    except ValueError:
        masters = ()
    if not 1 <= len(masters) <= MASTERS_MAX or any(len(master) != MASTER_BYTES for master in masters):
        raise InvalidRequest(f"{path} must hold 1 to {MASTERS_MAX} lines of {2 * MASTER_BYTES} hexadecimal digits")
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InvalidRequest(f"{path} holds the master key and can be read by others: chmod 600 {path}")
    return masters


class Verifier:
    """Checks the signatures of one pool's requests."""

    def __init__(self, masters: Sequence[bytes], pool: str) -> None:
        self._masters, self._pool = tuple(masters), pool
        self._known: dict[bytes, tuple[Signer, bytes]] = {}

    def signer(self, raw: Mapping[bytes, bytes]) -> Signer | None:
        """Who signed the request; None if nobody did, or the signature is wrong."""
        by, mac = raw.get(b"by", b""), raw.get(b"mac", b"")
        if not by or len(by) > 300 or len(mac) != SIGNATURE_BYTES:
            return None
        values = [raw.get(name, b"") for name in _SIGNED_BYTES]
        known = self._known.get(by)
        if known is not None and hmac.compare_digest(_mac(known[1], self._pool, values), mac):
            return known[0]
        kind, _, name = by.decode(errors="replace").partition(":")
        for master in self._masters:
            try:
                key = issue(master, kind, name)
            except InvalidRequest:
                return None
            if hmac.compare_digest(_mac(key.secret, self._pool, values), mac):
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                self._known[by] = key.signer, key.secret
                return key.signer
        return None


def client_prefix(user: str) -> str:
    """How the ids of a user's clients begin, so that an access list can name that user's replies."""
    return f"{user}."


def owner_of(client_id: str) -> str:
    """The user whose client this is; empty for a client without a key."""
    user, dot, _ = client_id.partition(".")
    return user if dot else ""


def _signer(kind: str, name: str) -> Signer:
    if kind not in KINDS:
        raise InvalidRequest(f"a key is for one of {', '.join(KINDS)}, not {kind!r}")
    if kind != "node":
        if not _USER.match(name):
            raise InvalidRequest(f"the user name {name!r} must be 1 to 64 letters, digits, - and _")
    elif name != "*":
        check_name("the node id", name)
    return Signer(kind, name)


def _reading(key: bytes, node_id: str) -> bytes:
    return hmac.digest(key, b"node:" + node_id.encode(), "sha256")


def _mac(secret: bytes, pool: str, values: Iterable[bytes]) -> bytes:
    digest = blake2b(pool.encode(), key=secret, digest_size=SIGNATURE_BYTES)
    for value in values:
        digest.update(b"%d:" % len(value))
        digest.update(value)
    return digest.digest()


def _bytes(value: Value) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the key was to be read from {path}: {error}") from error
