"""GPU time by user, project, node or ticket: exact sums over the holdings (thousandths of a GPU, milliseconds)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from spoke.events import types as e
from spoke.events.holdings import TELLING, Holding, Holdings
from spoke.events.state import PoolState

By = Literal["user", "project", "node", "ticket"]
BY: tuple[str, ...] = get_args(By)
MILLI_MS_PER_HOUR = 1_000 * 3_600_000


@dataclass(slots=True)
class Usage:
    """What one user, node or ticket used. ``milli_ms``: thousandths of a GPU times milliseconds.

    ``tickets`` counts the tickets that had GPU time in it. ``user``, ``title`` and ``project`` say more of a
    ticket.
    """

    key: str
    milli_ms: int = 0
    tickets: int = 0
    user: str = ""
    title: str = ""
    project: str = ""

    @property
    def gpu_hours(self) -> float:
        """GPU-hours, as near as a float can be; ``milli_ms`` is exact."""
        return self.milli_ms / MILLI_MS_PER_HOUR

    @property
    def gpu_seconds(self) -> str:
        """GPU-seconds, exact, with six decimals.

        >>> Usage("x", 1_500_000).gpu_seconds
        '1.500000'
        """
        return f"{self.milli_ms // 1_000_000}.{self.milli_ms % 1_000_000:06d}"


@dataclass(slots=True)
class Ledger:
    """Sums up the holdings within ``[begin_ms, end_ms]``; ``total`` is there when ``rows`` has ended."""

    by: By
    begin_ms: int
    end_ms: int
    total: Usage = field(default_factory=lambda: Usage("total"))

    def rows(self, base: PoolState, events: Iterable[e.Recorded]) -> Iterator[Usage]:
        """The usage of each; whatever goes on counts up to ``end_ms``.

        Users and nodes come last and the greatest first; tickets as they end, so that only live ones are remembered.
        """
        holdings, sums, live = Holdings(base), dict[str, Usage](), dict[str, Usage]()
        parts: dict[str, set[str]] = {}  # a live ticket -> the keys it was counted under
        for recorded in events:
            event = recorded.event
            if type(event) not in TELLING:
                continue
            self._add(holdings.take(recorded), sums, live, parts)
            if isinstance(event, e.GangReleased) and event.final:
                parts.pop(event.ticket_id, None)
                if event.ticket_id in live:
                    yield live.pop(event.ticket_id)
        self._add(holdings.open(), sums, live, parts)
        yield from live.values()
        yield from sorted(sums.values(), key=lambda usage: (-usage.milli_ms, usage.key))

    def _add(
        self, ended: Iterable[Holding], sums: dict[str, Usage], live: dict[str, Usage], parts: dict[str, set[str]]
    ) -> None:
        for holding in ended:
            span = min(holding.end_ms or self.end_ms, self.end_ms) - max(holding.begin_ms, self.begin_ms)
            if span <= 0:
                continue
            if self.by == "ticket":
                key = holding.ticket_id
                usage = live.setdefault(key, Usage(key, user=holding.user, title=holding.name, project=holding.project))
            else:
                key = self._key(holding)
                usage = sums.setdefault(key, Usage(key))
            usage.milli_ms += span * holding.milli
            self.total.milli_ms += span * holding.milli
            known = parts.setdefault(holding.ticket_id, set())
            self.total.tickets += not known
            if key not in known:
                known.add(key)
                usage.tickets += 1

    def _key(self, holding: Holding) -> str:
        match self.by:
            case "user":
                return holding.user
            case "project":
                return holding.project
        return holding.node_id
