"""The clairvoyant: the exact optimum of a row that knows the whole future, by dynamic programming.

It pays the same starts and preemptions as any policy, and begins in the same state.
"""

import numpy as np

from edge_agent.backtest.class_series import MINE, OFF, SERVE, ClassSeries
from edge_agent.backtest.rows import Rows
from edge_agent.core.site import CodeColumn, FlagColumn, FloatColumn


def two_states(gain: FloatColumn, cost: FloatColumn) -> CodeColumn:
    """Give the best course of off and mine: off -> mine costs, mine -> off is free.

    Unknown intervals earn and cost nothing.
    """
    gains, costs = np.nan_to_num(gain).tolist(), np.nan_to_num(cost).tolist()
    on, off = 0.0, -np.inf  # worth of the best course that ends on, and off
    on_came_off: list[bool] = []
    off_came_on: list[bool] = []
    for earned, start in zip(gains, costs, strict=True):
        on_came_off.append(off - start > on)
        off_came_on.append(on > off)
        on, off = max(on, off - start) + earned, max(on, off)
    out = np.empty(len(gains), dtype=np.uint8)
    state = on > off
    for at in range(len(gains) - 1, -1, -1):
        out[at] = MINE if state else OFF
        state = (not on_came_off[at]) if state else off_came_on[at]
    return out


def three_states(series: ClassSeries, asked: FlagColumn, preempt_usd: float) -> CodeColumn:
    """Give the best course of rows of one class over off, mine and serve, all rows at once.

    Args:
        asked: (rows, T).
    """
    rows, steps = asked.shape
    by_time = np.ascontiguousarray(asked.T)
    given_up = np.where(by_time, preempt_usd, 0.0)
    change = _changes(series)
    value = np.stack([np.nan_to_num(value) for value in series.values], axis=1)[:, :, None]
    came = np.empty((steps, 3, rows), dtype=np.uint8)
    worth = np.full((3, rows), -1e18)
    worth[MINE] = 0.0
    option = np.empty((3, 3, rows))  # to, from, row
    for at in range(steps):
        option[:] = worth
        # Who leaves a service gives it up first, wherever it goes.
        option[:SERVE, SERVE] -= given_up[at]
        option -= change[at]
        came[at] = option.argmax(axis=1)
        worth = option.max(axis=1)
        worth += value[at]
        worth[SERVE, ~by_time[at]] = -1e18
    out = np.empty((rows, steps), dtype=np.uint8)
    state = np.argmax(worth, axis=0)
    every = np.arange(rows)
    for at in range(steps - 1, -1, -1):
        out[:, at] = state
        state = came[at, state, every]
    return out


def _changes(series: ClassSeries) -> FloatColumn:
    """Give what each change of state costs: (T, to, from, 1)."""
    out = np.zeros((len(series.start_mine), 3, 3, 1))
    mine, serve = np.nan_to_num(series.start_mine), np.nan_to_num(series.start_serve)
    for other in (OFF, SERVE):
        out[:, MINE, other, 0] = mine
    for other in (OFF, MINE):
        out[:, SERVE, other, 0] = serve
    return out


def clairvoyant(rows: Rows) -> CodeColumn:
    """Give the best course of every row."""
    out = np.empty(rows.asked.shape, dtype=np.uint8)
    for place, series in enumerate(rows.classes):
        at = [number for number, of in enumerate(rows.class_of) if of == place]
        if not at:
            continue
        if series.is_asic:
            out[at] = two_states(series.gain, series.start_mine)
        else:
            out[at] = three_states(series, rows.asked[at], rows.preempt_usd)
    return out


def many_two_states(gain: FloatColumn, cost: FloatColumn, begins_on: FlagColumn) -> FlagColumn:
    """Give the best course of each device over off and mine, as ``two_states`` does for one.

    Args:
        gain, cost: (T, devices). begins_on: whether each device mines before the first interval.

    Returns:
        (T, devices): mines in the interval.
    """
    steps, count = gain.shape
    on, off = np.where(begins_on, 0.0, -np.inf), np.where(begins_on, -np.inf, 0.0)
    on_came_off = np.empty((steps, count), dtype=np.bool_)
    off_came_on = np.empty((steps, count), dtype=np.bool_)
    for at in range(steps):
        woken = off - cost[at]
        on_came_off[at], off_came_on[at] = woken > on, on > off
        on, off = np.maximum(on, woken) + gain[at], np.maximum(on, off)
    out = np.empty((steps, count), dtype=np.bool_)
    state = on > off
    for at in range(steps - 1, -1, -1):
        out[at] = state
        state = np.where(state, ~on_came_off[at], off_came_on[at])
    return out
