"""The queue as the views show it: its policy, projects and their quotas, reservations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from spoke.errors import MalformedData
from spoke.events.queueing import QueuePolicy, Quota, Reservation
from spoke.protocol.keys import Keys
from spoke.protocol.server import Redis


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """What a project has now, and its quota (None: it has none). ``memory`` is in bytes."""

    project: str
    gpus: float = 0.0
    cpus: float = 0.0
    memory: int = 0
    nodes: int = 0
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The queue at one moment: its policy, how many gangs wait, projects that have quotas or places, reservations."""

    policy: QueuePolicy
    waiting: int
    projects: tuple[ProjectStatus, ...]
    reservations: tuple[Reservation, ...]


def read_queue(redis: Redis, keys: Keys) -> QueueStatus:
    """Read the view of the queue."""
    raw: Any = redis.hgetall(keys.queue)
    fields: Mapping[bytes, bytes] = raw
    try:
        return QueueStatus(
            msgspec.json.decode(fields.get(b"policy", b"{}"), type=QueuePolicy),
            int(fields.get(b"waiting", b"0")),
            msgspec.json.decode(fields.get(b"projects", b"[]"), type=tuple[ProjectStatus, ...]),
            msgspec.json.decode(fields.get(b"reservations", b"[]"), type=tuple[Reservation, ...]),
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedData(
            f"the view of the queue cannot be read ({error}): client and allocator must be of the same release"
        ) from error
