"""Regret of a day: what was earned, what a clairvoyant would have earned, and where the rest went.

A chain of worlds, each with one thing more than the one before, so that the parts sum to the whole
by construction:

    realised                        what the journal says
    no faults                       the journal decided again, every device heard and obeying
    no holds                        and no operator's drain or hold
    no limits                       and no cap, ramp or order to curtail
    rule on intervals               the live rule on 15-minute intervals, knowing what it knew
    rule with all prices            the same rule, every price of the day known
    clairvoyant                     the best course of all

Beside the chain stands the clairvoyant under the limits: the best course found that keeps cap and
orders. What it lacks no policy could have had, so the captured uplift is measured against it.

The first three are decided pass by pass with the code of what-if; the others choose per interval
and device. From one kind to the other only the time of switches and warm-ups remains: it counts as
switching, with what the rule's prudence, waits and least stays cost once prices are known.
"""

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from msgspec import Struct

from edge_agent.core.site import FlagColumn, FloatColumn
from edge_agent.history import grid as g
from edge_agent.history.capped import capped_course, kept, load_w
from edge_agent.history.day import Day, Gap
from edge_agent.history.linear_check import LpCheck, check

VIEW_VERSION = 1
_CENT = Decimal("0.01")


class World(Struct, frozen=True, kw_only=True):
    """One step of the chain."""

    name: str
    profit_usd: Decimal


class Parts(Struct, frozen=True, kw_only=True):
    """Where the regret came from; the parts sum to it, to the cent.

    Args:
        information: prices that the rule did not know. switching: restarts, warm-ups, the rule's
            prudence and waits. caps_and_orders: caps, ramps, orders to curtail. faults: devices
            that were silent, quarantined, or did not do as commanded. holds: operators.
    """

    information: Decimal
    switching: Decimal
    caps_and_orders: Decimal
    faults: Decimal
    holds: Decimal


class Regret(Struct, frozen=True, kw_only=True):
    """The answer of ``hcp-agent regret``; money in USD.

    Args:
        realised_usd: mining and leases less energy and wear, over ``covered_h`` hours.
        clairvoyant_usd: of the same devices, prices and first state, free of caps and orders.
        clairvoyant_limited_usd: under those that were in force. unavoidable_usd: the difference,
            which is in ``caps_and_orders`` and which no policy could have earned.
        s1_usd, strike_usd: baselines, free of caps and orders too.
        s1_limited_usd: S1 with the least earning watts off where a limit asks for it.
        uplift_captured: (realised - S1) / (clairvoyant - S1) in per cent, both under the limits;
            None: nothing to capture.
        rule_uplift: the same of the rule alone, without faults, holds and limits.
        next_price_usd: part of the information that the next price alone would have given.
        clairvoyant_over_cap: intervals in which the free clairvoyant's load passes the cap.
        gaps: time that is in no figure. lp: only when asked for.
    """

    v: int
    site: str
    day: str
    devices: int
    knowledge: str
    covered_h: float
    realised_usd: Decimal
    mining_usd: Decimal
    serve_usd: Decimal
    energy_usd: Decimal
    wear_usd: Decimal
    clairvoyant_usd: Decimal
    clairvoyant_limited_usd: Decimal
    unavoidable_usd: Decimal
    s1_usd: Decimal
    s1_limited_usd: Decimal
    strike_usd: Decimal
    regret_usd: Decimal
    parts: Parts
    next_price_usd: Decimal
    uplift_captured: float | None
    rule_uplift: float | None
    clairvoyant_over_cap: int
    worlds: tuple[World, ...]
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]
    lp: LpCheck | None = None


class Courses(Struct, frozen=True, eq=False, kw_only=True):
    """What each course of a day earns by interval, and the clairvoyant's own."""

    grid: g.Grid
    best: FlagColumn
    best_usd: FloatColumn
    limited_usd: FloatColumn
    s1_limited_usd: FloatColumn
    rule_usd: FloatColumn
    next_usd: FloatColumn
    all_usd: FloatColumn
    s1_usd: FloatColumn
    strike_usd: FloatColumn


