"""Requests that the allocator cannot decide because of a defect of its own: they are refused, and the pool lives on.

Deciding one that breaks ends the term, since nobody knows what was changed half-way, and the next term would read it
again: without this, one such request would end every allocator that reads it.
"""

from __future__ import annotations

from collections import OrderedDict

from spoke.protocol import requests as r

KEPT = 1_000
UNDECIDABLE = "internal"

_Key = tuple[str, str, int | str]


class Undecidable(Exception):
    """Deciding ``asked`` failed in a way that should not exist; ``__cause__`` says how."""

    def __init__(self, asked: r.Asked) -> None:
        name = asked.request if isinstance(asked, r.Garbage) else asked.request.TYPE
        super().__init__(
            f"{name} of {asked.client_id or asked.node_id or 'nobody'} cannot be decided: a defect of Spoke"
        )
        self.asked = asked


class Quarantine:
    """The undecidable requests of this process's terms, the last ``KEPT``."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[_Key, str] = OrderedDict()

    def add(self, error: Undecidable) -> None:
        """Refuse this request when it comes again."""
        cause = error.__cause__
        self._reasons[_key(error.asked)] = f"{type(cause).__name__}: {cause}"
        if len(self._reasons) > KEPT:
            self._reasons.popitem(last=False)

    def admit(self, asked: r.Asked) -> r.Asked:
        """The request; or, in its place, the refusal of one that is known to be undecidable."""
        if not self._reasons or (why := self._reasons.get(_key(asked))) is None:
            return asked
        told = (
            f"the allocator cannot decide this request, because of a defect ({why}); nothing was changed by it; please "
            f"report it, with the allocator's log"
        )
        return r.refused(asked, UNDECIDABLE, told)


def _key(asked: r.Asked) -> _Key:
    """What tells a request from all others: a client's by its number; of an agent's the same one may come again."""
    if asked.client_id:
        return "client", asked.client_id, asked.seq
    return asked.node_id, asked.incarnation, repr(asked.request)
