"""The rule for money on power steps: each step is on or off, and is judged like a whole miner.

Miners of one class, in one step, with the same measured efficiency (in steps of 2 %) are a group
and have the same numbers. What differs from miner to miner is how long it has been in its step, the
regret of staying there, and what it refused.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.columns import kept, step_place
from edge_agent.core.economics import (
    FRESH,
    SECONDS_PER_H,
    Values,
    hashprice,
    mine_usd_per_ths_h,
    value,
)
from edge_agent.core.outlook import forecast
from edge_agent.core.prospect import coming_change, paid_prices
from edge_agent.core.restart import belief_of
from edge_agent.core.rule import add_missed
from edge_agent.core.site import MINE, CodeColumn, FlagColumn, FloatColumn, IntColumn, Site
from edge_agent.core.site_state import SiteState

W_PER_MW = 1e6
_GRAIN = 0.02
_LEAST, _MOST = 0.7, 1.3
_GRAINS = 32
# A change is never free: what costs nothing would be changed for nothing.
_COST_MIN_USD = 1e-6


class StepGroups(Struct, frozen=True, eq=False, kw_only=True):
    """Miners that run in a known step, and what each step is worth to them.

    Args:
        row: group of each device of the site, and one past the last for those in none.
        grouped: those in one. place: class of each group.
        step: present step of each group. count: steps of its class.
        watts: (group, step - 1), what a step adds at the meter. usd_per_h: what it earns.
        cost_usd: of a change up into it, prudent. worth_usd: over the expected stay, of going
            over the step in the direction that the outlook wants; 0 where it wants none.
        target, gain_usd, early_cost_usd: where the outlook wants the group, and the money of it.
        side: 1, 0, -1: the neighbour that earns more now. miss_usd_per_h: what staying costs
            against the better neighbour; negative: it earns. near_cost_usd: of going there.
    """

    row: IntColumn
    grouped: FlagColumn
    place: IntColumn
    step: IntColumn
    count: IntColumn
    watts: FloatColumn
    usd_per_h: FloatColumn
    cost_usd: FloatColumn
    worth_usd: FloatColumn
    target: IntColumn
    gain_usd: FloatColumn
    early_cost_usd: FloatColumn
    side: IntColumn
    miss_usd_per_h: FloatColumn
    near_cost_usd: FloatColumn

    def group_of(self, index: int) -> int | None:
        """Give the group of a device; None when it is in none."""
        of = int(self.row[index])
        return of if of < len(self.step) else None

    def told(self, of_group: npt.NDArray[Any], otherwise: float | np.uint8) -> npt.NDArray[Any]:
        """Tell each device its group's value of a column; those in none have another."""
        table = np.empty(len(of_group) + 1, dtype=of_group.dtype)
        table[:-1], table[-1] = of_group, otherwise
        out: npt.NDArray[Any] = table.take(self.row, mode="clip")
        return out


# A pass asks for it twice: for the regret until now, and for the plan.
@lru_cache(maxsize=4)
def step_groups(site: Site, state: SiteState) -> StepGroups | None:
    """Give the groups; None without power steps, or while a price was never seen."""
    per_ths = hashprice(state.market)
    if site.steps is None or per_ths is None or state.market.price_usd_per_mwh is None:
        return None
    width = site.steps.most + 1
    size = len(site.classes) * width * _GRAINS
    inside = (state.step > 0) & (state.activity == MINE) & site.has_steps
    # Every device has a place; the one past the last is of those that are in no group.
    code = np.where(inside, _first_grain(site, state.step) + _grain(site, state), size)
    there = np.zeros(size + 1, dtype=np.bool_)
    there[code] = True
    seen = np.flatnonzero(there[:size])
    number = np.full(size + 1, len(seen), dtype=np.int64)
    number[seen] = np.arange(len(seen))
    factor: FloatColumn = (_LEAST + _GRAIN * (seen % _GRAINS)).astype(np.float64)
    owner, own = seen // (_GRAINS * width), seen // _GRAINS % width
    money = _money(site, state, value(site, state), per_ths, owner, factor)
    return _judged(site, (number.take(code, mode="clip"), inside), (owner, own), money)


