"""What is left of a shared GPU is worth what usual shares still fit in it.

Cutting GPUs into shares is the cutting stock problem. Gilmore and Gomory ("A linear programming approach to the
cutting-stock problem", 1961) find the fewest GPUs that hold a known demand by column generation, and with it a price
for each share: the part of a GPU that it costs when all is cut well. A rest is worth as much as the dearest shares
that fit in it together. If most shares are 0.81, a rest of 0.19 is worth next to nothing, and 0.16 is better put
there than where two halves fit.

The arithmetic is plain sums, products and comparisons in one order, so that every machine finds the same figures.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from spoke.events.model import GPU_MILLI

MICRO = 1_000_000
"""A whole GPU, in the millionths in which rests are valued."""
SHARES_MAX = 16
"""So many different shares are considered, those that take up the most."""
ROUNDS_MAX = 200
_NOTHING = 1e-9

Shares = tuple[tuple[int, int], ...]
Worth = npt.NDArray[np.int64]


@lru_cache(maxsize=8)
def worth_of_rests(usual: Shares) -> Worth:
    """By the thousandths of a GPU that are free: what they are worth, in millionths of a GPU.

    ``usual`` says how often which share is asked for. A tenth of the worth does not depend on it (all of it, if nothing
    is known): that a rest is worth the less for each of its thousandths the smaller it is.
    """
    rests = np.arange(GPU_MILLI + 1, dtype=np.int64)
    plain = rests * rests * (MICRO // GPU_MILLI) // (2 * GPU_MILLI)
    plain[GPU_MILLI] = MICRO
    if not usual:
        return plain
    learned = np.floor(_fill(*_prices(usual)) * MICRO + 0.5).astype(np.int64)
    return learned + plain // 10


def _prices(usual: Shares) -> tuple[list[int], list[float]]:
    """The shares that count, and their prices."""
    most = sorted(usual, key=lambda pair: (-pair[0] * pair[1], pair[0]))[:SHARES_MAX]
    shares, demand = zip(*sorted(most), strict=True)
    size = len(shares)
    per_gpu = [GPU_MILLI // share for share in shares]  # the first patterns: one kind of share, as often as it fits
    used = [count / n for count, n in zip(demand, per_gpu, strict=True)]
    costs = [1.0] * size
    inverse = [[1.0 / per_gpu[row] if row == column else 0.0 for column in range(size)] for row in range(size)]
    prices: list[float] = []
    for _ in range(ROUNDS_MAX):
        prices = [sum(costs[row] * inverse[row][column] for row in range(size)) for column in range(size)]
        cheapest = min(range(size), key=prices.__getitem__)
        if prices[cheapest] < -_NOTHING:  # more of this share than asked for is no harm
            pattern, cost = [-1.0 if row == cheapest else 0.0 for row in range(size)], 0.0
        else:
            values = _fill(list(shares), prices)
            if values[GPU_MILLI] <= 1 + 1e-6:
                break
            pattern, cost = _pattern(values, shares, prices), 1.0
        step = [sum(left * right for left, right in zip(row, pattern, strict=True)) for row in inverse]
        rows = [row for row in range(size) if step[row] > _NOTHING]
        if not rows:
            break  # by rounding alone
        leaving = min(rows, key=lambda row: used[row] / step[row])
        much = used[leaving] / step[leaving]
        used = [amount - much * by for amount, by in zip(used, step, strict=True)]
        used[leaving], costs[leaving] = much, cost
        pivot = [value / step[leaving] for value in inverse[leaving]]
        for row in range(size):
            if row != leaving and step[row]:
                inverse[row] = [value - step[row] * at for value, at in zip(inverse[row], pivot, strict=True)]
        inverse[leaving] = pivot
    return list(shares), [max(price, 0.0) for price in prices]


def _fill(shares: list[int], prices: list[float]) -> npt.NDArray[np.float64]:
    """By the free thousandths: the highest price of shares that fit in together (an unbounded knapsack)."""
    best = np.zeros(GPU_MILLI + 1)
    for share, price in zip(shares, prices, strict=True):
        left, block = GPU_MILLI // share, 1
        while left and price > _NOTHING:  # blocks of 1, 2, 4, … of them make up every number
            size = share * min(block, left)
            np.maximum(best[size:], best[:-size] + price * min(block, left), out=best[size:])
            left, block = left - min(block, left), 2 * block
    return best


def _pattern(values: npt.NDArray[np.float64], shares: tuple[int, ...], prices: list[float]) -> list[float]:
    """How often each share is in the dearest filling of a GPU."""
    pattern, free, best = [0.0] * len(shares), GPU_MILLI, values.tolist()
    while best[free] > _NOTHING:
        gains = [
            (best[free - share] + price - best[free], -at)
            for at, (share, price) in enumerate(zip(shares, prices, strict=True))
            if share <= free and price > _NOTHING
        ]
        at = -max(gains)[1]
        pattern[at] += 1
        free -= shares[at]
    return pattern
