"""A day as a choice per interval and device: mine, or off. The best course, and the rule's.

The best course knows every price; the rule is that of the live plan, on what was known then or on
more. Time on leases, and time that is in no figure, is no choice and the same in all courses.
"""

from typing import Literal

import numpy as np
from msgspec import Struct

from edge_agent.backtest.class_series import STEP_H
from edge_agent.backtest.frame import STEP_S
from edge_agent.backtest.hindsight import many_two_states
from edge_agent.backtest.live import Memory, remember
from edge_agent.backtest.policies import STRIKE_WAIT
from edge_agent.core.economics import W_PER_MW, restart_usd, usd_per_wh
from edge_agent.core.outlook import Change, Known, Outlook, forecast, table_of
from edge_agent.core.rule import grow_regret, judge, pay_debt
from edge_agent.core.site import (
    CURTAILED,
    IDLE,
    NS_PER_S,
    DeviceClass,
    FlagColumn,
    FloatColumn,
    Site,
)
from edge_agent.core.site_state import SiteState
from edge_agent.history.day import STEPS, Day, begins_on

# What a rule knows: what was known then; the price of this interval and the next; all of them.
Foresight = Literal["then", "next", "all"]
_SURE = 1e-9


class Grid(Struct, frozen=True, eq=False, kw_only=True):
    """What can be chosen on a day; columns are (interval, device), 0 where nothing is known.

    Args:
        gain_usd_per_h: of mining above being off. chosen_h: time in which that is the choice.
        revenue_usd_per_h, restart_usd: of mining, and of waking. rise_mw: of mining at the meter.
        base_usd: profit of being off whenever that is the choice, leases included, by interval;
            own_base_usd: by device, without what leases pay.
        begins_on: by device. begin: the state of then. memory: what the site knew of the price.
    """

    day: Day
    gain_usd_per_h: FloatColumn
    chosen_h: FloatColumn
    revenue_usd_per_h: FloatColumn
    restart_usd: FloatColumn
    rise_mw: FloatColumn
    base_usd: FloatColumn
    own_base_usd: FloatColumn
    begins_on: FlagColumn
    begin: SiteState
    memory: Memory

    @property
    def gain_usd(self) -> FloatColumn:
        """Give what mining through an interval earns above being off, where it is the choice."""
        out: FloatColumn = self.gain_usd_per_h * self.chosen_h
        return out


def make_grid(day: Day) -> Grid:
    """Make the choices of a day from what its devices confirmed."""
    site, own = day.site, day.devices
    hours = np.where(day.covered_h > 0.0, day.covered_h, np.nan)[:, None]
    revenue_h, mine_w = own.could_usd / hours, own.could_wh / hours
    off_w = off_site_w(site)
    paid = np.stack([usd_per_wh(row, day.price) / row.pue for row in site.classes])
    per_wh = paid.T[:, site.class_of]
    chosen_h = np.maximum(day.covered_h[:, None] - own.busy_h, 0.0)
    base = -off_w * per_wh * chosen_h - own.busy_wh * per_wh
    own_base = np.nan_to_num(np.where(hours > 0.0, base, 0.0))
    known = day.covered_h > 0.0
    revenue_h = np.nan_to_num(revenue_h)
    rise_w = np.nan_to_num(mine_w - off_w)
    return Grid(
        day=day,
        gain_usd_per_h=np.nan_to_num(revenue_h - rise_w * per_wh),
        chosen_h=np.where(known[:, None], chosen_h, 0.0),
        revenue_usd_per_h=revenue_h,
        restart_usd=_restarts(day, revenue_h),
        rise_mw=rise_w / W_PER_MW,
        base_usd=own_base.sum(axis=1) + np.where(known, day.worlds[-1].serve_usd, 0.0),
        own_base_usd=own_base.sum(axis=0),
        begins_on=begins_on(day.begin),
        begin=day.begin,
        memory=_memory(day),
    )


def off_site_w(site: Site) -> FloatColumn:
    """Give what each device draws at the meter when it is off."""
    code = np.where(site.is_asic, CURTAILED, IDLE)
    out: FloatColumn = site.nameplate_w[site.class_of, code] * site.pue
    return out


