"""From events and effects to the arguments of the one Lua commit."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import msgpack
from redis.commands.core import Script

from spoke.allocator import outbox
from spoke.errors import Fenced
from spoke.events import types as e
from spoke.events.codec import encode_event
from spoke.protocol.keys import Keys
from spoke.protocol.orders import encode_order
from spoke.protocol.replies import encode_message

REPLIES_KEPT = 20_000
REPLY_TTL_S = 3_600
ORDERS_KEPT = 20_000

COMMIT_LUA = files("spoke.allocator").joinpath("commit.lua").read_text()


class Batch:
    """The writes of one commit, collected while its requests are decided."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._key_numbers: dict[str, int] = {keys.leader: 1, keys.events: 2, keys.leases: 3}
        self._commands: list[list[Any]] = []
        self._clients: set[str] = set()
        self.events = 0

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, command: str, key: str, *args: Any) -> None:
        """One write."""
        number = self._key_numbers.setdefault(key, len(self._key_numbers) + 1)
        self._commands.append([command, number, *args])

    def event(self, recorded: e.Recorded, effects: list[outbox.Effect]) -> None:
        """An event, and what follows from it."""
        self.events += 1
        self.add("XADD", self._keys.events, recorded.id, *flat(encode_event(recorded.event)))
        for effect in effects:
            self._effect(effect)

    def _effect(self, effect: outbox.Effect) -> None:
        keys = self._keys
        match effect:
            case outbox.Tell(client_id, seq, message):
                fields = flat(encode_message(seq, message))
                self.add("XADD", keys.reply(client_id), "MAXLEN", "~", REPLIES_KEPT, "*", *fields)
                self._clients.add(client_id)
            case outbox.Command(node_id, delivery):
                fields = flat(encode_order(delivery))
                self.add("XADD", keys.node(node_id), "MAXLEN", "~", ORDERS_KEPT, "*", *fields)
            case outbox.GrantLease(holder, lease_ms):
                self.add("LEASE", keys.leases, holder, lease_ms)
            case outbox.DropLease(holder):
                self.add("ZREM", keys.leases, holder)
            case outbox.ForgetTicket(ticket_id, owner):
                self.add("DEL", keys.secret(ticket_id, owner))

    def commit(
        self, script: Script, holder: str, epoch: int, leader_ms: int, cursor: str, last_id: str
    ) -> tuple[int, list[str]]:
        """Write it all, if ``epoch`` still leads and the log still ends at ``last_id``.

        Returns the server's time in ms and the lease holders that have run out. Raises Fenced if another allocator
        leads, or if the log is not as it was left.
        """
        for client_id in self._clients:
            self.add("EXPIRE", self._keys.reply(client_id), REPLY_TTL_S)
        packed = msgpack.packb(self._commands, use_bin_type=False)  # the old format, which cmsgpack in Lua reads
        try:
            found: Any = script(keys=list(self._key_numbers), args=[holder, epoch, leader_ms, cursor, last_id, packed])
        except Exception as error:
            if "FENCED" in str(error) or "DIVERGED" in str(error):
                raise Fenced(f"this allocator no longer leads the pool: {error}") from error
            raise
        return int(found[0]), [holder.decode() for holder in found[1:]]


def flat(fields: dict[str, Any]) -> list[Any]:
    """Field, value, field, value ...: as XADD and HSET take them."""
    return [item for pair in fields.items() for item in pair]
