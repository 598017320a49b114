"""Trades of room between miners: a step that earns little a watt goes for what earns more.

What waits for room under a cap may have it of steps that earn less a watt, if it pays both changes
within ``TRADE_H``. A trade only frees room: what waits comes in by ``room.admit``, as ever, once
the step down is confirmed.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import feeders as fd
from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.columns import every, order_of, some
from edge_agent.core.draft import Draft, StepDraft
from edge_agent.core.economics import Values
from edge_agent.core.site import MINE, FlagColumn, FloatColumn, IntColumn, Site
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_items import by_rank, items_above, ranks
from edge_agent.core.step_plan import dwelt
from edge_agent.core.step_room import may_step
from edge_agent.core.step_rule import StepGroups, between, step_groups

R = p.Reason
_CAP, _STEP_CAP = np.uint8(R.CAP), np.uint8(R.STEP_CAP)
_NONE: IntColumn = np.zeros(0, dtype=np.int64)
# What frees room for another must earn there, within so long, more than both changes cost. The
# price of room under a cap moves as slowly as the cap and the coin do.
TRADE_H = 4.0


class Left(Struct, frozen=True, eq=False):
    """Room that is left when all has come that fits.

    Args:
        site_w: under the site's cap. feeders_w: on each feeder. held: what its feeder keeps
            waiting; None: of a site without feeders.
    """

    site_w: float
    feeders_w: FloatColumn
    held: FlagColumn | None = None


class _Waiting(Struct, frozen=True, eq=False):
    """Miners and steps that wait for room.

    Args:
        at: devices. need_w: room that each needs for a moment, inrush included. worth: USD/h a site
            watt that it then draws, with what the change costs spread over ``TRADE_H``.
    """

    at: IntColumn
    need_w: FloatColumn
    worth: FloatColumn


class _Givers(Struct, frozen=True, eq=False):
    """Miners whose steps may go for others, and their items in the order to go.

    Args:
        at: devices. own, of: step and group of each. row, freed_w, lost: of each item its miner's
            place, what it frees, and what it loses a watt.
    """

    at: IntColumn
    own: IntColumn
    of: IntColumn
    row: IntColumn
    freed_w: FloatColumn
    lost: FloatColumn


class _Deal(Struct, frozen=True, eq=False):
    """Who may get room from whom.

    Args:
        who: places of those that wait, the worthiest first. feeder: only its miners give; None:
            any may. left_w: what is free already.
    """

    who: IntColumn
    feeder: int | None
    left_w: float


def trade(
    site: Site,
    state: SiteState,
    draft: Draft,
    counted: FloatColumn,
    values: Values,
    left: Left,
) -> None:
    """Step down what earns less a watt than what waits for room, both changes paid for.

    What its feeder keeps waiting gets room of miners on that feeder alone: what they free is free
    under the site's cap as well. All else waits for the site, and any miner may give.
    """
    steps, groups = draft.steps, step_groups(site, state)
    if steps is None or groups is None:
        return
    waiting = _waiting(site, state, draft, groups, counted, values)
    if waiting is None:
        return
    givers = _givers(site, state, steps, groups)
    if givers is None:
        return
    for deal in _deals(site, waiting, left):
        _exchange(site, state, steps, groups, givers, waiting, deal)


def _deals(site: Site, waiting: _Waiting, left: Left) -> tuple[_Deal, ...]:
    first = order_of(-waiting.worth)
    if left.held is None:
        return (_Deal(first, None, left.site_w),)
    at, need_w = waiting.at[first], waiting.need_w[first]
    fits = ~left.held[at]
    rest = left.feeders_w - fd.need_w(site, at[fits], need_w[fits])
    # Room of the site that others wait for is not free.
    free_w = 0.0 if some(fits) else max(left.site_w, 0.0)
    out: list[_Deal] = []
    for feeder in np.unique(site.feeder_of[at[~fits]]).tolist():
        room_w = min(max(float(rest[feeder]), 0.0), free_w)
        out.append(_Deal(first[~fits & (site.feeder_of[at] == feeder)], feeder, room_w))
        free_w -= room_w
    if some(fits):
        out.append(_Deal(first[fits], None, left.site_w))
    return tuple(out)


def _givers(site: Site, state: SiteState, steps: StepDraft, groups: StepGroups) -> _Givers | None:
    settled = steps.may & (steps.target == state.step) & (steps.wanted == state.step)
    settled &= may_step(site, state) & (state.step > 1) & groups.grouped
    at = np.flatnonzero(settled & dwelt(site, state))
    if not len(at):
        return None
    own, of = state.step[at].astype(np.int64), groups.row[at]
    items = items_above(groups.watts.shape[1], of, np.ones_like(own), own)
    place = np.arange(groups.watts.shape[1])
    there = (place[None, :] < groups.step[:, None]) & (place > 0)
    freed, back = np.maximum(groups.watts, 1.0), _back_usd(groups)
    loss = groups.usd_per_h / freed + back[:, None] / (freed * TRADE_H)
    # A lower step never goes before a higher one of the same miner.
    loss = np.maximum.accumulate(np.where(there, loss, -np.inf)[:, ::-1], axis=1)[:, ::-1]
    higher_first = np.broadcast_to(place[::-1], loss.shape).ravel()
    order = by_rank(ranks(loss, higher_first), items.cell)
    cell = items.cell.take(order)
    return _Givers(
        at, own, of, items.row.take(order), freed.ravel().take(cell), loss.ravel().take(cell)
    )


def _back_usd(groups: StepGroups) -> FloatColumn:
    """Give what coming back up into its step costs a miner of each group."""
    return groups.cost_usd[np.arange(len(groups.step)), groups.step - 1]


def _exchange(
    site: Site,
    state: SiteState,
    steps: StepDraft,
    groups: StepGroups,
    givers: _Givers,
    waiting: _Waiting,
    deal: _Deal,
) -> None:
    """Note the steps that go for those of a deal, as far as it pays."""
    # One that gave already is not asked again.
    gives = steps.target[givers.at] == state.step[givers.at]
    if deal.feeder is not None:
        gives &= site.feeder_of[givers.at] == deal.feeder
    asked = np.flatnonzero(gives[givers.row])
    if not len(asked):
        return
    worth, lost = waiting.worth[deal.who], givers.lost[asked]
    needed = np.add.accumulate(waiting.need_w[deal.who]) - max(deal.left_w, 0.0)
    running = np.add.accumulate(givers.freed_w[asked])
    last = np.searchsorted(running, needed, side="left")
    edge = lost[np.minimum(last, len(asked) - 1)]
    pays = (last < len(asked)) & (worth > edge) & (worth > 0.0)
    most = len(pays) if every(pays) else int(np.argmin(pays))
    if not most or needed[most - 1] <= 0.0:
        return
    gone = givers.row[asked[: int(last[most - 1]) + 1]]
    taken = np.bincount(gone, minlength=len(givers.at))
    moved = np.flatnonzero(taken)
    own, lower, of = givers.own[moved], givers.at[moved], givers.of[moved]
    to = own - taken[moved]
    steps.target[lower], steps.reason[lower] = to, R.STEP_TRADE
    watts = between(of, to, own, np.maximum(groups.watts, 1.0))
    usd = between(of, to, own, groups.usd_per_h)
    steps.gain_usd[lower] = watts * (TRADE_H * worth[most - 1])
    steps.cost_usd[lower] = usd * TRADE_H + _back_usd(groups)[of]


def _waiting(
    site: Site,
    state: SiteState,
    draft: Draft,
    groups: StepGroups,
    counted: FloatColumn,
    values: Values,
) -> _Waiting | None:
    steps = draft.steps
    assert steps is not None, "only called with steps"
    gain_on = values.gain_on_usd_per_h
    capped, held_up = draft.free & (draft.reason == _CAP), steps.reason == _STEP_CAP
    off = np.flatnonzero(capped & (gain_on > 0.0)) if some(capped) else _NONE
    # Of each the next step only: it earns more a watt than those above it.
    ups = np.flatnonzero(held_up & groups.grouped) if some(held_up) else _NONE
    if not len(off) and not len(ups):
        return None
    need = (pw.counted_after_w(site, state, MINE) - counted)[off] if len(off) else np.zeros(0)
    of, own = groups.row[ups], state.step[ups].astype(np.int64)
    asleep_w = site.nameplate_w[site.class_of[off], state.activity[off]]
    wakes_w = (pw.mining_w(site, state)[off] - asleep_w) * site.pue[off]
    draws = np.concatenate((wakes_w, groups.watts[of, own]))
    usd = np.concatenate((gain_on[off], groups.usd_per_h[of, own]))
    cost = np.concatenate((values.restart_usd[off], groups.cost_usd[of, own]))
    return _Waiting(
        np.concatenate((off, ups)),
        np.maximum(np.concatenate((need, groups.watts[of, own])), 1.0),
        (usd - cost / TRADE_H) / np.maximum(draws, 1.0),
    )