def best_course(grid: Grid) -> FlagColumn:
    """Give the clairvoyant's course: bound by nothing but the devices and their restarts."""
    return many_two_states(grid.gain_usd, grid.restart_usd, grid.begins_on)


def always_on(grid: Grid) -> FlagColumn:
    """Give the course of S1: serve when asked, mine otherwise, look at no price."""
    return np.ones(grid.gain_usd_per_h.shape, dtype=np.bool_)


def strike(grid: Grid) -> FlagColumn:
    """Give the course of a strike price: off above break-even, on after some intervals below."""
    out = np.empty(grid.gain_usd_per_h.shape, dtype=np.bool_)
    state = grid.begins_on.copy()
    calm = np.zeros(len(state), dtype=np.int64)
    for at in range(STEPS):
        gain = grid.gain_usd_per_h[at] + _price_moved(grid, at)
        if grid.memory.fresh[at]:
            calm = np.where(gain > 0.0, calm + 1, 0)
            state = np.where(gain < 0.0, False, state | (calm >= STRIKE_WAIT))  # noqa: FBT003 - a column's value
        out[at] = state
    return out


def rule_course(grid: Grid, foresight: Foresight) -> FlagColumn:
    """Give the course of the live rule, a pass at the start of each interval."""
    site, memory = grid.day.site, _as_known(grid, foresight)
    knowledge = site.limits.price_knowledge if foresight == "then" else "nowcast"
    ski_rental = site.column(_ski_rental)
    up_s, down_s = site.column(_least_up_s), site.column(_least_down_s)
    worth = _worth(grid) if foresight == "all" else None
    state = grid.begins_on.copy()
    regret, debt = grid.begin.regret_usd, grid.begin.debt
    stayed_s = (grid.begin.now_ns - grid.begin.mode_since_ns) / NS_PER_S
    out = np.empty(grid.gain_usd_per_h.shape, dtype=np.bool_)
    for at in range(STEPS):
        outlook, cost, gain = _look(grid, memory, at, foresight)
        if worth is not None:
            share = np.clip(worth[at] / np.maximum(cost, _SURE), _SURE, 1.0 - _SURE)
            outlook = Outlook(outlook.gain, share)
        verdict = judge(
            state, outlook, cost, regret, debt, ski_rental, known=knowledge == "nowcast"
        )
        choice = (grid.chosen_h[at] > 0.0) & (stayed_s >= np.where(state, up_s, down_s))
        if memory.fresh[at]:
            change = verdict.change & (verdict.gain_usd > verdict.cost_usd) & choice
        else:
            safe = state != (site.limits.safe_policy == "mine")
            change = choice & safe & bool(memory.safe[at])
        debt = debt + (change & ~state)
        state = np.where(change, ~state, state)
        regret, stayed_s = np.where(change, 0.0, regret), np.where(change, 0.0, stayed_s)
        out[at] = state
        counts = np.full(len(state), bool(memory.fresh[at])) & (grid.chosen_h[at] > 0.0)
        regret = grow_regret(regret, state, gain, counts)
        debt = pay_debt(debt, ~state, gain, cost, counts, STEP_S)
        stayed_s = stayed_s + STEP_S
    return out


def settle(grid: Grid, course: FlagColumn) -> FloatColumn:
    """Give the profit of a course by interval, restarts paid."""
    own = np.where(course, grid.gain_usd, 0.0) - _paid(grid, course)
    out: FloatColumn = own.sum(axis=1) + grid.base_usd
    return out


def settle_devices(grid: Grid, course: FlagColumn) -> FloatColumn:
    """Give the profit of a course by device, without what leases pay."""
    own = np.where(course, grid.gain_usd, 0.0) - _paid(grid, course)
    out: FloatColumn = own.sum(axis=0) + grid.own_base_usd
    return out


def restarts(grid: Grid, course: FlagColumn) -> int:
    """Count the wake-ups of a course."""
    return int(np.count_nonzero(wakes(grid, course)))


def wakes(grid: Grid, course: FlagColumn) -> FlagColumn:
    """Say where a course wakes which device."""
    before = np.concatenate((grid.begins_on[None, :], course[:-1]))
    out: FlagColumn = course & ~before
    return out


