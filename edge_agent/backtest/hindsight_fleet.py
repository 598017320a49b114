"""The clairvoyant of a fleet under its duties: a dynamic programme over levels of load.

A level is how far the steps are filled, by merit: devices of a class are alike, so that which of
them runs does not matter, and the cheapest joules come first and go last. Levels stand at even
distances, at the whole steps, and, moving with time, at the ceiling and as near above and below
the last ceiling as a ramp leads. A feeder fills by merit up to its room, and a level fills what its
feeders carry: so every course that it weighs can be run. The linear programme of ``linear``, which
knows feeders too, is the bound it is checked against.

Classes whose restarts cost unlike do not go in the order of merit alone. A site of several begins
with the best of that course, of those with one class before all others, and of each step's own
best one as far as the duties let it; then it finds the best course of one class beside those of
the others, class by class. That is the best course found, not a proven optimum.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.class_series import MINE
from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet, Lot, Others, drawn_w
from edge_agent.backtest.governed import govern
from edge_agent.backtest.hindsight import two_states
from edge_agent.backtest.tariff import Block
from edge_agent.core.site import FlagColumn, FloatColumn

LEVELS = 72
# Of one class beside the others, of which there may be many.
_OWN_LEVELS = 24
# Where there are more whole steps than this, levels stand at even distances only.
WHOLE_MAX = 48
_SWEEPS = 3
# A sweep that gains less than this share ends them.
_LEAST_GAIN = 1e-4


def clairvoyant_fleet(fleet: Fleet, duty: Duty, beside: Others) -> FloatColumn:
    """Give the devices (in fractions) that hold each step in each interval."""
    order = list(fleet.order)
    by_merit = _filled(fleet, order, duty, beside, LEVELS)
    classes = sorted({lot.of_class for lot in fleet.lots})
    if len(classes) == 1:
        return by_merit
    begun = [by_merit, govern(fleet, duty, beside, _alone(fleet))]
    for of in classes:
        first = sorted(order, key=lambda at: fleet.lots[at].of_class != of)
        begun.append(_filled(fleet, first, duty, beside, _OWN_LEVELS))
    made = max(begun, key=lambda counts: _worth(fleet, counts, beside))
    return _in_turns(fleet, made, duty, beside)


def _alone(fleet: Fleet) -> FlagColumn:
    """Give when each step would run if nothing bound it; that of a class is one on all feeders."""
    made: dict[tuple[int, int], FlagColumn] = {}
    for lot in fleet.lots:
        key = (lot.of_class, lot.step)
        if key not in made:
            made[key] = two_states(lot.series.gain, lot.series.start_mine) == MINE
    return np.stack([made[lot.of_class, lot.step] for lot in fleet.lots])


def _in_turns(fleet: Fleet, made: FloatColumn, duty: Duty, beside: Others) -> FloatColumn:
    """Find the best course of each class beside those of the others, as long as that gains."""
    worth = _worth(fleet, made, beside)
    for _ in range(_SWEEPS):
        before = worth
        for of in sorted({lot.of_class for lot in fleet.lots}):
            own = [at for at in fleet.order if fleet.lots[at].of_class == of]
            rest = made.copy()
            rest[own] = 0.0
            tried = rest + _filled(fleet, own, duty, _with(fleet, beside, rest), _OWN_LEVELS)
            if (found := _worth(fleet, tried, beside)) > worth:
                made, worth = tried, found
        if worth - before <= _LEAST_GAIN * abs(worth):
            break
    return made


def _with(fleet: Fleet, beside: Others, counts: FloatColumn) -> Others:
    """Give what is no lot of a class: what stands beside all lots, and the other classes'."""
    load_w, meter_w, rooms_w = beside.load_w.copy(), beside.drawn_w.copy(), beside.rooms_w.copy()
    for lot, held in zip(fleet.lots, counts, strict=True):
        load_w += held * lot.rise_w
        meter_w += held * drawn_w(lot)
        if lot.feeder >= 0:
            rooms_w[lot.feeder] -= held * lot.rise_w
    return Others(load_w=load_w, drawn_w=meter_w, rooms_w=rooms_w)


def _worth(fleet: Fleet, counts: FloatColumn, beside: Others) -> float:
    """Give what a course earns above all asleep, but for a constant."""
    out, meter_w = 0.0, beside.drawn_w.copy()
    for lot, held in zip(fleet.lots, counts, strict=True):
        rise = np.maximum(np.diff(held, prepend=held[0]), 0.0)
        earned = held * np.nan_to_num(lot.series.gain)
        out += float(np.sum(earned - rise * np.nan_to_num(lot.series.start_mine)))
        meter_w += held * drawn_w(lot)
    return out if fleet.block is None else out + float(np.sum(fleet.block.saved_usd(meter_w)))


