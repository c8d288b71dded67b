"""What GPUs of each model are worth to gangs that are limited to some models: the others leave those to them.

The *price* of a model is the part of what is free of it that would go to such gangs, if the GPUs that are free were
asked for as granted members usually asked (``usual.models``): at 1, and above, whoever takes one without having to
keeps it from somebody who has no other choice. A gang that may use several models, or all, is charged the price of
what it takes, and so goes where it does the least harm. Nobody is refused for it.

All sums are of whole numbers, so that every machine finds the same prices.
"""

from __future__ import annotations

import numpy as np

from spoke.allocator.placement.table import Ints, NodeTable
from spoke.allocator.placement.worth import MICRO
from spoke.events.demand import Usual


def prices_of(table: NodeTable, usual: Usual) -> Ints:
    """By the number of a set of models (``table.model_sets``): the price of a GPU there, in millionths of a GPU."""
    prices = [0] * len(table.model_sets)
    total = sum(table.free_of)
    for models, part in usual.models:
        allowed = set(models)
        suited = [number for having, number in table.model_sets.items() if having and having <= allowed]
        free = sum(table.free_of[number] for number in suited)
        if free:
            wanted = total * part // free
            for number in suited:
                prices[number] += wanted
    return np.array([min(price, MICRO) for price in prices], np.int64)
