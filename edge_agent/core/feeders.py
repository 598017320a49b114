"""Feeders: caps of parts of the site, nested in the site's cap.

Each device hangs on one feeder at most. What counts against a feeder is what counts against the
site (``power.counted_w``), summed over its devices, in index order. A start, a wake-up and a shed
obey each feeder as they obey the site. The time for which a counted load may stand above a cap
before devices are shed runs for site and feeders together: it begins with the first that is over.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core import power as pw
from edge_agent.core.columns import some
from edge_agent.core.site import (
    NS_PER_S,
    FlagColumn,
    FloatColumn,
    IndexColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState

# By feeder, of a site that has none.
NONE: FloatColumn = np.zeros(0)


class FeederView(Struct, frozen=True, kw_only=True):
    """One feeder in site watts (PUE included); None: no device of it has been read."""

    name: str
    devices: int
    cap_w: float
    counted_w: float
    measured_w: float | None
    headroom_w: float


def split_w(site: Site, column: FloatColumn) -> FloatColumn:
    """Sum a column of site watts by feeder, in index order."""
    return _by_feeder(site, site.feeder_of, column)


def caps_w(site: Site) -> FloatColumn:
    """Give the cap of each feeder."""
    return np.array([row.power_cap_w for row in site.feeders])


def rooms_w(site: Site, counted: FloatColumn) -> FloatColumn:
    """Give what is free on each feeder; negative where it is over.

    Args:
        counted: what each device counts for.
    """
    out: FloatColumn = caps_w(site) - split_w(site, counted)
    return out


def over_since(site: Site, state: SiteState) -> int:
    """Give since when site or feeders stand above a cap (boottime ns); -1 when none does."""
    since_ns = pw.over_cap_since(site, state)
    if since_ns >= 0 or not site.feeders:
        return since_ns
    if not some(rooms_w(site, pw.counted_w(site, state)) < 0.0):
        return -1
    return state.now_ns if state.over_cap_ns < 0 else state.over_cap_ns


def going_down_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what open switches will free on each feeder when they are confirmed."""
    return split_w(site, pw.going_down_each_w(site, state))


def to_shed_w(site: Site, state: SiteState, counted: FloatColumn) -> FloatColumn:
    """Give how much must go now on each feeder, as ``power.to_shed_w`` does for the site."""
    excess = np.maximum(-rooms_w(site, counted), 0.0)
    if not some(excess > 0.0):
        return excess
    waited = state.over_cap_ns >= 0 and state.now_ns - state.over_cap_ns >= int(
        site.limits.shed_after_s * NS_PER_S
    )
    if not waited:
        known = pw.truly_read(site, state)
        read = split_w(site, np.where(known, state.power_w, 0.0) * site.pue)
        coming = split_w(site, pw.stepping_up(site, state).astype(np.float64)) > 0.0
        excess = np.where((read > caps_w(site)) | coming, excess, 0.0)
    out: FloatColumn = np.maximum(excess - going_down_w(site, state), 0.0)
    return np.where(excess > 0.0, out, 0.0)


def spare_w(site: Site, state: SiteState, counted: FloatColumn, gives: FloatColumn) -> FloatColumn:
    """Give what work that comes before mining may have on each feeder.

    Args:
        gives: what each device's mining can give up.
    """
    free = rooms_w(site, counted) + going_down_w(site, state)
    out: FloatColumn = free + split_w(site, gives)
    return out


def fitting(site: Site, order: IntColumn, rise_w: FloatColumn, rooms: FloatColumn) -> FlagColumn:
    """Say which devices fit on their feeder, taken in an order; without a feeder all do.

    Args:
        order: devices. rise_w: of each of them. rooms: of each feeder.
    """
    feeder = site.feeder_of[order]
    rise = np.maximum(rise_w, 0.0)
    out = np.ones(len(order), dtype=np.bool_)
    for at in np.unique(feeder[feeder >= 0]):
        own = np.flatnonzero(feeder == at)
        out[own] = np.add.accumulate(rise[own]) <= rooms[at]
    return out


def need_w(site: Site, at: IntColumn, rise_w: FloatColumn) -> FloatColumn:
    """Give what some devices need on each feeder."""
    return _by_feeder(site, site.feeder_of[at], rise_w)


def views(site: Site, state: SiteState) -> tuple[FeederView, ...]:
    """Give each feeder as it stands."""
    if not site.feeders:
        return ()
    counted = split_w(site, pw.counted_w(site, state))
    known = state.reachable & ~np.isnan(state.power_w)
    read = split_w(site, np.where(known, state.power_w, 0.0) * site.pue)
    heard, devices = split_w(site, known.astype(np.float64)), split_w(site, np.ones(len(site)))
    return tuple(
        FeederView(
            name=row.name,
            devices=int(devices[at]),
            cap_w=row.power_cap_w,
            counted_w=float(counted[at]),
            measured_w=float(read[at]) if heard[at] else None,
            headroom_w=row.power_cap_w - float(counted[at]),
        )
        for at, row in enumerate(site.feeders)
    )


def over_text(site: Site, state: SiteState) -> str | None:
    """Say which feeder stands furthest above its cap; None when none does."""
    rows = [row for row in views(site, state) if row.headroom_w < 0.0]
    if not rows:
        return None
    row = min(rows, key=lambda one: one.headroom_w)
    return f"feeder {row.name}: counted {row.counted_w:.0f} W above its cap of {row.cap_w:.0f} W"


def _by_feeder(site: Site, feeder: IndexColumn, watts: FloatColumn) -> FloatColumn:
    sums = np.bincount(feeder + 1, weights=watts, minlength=len(site.feeders) + 1)
    return sums[1:].astype(np.float64)
