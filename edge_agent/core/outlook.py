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
    parts = [
        _look(
            table,
            [column[at : at + BLOCK] for column in seen],
            [column[at : at + BLOCK] for column in ahead],
            cost_in_revenue[at : at + BLOCK],
        )
        for at in range(0, max(len(cost_in_revenue), 1), BLOCK)
    ]
    if len(parts) == 1:
        return parts[0]
    return Outlook(
        np.concatenate([part.gain for part in parts]),
        np.concatenate([part.share for part in parts]),
    )


def _look(
    table: Table,
    seen: Sequence[FloatColumn],
    ahead: Sequence[FloatColumn],
    cost_in_revenue: FloatColumn,
) -> Outlook:
    alone, company = _alone(seen, ahead), _company(seen, ahead)
    share = _sum(table.share, alone, cost_in_revenue, company)
    gain = _sum(table.gain, alone, cost_in_revenue, company) if table.gain else seen[0]
    prudent = table.prudence * cost_in_revenue
    for (other_share, other_gain), part, most in (
        (table.dear, _part((prudent - USUAL_TO) / (DEAR_FROM - USUAL_TO)), np.inf),
        (table.light, _part((USUAL_FROM - prudent) / (USUAL_FROM - LIGHT_TO)), LIGHT_MOST),
    ):
        at = np.flatnonzero(part)
        if len(at):
            mix, cost = part[at], np.minimum(prudent[at], most)
            there = [row[at] for row in alone]
            other = _part(_sum(other_share, there, cost))
            share[at] = (1.0 - mix) * _part(share[at]) + mix * other
            if table.gain:
                gain[at] = (1.0 - mix) * gain[at] + mix * _sum(other_gain, there, cost)
    return Outlook(gain, np.minimum(np.maximum(share, SHARE_MIN), SHARE_MAX))


class Known(Struct, frozen=True, eq=False, kw_only=True):
    """What is known at a decision: numbers live (one instant), columns of time in a back-test.

    Args:
        price: last known, USD/MWh. older: the two intervals before it. ahead: day-ahead price of
            this hour, the two after it and the one before, or none.
    """

    price: FloatColumn | float
    older: tuple[FloatColumn | float, FloatColumn | float]
    ahead: tuple[FloatColumn | float, ...] = ()


def forecast(
    knowledge: Knowledge,
    known: Known,
    gain_usd: FloatColumn,
    saved_mwh: FloatColumn | float,
    restart_usd: FloatColumn,
    revenue_usd: FloatColumn,
    table: Table | None = None,
) -> tuple[Outlook, FloatColumn]:
    """Give the outlook and the prudent restart cost of each device (or each instant).

    Args:
        gain_usd: of being on over an interval at the known price. saved_mwh: energy of an interval
            that being off saves, at the meter. restart_usd, revenue_usd: assumed cost of a
            restart, and what an interval of mining earns. table: weights to try, where day-ahead
            prices are known.
    """
    if table is None or not known.ahead:
        table = table_of(knowledge, has_ahead=bool(known.ahead))
    cost = table.prudence * restart_usd
    unit = 1.0 / np.maximum(cost, 1e-9)
    at = [gain_usd * unit]
    at += [(gain_usd + saved_mwh * (known.price - other)) * unit for other in known.older]
    ahead = [(gain_usd + saved_mwh * (known.price - other)) * unit for other in known.ahead]
    in_revenue = restart_usd / np.maximum(revenue_usd, 1e-9)
    return look(table, at, ahead, in_revenue), cost


def basis(
    seen: Sequence[FloatColumn],
    ahead: Sequence[FloatColumn],
    cost_in_revenue: FloatColumn,
    *,
    in_company: bool,
) -> list[FloatColumn]:
    """Give the terms that the weights multiply, in their order (for fitting)."""
    terms = [np.ones_like(seen[0]), *_alone(seen, ahead)]
    if in_company:
        heights, hats = _company(seen, ahead)
        terms += [hat * height for hat in hats for height in heights]
    return [*terms, _bounded_cost(cost_in_revenue)]


# The last gain's ramps in company, and the hats.
Company = tuple[list[FloatColumn], tuple[FloatColumn, ...]]


def _sum(
    weights: tuple[float, ...],
    alone: Sequence[FloatColumn],
    cost_in_revenue: FloatColumn,
    company: Company = ([], ()),
) -> FloatColumn:
    # In a fixed order and without a matrix product: a replay must give the same bits anywhere.
    total = _weighted(weights[0], weights[1:], alone)
    heights, hats = company
    place = 1 + len(alone)
    for hat in hats:
        total += hat * _weighted(0.0, weights[place:], heights)
        place += len(heights)
    total += weights[place] * _bounded_cost(cost_in_revenue)
    return total


def _weighted(
    constant: float, weights: tuple[float, ...], columns: Sequence[FloatColumn]
) -> FloatColumn:
    total: FloatColumn = np.full_like(columns[0], constant)
    product = np.empty_like(total)
    for weight, column in zip(weights, columns, strict=False):
        if weight != 0.0:
            np.multiply(column, weight, out=product)
            total += product
    return total


def _part(share: FloatColumn) -> FloatColumn:
    out: FloatColumn = np.minimum(np.maximum(share, 0.0), 1.0)
    return out


def _alone(seen: Sequence[FloatColumn], ahead: Sequence[FloatColumn]) -> list[FloatColumn]:
    """Give the ramps of each gain by itself."""
    every = [*zip(seen, SEEN_RAMPS, strict=True), *((column, AHEAD_RAMPS) for column in ahead)]
    if ahead:
        every.append((ahead[HOURS] - ahead[0], RISE_RAMPS))
    return [_ramp(column, ramp) for column, ramps in every for ramp in ramps]


def _company(seen: Sequence[FloatColumn], ahead: Sequence[FloatColumn]) -> Company:
    """Give the ramps of the last gain, and the hats over the gains that keep it company."""
    hats = _hats(seen[1], BEFORE_HATS)
    if ahead:
        hats = (*_hats(0.5 * (ahead[0] + ahead[1]), HOURS_HATS), *hats)
    return [_ramp(seen[0], ramp) for ramp in COMPANY_RAMPS], hats


def _hats(column: FloatColumn, knots: tuple[float, ...]) -> tuple[FloatColumn, ...]:
    """Give for each knot the part 0..1 that it has in the value; the parts sum to 1."""
    up = [_part((column - low) / (high - low)) for low, high in pairwise(knots)]
    return (1.0 - up[0], *(here - after for here, after in pairwise(up)), up[-1])


def _ramp(column: FloatColumn, ramp: Ramp) -> FloatColumn:
    out: FloatColumn = np.minimum(np.maximum(column - ramp[0], 0.0), ramp[1])
    return out


def _bounded_cost(cost_in_revenue: FloatColumn) -> FloatColumn:
    out: FloatColumn = np.minimum(np.maximum(cost_in_revenue, 0.0), 3.0)
    return out
