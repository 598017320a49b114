"""Whether a switch that was open when the agent ended goes on: a raise waits for readings.

A starting agent knows what its store knows, and that may be an older copy, put back with a disk: a
raise that fitted then may not fit now. So a switch that may raise the site's power is held from
``Booted`` on, by a fact of the same row. It goes on as soon as the site fits under cap, feeders and
grid order with both sides of it counted, each device that was not read in this life as its highest
nameplate: where there is room for all of that, nothing has to be read. It is turned back when it
does not fit with every device read, or after ``HELD_S``. Nothing else is held: what lowers power,
undoes, or may have opened a gate goes on at once.
"""

from typing import Final

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.held import HeldSwitch, not_held
from edge_agent.core.order_facts import limit_w
from edge_agent.core.plan import Plan, Resume
from edge_agent.core.site import CODE_OF, MINE, NS_PER_S, SERVE, FlagColumn, FloatColumn, Site
from edge_agent.core.site_state import SiteState, SwitchEntry
from edge_agent.core.switching import (
    Stage,
    Status,
    Switch,
    SwitchDevice,
    left_to,
    turned_back,
)

# Four ticks of readings; the links to nodes come up within the first.
HELD_S: Final = 20.0
NO_ROOM: Final = "no_room"
# Sums in another order differ by less.
_GRAIN_W = 1e-3


def may_raise(site: Site, switch: Switch) -> bool:
    """Tell whether carrying a switch on may raise the site's power."""
    if switch.stage is not Stage.FORWARD or switch.commit_asked:
        return False
    return any(_raises(site, switch, row) for row in switch.devices if row.status is Status.LIVE)


def resumes(site: Site, state: SiteState) -> tuple[Resume, ...]:
    """Give which of the held switches go on now, and which are turned back."""
    waiting = [row for row in state.held if not row.back]
    if not waiting:
        return ()
    since_ns = max(row.since_ns for row in waiting)
    read: FlagColumn = state.reachable & (state.read_ns >= since_ns)
    waited = bool(read.all()) or state.now_ns - since_ns >= int(HELD_S * NS_PER_S)
    over = _without_room(site, state, read)
    out: list[Resume] = []
    for row in waiting:
        entry = next((one for one in state.switches if one.no == row.no), None)
        own = state.switch_no == row.no
        if entry is None:
            continue
        # One whose devices were all taken over has nothing left to raise.
        if own.any() and not over[own].any():
            out.append(Resume(entry.switch_id, forward=True))
        elif waited or not own.any():
            out.append(Resume(entry.switch_id, forward=False))
    return tuple(out)


def resume_acts(made: Plan) -> tuple[f.Fact, ...]:
    """Give the acts by which a pass carries held switches on, or turns them back."""
    return tuple(f.SwitchResumed(row.switch_id, row.forward) for row in made.resumes)


def carried_on(site: Site, state: SiteState, switch: Switch, *, forward: bool) -> Switch:
    """Give a held switch as it is to be carried out now, on the devices that are still its own."""
    entry = _entry_of(state, switch.switch_id)
    own = np.flatnonzero(state.switch_no == entry.no) if entry is not None else ()
    switch = left_to(switch, frozenset(site.devices[int(at)].device_id for at in own))
    if forward and any(device.status is Status.LIVE for device in switch.devices):
        return switch
    return turned_back(switch, NO_ROOM)


def held_fact(state: SiteState, fact: f.SwitchHeld | f.SwitchResumed) -> SiteState:
    """Give the state after switches were held, or one went on or was turned back."""
    if isinstance(fact, f.SwitchHeld):
        entries = (_entry_of(state, switch_id) for switch_id in fact.switch_ids)
        held = tuple(HeldSwitch(row.no, state.now_ns) for row in entries if row is not None)
        return replace(state, held=held)
    entry = _entry_of(state, fact.switch_id)
    if entry is None:
        return state
    held = not_held(state.held, entry.no)
    if not fact.forward:
        held = (*held, HeldSwitch(entry.no, state.now_ns, back=True))
    return replace(state, held=held)


def _raises(site: Site, switch: Switch, device: SwitchDevice) -> bool:
    at = site.index_of(device.device_id)
    if at is None:
        return False
    if switch.mode is not None:
        # An unknown mode counts as the highest: no other is above it.
        return device.from_mode is not None and switch.mode.power_w > device.from_mode.power_w
    before, after = CODE_OF[device.from_activity], CODE_OF[switch.to_activity]
    if after not in (MINE, SERVE):
        return False
    plate_w = site.nameplate_w[site.class_of[at]]
    return before not in (MINE, SERVE) or bool(plate_w[after] > plate_w[before])


def _without_room(site: Site, state: SiteState, read: FlagColumn) -> FlagColumn:
    """Tell which devices hang on a feeder, or a site, that may stand above what it is allowed."""
    counted: FloatColumn = pw.counted_w(site, state)
    if not read.all():
        worst = site.once(pw.highest_w) * site.pue
        counted = np.where(read, counted, np.maximum(counted, worst))
    ordered, cap = limit_w(site, state), pw.cap_w(site, state)
    allowed = cap if ordered is None else min(cap, ordered)
    out = np.full(len(site), pw.total(counted) > allowed + _GRAIN_W)
    if site.feeders:
        tight = np.flatnonzero(fd.rooms_w(site, counted) < -_GRAIN_W)
        out |= np.isin(site.feeder_of, tight)
    return out


def _entry_of(state: SiteState, switch_id: str) -> SwitchEntry | None:
    return next((row for row in state.switches if row.switch_id == switch_id), None)