def run_courses(day: Day) -> Courses:
    """Run the rule, the baselines and the clairvoyant over a day."""
    grid = g.make_grid(day)
    best = g.best_course(grid)
    return Courses(
        grid=grid,
        best=best,
        best_usd=g.settle(grid, best),
        limited_usd=g.settle(grid, capped_course(grid, best, day.doings.limit_w)),
        s1_limited_usd=g.settle(grid, kept(grid, g.always_on(grid), day.doings.limit_w)),
        rule_usd=g.settle(grid, g.rule_course(grid, "then")),
        next_usd=g.settle(grid, g.rule_course(grid, "next")),
        all_usd=g.settle(grid, g.rule_course(grid, "all")),
        s1_usd=g.settle(grid, g.always_on(grid)),
        strike_usd=g.settle(grid, g.strike(grid)),
    )


def regret(day: Day, courses: Courses, *, check_lp: bool = False) -> Regret:
    """Attribute the regret of a day.

    Raises:
        LinearError: the check is asked for and HiGHS is missing, or finds no optimum.
    """
    was, healthy, free, unbound = (_cents(sums.profit_usd(day.price)) for sums in day.worlds)
    rule, every, best = _cents(courses.rule_usd), _cents(courses.all_usd), _cents(courses.best_usd)
    s1, limited = _cents(courses.s1_limited_usd), _cents(courses.limited_usd)
    priced = ~np.isnan(day.price)
    real = day.worlds[0]
    # The rounded lines sum to the rounded profit: energy is what remains.
    lines = [_cents(column[priced]) for column in (real.revenue_usd, real.serve_usd, real.wear_usd)]
    return Regret(
        v=VIEW_VERSION,
        site=day.site.site_id,
        day=f"{day.start:%Y-%m-%d}",
        devices=len(day.site),
        knowledge=day.site.limits.price_knowledge,
        covered_h=round(float(day.covered_h.sum()), 4),
        realised_usd=was,
        mining_usd=lines[0],
        serve_usd=lines[1],
        energy_usd=lines[0] + lines[1] - lines[2] - was,
        wear_usd=lines[2],
        clairvoyant_usd=best,
        clairvoyant_limited_usd=limited,
        unavoidable_usd=best - limited,
        s1_usd=_cents(courses.s1_usd),
        s1_limited_usd=s1,
        strike_usd=_cents(courses.strike_usd),
        regret_usd=best - was,
        parts=Parts(
            information=every - rule,
            switching=(best - every) + (rule - unbound),
            caps_and_orders=unbound - free,
            faults=healthy - was,
            holds=free - healthy,
        ),
        next_price_usd=_cents(courses.next_usd) - rule,
        uplift_captured=_captured(was, s1, limited),
        rule_uplift=_captured(rule, _cents(courses.s1_usd), best),
        clairvoyant_over_cap=int(np.count_nonzero(over_cap(day, courses))),
        worlds=tuple(
            World(name=name, profit_usd=profit)
            for name, profit in (
                ("realised", was),
                ("no faults", healthy),
                ("no holds", free),
                ("no limits", unbound),
                ("rule on intervals", rule),
                ("rule with all prices", every),
                ("clairvoyant", best),
            )
        ),
        gaps=day.gaps,
        notes=day.notes,
        lp=check(courses.grid, courses.best) if check_lp else None,
    )


def over_cap(day: Day, courses: Courses) -> FlagColumn:
    """Say in which intervals the clairvoyant's load passes the cap in force."""
    with np.errstate(invalid="ignore"):
        out: FlagColumn = load_w(courses.grid, courses.best) > day.doings.cap_w
    return out


def _cents(column: FloatColumn) -> Decimal:
    return Decimal(float(column.sum())).quantize(_CENT, ROUND_HALF_UP)


def _captured(own: Decimal, baseline: Decimal, best: Decimal) -> float | None:
    room = best - baseline
    return None if room < _CENT else round(float(100 * (own - baseline) / room), 4)