class _Money(Struct, frozen=True, eq=False):
    watts: FloatColumn
    usd_per_h: FloatColumn
    cost_usd: FloatColumn
    gain: FloatColumn
    share: FloatColumn


def _money(
    site: Site,
    state: SiteState,
    values: Values,
    per_ths: float,
    owner: IntColumn,
    factor: FloatColumn,
) -> _Money:
    """Value each step of each group: what it draws and earns, and the outlook of it."""
    steps = site.steps
    assert steps is not None, "only called with steps"
    rise_w = steps.rise_w[owner]
    rise_ths = steps.rise_ths[owner] * factor[:, None]
    usd = np.array([mine_usd_per_ths_h(row, per_ths) for row in site.classes])[owner, None]
    first = site.once(_first_of_class)
    energy = values.energy_usd_per_wh[first][owner, None]
    pue = site.pue[first][owner, None]
    change_h = np.array([_change_h(site, state, n) for n in range(len(site.classes))])
    reached = steps.rate_ths[owner, 1:] * factor[:, None] * usd
    revenue = rise_ths * usd
    gain = revenue - rise_w * energy
    hours = np.array([row.interval_s / SECONDS_PER_H for row in site.classes])[owner, None]
    cost = np.maximum(change_h[owner, None] * np.maximum(reached, 0.0), _COST_MIN_USD)
    watts = rise_w * pue
    earned = (np.maximum(revenue, 0.0) * hours).ravel()
    known = paid_prices(site.limits, state.market, values.block_share)
    expected, prudent = forecast(
        site.limits.price_knowledge,
        replace(known, change=coming_change(state.market, earned)),
        (gain * hours).ravel(),
        (watts / W_PER_MW * hours).ravel(),
        cost.ravel(),
        earned,
    )
    shape = gain.shape
    return _Money(
        watts,
        gain,
        prudent.reshape(shape),
        expected.gain.reshape(shape),
        expected.share.reshape(shape),
    )


def _judged(
    site: Site,
    devices: tuple[IntColumn, FlagColumn],
    groups: tuple[IntColumn, IntColumn],
    money: _Money,
) -> StepGroups:
    owner, own = groups
    most = money.watts.shape[1]
    count = np.array([len(names) for names in (site.steps.names if site.steps else ())])[owner]
    place = np.arange(1, most + 1)
    on = place[None, :] <= own[:, None]
    there = place[None, :] <= count[:, None]
    gain = np.where(on, -money.gain, money.gain)
    need = np.where(on, money.share, 1.0 - money.share)
    early = there & (gain > need)
    worth = np.where(early, gain / need * money.cost_usd, 0.0)
    # The first step adds to being off: that is the rule of the whole miner.
    early[:, 0] &= ~on[:, 0]
    up = _reach(own, early, on, up=True)
    down = _reach(own, early, on, up=False)
    target = np.where(down < own, down, up)
    rows = np.arange(len(own))
    top = np.maximum(own, target) - 1
    above = np.where(own < count, money.usd_per_h[rows, np.minimum(own, most - 1)], -np.inf)
    below = np.where(own > 1, -money.usd_per_h[rows, own - 1], -np.inf)
    miss = np.maximum(above, below)
    side = np.where(miss <= 0.0, 0, np.where(above >= below, 1, -1))
    near = np.where(side > 0, np.minimum(own, most - 1), own - 1)
    return StepGroups(
        row=devices[0],
        grouped=devices[1],
        place=owner,
        step=own,
        count=count,
        watts=money.watts,
        usd_per_h=money.usd_per_h,
        cost_usd=money.cost_usd,
        target=target,
        gain_usd=_between(worth, own, target),
        worth_usd=worth,
        early_cost_usd=money.cost_usd[rows, top],
        side=side,
        miss_usd_per_h=np.where(np.isfinite(miss), miss, 0.0),
        near_cost_usd=money.cost_usd[rows, near],
    )


