"""Who goes when load must go, and who may come when there is room, by what a site watt earns.

Where the agent sets power modes, a step of a running miner goes or comes like a whole one: the step
that earns least a watt goes first, so that stepping down comes before switching off where that
earns more, and the other way round where it does not.
"""

import numpy as np
from msgspec import Struct, structs

from edge_agent.core import feeders as fd
from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.columns import order_of, some
from edge_agent.core.draft import Draft
from edge_agent.core.economics import Values
from edge_agent.core.orders import Need, shed
from edge_agent.core.site import (
    CURTAILED,
    IDLE,
    MINE,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_room import Rises, changing, rise_steps, rising_steps, shed_steps
from edge_agent.core.step_trade import Left

R = p.Reason
G = p.Gates


class Room(Struct, frozen=True, eq=False):
    """What a pass may let in.

    Args:
        counted: site watts of each device. values: what mining earns on each. left_w: free under
            the cap and under an order that is near. ramp_left_w: of wake-ups and steps up. rooms_w:
            free on each feeder. rises: False while an order binds or is near: no step goes up.
    """

    counted: FloatColumn
    values: Values
    left_w: float
    ramp_left_w: float
    rooms_w: FloatColumn
    rises: bool = True


def merit_of(site: Site, state: SiteState, values: Values) -> FloatColumn:
    """Order mining by what a site watt earns; unknown comes last, equal keeps the index order."""
    merit = values.gain_on_usd_per_h / mine_site_w(site, state)
    out: FloatColumn = np.where(np.isnan(merit), -np.inf, merit)
    return out


def off_codes(site: Site) -> CodeColumn:
    """Give the activity that off means for each device."""
    return np.where(site.is_asic, CURTAILED, IDLE).astype(np.uint8)


def off_site_w(site: Site) -> FloatColumn:
    """Give what each device counts for when it is off, in site watts."""
    out: FloatColumn = site.nameplate_w[site.class_of, site.once(off_codes)] * site.pue
    return out


def mine_site_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device counts for while it mines, in its step, in site watts; at least 1."""
    if site.steps is None:
        return site.once(_plate_site_w)
    out: FloatColumn = np.maximum(pw.mining_w(site, state) * site.pue, 1.0)
    return out


def shed_mining(
    site: Site,
    state: SiteState,
    draft: Draft,
    room: Room,
    need_w: float,
    why: p.Reason = R.SHED,
    within: FlagColumn | None = None,
) -> float:
    """Let the worst mining go until ``need_w`` is met; gives what is still missing.

    Args:
        within: the devices of which; None: all.
    """
    off_w = site.once(off_site_w)
    on = draft.free & (state.activity == MINE)
    on = on if within is None else on & within
    leaving = on & (draft.target != MINE)
    freed = np.maximum(room.counted - off_w, 0.0)
    need_w -= pw.total(np.where(leaving, freed, 0.0))
    if need_w <= 0.0:
        return 0.0
    mining = np.flatnonzero(on & (draft.target == MINE))
    merit = merit_of(site, state, room.values)
    if draft.steps is not None:
        chosen, still = shed_steps(site, state, draft, (mining, merit, freed, need_w), why, within)
    else:
        order = mining[order_of(merit[mining])]
        if not len(order):
            return need_w
        running = np.add.accumulate(freed[order])
        count = min(int(np.searchsorted(running, need_w, side="left")) + 1, len(order))
        chosen, still = order[:count], max(need_w - float(running[count - 1]), 0.0)
    _turn_off(site, draft, chosen, why)
    draft.gates[chosen] &= ~np.uint8(G.CAP)
    return still


def shed_for_order(site: Site, state: SiteState, draft: Draft, room: Room, ask: Need) -> float:
    """Turn off the worst mining until the orders are kept; gives what is still missing.

    Nothing wakes meanwhile: it would have to go again. A change of power mode is not waited for.
    """
    wakes = draft.free & (draft.target == MINE) & (state.activity != MINE)
    draft.target[wakes] = state.activity[wakes]
    draft.reason[wakes] = R.GRID_ORDER
    on = (draft.free | changing(site, state)) & (state.activity == MINE)
    mining = np.flatnonzero(on & (draft.target == MINE))
    merit = merit_of(site, state, room.values)
    # One that has just failed to go is tried last.
    order = mining[np.lexsort((merit[mining], state.failures[mining] > 0))]
    chosen, missing_w = shed(site, state, ask, on & (draft.target != MINE), order)
    _turn_off(site, draft, chosen, R.GRID_ORDER)
    return missing_w


def admit(site: Site, state: SiteState, draft: Draft, room: Room) -> Left:
    """Let wake-ups and steps up in by merit while they fit under the cap and the ramp.

    The others wait. Gives the room that is left.
    """
    asked = _asked(site, state, draft, room)
    held = None if draft.bound is None else np.zeros(len(site), dtype=np.bool_)
    if asked is None:
        return Left(room.left_w, room.rooms_w, held)
    at, step, rise, ramp = asked.at, asked.step, asked.rise_w, asked.ramp_w
    fed = None
    if draft.bound is not None and held is not None:
        # What its feeder has no room for takes none of the site's.
        fed = fd.fitting(site, at, rise, room.rooms_w)
        rise, ramp = np.where(fed, rise, 0.0), np.where(fed, ramp, 0.0)
        draft.bound[at[~fed & (step == 0)]] = True
        held[at[~fed]] = True
    used = np.add.accumulate(np.maximum(rise, 0.0))
    fits = used <= room.left_w
    ramps = np.add.accumulate(np.maximum(ramp, 0.0)) <= room.ramp_left_w
    if fed is not None:
        fits &= fed
    for passed, gate, why in ((ramps, G.RAMP, R.RAMP), (fits, G.CAP, R.CAP)):
        late = at[~passed & (step == 0)]
        draft.target[late] = state.activity[late]
        draft.reason[late] = why
        draft.gates[late] &= ~np.uint8(gate)
    taken = fits & ramps
    if draft.steps is not None:
        rise_steps(site, state, draft, (at, step), (ramps, fits))
    come = fd.need_w(site, at[taken], np.maximum(rise[taken], 0.0))
    left_w = room.left_w - (float(used[taken][-1]) if some(taken) else 0.0)
    return Left(left_w, room.rooms_w - come, held)


def _asked(site: Site, state: SiteState, draft: Draft, room: Room) -> Rises | None:
    """Give all that may come, by merit; None where nothing may."""
    wakes = _wakes(site, state, draft, room)
    rising = rising_steps(site, state, draft, room.counted, may_rise=room.rises)
    if wakes is None:
        return rising
    if rising is not None:
        pairs = zip(structs.astuple(wakes), structs.astuple(rising), strict=True)
        wakes = Rises(*(np.concatenate(pair) for pair in pairs))
    order = order_of(-wakes.merit)
    return Rises(*(column.take(order) for column in structs.astuple(wakes)))


def _wakes(site: Site, state: SiteState, draft: Draft, room: Room) -> Rises | None:
    """Give the wake-ups in the order of the devices."""
    at = np.flatnonzero(draft.free & (draft.target == MINE) & (state.activity != MINE))
    if not len(at):
        return None
    rise = (pw.counted_after_w(site, state, MINE) - room.counted)[at]
    ramp = (
        (pw.mining_w(site, state) - site.nameplate_w[site.class_of, state.activity]) * site.pue
    )[at]
    merit = merit_of(site, state, room.values)[at]
    return Rises(at, np.zeros(len(at), dtype=np.int64), merit, rise, ramp)


def _turn_off(site: Site, draft: Draft, at: IntColumn, why: p.Reason) -> None:
    draft.target[at] = site.once(off_codes)[at]
    draft.reason[at] = why
    # One in the middle of a change of mode is taken over: load that must go waits for nothing.
    draft.free[at] = True


def _plate_site_w(site: Site) -> FloatColumn:
    out: FloatColumn = np.maximum(site.nameplate_w[site.class_of, MINE] * site.pue, 1.0)
    return out
