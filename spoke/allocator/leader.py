"""Leadership of a pool: one allocator at a time, fenced by an epoch that grows with every election."""

from __future__ import annotations

from dataclasses import dataclass

from spoke.protocol.keys import Keys
from spoke.protocol.scripts import Script
from spoke.protocol.server import Redis
from spoke.protocol.version import PROTOCOL
from spoke.version import release_version

_ELECT = Script("spoke.allocator", "elect.lua")
_REOPEN = Script("spoke.allocator", "reopen.lua")
_RESIGN = Script("spoke.allocator", "resign.lua")


@dataclass(frozen=True, slots=True)
class Elected:
    """This allocator leads: from here its commits carry ``epoch``, and requests are read after ``cursor``."""

    epoch: int
    cursor: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class StandBy:
    """Another allocator leads, and must renew within ``left_ms``."""

    leader: str
    left_ms: int


def elect(client: Redis, keys: Keys, holder: str, leader_ms: int) -> Elected | StandBy:
    """Become the leader if nobody else is."""
    found = _ELECT.run(client, [keys.leader], [holder, leader_ms, release_version(), PROTOCOL])
    epoch, second, third = int(found[0]), found[1].decode(), found[2].decode()
    return Elected(epoch, second, int(third)) if epoch else StandBy(third, int(second))


def reopen_inbox(client: Redis, keys: Keys, holder: str, epoch: int, cursor: str) -> bool:
    """Begin the inbox anew if all in it is decided, up to ``cursor``; False if it is not, or another leads."""
    return bool(_REOPEN.run(client, [keys.leader, keys.requests], [holder, epoch, cursor]))


def resign(client: Redis, keys: Keys, holder: str, epoch: int) -> None:
    """Give leadership up at once; nothing happens if it was lost already."""
    _RESIGN.run(client, [keys.leader], [holder, epoch])
