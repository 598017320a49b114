"""The outlook: what staying off or on will be worth, from prices seen and the day-ahead shape.

One number per device, the *share*: how much of a restart the run's future is expected to be worth
after the present interval, 0..1. By dynamic programming the worth of being on above being off is
``D = clip(gain + E[D'], 0, restart cost)``; the share is the estimate of ``E[D'] / cost``. A share
near 0 says that the present loss will last, near 1 that it is over with the interval. The expected
stay follows from it: ``1 / share`` intervals off, ``1 / (1 - share)`` intervals on.

The estimate is a sum of ramps of gains measured in restart costs, so it knows no price level, no
hashprice level and no currency. What the last gain says depends on company: a dear interval in
dear hours, or after another dear one, lasts. So its ramps count once more in the part that each of
a few hats over those other gains takes. A dear restart needs other weights, because prices do not
last as long as it takes to earn it, and so does a light one, as a change of mode is: between the
sets the estimate goes over with the cost. The weights are ``outlook_table``; how they were fitted
stands in docs/adr/0011, 0019, 0024 and 0032. A wrong outlook costs no more than ``rule`` lets it.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
from msgspec import Struct

from edge_agent.core.columns import every
from edge_agent.core.outlook_table import TABLES
from edge_agent.core.site import FloatColumn, IntColumn

INTERVAL_S = 900.0
Knowledge = Literal["nowcast", "settled"]
Ramp = tuple[float, float]

# A ramp (knot, width) is 0 below its knot and grows with the gain to ``width``.
NOW_RAMPS: tuple[Ramp, ...] = (
    (-8.0, 4.0), (-4.0, 2.0), (-2.0, 1.0), (-1.0, 0.5), (-0.5, 0.25), (-0.25, 0.25), (0.0, 0.25),
    (0.25, 0.25), (0.5, 0.5),
)  # fmt: skip
LAST_RAMPS: tuple[Ramp, ...] = ((-4.0, 3.0), (-1.0, 1.0), (0.0, 0.5))
OLDER_RAMPS: tuple[Ramp, ...] = ((-2.0, 2.0), (0.0, 0.5))
AHEAD_RAMPS: tuple[Ramp, ...] = ((-1.0, 1.0), (0.0, 0.2), (0.2, 0.2), (0.4, 0.4))
# Of what the gain of the hour before is above that of this hour: by how much the hours grow dearer.
RISE_RAMPS: tuple[Ramp, ...] = ((-0.6, 0.4), (-0.2, 0.2), (0.0, 0.2), (0.2, 0.4))
# Of the last gain in company, and where the hats of the others stand: over the mean gain of this
# and the next hour by day-ahead prices, and over the gain before the last.
COMPANY_RAMPS: tuple[Ramp, ...] = (
    (-4.0, 2.0), (-2.0, 1.0), (-1.0, 0.5), (-0.5, 0.3), (-0.2, 0.2), (0.0, 0.2), (0.2, 0.3),
)  # fmt: skip
HOURS_HATS, BEFORE_HATS = (-0.5, 0.1, 0.4, 0.8), (-1.0, 0.0, 0.5)
SEEN_RAMPS = (NOW_RAMPS, LAST_RAMPS, OLDER_RAMPS)
SEEN = len(SEEN_RAMPS)
# Day-ahead prices that are told: of this hour and the two after it. That of the hour before joins
# them: whether the hours grow dearer or cheaper says how long a spike will last.
HOURS = 3
AHEAD = HOURS + 1
# Devices looked at together: the columns of more do not fit into a cache.
BLOCK = 16_384
# The forecast never claims certainty: each change it asks for has at least this part behind it.
SHARE_MIN, SHARE_MAX = 0.05, 0.98
# Prudent restart cost, in revenues of an interval, up to which and from which on a set holds alone.
LIGHT_TO, USUAL_FROM, USUAL_TO, DEAR_FROM = 0.4, 0.6, 3.0, 6.0
# A line through light costs would point far off where the usual ones begin.
LIGHT_MOST = 0.5


class Table(Struct, frozen=True):
    """Fitted weights: one constant, the ramps in order, those in company, and the cost in revenues.

    Args:
        share: of the future's worth. gain: of the present interval's gain where it is not known
            yet; empty where it is. prudence: factor on the assumed restart cost.
        dear, light: share and gain where a restart is dear, and where it is light; no company.
    """

    share: tuple[float, ...]
    gain: tuple[float, ...]
    prudence: float
    dear: tuple[tuple[float, ...], tuple[float, ...]]
    light: tuple[tuple[float, ...], tuple[float, ...]]


class Outlook(Struct, frozen=True, eq=False):
    """Expected gain of being on over the interval, and the share, both in prudent restart costs."""

    gain: FloatColumn
    share: FloatColumn


# One number where a column of a block holds nothing else.
Height = FloatColumn | float


class _Gain(Struct, frozen=True, eq=False):
    """A gain of a block of devices; least and most are NaN where one is not known.

    Like devices earn alike: nearly every ramp ends below the least or begins above the most, and
    is one number for all of them. Where all earn the same, so is the gain itself.
    """

    height: Height
    least: float
    most: float


@cache
def table_of(knowledge: Knowledge, *, has_ahead: bool) -> Table:
    """Give the weights for what is known."""
    share, gain, prudence, dear, light = TABLES[(knowledge, has_ahead)]
    return Table(share, gain, prudence, dear, light)


def blocks_of(stop: int, start: int = 0) -> list[slice]:
    """Cut the devices from one to before another into blocks."""
    return [slice(at, min(at + BLOCK, stop)) for at in range(start, stop, BLOCK)]


def look(
    table: Table, seen: Sequence[Height], ahead: Sequence[Height], cost_in_revenue: Height
) -> tuple[Height, Height]:
    """Estimate gain and share of a block of devices.

    Args:
        seen: gain of an interval at the last price, the one before, and the one before that, in
            prudent restart costs. ahead: the same at the day-ahead price of this hour, the two
            after it and the one before; empty: not known. cost_in_revenue: restart cost over an
            interval's revenue.
    """
    gains, cost = [_gain(height) for height in seen], _gain(cost_in_revenue)
    share, gain = _look(table, gains, [_gain(height) for height in ahead], cost)
    # Where the present interval's gain is known there is nothing to estimate.
    return gain if table.gain else seen[0], share


def _look(
    table: Table, seen: Sequence[_Gain], ahead: Sequence[_Gain], cost: _Gain
) -> tuple[Height, Height]:
    """Estimate share and gain; the gain is 0 where it is known."""
    alone, prudent = _alone(seen, ahead), table.prudence * cost.height
    least, most = table.prudence * cost.least, table.prudence * cost.most
    # A comparison with NaN is false: what is not known is asked for.
    if most < LIGHT_TO:
        # The light set holds alone.
        share, gain = (_sum(weights, alone, prudent) for weights in table.light)
    else:
        company = _company(seen, ahead)
        share, gain = (
            _sum(weights, alone, cost.height, company) for weights in (table.share, table.gain)
        )
        if not most <= USUAL_TO:
            part = _within(prudent - USUAL_TO, DEAR_FROM - USUAL_TO)
            share, gain = _mix(table.dear, part, alone, prudent, (share, gain))
        if not least >= USUAL_FROM:
            part = _within(USUAL_FROM - prudent, USUAL_FROM - LIGHT_TO)
            light = _clip(prudent, 0.0, LIGHT_MOST)
            share, gain = _mix(table.light, part, alone, light, (share, gain))
    return _clip(share, SHARE_MIN, SHARE_MAX, own=True), gain


def _mix(
    weights: tuple[tuple[float, ...], tuple[float, ...]],
    part: Height,
    alone: Sequence[Height],
    cost: Height,
    usual: tuple[Height, Height],
) -> tuple[Height, Height]:
    """Let other weights have their part 0..1 in share and gain."""
    if isinstance(part, float) or every(part > 0.0):
        return _mixed(weights, part, alone, cost, usual)
    at = np.flatnonzero(part)
    there = [_at(row, at) for row in alone]
    before = (_at(usual[0], at), _at(usual[1], at))
    mixed = _mixed(weights, part[at], there, _at(cost, at), before)
    for column, own in zip(usual, mixed, strict=True):
        # Where costs differ so do the sums; one number is a gain that is not asked for.
        if not isinstance(column, float):
            column[at] = own
    return usual


def _mixed(
    weights: tuple[tuple[float, ...], tuple[float, ...]],
    part: Height,
    alone: Sequence[Height],
    cost: Height,
    usual: tuple[Height, Height],
) -> tuple[Height, Height]:
    share, gain = usual
    share = (1.0 - part) * _part(share) + part * _part(_sum(weights[0], alone, cost))
    if weights[1]:
        gain = (1.0 - part) * gain + part * _sum(weights[1], alone, cost)
    return share, gain


def _at(height: Height, at: IntColumn) -> Height:
    return height if isinstance(height, float) else height[at]


class Change(Struct, frozen=True, eq=False, kw_only=True):
    """What is known to change later: a step of the difficulty.

    Args:
        weight: of the time after it in what a stay is worth, 0..1; 0: nothing changes. gain_usd: by
            how much an interval of being on earns more then.
    """

    weight: FloatColumn | float
    gain_usd: FloatColumn


class Known(Struct, frozen=True, eq=False, kw_only=True):
    """What is known at a decision: numbers live (one instant), columns of time in a back-test.

    Args:
        price: last known, USD/MWh. older: the two intervals before it. ahead: day-ahead price of
            this hour, the two after it and the one before, or none. change: what the share is to
            know of later; counted where the price is known.
    """

    price: FloatColumn | float
    older: tuple[FloatColumn | float, FloatColumn | float]
    ahead: tuple[FloatColumn | float, ...] = ()
    change: Change | None = None


def forecast(
    knowledge: Knowledge,
    known: Known,
    gain_usd: FloatColumn,
    saved_mwh: FloatColumn | float,
    restart_usd: FloatColumn,
    revenue_usd: FloatColumn,
    table: Table | None = None,
    blocks: Sequence[slice] | None = None,
) -> tuple[Outlook, FloatColumn]:
    """Give the outlook and the prudent restart cost of each device (or each instant).

    Args:
        gain_usd: of being on over an interval at the known price. saved_mwh: energy of an interval
            that being off saves, at the meter. restart_usd, revenue_usd: assumed cost of a
            restart, and what an interval of mining earns. table: weights to try, where day-ahead
            prices are known. blocks: devices to look at together; None: in their order.
    """
    if table is None or not known.ahead:
        table = table_of(knowledge, has_ahead=bool(known.ahead))
    cost = table.prudence * restart_usd
    gain, share = np.empty_like(cost), np.empty_like(cost)
    prices = (known.price, *known.older, *known.ahead)
    columns: tuple[Height, ...] = (gain_usd, saved_mwh, restart_usd, revenue_usd, cost, *prices)
    for block in blocks_of(len(cost)) if blocks is None else blocks:
        own = [_part_of(column, block) for column in columns]
        gain[block], share[block] = _forecast(table, own)
    out = Outlook(gain, share)
    # On settled prices it is left out: there it lost (docs/adr/0038).
    if known.change is not None and knowledge == "nowcast":
        out = _changed(table, out, columns, known.change)
    return out, cost


def _changed(table: Table, out: Outlook, columns: Sequence[Height], change: Change) -> Outlook:
    """Give an outlook whose share is in part that of the time after a change.

    Prices seen and told say as much of the time after it, at what being on earns then. The gain of
    the present interval stays.

    Args:
        columns: in the order of ``forecast``.
    """
    weight = np.broadcast_to(change.weight, out.share.shape)
    where = np.flatnonzero((weight > 0.0) & (change.gain_usd != 0.0))
    if not len(where):
        return out
    gain, *others = (row if isinstance(row, float) else row[where] for row in columns)
    _, then = _forecast(table, [gain + change.gain_usd[where], *others])
    share, part = out.share.copy(), weight[where]
    share[where] = (1.0 - part) * share[where] + part * then
    return Outlook(out.gain, share)


def _part_of(column: Height, block: slice) -> Height:
    """Give a block of a column; one number where all of it are alike."""
    if isinstance(column, float):
        return column
    own = column[block]
    first = float(own[0])
    # Mostly the last tells already that they are not.
    return first if own[-1] == first and every(own == first) else own


def _forecast(table: Table, of_block: list[Height]) -> tuple[Height, Height]:
    """Give gain and share of a block; arguments in the order of ``forecast``."""
    gain, saved, restart, revenue, cost, price, *others = of_block
    unit = 1.0 / _at_least(cost, 1e-9)
    at = [gain * unit]
    for other in others:
        # In one column from step to step: new ones would drive the rest out of the cache.
        apart = saved * (price - other)
        apart += gain
        apart *= unit
        at.append(apart)
    return look(table, at[:SEEN], at[SEEN:], restart / _at_least(revenue, 1e-9))


def basis(
    seen: Sequence[FloatColumn],
    ahead: Sequence[FloatColumn],
    cost_in_revenue: FloatColumn,
    *,
    in_company: bool,
) -> list[FloatColumn]:
    """Give the terms that the weights multiply, in their order (for fitting)."""
    told, coming = [_gain(column) for column in seen], [_gain(column) for column in ahead]
    terms: list[Height] = [1.0, *_alone(told, coming)]
    if in_company:
        heights, hats = _company(told, coming)
        terms += [hat * height for hat in hats for height in heights]
    whole = [*terms, _bounded_cost(cost_in_revenue)]
    return [np.array(np.broadcast_to(term, seen[0].shape)) for term in whole]


class _Ramps(Sequence[Height]):
    """Ramps of gains in order, each made when a weight first asks for it: many weigh nothing."""

    def __init__(self, of: list[tuple[_Gain, Ramp]]) -> None:
        self._of = of
        self._made: dict[int, Height] = {}

    def __len__(self) -> int:
        return len(self._of)

    # Nobody asks for a slice.
    def __getitem__(self, at: int) -> Height:  # type: ignore[override]
        made = self._made.get(at)
        if made is None:
            made = self._made[at] = _ramp(*self._of[at])
        return made


# The last gain's ramps in company, and the hats.
Company = tuple[Sequence[Height], tuple[Height, ...]]


def _sum(
    weights: tuple[float, ...],
    alone: Sequence[Height],
    cost_in_revenue: Height,
    company: Company = ((), ()),
) -> Height:
    """Sum what weights make of a block's ramps; without weights it is 0."""
    if not weights:
        return 0.0
    # In a fixed order and without a matrix product: a replay must give the same bits anywhere.
    total = _weighted(weights[0], weights[1 : 1 + len(alone)], alone)
    heights, hats = company
    place = 1 + len(alone)
    for hat in hats:
        if not _is_nothing(hat):
            own = weights[place : place + len(heights)]
            total += hat * _weighted(0.0, own, heights)
        place += len(heights)
    total += weights[place] * _bounded_cost(cost_in_revenue)
    return total