def _filled(
    fleet: Fleet, order: list[int], duty: Duty, beside: Others, level_count: int
) -> FloatColumn:
    """Give the best course of some lots, filled in their order; all others hold nothing.

    Args:
        beside: all that is none of these lots.
    """
    lots = [fleet.lots[at] for at in order]
    gain = np.stack([np.nan_to_num(lot.series.gain) / lot.rise_w for lot in lots])
    cost = np.stack([np.nan_to_num(lot.series.start_mine) / lot.rise_w for lot in lots])
    edges = _edges(lots, beside.rooms_w)
    fixed = np.linspace(0.0, edges[:, -1].max(), level_count)
    whole = edges.max(axis=0)
    if len(whole) <= WHOLE_MAX:
        fixed = np.unique(np.concatenate((fixed, whole)))
    room = np.clip(duty.ceiling_w - beside.load_w, 0.0, edges[:, -1])
    inside = None if fleet.block is None else _inside(fleet.block, lots, beside)
    # Levels that move: the ceiling, and where the load fills the block.
    moving = room[:, None]
    if inside is not None:
        full = _block_level(inside, edges)
        moving = np.stack((np.minimum(full, room), room), axis=1)
    levels = _best(fixed, moving, (edges, gain, cost, inside), (duty, beside.load_w))
    filled = np.minimum(np.maximum(levels[:, None] - edges[:, :-1], 0.0), np.diff(edges, axis=1)).T
    out = np.zeros((len(fleet), len(beside.load_w)))
    out[order] = filled / np.array([lot.rise_w for lot in lots])[:, None]
    return out


class _Inside(Struct, frozen=True, eq=False):
    """A block as one class sees it.

    Args:
        left_w: of it beside all else, at the meter. usd_per_w: saved inside it. per_w: watts at the
            meter of a watt that the caps count, by lot (lots, T).
    """

    left_w: FloatColumn
    usd_per_w: FloatColumn
    per_w: FloatColumn

    def saved_usd(self, at: int, part: FloatColumn) -> FloatColumn:
        """Give what each level saves in an interval; ``part``: (levels, lots), as caps count."""
        out: FloatColumn = self.usd_per_w[at] * np.minimum(
            part @ self.per_w[:, at], self.left_w[at]
        )
        return out


def _inside(block: Block, lots: list[Lot], beside: Others) -> _Inside:
    steps = len(beside.drawn_w)
    per_w = [np.broadcast_to(drawn_w(lot) / lot.rise_w, steps) for lot in lots]
    return _Inside(np.maximum(block.size_w - beside.drawn_w, 0.0), block.usd_per_w, np.stack(per_w))


def _block_level(inside: _Inside, edges: FloatColumn) -> FloatColumn:
    """Give the level, as the caps count it, at which the load fills the block."""
    drawn = np.diff(edges, axis=1) * inside.per_w.T
    at_edge = np.concatenate((np.zeros((len(edges), 1)), np.cumsum(drawn, axis=1)), axis=1)
    rows = zip(inside.left_w.tolist(), at_edge, edges, strict=True)
    return np.array([np.interp(left, meter, level) for left, meter, level in rows])


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
    moving: FloatColumn,
    money: tuple[FloatColumn, FloatColumn, FloatColumn, _Inside | None],
    rules: tuple[Duty, FloatColumn],
) -> FloatColumn:
    """Give the level of the best course in each interval."""
    edges, gain, cost, inside = money
    duty, base_w = rules
    steps, extra = moving.shape
    count = len(fixed) + extra
    sizes = np.diff(edges, axis=1)
    came = np.zeros((steps, count), dtype=np.uint8)
    kept = np.empty((steps, count))
    level, worth, last = np.zeros(count), np.zeros(count), np.zeros((count, len(gain)))
    value, moved, every = np.empty((count, count)), np.empty((count, count)), np.arange(count)
    for at in range(steps):
        fresh = kept[at]
        fresh[:-extra], fresh[-extra:] = np.minimum(fixed, moving[at, -1]), moving[at]
        part = np.minimum(np.maximum(fresh[:, None] - edges[at, :-1], 0.0), sizes[at])
        earned = part @ gain[:, at]
        if inside is not None:
            earned += inside.saved_usd(at, part)
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
