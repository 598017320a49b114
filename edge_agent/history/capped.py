"""The clairvoyant of a day under its caps and orders: a price on watts, then a repair.

Each interval whose load passes its limit is given a price per watt hour; devices choose again at
it, and the price follows the excess (a subgradient of the Lagrangian dual). What still passes the
limit is switched off, the least earning watts first and the same ones through the day. The best
course seen that keeps every limit is given: never above the true optimum, and at or below the
course without limits. Ramps are left out: within one interval of fifteen minutes they are over.
"""

import numpy as np

from edge_agent.backtest.hindsight import many_two_states
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.site import FlagColumn, FloatColumn, IntColumn
from edge_agent.history import grid as g

ROUNDS = 48
_TOLERANCE_W = 1.0


def capped_course(grid: g.Grid, best: FlagColumn, limit_w: FloatColumn) -> FlagColumn:
    """Give the best course found whose mean load passes no limit.

    Args:
        grid: the day. best: the clairvoyant's course without limits.
        limit_w: by interval at the meter; NaN: there is none. A limit below the load of everything
            off is kept as far as switching off can.
    """
    limits = np.where(np.isnan(limit_w), np.inf, limit_w)
    if not (load_w(grid, best) > limits + _TOLERANCE_W).any():
        return best
    rise_wh, order = _rise_wh(grid), _by_merit(grid)
    found = _kept(grid, best, limits, order)
    worth = g.settle(grid, found).sum()
    price = np.zeros(len(limits))
    step = _usual_price(grid, rise_wh)
    for number in range(ROUNDS):
        course = many_two_states(
            grid.gain_usd - price[:, None] * rise_wh, grid.restart_usd, grid.begins_on
        )
        over = np.where(np.isinf(limits), 0.0, load_w(grid, course) - limits)
        share = over / np.maximum(np.abs(over).max(), _TOLERANCE_W)
        price = np.maximum(0.0, price + step / (1.0 + number) ** 0.5 * share)
        course = _kept(grid, course, limits, order)
        earned = g.settle(grid, course).sum()
        if earned > worth:
            found, worth = course, earned
    return found


def kept(grid: g.Grid, course: FlagColumn, limit_w: FloatColumn) -> FlagColumn:
    """Give a course with the least earning watts switched off where it passes a limit."""
    return _kept(grid, course, np.where(np.isnan(limit_w), np.inf, limit_w), _by_merit(grid))


def load_w(grid: g.Grid, course: FlagColumn) -> FloatColumn:
    """Give the mean load of a course at the meter, by interval; 0 where no time is covered."""
    day = grid.day
    hours = day.covered_h
    busy = day.devices.busy_wh.sum(axis=1)
    off_w = g.off_site_w(day.site)
    chosen = (grid.chosen_h * (off_w + np.where(course, grid.rise_mw * W_PER_MW, 0.0))).sum(axis=1)
    out: FloatColumn = np.where(hours > 0.0, (chosen + busy) / np.where(hours > 0.0, hours, 1.0), 0)
    return out


def _rise_wh(grid: g.Grid) -> FloatColumn:
    out: FloatColumn = grid.rise_mw * W_PER_MW * grid.chosen_h
    return out


def _by_merit(grid: g.Grid) -> IntColumn:
    """Order devices by what their watts earn over the day, the least first: the same all day."""
    rise_wh = _rise_wh(grid).sum(axis=0)
    merit = np.where(rise_wh > 0.0, grid.gain_usd.sum(axis=0) / np.maximum(rise_wh, 1e-9), -np.inf)
    out: IntColumn = np.argsort(merit, kind="stable")
    return out


def _usual_price(grid: g.Grid, rise_wh: FloatColumn) -> float:
    """Give the scale of what a watt hour earns, as the first step of its price."""
    earns = (grid.gain_usd > 0.0) & (rise_wh > 0.0)
    if not earns.any():
        return 0.0
    return float(np.median(grid.gain_usd[earns] / rise_wh[earns]))


def _kept(grid: g.Grid, course: FlagColumn, limits: FloatColumn, order: IntColumn) -> FlagColumn:
    """Switch off, least merit first, until no interval passes its limit."""
    excess = load_w(grid, course) - limits
    over = np.flatnonzero(excess > _TOLERANCE_W)
    if not len(over):
        return course
    out = course.copy()
    hours = np.where(grid.day.covered_h > 0.0, grid.day.covered_h, 1.0)
    saved_w = grid.chosen_h * grid.rise_mw * W_PER_MW / hours[:, None]
    for at in over:
        saves = np.where(course[at, order], saved_w[at, order], 0.0)
        before = np.cumsum(saves) - saves
        out[at, order[(before < excess[at]) & (saves > 0.0)]] = False
    return out
