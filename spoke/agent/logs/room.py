"""How much room actors' output may take on a node, all of it together: a size, or a share of its filesystem."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from spoke.errors import InvalidRequest
from spoke.events.model import parse_bytes

ROOM_BYTES_MIN = 1 << 20
_SHARE = re.compile(r"(\d{1,2}|100)%\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Room:
    """A limit: so many bytes, or (where that is 0) so many percent of the filesystem; none if both are 0."""

    size: int = 0
    percent: int = 0

    def bytes_of(self, log_dir: Path) -> int | None:
        """The limit in bytes; None if there is none, or no such directory yet. Raises OSError."""
        if self.size or not self.percent:
            return self.size or None
        try:
            return shutil.disk_usage(log_dir).total * self.percent // 100
        except FileNotFoundError:
            return None


def parse_room(text: str) -> Room:
    """The limit that a text names; raises InvalidRequest.

    >>> parse_room("50GiB").size >> 30, parse_room("20%").percent, parse_room("off")
    (50, 20, Room(size=0, percent=0))
    """
    if text == "off":
        return Room()
    share = _SHARE.match(text)
    if share is not None and int(share[1]):
        return Room(percent=int(share[1]))
    size = parse_bytes(text) if share is None else 0
    if size < ROOM_BYTES_MIN:
        raise InvalidRequest(f"--log-total {text!r} cannot be: give a size of at least 1MiB, a share like 20%, or off")
    return Room(size)
