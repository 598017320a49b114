"""The clairvoyant of a day solved again as a linear programme: the two must agree."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from msgspec import Struct

from edge_agent.backtest.linear import Miners, bound_usd
from edge_agent.core.site import FlagColumn
from edge_agent.history.grid import Grid, wakes

# Series that the linear programme is asked about at most: 96 intervals each.
LP_SERIES_MAX = 200
LP_TOLERANCE = 1e-6


class LpCheck(Struct, frozen=True, kw_only=True):
    """The dynamic programme against the linear one, of what mining earns above being off.

    Args:
        devices: in the check; series: different ones among them. Beyond ``LP_SERIES_MAX`` series
            the others are left out.
    """

    devices: int
    series: int
    dp_usd: float
    lp_usd: float
    equal: bool


def check(grid: Grid, best: FlagColumn) -> LpCheck:
    """Solve the choices of a day again; equal devices are one row.

    Raises:
        LinearError: HiGHS is missing, or finds no optimum.
    """
    paid = np.where(wakes(grid, best), grid.restart_usd, 0.0)
    own = np.where(best, grid.gain_usd, 0.0) - paid
    # A device that begins off has an interval before the day in which it is dear to mine.
    first = np.where(grid.begins_on, 0.0, -1e6)[None, :]
    nothing = np.zeros_like(first)
    stacked = np.concatenate((first, grid.gain_usd, nothing, grid.restart_usd))
    _, at, of, count = np.unique(
        stacked, axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    taken = at[:LP_SERIES_MAX]
    rows = tuple(
        Miners(
            weight=float(number),
            gain=np.concatenate((first[:, place], grid.gain_usd[:, place])),
            cost=np.concatenate((nothing[:, place], grid.restart_usd[:, place])),
        )
        for place, number in zip(taken, count, strict=False)
    )
    inside = of < len(taken)
    with _greeting_aside():
        lp_usd = bound_usd(rows)
    dp_usd = float(own[:, inside].sum())
    return LpCheck(
        devices=int(np.count_nonzero(inside)),
        series=len(taken),
        dp_usd=dp_usd,
        lp_usd=lp_usd,
        equal=abs(lp_usd - dp_usd) <= LP_TOLERANCE * max(abs(lp_usd), 1.0),
    )


@contextmanager
def _greeting_aside() -> Iterator[None]:
    """Send what the library prints to stderr: stdout belongs to ``--json``."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
