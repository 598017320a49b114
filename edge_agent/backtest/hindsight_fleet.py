"""The clairvoyant of a fleet under its duties: a dynamic programme over levels of load.

A level is how far the steps are filled, by merit: devices of a class are alike, so that which of
them runs does not matter, and the cheapest joules come first and go last. Levels stand at even
distances, at the whole steps, and, moving with time, at the ceiling and as near above and below
the last ceiling as a ramp leads. The linear programme of ``linear`` is the bound it is checked
against.

Classes whose restarts cost unlike do not go in the order of merit alone. A site of several begins
with the best of that course, of those with one class before all others, and of each step's own
best one as far as the duties let it; then it finds the best course of one class beside those of
the others, class by class. That is the best course found, not a proven optimum.
"""

import numpy as np

from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet
from edge_agent.backtest.governed import govern
from edge_agent.backtest.hindsight import two_states
from edge_agent.backtest.rows import MINE
from edge_agent.core.site import FloatColumn

LEVELS = 72
# Of one class beside the others, of which there may be many.
_OWN_LEVELS = 24
_SWEEPS = 3
# A sweep that gains less than this share ends them.
_LEAST_GAIN = 1e-4


def clairvoyant_fleet(fleet: Fleet, duty: Duty, base_w: FloatColumn) -> FloatColumn:
    """Give the devices (in fractions) that hold each step in each interval."""
    order = list(fleet.order)
    by_merit = _filled(fleet, order, duty, base_w, LEVELS)
    classes = sorted({lot.of_class for lot in fleet.lots})
    if len(classes) == 1:
        return by_merit
    alone = [two_states(lot.series.gain, lot.series.start_mine) == MINE for lot in fleet.lots]
    begun = [by_merit, govern(fleet, duty, base_w, np.stack(alone))]
    for of in classes:
        first = sorted(order, key=lambda at: fleet.lots[at].of_class != of)
        begun.append(_filled(fleet, first, duty, base_w, _OWN_LEVELS))
    made = max(begun, key=lambda counts: _worth(fleet, counts))
    return _beside(fleet, made, duty, base_w)


def _beside(fleet: Fleet, made: FloatColumn, duty: Duty, base_w: FloatColumn) -> FloatColumn:
    """Find the best course of each class beside those of the others, as long as that gains."""
    classes = sorted({lot.of_class for lot in fleet.lots})
    watts = np.array([lot.rise_w for lot in fleet.lots])
    worth = _worth(fleet, made)
    for _ in range(_SWEEPS):
        before = worth
        for of in classes:
            own = [at for at in fleet.order if fleet.lots[at].of_class == of]
            others = made.copy()
            others[own] = 0.0
            tried = others + _filled(fleet, own, duty, base_w + watts @ others, _OWN_LEVELS)
            if (found := _worth(fleet, tried)) > worth:
                made, worth = tried, found
        if worth - before <= _LEAST_GAIN * abs(worth):
            break
    return made


def _worth(fleet: Fleet, counts: FloatColumn) -> float:
    """Give what a course earns above all asleep."""
    out = 0.0
    for lot, held in zip(fleet.lots, counts, strict=True):
        rise = np.maximum(np.diff(held, prepend=held[0]), 0.0)
        earned = held * np.nan_to_num(lot.series.gain)
        out += float(np.sum(earned - rise * np.nan_to_num(lot.series.start_mine)))
    return out


def _filled(
    fleet: Fleet, order: list[int], duty: Duty, base_w: FloatColumn, level_count: int
) -> FloatColumn:
    """Give the best course of some lots, filled in their order; all others hold nothing.

    Args:
        base_w: load of all that is none of these lots.
    """
    lots = [fleet.lots[at] for at in order]
    sizes = np.array([lot.count * lot.rise_w for lot in lots])
    gain = np.stack([np.nan_to_num(lot.series.gain) / lot.rise_w for lot in lots])
    cost = np.stack([np.nan_to_num(lot.series.start_mine) / lot.rise_w for lot in lots])
    edges = np.concatenate(([0.0], np.cumsum(sizes)))
    fixed = np.unique(np.concatenate((np.linspace(0.0, edges[-1], level_count), edges)))
    room = np.clip(duty.ceiling_w - base_w, 0.0, edges[-1])
    levels = _best(fixed, room, (edges, gain, cost), (duty, base_w))
    filled = np.clip(levels[None, :] - edges[:-1, None], 0.0, sizes[:, None])
    out = np.zeros((len(fleet), len(base_w)))
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
