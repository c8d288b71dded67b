"""Leadership of a pool: one allocator at a time, fenced by an epoch that grows with every election."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis
from spoke.protocol.version import PROTOCOL
from spoke.version import release_version

_ELECT = files("spoke.allocator").joinpath("elect.lua").read_text()
_REOPEN = files("spoke.allocator").joinpath("reopen.lua").read_text()
_RESIGN = files("spoke.allocator").joinpath("resign.lua").read_text()


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
    found: Any = client.register_script(_ELECT)(
        keys=[keys.leader], args=[holder, leader_ms, release_version(), PROTOCOL]
    )
    epoch, second, third = int(found[0]), found[1].decode(), found[2].decode()
    return Elected(epoch, second, int(third)) if epoch else StandBy(third, int(second))


def reopen_inbox(client: Redis, keys: Keys, holder: str, epoch: int, cursor: str) -> bool:
    """Begin the inbox anew if all in it is decided, up to ``cursor``; False if it is not, or another leads."""
    done: Any = client.register_script(_REOPEN)(keys=[keys.leader, keys.requests], args=[holder, epoch, cursor])
    return bool(done)


def resign(client: Redis, keys: Keys, holder: str, epoch: int) -> None:
    """Give leadership up at once; nothing happens if it was lost already."""
    client.register_script(_RESIGN)(keys=[keys.leader], args=[holder, epoch])
