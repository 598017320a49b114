"""Steps of running miners that go for room under a cap or an order, or come where there is some.

The steps of a miner and its being on at all are items that each free some site watts and lose some
money. Items go by what they lose a watt, the least first. A miner's higher steps earn less a watt
than its lower ones (its curve is concave), so that its items go in their order by themselves.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.columns import some
from edge_agent.core.draft import Draft
from edge_agent.core.site import CURTAILED, MINE, FlagColumn, FloatColumn, IntColumn, Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_rule import StepGroups, between, step_groups

R = p.Reason


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
    back = busy[pw.turning_back(site, state)[busy]]
    if len(back):
        left_w = pw.before_w(site, state) - site.nameplate_w[site.class_of, CURTAILED] * site.pue
        out[back] = np.minimum(left_w[back], freed[back])
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
) -> tuple[IntColumn, IntColumn, FloatColumn, FloatColumn, FloatColumn] | None:
    """Give each step up that money wants: device, step, USD/h a watt, rise of count and load.

    Args:
        may_rise: False while the grid limits the load, or is about to: none goes up.

    Returns:
        None where there is none.
    """
    steps, groups = draft.steps, step_groups(site, state)
    if steps is None or groups is None:
        return None
    runs = draft.free & (state.activity == MINE) & (draft.target == MINE)
    at = np.flatnonzero(runs & (steps.target > state.step_to) & groups.grouped)
    if not len(at):
        return None
    if not may_rise:
        steps.target[at] = state.step_to[at]
        steps.reason[at] = R.STEP_LIMIT
        return None
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
    if steps is None or groups is None or not some(rises):
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
