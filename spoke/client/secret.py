"""The secret with which a ticket's actors and clients know each other: whoever launches first sets it."""

from __future__ import annotations

import secrets
from typing import cast

from spoke.client.session import Session
from spoke.client.tracking import Ticket
from spoke.errors import TicketEnded

SECRET_BYTES = 32


def secret_of(session: Session, ticket: Ticket) -> bytes:
    """The ticket's secret; one round trip the first time.

    While the server is away it is asked again, as long as requests are sent again.
    """
    if ticket.secret:
        return ticket.secret
    key = session.keys.secret(ticket.ticket_id, session.user)
    made = secrets.token_bytes(SECRET_BYTES)

    def agree() -> bytes:
        # Whoever launches first sets it; all others read it, and so does an attempt after a lost answer.
        if session.redis.set(key, made.hex(), nx=True):
            return made
        raw = cast("bytes | None", session.redis.get(key))
        if raw is None:
            raise TicketEnded(f"ticket {ticket.ticket_id} has ended: its secret is gone; ask for a new gang")
        return bytes.fromhex(raw.decode())

    ticket.secret = session.patiently(agree)
    return ticket.secret
