"""What a pool takes from its clients: the limits, and the refusals that name them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

from spoke.errors import InvalidRequest, LimitExceeded
from spoke.events.model import GANG_SIZE_MAX
from spoke.events.state import PoolState
from spoke.protocol import requests as r
from spoke.protocol.requests import ARGS_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Limits:
    """At most so many: gangs in line, of one client; requests of one client that are not decided; members of a gang.

    ``args_bytes``: the arguments of the actors that one request launches.
    """

    queue_length: int = 10_000
    client_waiting: int = 10_000
    client_outstanding: int = 20_000
    gang_size: int = GANG_SIZE_MAX
    args_bytes: int = ARGS_BYTES_MAX

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) < 1:
                raise InvalidRequest(f"the limit {limit.name} must be 1 or more, not {getattr(self, limit.name)}")

    def apply(self, state: PoolState, asked: r.Asked) -> r.Asked:
        """The request; or, in its place, the refusal of one that goes beyond a limit."""
        if isinstance(asked, r.Garbage) or (type(asked.request) is not r.AllocateGang and not asked.blobs):
            return asked
        try:
            self._check(state, asked)
        except LimitExceeded as error:
            return r.refused(asked, error.code, str(error))
        return asked

    def _check(self, state: PoolState, asked: r.Envelope) -> None:
        request = asked.request
        if len(asked.blobs) > self.args_bytes:
            raise LimitExceeded(
                f"the arguments of this launch are {len(asked.blobs)} bytes, this pool takes {self.args_bytes}: pass "
                f"large data in a call, or the path of a file"
            )
        if type(request) is not r.AllocateGang:
            return
        if request.spec.size > self.gang_size:
            raise LimitExceeded(
                f"a gang of {request.spec.size} actors was asked for, this pool grants {self.gang_size}: ask for "
                f"several smaller ones"
            )
        if len(state.queue) >= self.queue_length:
            raise LimitExceeded(f"{len(state.queue)} gangs are waiting, which is this pool's limit: ask again later")
        client = state.clients.get(asked.client_id)
        if client is not None and len(client.tickets) >= self.client_waiting:
            waiting = sum(state.tickets[ticket_id].phase == "queued" for ticket_id in client.tickets)
            if waiting >= self.client_waiting:
                raise LimitExceeded(
                    f"{waiting} gangs of this client are waiting, which is this pool's limit: wait for some of them, "
                    f"or cancel them"
                )
