"""Steps of many miners as items in a row, and the order in which they go or come.

What a step earns and draws is the same for all miners of a group, so items are ordered by the ranks
of a small table: whole numbers of two bytes are sorted many times as fast as numbers of eight.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core.site import FloatColumn, IntColumn

_SMALL = 1 << 16


class Items(Struct, frozen=True, eq=False):
    """Steps of miners, miner by miner, each one's lowest first.

    Args:
        row: place of each item's miner among those asked for. step: it, from 1. cell: its place in
            a raveled table over (group, step - 1). first: of each miner, its first item.
    """

    row: IntColumn
    step: IntColumn
    cell: IntColumn
    first: IntColumn


def items_above(most: int, of: IntColumn, low: IntColumn, high: IntColumn) -> Items:
    """Give the steps of each miner from the one above ``low`` to ``high``.

    Args:
        most: steps of the longest curve. of: group of each miner. low, high: steps; none where
            ``high`` is not above ``low``.
    """
    count, below = np.maximum(high - low, 0), of * most - 1
    if np.count_nonzero(count == 1) == len(of):
        row = np.arange(len(of))
        return Items(row, high, below + high, row)
    first = np.add.accumulate(count) - count
    row = np.repeat(np.arange(len(of)), count)
    # Each miner's items count on from what is below it.
    step = np.arange(1, len(row) + 1) + (low - first).take(row)
    return Items(row, step, below.take(row) + step, first)


def ranks(values: FloatColumn, then: IntColumn | None = None) -> IntColumn:
    """Give the rank of each value of a small table, the least first; like ones have the same.

    Args:
        then: what orders like values, from 0.
    """
    flat = np.unique(values, return_inverse=True)[1].reshape(-1)
    if then is not None:
        flat = np.unique(flat * (int(then.max(initial=0)) + 1) + then, return_inverse=True)[1]
    out: IntColumn = flat.astype(np.uint16) if len(flat) <= _SMALL else flat
    return out


def by_rank(rank: IntColumn, cell: IntColumn) -> IntColumn:
    """Give the order of items by the ranks of their cells; like ones stay in their order."""
    out: IntColumn = np.argsort(rank.take(cell), kind="stable")
    return out
