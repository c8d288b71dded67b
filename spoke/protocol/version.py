"""The version of the protocol: of what clients, agents and allocators of a pool say to each other.

It is not the release's version: releases that speak the same protocol can be mixed. It grows with every change that
an older release would misread or pass over; a test keeps the shapes of all messages, so that none changes unnoticed.
Who joins a pool says which version it speaks, and the allocator takes in nobody who speaks another one.
"""

from __future__ import annotations

from typing import Final

from spoke.errors import ProtocolMismatch

PROTOCOL: Final = 1


def check_protocol(who: str, spoken: int, release: str) -> None:
    """Raise ProtocolMismatch for somebody who speaks another version; 0: did not say."""
    if spoken in (0, PROTOCOL):
        return
    raise ProtocolMismatch(
        f"{who} (spoke {release or 'of an unknown release'}) speaks version {spoken} of the protocol, this pool's "
        f"allocator version {PROTOCOL}: install the same release here and there (docs: Upgrade a pool)"
    )
