"""The clairvoyant of a fleet under its duties: a dynamic programme over levels of load.

A level is how far the steps are filled, by merit: devices of a class are alike, so that which of
them runs does not matter, and the cheapest joules come first and go last. Levels stand at even
distances, at the whole steps, and, moving with time, at the ceiling and as near above and below
the last ceiling as a ramp leads. A feeder fills by merit up to its room, and a level fills what its
feeders carry: so every course that it weighs can be run. The linear programme of ``linear``, which
knows feeders too, is the bound it is checked against.
"""

import numpy as np

from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet, Lot, Others
from edge_agent.core.site import FloatColumn

LEVELS = 72
# Where there are more whole steps than this, levels stand at even distances only.
WHOLE_MAX = 48


def clairvoyant_fleet(fleet: Fleet, duty: Duty, beside: Others) -> FloatColumn:
    """Give the devices (in fractions) that hold each step in each interval."""
    order = list(fleet.order)
    lots = [fleet.lots[at] for at in order]
    gain = np.stack([np.nan_to_num(lot.series.gain) / lot.rise_w for lot in lots])
    cost = np.stack([np.nan_to_num(lot.series.start_mine) / lot.rise_w for lot in lots])
    edges = _edges(lots, beside.rooms_w)
    fixed = np.linspace(0.0, edges[:, -1].max(), LEVELS)
    whole = edges.max(axis=0)
    if len(whole) <= WHOLE_MAX:
        fixed = np.unique(np.concatenate((fixed, whole)))
    room = np.clip(duty.ceiling_w - beside.load_w, 0.0, edges[:, -1])
    levels = _best(fixed, room, (edges, gain, cost), (duty, beside.load_w))
    filled = np.minimum(np.maximum(levels[:, None] - edges[:, :-1], 0.0), np.diff(edges, axis=1)).T
    out = np.empty_like(filled)
    out[order] = filled / np.array([lot.rise_w for lot in lots])[:, None]
    return out


def _edges(lots: list[Lot], rooms_w: FloatColumn) -> FloatColumn:
    """Give (T, lots + 1): the load up to each lot by merit, of what its feeder carries."""
    steps = rooms_w.shape[1]
    left = np.maximum(rooms_w, 0.0)
    edges = np.zeros((steps, len(lots) + 1))
    for place, lot in enumerate(lots):
        size: FloatColumn | float = lot.count * lot.rise_w
        if lot.feeder >= 0:
            size = np.minimum(size, left[lot.feeder])
            left[lot.feeder] -= size
        edges[:, place + 1] = edges[:, place] + size
    return edges


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
    sizes = np.diff(edges, axis=1)
    came = np.zeros((steps, count), dtype=np.uint8)
    kept = np.empty((steps, count))
    level, worth, last = np.zeros(count), np.zeros(count), np.zeros((count, len(gain)))
    value, moved, every = np.empty((count, count)), np.empty((count, count)), np.arange(count)
    for at in range(steps):
        fresh = kept[at]
        fresh[:-1], fresh[-1] = np.minimum(fixed, room[at]), room[at]
        part = np.minimum(np.maximum(fresh[:, None] - edges[at, :-1], 0.0), sizes[at])
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