def _reach(own: IntColumn, early: np.ndarray, on: np.ndarray, *, up: bool) -> IntColumn:
    """Give how far each group goes: step after step, until one is not wanted."""
    place = np.arange(early.shape[1])
    if up:
        # The step above is entered, and so on; those below are behind.
        goes = np.logical_and.accumulate((early & ~on) | (place < own[:, None]), axis=1)
        reached: IntColumn = goes.sum(axis=1, dtype=np.int64)
        return reached
    # The present one is left, and so on down; those above are behind.
    goes = np.logical_and.accumulate(((early & on) | (place >= own[:, None]))[:, ::-1], axis=1)
    left: IntColumn = early.shape[1] - goes.sum(axis=1, dtype=np.int64)
    return left


def between(of: IntColumn, one: IntColumn, other: IntColumn, of_step: FloatColumn) -> FloatColumn:
    """Sum a column of the groups over the steps between two, for each miner.

    Args:
        of: group of each miner. of_step: (group, step - 1).
    """
    return _between(of_step[of], one, other)


def _between(table: FloatColumn, one: IntColumn, other: IntColumn) -> FloatColumn:
    place = np.arange(table.shape[1])[None, :]
    low, high = np.minimum(one, other)[:, None], np.maximum(one, other)[:, None]
    passed = np.where((place >= low) & (place < high), table, 0.0)
    # In a fixed order: a replay must give the same bits anywhere.
    out: FloatColumn = np.add.accumulate(passed, axis=1)[:, -1]
    return out


def grow_step_regret(site: Site, state: SiteState, dt_s: float) -> FloatColumn:
    """Give the regret of each miner's step after ``dt_s`` more seconds at the values until now."""
    groups = step_groups(site, state)
    if groups is None:
        return state.step_regret_usd
    counts = groups.grouped & (value(site, state).quality == FRESH) & (state.step_to == state.step)
    missed = groups.told(groups.miss_usd_per_h * (dt_s / SECONDS_PER_H), 0.0)
    return add_missed(state.step_regret_usd, missed, counts)


def _grain(site: Site, state: SiteState) -> IntColumn:
    """Give terahashes per joule over those of the curve, as a place in steps of 2 %."""
    steps = site.steps
    assert steps is not None, "only called with steps"
    power_w, rate = state.mine_w, state.mine_ths
    known = (power_w > 0.0) & (rate > 0.0)
    with np.errstate(all="ignore"):
        ratio = rate / power_w
        ratio /= _ths_per_w(site, state.step)
    np.copyto(ratio, 1.0, where=~known)
    ratio.clip(_LEAST, _MOST, out=ratio)
    ratio -= _LEAST
    ratio /= _GRAIN
    out: IntColumn = np.rint(ratio, out=ratio).astype(np.int64)
    return out


@kept
def _ths_per_w(site: Site, step: CodeColumn) -> FloatColumn:
    """Give the efficiency of each device's step by the curve."""
    steps = site.steps
    assert steps is not None, "only called with steps"
    per_joule = (steps.rate_ths / steps.power_w).ravel()
    out: FloatColumn = per_joule.take(step_place(site, step), mode="clip")
    return out


@kept
def _first_grain(site: Site, step: CodeColumn) -> IntColumn:
    """Give the place of the first group of each device's class and step."""
    out: IntColumn = step_place(site, step) * _GRAINS
    return out


def _first_of_class(site: Site) -> IntColumn:
    """Give the first device of each class, which stands for it; 0 for a class without any."""
    places = range(len(site.classes))
    return np.array([int(np.argmax(site.class_of == at)) for at in places], dtype=np.int64)


def _change_h(site: Site, state: SiteState, place: int) -> float:
    """Give the hours of revenue that a change costs: as assumed, or as wake-ups have taught."""
    row = site.classes[place]
    factor = belief_of(state.restarts, row.class_name).used
    return row.mode_change_s * factor / SECONDS_PER_H
