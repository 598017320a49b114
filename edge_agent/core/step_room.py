"""Steps of running miners that go for room under a cap or an order, or come where there is some.

The steps of a miner and its being on at all are items that each free some site watts and lose some
money. Items go by what they lose a watt, the least first. A miner's higher steps earn less a watt
than its lower ones (its curve is concave), so that its items go in their order by themselves.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.columns import present, some
from edge_agent.core.draft import Draft
from edge_agent.core.site import CURTAILED, MINE, FlagColumn, FloatColumn, IntColumn, Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_items import by_rank, items_above, ranks
from edge_agent.core.step_rule import StepGroups, between, step_groups

R = p.Reason


class _Items(Struct, frozen=True, eq=False):
    """Items in the order to go.

    Args:
        row: place of each item's miner among those asked for. freed_w: site watts.
    """

    row: IntColumn
    freed_w: FloatColumn


class Rises(Struct, frozen=True, eq=False):
    """What may come, in the order of merit: wake-ups, and each step up of a running miner.

    Args:
        at: device. step: that it reaches; 0: a wake-up. merit: USD/h a site watt. rise_w: of the
            count. ramp_w: of the load.
    """

    at: IntColumn
    step: IntColumn
    merit: FloatColumn
    rise_w: FloatColumn
    ramp_w: FloatColumn


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
    count, most = np.maximum(own, 1), steps.most
    known = np.zeros(len(at), dtype=np.bool_)
    lost, of = np.zeros((0, most)), np.zeros(len(at), dtype=np.int64)
    if groups is not None:
        known = (own > 0) & groups.grouped[at]
        lost, of = groups.usd_per_h / np.maximum(groups.watts, 1.0), groups.row[at]
    # One in no group has a row of its own in the table.
    alone = np.flatnonzero(~known)
    of[alone] = len(lost) + np.arange(len(alone))
    lost = np.concatenate((lost, merit[at[alone], None].repeat(most, axis=1)))
    items = items_above(most, of, np.zeros_like(own), count)
    higher_first = np.broadcast_to(np.arange(most)[::-1], lost.shape).ravel()
    order = by_rank(ranks(lost, higher_first), items.cell)
    watts, place = site.once(_step_site_w), site.class_of[at] * most
    freed_w = watts.ravel().take(place.take(items.row) + items.step - 1)
    # What it counts for above its step goes with its highest item.
    below = np.add.accumulate(watts, axis=1).ravel().take(place + count - 1)
    top = items.first + count - 1
    freed_w[top] = np.where(own > 0, freed_w[top], 0.0) + (
        freed[at] - np.where(own > 0, below, 0.0)
    )
    freed_w = np.maximum(freed_w, 0.0)
    return _Items(items.row.take(order), freed_w.take(order))


def _step_site_w(site: Site) -> FloatColumn:
    """Give what each step of a class adds to the one below it, (class, step - 1), in site watts."""
    steps = site.steps
    assert steps is not None, "only called with steps"
    pue = np.array([row.pue_max for row in site.classes])
    off_w = site.nameplate_w[:, CURTAILED] * pue
    first = steps.power_w[:, 1] * pue - off_w
    above = np.diff(steps.power_w[:, 1:], axis=1) * pue[:, None]
    out: FloatColumn = np.concatenate((first[:, None], above), axis=1)
    return out


def rising_steps(
    site: Site, state: SiteState, draft: Draft, counted: FloatColumn, *, may_rise: bool
) -> Rises | None:
    """Give each step up that money wants, by merit.

    Args:
        may_rise: False while the grid limits the load, or is about to: none goes up.

    Returns:
        None where there is none.
    """
    steps, groups = draft.steps, step_groups(site, state)
    if steps is None or groups is None:
        return None
    runs = draft.free & (state.activity == MINE) & (draft.target == MINE)
    up = (steps.target > state.step_to) & (steps.target > state.step)
    at = np.flatnonzero(runs & up & groups.grouped)
    if not len(at):
        return None
    if not may_rise:
        steps.target[at] = state.step_to[at]
        steps.reason[at] = R.STEP_LIMIT
        return None
    own, to = state.step[at].astype(np.int64), steps.target[at].astype(np.int64)
    items = items_above(groups.watts.shape[1], groups.row[at], own, to)
    merit = groups.usd_per_h / np.maximum(groups.watts, 1.0)
    order = by_rank(ranks(-merit), items.cell)
    watts = groups.watts.ravel().take(items.cell)
    # What it counts for above its present step is room that it has already.
    spare = np.maximum(counted[at] - pw.step_w(site, state.step)[at], 0.0)
    rise = watts.copy()
    rise[items.first] = np.maximum(watts[items.first] - spare, 0.0)
    merit_each = merit.ravel().take(items.cell)
    return Rises(
        at.take(items.row).take(order),
        items.step.take(order),
        merit_each.take(order),
        rise.take(order),
        watts.take(order),
    )


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
    asking = present(at[rises], len(site))
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
