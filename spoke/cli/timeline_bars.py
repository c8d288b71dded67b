"""The bars of a timeline in bounded memory: while there are too many, the shortest are drawn together.

A holding is a bar of its own. Where a chart would have more bars than a page can show, time is cut into cells, and what
was held for less than a cell's time is only added up: how much of the GPU, and how often. Cells grow, to twice their
length at a time, until all is small enough; so a log of any length gives a chart, and long holdings stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from spoke.events.model import GPU_MILLI

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spoke.events.holdings import Holding

FIRST_CELL_MS = 1_000
BARS_PER_GPU_MIN = 4
"""However many GPUs there are, each may have so many: more is not saved by cells that are longer than the chart."""


class Bar(NamedTuple):
    """One rank's time on one GPU (its number in ``Bars.gpus``)."""

    begin: int
    ticket_id: str
    rank: int
    end: int
    gpu: int
    milli: int
    name: str
    user: str
    reason: str


@dataclass(slots=True)
class Cell:
    """What short holdings took of a GPU in one cell: thousandths of it times milliseconds, and how many began there."""

    milli_ms: int = 0
    count: int = 0


class Bars:
    """Takes holdings, cut to their time on the chart; ``cell_ms`` is 0 while each of them is a bar of its own."""

    def __init__(self, bars_max: int) -> None:
        self._bars_max = bars_max
        self.gpus: dict[tuple[str, int], int] = {}
        self.bars: list[Bar] = []
        self.cells: dict[tuple[int, int], Cell] = {}
        """By GPU and number of the cell: it begins at so many times ``cell_ms`` since 1970."""
        self.cell_ms = 0
        self.together = 0
        """How many holdings have no bar of their own."""

    def gpu(self, node_id: str, index: int) -> int:
        """The number of a GPU, which gets a row."""
        return self.gpus.setdefault((node_id, index), len(self.gpus))

    def add(self, held: Holding, begin: int, end: int) -> None:
        """A holding's time on the chart."""
        gpu = self.gpu(held.node_id, held.gpu)
        if end - begin < self.cell_ms:
            self._fold(gpu, begin, end, held.milli)
        else:
            names = held.name, held.user, held.reason
            self.bars.append(Bar(begin, held.ticket_id, held.rank, end, gpu, held.milli, *names))
        if self._too_many():
            self._grow()

    def shown(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """The cells in the order of their time, cut to the chart: GPU, begin, end, how many began, thousandths held."""
        for (gpu, number), cell in sorted(self.cells.items(), key=lambda item: item[0][::-1]):
            low = max(begin, number * self.cell_ms)
            high = max(low + 1, min(end, (number + 1) * self.cell_ms))
            yield gpu, low, high, cell.count, max(1, min(GPU_MILLI, cell.milli_ms // (high - low)))

    def _too_many(self) -> bool:
        return len(self.bars) + len(self.cells) > max(self._bars_max, BARS_PER_GPU_MIN * len(self.gpus))

    def _grow(self) -> None:
        """Make cells longer until a quarter of the room is free, or there is next to nothing to gain."""
        while self._too_many() or len(self.bars) + len(self.cells) > self._bars_max * 3 // 4:
            self.cell_ms = self.cell_ms * 2 or FIRST_CELL_MS
            finer, self.cells = self.cells, {}
            for (gpu, number), found in finer.items():
                cell = self.cells.setdefault((gpu, number // 2), Cell())
                cell.milli_ms += found.milli_ms
                cell.count += found.count
            bars, self.bars = self.bars, []
            for bar in bars:
                if bar.end - bar.begin < self.cell_ms:
                    self._fold(bar.gpu, bar.begin, bar.end, bar.milli)
                else:
                    self.bars.append(bar)
            if not self._too_many() and not self.bars and len(self.cells) <= 2 * len(self.gpus):
                return

    def _fold(self, gpu: int, begin: int, end: int, milli: int) -> None:
        """Add what is shorter than a cell to the one or two cells that it lies in."""
        self.together += 1
        first = begin // self.cell_ms
        border = (first + 1) * self.cell_ms
        cell = self.cells.setdefault((gpu, first), Cell())
        cell.milli_ms += (min(end, border) - begin) * milli
        cell.count += 1
        if end > border:
            self.cells.setdefault((gpu, first + 1), Cell()).milli_ms += (end - border) * milli
