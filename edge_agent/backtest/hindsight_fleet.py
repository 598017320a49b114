"""The clairvoyant of a fleet under its duties: a dynamic programme over levels of load.

A level is how far the steps are filled, by merit: devices of a class are alike, so that which of
them runs does not matter, and the cheapest joules come first and go last. Levels stand at even
distances, at the whole steps, and, moving with time, at the ceiling and as near above and below
the last ceiling as a ramp leads. The linear programme of ``linear`` is the bound it is checked
against.
"""

import numpy as np

from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet
from edge_agent.core.site import FloatColumn

LEVELS = 72


def clairvoyant_fleet(fleet: Fleet, duty: Duty, base_w: FloatColumn) -> FloatColumn:
    """Give the devices (in fractions) that hold each step in each interval."""
    order = list(fleet.order)
    lots = [fleet.lots[at] for at in order]
    sizes = np.array([lot.count * lot.rise_w for lot in lots])
    gain = np.stack([np.nan_to_num(lot.series.gain) / lot.rise_w for lot in lots])
    cost = np.stack([np.nan_to_num(lot.series.start_mine) / lot.rise_w for lot in lots])
    edges = np.concatenate(([0.0], np.cumsum(sizes)))
    fixed = np.unique(np.concatenate((np.linspace(0.0, edges[-1], LEVELS), edges)))
    room = np.clip(duty.ceiling_w - base_w, 0.0, edges[-1])
    levels = _best(fixed, room, (edges, gain, cost), (duty, base_w))
    filled = np.clip(levels[None, :] - edges[:-1, None], 0.0, sizes[:, None])
    out = np.empty_like(filled)
    out[order] = filled / np.array([lot.rise_w for lot in lots])[:, None]
    return out


def _best(
    fixed: FloatColumn,
    room: FloatColumn,
    money: tuple[FloatColumn, FloatColumn, FloatColumn],
    rules: tuple[Duty, FloatColumn],
) -> FloatColumn:
    """Give the level of the best course in each interval."""
    edges, gain, cost = money
    duty, base_w = rules
    steps, count = len(room), len(fixed) + 1
    sizes = np.diff(edges)
    came = np.zeros((steps, count), dtype=np.uint8)
    kept = np.empty((steps, count))
    level, worth, last = np.zeros(count), np.zeros(count), np.zeros((count, len(sizes)))
    value, moved, every = np.empty((count, count)), np.empty((count, count)), np.arange(count)
    for at in range(steps):
        fresh = kept[at]
        fresh[:-1], fresh[-1] = np.minimum(fixed, room[at]), room[at]
        part = np.minimum(np.maximum(fresh[:, None] - edges[None, :-1], 0.0), sizes[None, :])
        earned = part @ gain[:, at]
        if at:
            # (to, from), in place: these few thousand sums are most of the work of a span.
            np.subtract((part @ cost[:, at])[:, None], (last @ cost[:, at])[None, :], out=value)
            np.maximum(value, 0.0, out=value)
            np.subtract(worth[None, :], value, out=value)
            np.subtract(fresh[:, None], level[None, :], out=moved)
            moved += base_w[at] - base_w[at - 1]
            value[(moved > duty.rise_w) | (moved < -duty.fall_w)] = -np.inf
            pick = value.argmax(axis=1)
            came[at] = pick
            worth = value[every, pick] + earned
        else:
            worth = earned
        level, last = fresh, part
    out = np.empty(steps)
    state = int(np.argmax(worth))
    for at in range(steps - 1, -1, -1):
        out[at] = kept[at, state]
        state = int(came[at, state])
    return out
