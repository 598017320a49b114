"""Steps of running miners that go for room: under a cap or an order, and for what earns more.

The steps of a miner and its being on at all are items that each free some site watts and lose some
money. Items go by what they lose a watt, the least first. A miner's higher steps earn less a watt
than its lower ones (its curve is concave), so that its items go in their order by themselves.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.draft import Draft
from edge_agent.core.site import CURTAILED, MINE, FlagColumn, FloatColumn, IntColumn, Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_plan import dwelt
from edge_agent.core.step_rule import StepGroups, between, step_groups

R = p.Reason
_CAP, _STEP_CAP = np.uint8(R.CAP), np.uint8(R.STEP_CAP)
_NONE: IntColumn = np.zeros(0, dtype=np.int64)
# What frees room for another must earn there, within so long, more than both changes cost. The
# price of room under a cap moves as slowly as the cap and the coin do.
TRADE_H = 4.0


class _Items(Struct, frozen=True, eq=False):
    """Items in the order to go.

    Args:
        row: place of each item's miner among those asked for. freed_w: site watts. loss: USD/h a
            site watt.
    """

    row: IntColumn
    freed_w: FloatColumn
    loss: FloatColumn


def changing(site: Site, state: SiteState) -> FlagColumn:
    """Tell which miners are in the middle of a change of step."""
    if site.steps is None:
        return np.zeros(len(site), dtype=np.bool_)
    out: FlagColumn = (state.step_to != state.step) & (state.switch_no >= 0)
    return out


def may_step(site: Site, state: SiteState) -> FlagColumn:
    """Tell which miners' steps can be changed at all: known, no change open, none refused.

    One whose last change failed a while ago is not tried where load must go.
    """
    out: FlagColumn = (
        site.has_steps
        & (state.activity == MINE)
        & (state.step > 0)
        & (state.switch_no < 0)
        & (state.no_steps == 0)
        & (state.failures == 0)
    )
    return out


def shed_steps(
    site: Site,
    state: SiteState,
    draft: Draft,
    ask: tuple[IntColumn, FloatColumn, FloatColumn, float],
    why: p.Reason,
    within: FlagColumn | None = None,
) -> tuple[IntColumn, float]:
    """Let steps go until enough is freed; steps down are noted in the draft.

    Args:
        ask: miners that may go, merit of each device, what each frees by being off, and the watts
            needed. within: only these may go in the middle of a change; None: all.

    Returns:
        The miners that must go off, and what is missing even then.
    """
    mining, merit, freed, need_w = ask
    open_now = changing(site, state) & (state.activity == MINE) & state.reachable
    busy = np.flatnonzero(open_now if within is None else open_now & within)
    at = np.concatenate((mining, busy))
    freed = _beyond_change(site, state, freed, busy)
    if not len(at) or draft.steps is None:
        return at, need_w
    groups = step_groups(site, state)
    own = np.where(may_step(site, state)[at], state.step[at], 0).astype(np.int64)
    items = _items(site, groups, (at, own), merit, freed)
    running = np.add.accumulate(items.freed_w)
    count = min(int(np.searchsorted(running, need_w, side="left")) + 1, len(running))
    taken = np.bincount(items.row[:count], minlength=len(at))
    off = taken >= np.maximum(own, 1)
    down = (taken > 0) & ~off
    steps, lower = draft.steps, at[down]
    steps.target[lower] = (own - taken)[down]
    steps.reason[lower] = why
    return at[off], max(need_w - float(running[count - 1]), 0.0)


def _beyond_change(
    site: Site, state: SiteState, freed: FloatColumn, busy: IntColumn
) -> FloatColumn:
    """Give what being off frees beyond what an open change is counted to free already."""
    out = freed.copy()
    counted = pw.stepping_down(site, state)[busy]
    step_w = pw.step_w(site, state.step_to)[busy]
    off_w = site.nameplate_w[site.class_of[busy], CURTAILED] * site.pue[busy]
    out[busy] = np.where(counted, np.minimum(step_w - off_w, freed[busy]), freed[busy])
    return out


def _items(
    site: Site,
    groups: StepGroups | None,
    miners: tuple[IntColumn, IntColumn],
    merit: FloatColumn,
    freed: FloatColumn,
) -> _Items:
    """Give the items of miners in the order to go; one without a known step is a single item."""
    steps = site.steps
    assert steps is not None, "only called with steps"
    at, own = miners
    off_w = site.nameplate_w[site.class_of, CURTAILED] * site.pue
    classes, pue = site.class_of[at], site.pue[at]
    loss = merit[at][:, None].repeat(steps.most, axis=1)
    if groups is not None:
        known = (own > 0) & groups.grouped[at]
        density = groups.usd_per_h / np.maximum(groups.watts, 1.0)
        loss[known] = density[groups.row[at[known]]]
    place = np.arange(steps.most)[None, :]
    watts = np.diff(steps.power_w[classes, 1:], axis=1) * pue[:, None]
    first = steps.power_w[classes, 1] * pue - off_w[at]
    watts = np.concatenate((first[:, None], watts), axis=1)
    # What it counts for above its step goes with its highest item.
    total = np.where(place < own[:, None], watts, 0.0)
    above = freed[at] - np.add.accumulate(total, axis=1)[:, -1]
    top = np.maximum(own, 1) - 1
    total[np.arange(len(at)), top] += above
    there = place < np.maximum(own, 1)[:, None]
    row = np.repeat(np.arange(len(at)), steps.most).reshape(there.shape)[there]
    rank = np.broadcast_to(-place, there.shape)[there]
    freed_w, lost = np.maximum(total[there], 0.0), loss[there]
    order = np.lexsort((row, rank, lost))
    return _Items(row[order], freed_w[order], lost[order])


def rising_steps(
    site: Site, state: SiteState, draft: Draft, counted: FloatColumn, *, may_rise: bool
) -> tuple[IntColumn, IntColumn, FloatColumn, FloatColumn, FloatColumn]:
    """Give each step up that money wants: device, step, USD/h a watt, rise of count and load.

    Args:
        may_rise: False while the grid limits the load, or is about to: none goes up.
    """
    steps, groups = draft.steps, step_groups(site, state)
    none = np.zeros(0)
    nothing = none.astype(np.int64), none.astype(np.int64), none, none, none
    if steps is None or groups is None:
        return nothing
    runs = draft.free & (state.activity == MINE) & (draft.target == MINE)
    at = np.flatnonzero(runs & (steps.target > state.step_to) & groups.grouped)
    if not len(at):
        return nothing
    if not may_rise:
        steps.target[at] = state.step_to[at]
        steps.reason[at] = R.STEP_LIMIT
        return nothing
    of, own, to = groups.row[at], state.step[at], steps.target[at]
    place = np.arange(groups.watts.shape[1])[None, :]
    there = (place >= own[:, None]) & (place < to[:, None])
    row = np.repeat(np.arange(len(at)), there.shape[1]).reshape(there.shape)[there]
    reached = np.broadcast_to(place + 1, there.shape)[there]
    watts = groups.watts[of][there]
    merit = groups.usd_per_h[of][there] / np.maximum(watts, 1.0)
    # What it counts for above its present step is room that it has already.
    spare = np.maximum(counted - pw.step_w(site, state.step), 0.0)[at[row]]
    rise = np.where(reached == own[row] + 1, np.maximum(watts - spare, 0.0), watts)
    return at[row], reached, merit, rise, watts


def rise_steps(
    site: Site,
    state: SiteState,
    draft: Draft,
    asked: tuple[IntColumn, IntColumn],
    passed: tuple[FlagColumn, FlagColumn],
) -> None:
    """Note how far each miner goes up.

    Args:
        asked: device and step of each candidate, by merit; step 0 is a wake-up. passed: what fits
            under the ramp, and under the cap.
    """
    steps, groups = draft.steps, step_groups(site, state)
    at, step = asked
    rises = step > 0
    if steps is None or groups is None or not rises.any():
        return
    asking = np.unique(at[rises])
    reached = state.step.astype(np.int64)
    taken = passed[0] & passed[1] & rises
    np.maximum.at(reached, at[taken], step[taken])
    for fits, why in ((passed[0], R.STEP_RAMP), (passed[1], R.STEP_CAP)):
        steps.reason[at[~fits & rises]] = why
    steps.target[asking] = reached[asking]
    part = asking[(reached[asking] > state.step[asking]) & (reached < steps.wanted)[asking]]
    steps.reason[part] = R.STEP_GAIN
    of, own = groups.row[part], state.step[part].astype(np.int64)
    steps.gain_usd[part] = between(of, own, reached[part], groups.worth_usd)
    steps.cost_usd[part] = groups.cost_usd[of, reached[part] - 1]


class _Waiting(Struct, frozen=True, eq=False):
    """Miners and steps that wait for room.

    Args:
        need_w: room that each needs for a moment, inrush included. worth: USD/h a site watt that it
            then draws, with what the change costs spread over ``TRADE_H``.
    """

    need_w: FloatColumn
    worth: FloatColumn


def trade(
    site: Site,
    state: SiteState,
    draft: Draft,
    counted: FloatColumn,
    values: tuple[FloatColumn, FloatColumn],
    left_w: float,
) -> None:
    """Step down what earns less a watt than what waits for room, both changes paid for.

    Args:
        values: USD/h of mining above being off, and the cost of a restart, of each device.
        left_w: room that is free already.
    """
    steps, groups = draft.steps, step_groups(site, state)
    if steps is None or groups is None:
        return
    waiting = _waiting(site, state, draft, groups, counted, values)
    if waiting is None:
        return
    settled = steps.may & (steps.target == state.step) & (steps.wanted == state.step)
    settled &= may_step(site, state) & (state.step > 1) & groups.grouped
    at = np.flatnonzero(settled & dwelt(site, state))
    if not len(at):
        return
    own, of = state.step[at].astype(np.int64), groups.row[at]
    place = np.arange(groups.watts.shape[1])[None, :]
    there = (place < own[:, None]) & (place > 0)
    freed = np.maximum(groups.watts[of], 1.0)
    back = groups.cost_usd[of, own - 1]
    loss = groups.usd_per_h[of] / freed + back[:, None] / (freed * TRADE_H)
    # A lower step never goes before a higher one of the same miner.
    loss = np.maximum.accumulate(np.where(there, loss, -np.inf)[:, ::-1], axis=1)[:, ::-1]
    row = np.repeat(np.arange(len(at)), freed.shape[1]).reshape(there.shape)[there]
    lost, freed_w = loss[there], freed[there]
    order = np.lexsort((row, np.broadcast_to(-place, there.shape)[there], lost))
    worth = waiting.worth
    first = np.argsort(-worth, kind="stable")
    needed = np.add.accumulate(waiting.need_w[first]) - max(left_w, 0.0)
    running = np.add.accumulate(freed_w[order])
    last = np.searchsorted(running, needed, side="left")
    inside = last < len(order)
    edge = lost[order][np.minimum(last, len(order) - 1)]
    pays = inside & (worth[first] > edge) & (worth[first] > 0.0)
    most = len(pays) if pays.all() else int(np.argmin(pays))
    if not most or needed[most - 1] <= 0.0:
        return
    taken = np.bincount(row[order][: int(last[most - 1]) + 1], minlength=len(at))
    moved = np.flatnonzero(taken)
    to, lower = (own - taken)[moved], at[moved]
    gone = there[moved] & (place >= to[:, None])
    steps.target[lower] = to
    steps.reason[lower] = R.STEP_TRADE
    watts = np.where(gone, freed[moved], 0.0)
    usd = np.where(gone, groups.usd_per_h[of][moved], 0.0)
    steps.gain_usd[lower] = _rows(watts) * (TRADE_H * worth[first][most - 1])
    steps.cost_usd[lower] = _rows(usd) * TRADE_H + back[moved]


def _waiting(
    site: Site,
    state: SiteState,
    draft: Draft,
    groups: StepGroups,
    counted: FloatColumn,
    values: tuple[FloatColumn, FloatColumn],
) -> _Waiting | None:
    steps = draft.steps
    assert steps is not None, "only called with steps"
    gain_on, restart = values
    capped, held_up = draft.free & (draft.reason == _CAP), steps.reason == _STEP_CAP
    off = np.flatnonzero(capped & (gain_on > 0.0)) if capped.any() else _NONE
    # Of each the next step only: it earns more a watt than those above it.
    ups = np.flatnonzero(held_up & groups.grouped) if held_up.any() else _NONE
    if not len(off) and not len(ups):
        return None
    need = (pw.counted_after_w(site, state, MINE) - counted)[off] if len(off) else np.zeros(0)
    of, own = groups.row[ups], state.step[ups].astype(np.int64)
    asleep_w = site.nameplate_w[site.class_of[off], state.activity[off]]
    wakes_w = (pw.mining_w(site, state)[off] - asleep_w) * site.pue[off]
    draws = np.concatenate((wakes_w, groups.watts[of, own]))
    usd = np.concatenate((gain_on[off], groups.usd_per_h[of, own]))
    cost = np.concatenate((restart[off], groups.cost_usd[of, own]))
    return _Waiting(
        np.maximum(np.concatenate((need, groups.watts[of, own])), 1.0),
        (usd - cost / TRADE_H) / np.maximum(draws, 1.0),
    )


def _rows(table: FloatColumn) -> FloatColumn:
    """Sum each row from left to right: np.sum's order depends on the machine."""
    out: FloatColumn = np.add.accumulate(table, axis=1)[:, -1]
    return out
