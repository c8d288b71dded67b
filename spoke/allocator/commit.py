"""From events and effects to the arguments of the one Lua commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from spoke.allocator.effects.kinds import Command, DropLease, Effect, ForgetTicket, GrantLease, Tell
from spoke.allocator.leases import LEASE_MS_MAX
from spoke.events import types as e
from spoke.events.chain import Chain
from spoke.events.codec import event_args
from spoke.events.state import ClientState
from spoke.protocol.keys import Keys, client_lease
from spoke.protocol.orders import ORDERS_KEPT, Welcome, encode_order
from spoke.protocol.replies import REPLIES_KEPT, encode_message

KEPT_BY_TIME_MS_MAX = 600_000
REPLIES_MARGIN_MS = 20_000
TOLD_MAX = 2_000
"""Fields of one entry of a reply stream: two for each message. Lua hands a command at most some 8,000 arguments."""
REPLY_TTL_S = LEASE_MS_MAX // 1000 + 3_600
"""Replies outlive every lease: a client that was away and still has its session finds them."""
REPLY_TTL_RENEWED_MS = 60_000
REPLY_TTL_GONE_S = 3_600
"""Those of a client whose session is over are kept for so long, so that it can learn why."""
STRANGER_TTL_S = 3_600
"""The orders of a node that is not known are kept for so long: its registration was refused, or somebody made it up."""


class Batch:
    """The writes of one commit, collected while its requests are decided."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._key_numbers: dict[str, int] = {keys.leader: 1, keys.events: 2, keys.leases: 3}
        self._commands: list[list[Any]] = []
        self._told: dict[str, list[Any]] = {}  # per client: seq, message, seq, message ...
        self._gone: set[str] = set()
        self.events = 0

    def __len__(self) -> int:
        return len(self._commands) + len(self._told)

    def add(self, command: str, key: str, *args: Any) -> None:
        """One write."""
        number = self._key_numbers.setdefault(key, len(self._key_numbers) + 1)
        self._commands.append([command, number, *args])

    def event(self, recorded: e.Recorded, effects: list[Effect], chain: Chain) -> None:
        """An event, chained to the one before, and what follows from it."""
        self.events += 1
        args = event_args(recorded.event)
        self.add("XADD", self._keys.events, recorded.id, *args, "h", chain.link(recorded.id, args))
        for effect in effects:
            self._effect(effect)

    def _effect(self, effect: Effect) -> None:
        keys = self._keys
        if type(effect) is Tell:  # as nearly always
            self._told.setdefault(effect.client_id, []).extend((effect.seq, encode_message(effect.message)))
            return
        match effect:
            case Command(node_id, delivery, stranger):
                key, fields = keys.node(node_id), flat(encode_order(delivery))
                self.add("XADD", key, "MAXLEN", "~", ORDERS_KEPT, "*", *fields)
                if stranger:
                    self.add("EXPIRE", key, STRANGER_TTL_S)
                elif isinstance(delivery.order, Welcome):
                    self.add("PERSIST", key)
            case GrantLease(holder, lease_ms):
                self.add("LEASE", keys.leases, holder, lease_ms)
            case DropLease(holder):
                self.add("ZREM", keys.leases, holder)
                self._gone.add(holder)
            case ForgetTicket(ticket_id, owner):
                self.add("DEL", keys.secret(ticket_id, owner))

    def sealed(
        self, clients: Mapping[str, ClientState], kept_until_ms: dict[str, int], now_ms: int
    ) -> tuple[list[str], bytes]:
        """The keys and the packed commands, as the commit script takes them. Nothing can be added any more.

        ``kept_until_ms`` is when the time to live of a client's replies is set anew.
        """
        for client_id, told in self._told.items():
            key = self._keys.reply(client_id)
            client = clients.get(client_id)
            lease_ms = client.lease_ms if client is not None else 0
            if lease_ms <= KEPT_BY_TIME_MS_MAX:  # who does not read for longer has lost its session
                trim = ("MINID", "~", now_ms - lease_ms - REPLIES_MARGIN_MS)
            else:
                trim = ("MAXLEN", "~", REPLIES_KEPT)
            for first in range(0, len(told), TOLD_MAX):
                self.add("XADD", key, *trim, "*", *told[first : first + TOLD_MAX])
            if client_lease(client_id) in self._gone:
                self.add("EXPIRE", key, REPLY_TTL_GONE_S)
                kept_until_ms.pop(client_id, None)
            elif client is None or kept_until_ms.get(client_id, 0) <= now_ms:
                self.add("EXPIRE", key, REPLY_TTL_S)
                if client is not None:
                    kept_until_ms[client_id] = now_ms + REPLY_TTL_RENEWED_MS
        # the old format of msgpack is the one that cmsgpack in Lua reads
        return list(self._key_numbers), msgpack.packb(self._commands, use_bin_type=False)


def flat(fields: dict[str, Any]) -> list[Any]:
    """Field, value, field, value ...: as XADD and HSET take them."""
    return [item for pair in fields.items() for item in pair]
