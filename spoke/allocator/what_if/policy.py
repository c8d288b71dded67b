"""The policy that is tried: what it changes of those that were recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from spoke.errors import InvalidRequest
from spoke.events.queueing import ORDERS, Order, QueuePolicy

Placement = Literal["pack", "stranding"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
"""``pack``: tightest node first. ``stranding``: scored, as where shares are."""
RECORDED = "recorded"
NAMES = (RECORDED, *ORDERS, *PLACEMENTS)


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried instead of what was recorded; None: as recorded, which changes as operators changed it."""

    order: Order | None = None
    placement: Placement | None = None
    backfill: bool | None = None
    preempt: bool | None = None

    @property
    def name(self) -> str:
        """It in words, as ``trial`` reads them."""
        parts: list[str] = [part for part in (self.order, self.placement) if part]
        flags = (("backfill", self.backfill), ("preempt", self.preempt))
        parts += [name if flag else f"no-{name}" for name, flag in flags if flag is not None]
        return ",".join(parts) or RECORDED

    def queue(self, recorded: QueuePolicy) -> QueuePolicy:
        """The queue's policy in place of the one that an operator set."""
        return replace(
            recorded,
            order=recorded.order if self.order is None else self.order,
            backfill=recorded.backfill if self.backfill is None else self.backfill,
            preempt=recorded.preempt if self.preempt is None else self.preempt,
        )


def trial(names: str, backfill: bool | None = None, preempt: bool | None = None) -> Trial:
    """The trial that a list of names means, like ``fair,stranding``; raises InvalidRequest.

    >>> trial("fifo,pack", backfill=False).name
    'fifo,pack,no-backfill'
    """
    order: Order | None = None
    placement: Placement | None = None
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name in ORDERS and order is None:
            order = name
        elif name in PLACEMENTS and placement is None:
            placement = name  # type: ignore[assignment]
        elif name != RECORDED or len(names.split(",")) > 1:
            raise InvalidRequest(
                f"the policy {names!r} cannot be tried: name at most one order ({', '.join(ORDERS)}) and at most one "
                f"placement ({', '.join(PLACEMENTS)}), or {RECORDED} alone"
            )
    return Trial(order, placement, backfill, preempt)
