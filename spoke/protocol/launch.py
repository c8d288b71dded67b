"""The opaque part of a launch: what the client tells the actor's process, and nobody else reads.

It goes client -> request -> order -> agent -> process, and is in no event, since arguments, environment and the
ticket's secret must not stand in a log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from spoke.events.codec import DecodeError


@dataclass(frozen=True, slots=True)
class Torchrun:
    """A command that is run as torchrun would: what its environment says besides. ``run_id`` empty: the ticket's id.

    ``max_restarts`` is only told; what follows a failure is said by the launch's restart policy.

    >>> spoke.Torchrun("digits", max_restarts=3).role
    'default'
    """

    run_id: str = ""
    role: str = "default"
    max_restarts: int = 0


@dataclass(frozen=True, slots=True)
class LaunchBlob:
    """``args`` is the msgpack of the actor's arguments, ``env`` is added to its environment.

    ``log_key`` opens its output to readers, in pools with signed requests (see ``logs.py``). ``torchrun``: its
    environment is also that of torchrun's workers.
    """

    secret: bytes
    args: bytes = b""
    env: dict[str, str] = field(default_factory=dict)
    log_key: bytes = b""
    torchrun: Torchrun | None = None


_ENCODER = msgspec.msgpack.Encoder()
_BLOB = msgspec.msgpack.Decoder(LaunchBlob)
_BLOBS = msgspec.msgpack.Decoder(tuple[bytes, ...])


def encode_blob(blob: LaunchBlob) -> bytes:
    """One member's blob as bytes."""
    return _ENCODER.encode(blob)


def decode_blob(raw: bytes) -> LaunchBlob:
    """One member's blob; raises DecodeError if the bytes are none."""
    try:
        return _BLOB.decode(raw)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the launch blob cannot be read: {error}") from error


def pack_blobs(blobs: tuple[bytes, ...]) -> bytes:
    """The blobs of a launch request: one for all members, or one per member."""
    return _ENCODER.encode(blobs)


def unpack_blobs(raw: bytes, members: int) -> tuple[bytes, ...]:
    """One blob per member; raises DecodeError if there is neither one nor as many as members."""
    try:
        blobs = _BLOBS.decode(raw) if raw else (b"",)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the launch blobs cannot be read: {error}") from error
    if len(blobs) == 1:
        return blobs * members
    if len(blobs) != members:
        raise DecodeError(f"there are {len(blobs)} launch blobs for {members} members; give one, or one for each")
    return blobs