def _paid(grid: Grid, course: FlagColumn) -> FloatColumn:
    return np.where(wakes(grid, course), grid.restart_usd, 0.0)


def _restarts(day: Day, revenue_h: FloatColumn) -> FloatColumn:
    out = np.zeros(revenue_h.shape)
    for place, row in enumerate(day.site.classes):
        at = np.flatnonzero(day.site.class_of == place)
        out[:, at] = restart_usd(row, np.maximum(revenue_h[:, at], 0.0))
    return out


def _memory(day: Day) -> Memory:
    """Give what was known of the price at the start of each interval of the day."""
    limits = day.site.limits
    known = remember(day.told, limits.price_knowledge, limits)
    return _from(known, len(day.told) - STEPS)


def _as_known(grid: Grid, foresight: Foresight) -> Memory:
    if foresight == "then":
        return grid.memory
    day = grid.day
    return _from(remember(day.told, "nowcast", day.site.limits), len(day.told) - STEPS)


def _from(memory: Memory, first: int) -> Memory:
    prices = memory.prices
    return Memory(
        prices=(prices[0][first:], prices[1][first:], prices[2][first:]),
        fresh=memory.fresh[first:],
        safe=memory.safe[first:],
    )


def _price_moved(grid: Grid, at: int) -> FloatColumn:
    """Give by how much the gain per hour looks different at the price that was known then."""
    apart = grid.day.price[at] - grid.memory.prices[0][at]
    out: FloatColumn = np.nan_to_num(grid.rise_mw[at] * apart)
    return out


def _look(
    grid: Grid, memory: Memory, at: int, foresight: Foresight
) -> tuple[Outlook, FloatColumn, FloatColumn]:
    """Give outlook, prudent restart cost, and the gain of the interval at the known price."""
    site, price = grid.day.site, memory.prices[0][at]
    knowledge = site.limits.price_knowledge if foresight == "then" else "nowcast"
    apart = np.nan_to_num(grid.day.price[at] - price)
    gain = (grid.gain_usd_per_h[at] + grid.rise_mw[at] * apart) * STEP_H
    saved_mwh = grid.rise_mw[at] * STEP_H
    revenue = np.maximum(grid.revenue_usd_per_h[at], 0.0) * STEP_H
    hours = grid.day.ahead[at]
    weight, ratio = grid.day.step[at].tolist()
    coin_usd = np.where(site.is_asic, revenue, 0.0)
    known = Known(
        price=float(np.nan_to_num(price)),
        older=(
            float(np.nan_to_num(memory.prices[1][at])),
            float(np.nan_to_num(memory.prices[2][at])),
        ),
        ahead=() if np.isnan(hours).any() else tuple(float(hour) for hour in hours),
        change=Change(weight=weight, gain_usd=coin_usd * (ratio - 1.0)),
    )
    outlook, cost = forecast(
        knowledge,
        known,
        gain,
        saved_mwh,
        grid.restart_usd[at],
        revenue,
    )
    if foresight == "next" and at + 1 < STEPS:
        later, later_cost, _ = _look(grid, memory, at + 1, "all")
        worth = np.clip(later.gain + later.share, 0.0, 1.0) * later_cost
        share = np.clip(worth / np.maximum(cost, _SURE), _SURE, 1.0 - _SURE)
        outlook = Outlook(outlook.gain, share)
    return outlook, cost, gain


def _worth(grid: Grid) -> FloatColumn:
    """Give what being on is worth above being off after each interval, all prices known.

    In the rule's own terms: a restart costs what the rule believes.
    """
    cost = table_of("nowcast", has_ahead=True).prudence * grid.restart_usd
    out = np.zeros(cost.shape)
    for at in range(STEPS - 1, 0, -1):
        out[at - 1] = np.clip(grid.gain_usd[at] + out[at], 0.0, cost[at])
    return out


def _ski_rental(row: DeviceClass) -> float:
    return row.ski_rental


def _least_up_s(row: DeviceClass) -> float:
    return row.least_up_s


def _least_down_s(row: DeviceClass) -> float:
    return row.least_down_s