def _weighted(constant: float, weights: tuple[float, ...], heights: Sequence[Height]) -> Height:
    total: Height = constant
    for at, weight in enumerate(weights):
        # What adds nothing is left out: no sum here is a negative zero, so no bit differs.
        if weight != 0.0 and not _is_nothing(height := heights[at]):
            total += weight * height
    return total


def _is_nothing(height: Height) -> bool:
    return isinstance(height, float) and height == 0.0


def _gain(height: Height) -> _Gain:
    if isinstance(height, float):
        return _Gain(height, height, height)
    least, most = float(np.minimum.reduce(height)), float(np.maximum.reduce(height))
    return _Gain(least if least == most else height, least, most)


def _at_least(height: Height, low: float) -> Height:
    return max(height, low) if isinstance(height, float) else np.maximum(height, low)


def _clip(height: Height, low: float, high: float, *, own: bool = False) -> Height:
    """Bound a height.

    Args:
        own: the column was just made, and may be written.
    """
    if isinstance(height, float):
        return min(max(height, low), high)
    return height.clip(low, high, out=height if own else None)


def _part(share: Height) -> Height:
    return _clip(share, 0.0, 1.0)


def _within(above: Height, width: float) -> Height:
    """Give how far each value is on its way from 0 to ``width``, 0..1."""
    return _clip(above / width, 0.0, 1.0, own=True)


