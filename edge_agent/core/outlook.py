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

from edge_agent.core.outlook_table import TABLES
from edge_agent.core.site import FloatColumn

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
# Devices looked at together: the ramps of more do not fit into a core's cache.
BLOCK = 4_096
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
    is one number for all of them.
    """

    column: FloatColumn
    least: float
    most: float


@cache
def table_of(knowledge: Knowledge, *, has_ahead: bool) -> Table:
    """Give the weights for what is known."""
    share, gain, prudence, dear, light = TABLES[(knowledge, has_ahead)]
    return Table(share, gain, prudence, dear, light)


def look(
    table: Table,
    seen: Sequence[FloatColumn],
    ahead: Sequence[FloatColumn],
    cost_in_revenue: FloatColumn,
) -> Outlook:
    """Estimate gain and share.

    Args:
        seen: gain of an interval at the last price, the one before, and the one before that, in
            prudent restart costs. ahead: the same at the day-ahead price of this hour, the two
            after it and the one before; empty: not known. cost_in_revenue: restart cost over an
            interval's revenue.
    """
    share = np.empty_like(cost_in_revenue)
    # Where the present interval's gain is known there is nothing to estimate.
    gain = np.empty_like(cost_in_revenue) if table.gain else seen[0]
    for at in range(0, len(cost_in_revenue), BLOCK):
        block = slice(at, at + BLOCK)
        _look(
            table,
            [_gain(column[block]) for column in seen],
            [_gain(column[block]) for column in ahead],
            cost_in_revenue[block],
            (share[block], gain[block]),
        )
    return Outlook(gain, share)


def _look(
    table: Table,
    seen: Sequence[_Gain],
    ahead: Sequence[_Gain],
    cost_in_revenue: FloatColumn,
    out: tuple[FloatColumn, FloatColumn],
) -> None:
    """Estimate share and gain of a block of devices into ``out``."""
    share, gain = out
    alone, prudent = _alone(seen, ahead), _gain(table.prudence * cost_in_revenue)
    # A comparison with NaN is false: what is not known is asked for.
    if not prudent.most < LIGHT_TO:
        company = _company(seen, ahead)
        share[:] = _sum(table.share, alone, cost_in_revenue, company)
        if table.gain:
            gain[:] = _sum(table.gain, alone, cost_in_revenue, company)
    else:
        # The light set holds alone: what it is mixed with has no part.
        share[:] = 0.0
        if table.gain:
            gain[:] = 0.0
    if not prudent.most <= USUAL_TO:
        part = _within(prudent.column - USUAL_TO, DEAR_FROM - USUAL_TO)
        _mix(table.dear, part, alone, prudent.column, out)
    if not prudent.least >= USUAL_FROM:
        part = _within(USUAL_FROM - prudent.column, USUAL_FROM - LIGHT_TO)
        _mix(table.light, part, alone, np.minimum(prudent.column, LIGHT_MOST), out)
    np.minimum(np.maximum(share, SHARE_MIN, out=share), SHARE_MAX, out=share)


def _mix(
    weights: tuple[tuple[float, ...], tuple[float, ...]],
    part: FloatColumn,
    alone: Sequence[Height],
    cost: FloatColumn,
    out: tuple[FloatColumn, FloatColumn],
) -> None:
    """Let other weights have their part 0..1 in share and gain."""
    share, gain = out
    at = np.flatnonzero(part)
    mix, cost = part[at], cost[at]
    there = [row if isinstance(row, float) else row[at] for row in alone]
    other = _part(_sum(weights[0], there, cost))
    share[at] = (1.0 - mix) * _part(share[at]) + mix * other
    if weights[1]:
        gain[at] = (1.0 - mix) * gain[at] + mix * _sum(weights[1], there, cost)


class Known(Struct, frozen=True, eq=False, kw_only=True):
    """What is known at a decision: numbers live (one instant), columns of time in a back-test.

    Args:
        price: last known, USD/MWh. older: the two intervals before it. ahead: day-ahead price of
            this hour, the two after it and the one before, or none.
    """

    price: FloatColumn | float
    older: tuple[FloatColumn | float, FloatColumn | float]
    ahead: tuple[FloatColumn | float, ...] = ()


class Change(Struct, frozen=True, eq=False, kw_only=True):
    """What is known to change later: a step of the difficulty.

    Args:
        weight: of the time after it in what a stay is worth, 0..1; 0: nothing changes. gain_usd: by
            how much an interval of being on earns more then.
    """

    weight: FloatColumn | float
    gain_usd: FloatColumn


def forecast(
    knowledge: Knowledge,
    known: Known,
    gain_usd: FloatColumn,
    saved_mwh: FloatColumn | float,
    restart_usd: FloatColumn,
    revenue_usd: FloatColumn,
    table: Table | None = None,
    change: Change | None = None,
) -> tuple[Outlook, FloatColumn]:
    """Give the outlook and the prudent restart cost of each device (or each instant).

    Args:
        gain_usd: of being on over an interval at the known price. saved_mwh: energy of an interval
            that being off saves, at the meter. restart_usd, revenue_usd: assumed cost of a
            restart, and what an interval of mining earns. table: weights to try, where day-ahead
            prices are known. change: what the share is to know of later, where the price is known.
    """
    if table is None or not known.ahead:
        table = table_of(knowledge, has_ahead=bool(known.ahead))
    cost = table.prudence * restart_usd
    unit = 1.0 / np.maximum(cost, 1e-9)
    at = [gain_usd * unit]
    at += [(gain_usd + saved_mwh * (known.price - other)) * unit for other in known.older]
    ahead = [(gain_usd + saved_mwh * (known.price - other)) * unit for other in known.ahead]
    in_revenue = restart_usd / np.maximum(revenue_usd, 1e-9)
    out = look(table, at, ahead, in_revenue)
    # On settled prices it is left out: there it lost (docs/adr/0038).
    if change is not None and knowledge == "nowcast":
        out = _changed(table, out, (at, ahead, in_revenue), change, unit)
    return out, cost


def _changed(
    table: Table,
    out: Outlook,
    told: tuple[list[FloatColumn], list[FloatColumn], FloatColumn],
    change: Change,
    unit: FloatColumn,
) -> Outlook:
    """Give an outlook whose share is in part that of the time after a change.

    Prices seen and told say as much of the time after it, at what being on earns then. The gain of
    the present interval stays.
    """
    weight = np.broadcast_to(change.weight, out.share.shape)
    where = np.flatnonzero((weight > 0.0) & (change.gain_usd != 0.0))
    if not len(where):
        return out
    seen, ahead, in_revenue = told
    more = change.gain_usd[where] * unit[where]
    then = look(
        table,
        [column[where] + more for column in seen],
        [column[where] + more for column in ahead],
        in_revenue[where],
    )
    share, part = out.share.copy(), weight[where]
    share[where] = (1.0 - part) * share[where] + part * then.share
    return Outlook(out.gain, share)


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
    every = [*terms, _bounded_cost(cost_in_revenue)]
    return [np.array(np.broadcast_to(term, seen[0].shape)) for term in every]


# The last gain's ramps in company, and the hats.
Company = tuple[list[Height], tuple[Height, ...]]


def _sum(
    weights: tuple[float, ...],
    alone: Sequence[Height],
    cost_in_revenue: FloatColumn,
    company: Company = ([], ()),
) -> FloatColumn:
    # In a fixed order and without a matrix product: a replay must give the same bits anywhere.
    total = _weighted(weights[0], weights[1:], alone)
    heights, hats = company
    place = 1 + len(alone)
    for hat in hats:
        if not _is_nothing(hat):
            total = total + hat * _weighted(0.0, weights[place:], heights)
        place += len(heights)
    out: FloatColumn = total + weights[place] * _bounded_cost(cost_in_revenue)
    return out


def _weighted(constant: float, weights: tuple[float, ...], heights: Sequence[Height]) -> Height:
    total: Height = constant
    for weight, height in zip(weights, heights, strict=False):
        # What adds nothing is left out: no sum here is a negative zero, so no bit differs.
        if weight != 0.0 and not _is_nothing(height):
            total = total + weight * height
    return total


def _is_nothing(height: Height) -> bool:
    return isinstance(height, float) and height == 0.0


def _gain(column: FloatColumn) -> _Gain:
    return _Gain(column, float(np.minimum.reduce(column)), float(np.maximum.reduce(column)))


def _part(share: FloatColumn) -> FloatColumn:
    out: FloatColumn = np.minimum(np.maximum(share, 0.0), 1.0)
    return out


def _within(above: FloatColumn, width: float) -> FloatColumn:
    """Give how far each value is on its way from 0 to ``width``, 0..1."""
    return _part(above / width)


def _alone(seen: Sequence[_Gain], ahead: Sequence[_Gain]) -> list[Height]:
    """Give the ramps of each gain by itself."""
    every = [*zip(seen, SEEN_RAMPS, strict=True), *((gain, AHEAD_RAMPS) for gain in ahead)]
    if ahead:
        rise = ahead[HOURS].column - ahead[0].column
        every.append((_gain(rise), RISE_RAMPS))
    return [_ramp(gain, ramp) for gain, ramps in every for ramp in ramps]


def _company(seen: Sequence[_Gain], ahead: Sequence[_Gain]) -> Company:
    """Give the ramps of the last gain, and the hats over the gains that keep it company."""
    hats = _hats(seen[1], BEFORE_HATS)
    if ahead:
        hours = _gain(0.5 * (ahead[0].column + ahead[1].column))
        hats = (*_hats(hours, HOURS_HATS), *hats)
    return [_ramp(seen[0], ramp) for ramp in COMPANY_RAMPS], hats


def _hats(gain: _Gain, knots: tuple[float, ...]) -> tuple[Height, ...]:
    """Give for each knot the part 0..1 that it has in the value; the parts sum to 1."""
    up = [_way(gain, low, high) for low, high in pairwise(knots)]
    return (1.0 - up[0], *(here - after for here, after in pairwise(up)), up[-1])


def _way(gain: _Gain, low: float, high: float) -> Height:
    if gain.most <= low:
        return 0.0
    return 1.0 if gain.least >= high else _within(gain.column - low, high - low)


def _ramp(gain: _Gain, ramp: Ramp) -> Height:
    knot, width = ramp
    if gain.most <= knot:
        return 0.0
    if gain.least - knot >= width:
        return width
    above = gain.column - knot
    out: FloatColumn = np.minimum(np.maximum(above, 0.0, out=above), width, out=above)
    return out


def _bounded_cost(cost_in_revenue: FloatColumn) -> FloatColumn:
    out: FloatColumn = np.minimum(np.maximum(cost_in_revenue, 0.0), 3.0)
    return out
