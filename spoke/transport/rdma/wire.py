"""What travels in the queue pair's messages, and how a large frame lies in memory.

    kind u8 | flags u8 | credits u16 | done u16 | payload bytes u32 | payload            little-endian

Every message gives back credits (receive slots that are free again) and acknowledges chunks that were read (done).

UPDATE: nothing else. FRAMES: whole frames of ``spoke.transport.frames``, one after the other. CHUNK: a piece of a
large frame lies ready in the sender's registered memory and may be read; with FIRST, the frame's head and lengths.
A large frame is laid out with its header and each buffer at a multiple of 64 bytes, and cut into chunks of 1 MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from spoke.errors import MalformedData
from spoke.transport import frames

SLOT_BYTES: Final = 8192
SLOTS: Final = 64
CHUNK_BYTES: Final = 1 << 20
CHUNKS_MAX: Final = 16
ALIGN: Final = 64

UPDATE, FRAMES, CHUNK = 0, 1, 2
FIRST, BYE = 1, 2

_FORMAT: Final = "<BBHHI"
HEAD: Final = struct.Struct(_FORMAT)
SMALL_HEAD: Final = struct.Struct(_FORMAT + frames.HEAD_FORMAT)
"""Of a message that is one frame without buffers, both heads at once."""
CHUNK_HEAD: Final = struct.Struct("<QIQ")
HEAD_BYTES: Final = HEAD.size
PAYLOAD_BYTES_MAX: Final = SLOT_BYTES - HEAD_BYTES
SMALL_BYTES_MAX: Final = SLOT_BYTES - SMALL_HEAD.size


def padded(nbytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-nbytes // ALIGN) * ALIGN


def layout(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Where each part of a frame begins, and the size of the whole."""
    offsets, end = [], 0
    for nbytes in lengths:
        offsets.append(end)
        end += padded(nbytes)
    return offsets, max(end, ALIGN)


_FIELDS: Final = {
    "version": int, "qpn": int, "psn": int, "lid": int, "gid": str, "link_layer": str, "mtu": int, "reads": int,
    "slots": int, "slot_bytes": int, "host": str,
}  # fmt: skip
VERSION: Final = 1


def check_peer(found: object) -> dict[str, Any]:
    """The peer's description of its queue pair, with every field of its type; raises MalformedData."""
    if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in _FIELDS.items()):
        raise MalformedData("the peer's description of its RDMA connection cannot be read; is it of this release?")
    in_range = 0 < found["qpn"] < 1 << 24 and 0 <= found["psn"] < 1 << 24 and 0 <= found["lid"] < 1 << 16
    if not in_range or not 1 <= found["reads"] <= 255 or found["mtu"] not in (256, 512, 1024, 2048, 4096):
        raise MalformedData("the peer's description of its RDMA connection has impossible numbers")
    return found


def same_fabric(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Why the two ports cannot reach each other, as far as their addresses tell; None when they may."""
    if theirs["version"] != VERSION or (theirs["slots"], theirs["slot_bytes"]) != (ours["slots"], ours["slot_bytes"]):
        return "the peer's release speaks another version of the RDMA transport"
    if ours["link_layer"] != theirs["link_layer"]:
        return f"one side is on {ours['link_layer']}, the other one on {theirs['link_layer']}"
    if ours["link_layer"] == "InfiniBand" and ours["gid"][:19] != theirs["gid"][:19]:
        return "the two ports are in different InfiniBand subnets"
    if ours["link_layer"] == "Ethernet" and _family(ours["gid"]) != _family(theirs["gid"]):
        return f"the ports' addresses are of different kinds ({ours['gid']}, {theirs['gid']}): SPOKE_RDMA_GID_INDEX"
    return None


def _family(gid: str) -> str:
    """IPv4-mapped, link-local or global, of an exploded GID."""
    if gid.startswith("0000:0000:0000:0000:0000:ffff:"):
        return "IPv4"
    return "link-local" if gid.startswith("fe80:") else "IPv6"