def _alone(seen: Sequence[_Gain], ahead: Sequence[_Gain]) -> _Ramps:
    """Give the ramps of each gain by itself."""
    told = [*zip(seen, SEEN_RAMPS, strict=True), *((gain, AHEAD_RAMPS) for gain in ahead)]
    if ahead:
        rise = ahead[HOURS].height - ahead[0].height
        told.append((_gain(rise), RISE_RAMPS))
    return _Ramps([(gain, ramp) for gain, ramps in told for ramp in ramps])


def _company(seen: Sequence[_Gain], ahead: Sequence[_Gain]) -> Company:
    """Give the ramps of the last gain, and the hats over the gains that keep it company."""
    hats = _hats(seen[1], BEFORE_HATS)
    if ahead:
        hours = _gain(0.5 * (ahead[0].height + ahead[1].height))
        hats = (*_hats(hours, HOURS_HATS), *hats)
    return _Ramps([(seen[0], ramp) for ramp in COMPANY_RAMPS]), hats


def _hats(gain: _Gain, knots: tuple[float, ...]) -> tuple[Height, ...]:
    """Give for each knot the part 0..1 that it has in the value; the parts sum to 1."""
    up = [_way(gain, low, high) for low, high in pairwise(knots)]
    return (1.0 - up[0], *(here - after for here, after in pairwise(up)), up[-1])


def _way(gain: _Gain, low: float, high: float) -> Height:
    if gain.most <= low:
        return 0.0
    return 1.0 if gain.least >= high else _within(gain.height - low, high - low)


def _ramp(gain: _Gain, ramp: Ramp) -> Height:
    knot, width = ramp
    if gain.most <= knot:
        return 0.0
    if gain.least - knot >= width:
        return width
    return _clip(gain.height - knot, 0.0, width, own=True)


def _bounded_cost(cost_in_revenue: Height) -> Height:
    return _clip(cost_in_revenue, 0.0, 3.0)
