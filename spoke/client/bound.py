"""What belongs to the process that made it: clients, gangs, handles of actors."""

from __future__ import annotations

from typing import NoReturn

from spoke.errors import NotSerializable


class Bound:
    """Neither pickled nor copied: its lease, connections and threads stay here."""

    def __reduce__(self) -> NoReturn:
        raise NotSerializable(
            f"{self!r} belongs to the process that made it, and can be neither pickled nor copied: pass the id of a "
            "ticket, and open a client there: spoke.Client().attach(ticket_id)"
        )
