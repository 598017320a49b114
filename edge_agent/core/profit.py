"""What a site earns per hour in a state: one valuation for what was and what would have been."""

from operator import attrgetter

import numpy as np
from msgspec import Struct

from edge_agent.core import power as pw
from edge_agent.core.block import paid_usd_per_mwh
from edge_agent.core.economics import value
from edge_agent.core.site import (
    CURTAILED,
    FAULT,
    IDLE,
    MINE,
    NS_PER_S,
    SERVE,
    SWITCHING,
    UNKNOWN,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_model import block_gain_usd_per_h, class_at
from edge_agent.core.site_state import LeaseStatus, SiteState, mode_of
from protocol.resource import DeviceKind

# A reading from before the last change of mode counts again when none has come for so long: the
# journal keeps readings that change, so the device still reads the same.
UNHEARD_S = 600.0
_PLATE_THS = attrgetter("model.hashrate_ths")


class Flows(Struct, frozen=True, eq=False):
    """What a state earns and draws as far as devices confirm it.

    Args:
        revenue_usd_per_h: of mining, by device; NaN where a price was never seen.
        could_usd_per_h: what mining would bring at the last confirmed rate. site_w: drawn at the
            site's meter, by device. serve_usd_per_h: of running leases.
    """

    revenue_usd_per_h: FloatColumn
    could_usd_per_h: FloatColumn
    site_w: FloatColumn
    serve_usd_per_h: float


def profit_usd_per_h(site: Site, state: SiteState) -> float | None:
    """Give mining revenue and leases at their price, less energy; None while a price is unknown.

    A switching device earns nothing and draws what its dearer side draws; one that is lost or
    unknown costs the energy of its last reading.
    """
    values = value(site, state)
    classes = site.class_of
    sides_w = pw.sides_w(site, state)
    read_w = np.where(np.isnan(state.power_w), 0.0, state.power_w)
    off = (state.activity == IDLE) | (state.activity == CURTAILED)
    earned = np.select(
        [state.activity == MINE, off, state.activity == SERVE, state.activity == SWITCHING],
        [
            values.mine_usd_per_h,
            values.off_usd_per_h,
            -site.nameplate_w[classes, SERVE] * values.energy_usd_per_wh,
            -sides_w * values.energy_usd_per_wh,
        ],
        -read_w * values.energy_usd_per_wh,
    )
    total = pw.total(earned)
    if np.isnan(total):
        return None
    return total + _served_usd_per_h(state) + block_usd_per_h(site, state)


def flows(site: Site, state: SiteState) -> Flows:
    """Give revenue at the hash rate that was read, and power as it was read.

    Between a change and the first reading after it the last confirmed rate of the mode stands, else
    the nameplate; a device that is silent confirms no revenue.
    """
    heard = (state.read_ns >= state.mode_since_ns) | (
        state.now_ns - state.mode_since_ns > int(UNHEARD_S * NS_PER_S)
    )
    could = value(site, state).revenue_usd_per_h
    pue = [class_at(row, state.market, state.now_ns).pue for row in site.classes]
    return Flows(
        _earned(site, state, heard, could),
        could,
        _drawn_w(site, state, heard) * site.spread(pue),
        _served_usd_per_h(state),
    )


def _earned(site: Site, state: SiteState, heard: FlagColumn, could: FloatColumn) -> FloatColumn:
    """Give the revenue at the hash rate that was read, as far as one was."""
    believed = state.mine_ths
    unread = np.isnan(believed)
    if unread.any():
        believed = np.where(unread, site.column(_PLATE_THS), believed)
    share = state.hashrate_ths / np.maximum(believed, 1e-9)
    known = heard & site.is_asic & (believed > 0.0) & ~np.isnan(state.hashrate_ths)
    np.copyto(share, 1.0, where=~known)
    np.copyto(share, 0.0, where=~((state.activity == MINE) & state.reachable))
    out: FloatColumn = could * share
    return out


def _drawn_w(site: Site, state: SiteState, heard: FlagColumn) -> FloatColumn:
    """Give what each device draws, in device watts: as read, else as its mode says."""
    # What a lost device does no mode says: its last reading stands.
    lost = (state.activity == FAULT) | (state.activity == UNKNOWN)
    changing = state.activity == SWITCHING
    unread = ~(heard | lost) | np.isnan(state.power_w)
    out: FloatColumn = state.power_w.copy()
    if unread.any():
        mode_w = pw.plate_w(site, state, mode_of(state)).copy()
        np.copyto(mode_w, state.mine_w, where=(state.activity == MINE) & ~np.isnan(state.mine_w))
        np.copyto(mode_w, 0.0, where=lost)
        np.copyto(out, mode_w, where=unread)
    if changing.any():
        np.copyto(out, pw.sides_w(site, state), where=changing)
    return out


def _served_usd_per_h(state: SiteState) -> float:
    served = 0.0
    for entry in state.leases:
        if entry.lease is not None and entry.status is LeaseStatus.RUNNING:
            served += float(entry.lease.price_usd_per_h) * len(entry.slots)
    return served


def block_usd_per_h(site: Site, state: SiteState) -> float:
    """Give what a fixed-price block adds, at the load as far as it is known."""
    spot = state.market.price_usd_per_mwh
    if spot is None or site.limits.block_mw <= 0.0:
        return 0.0
    counted_w, read_w = pw.counted_w(site, state), pw.measured_w(site, state)
    load_mw = (pw.total(counted_w) if read_w is None else read_w) / 1e6
    share = value(site, state).block_share
    if not isinstance(share, float):
        # What the load as a whole was charged at.
        inside_w = pw.total(share * counted_w)
        share = inside_w / max(pw.total(counted_w), 1e-9)
    marginal = paid_usd_per_mwh(site.limits, share, spot.value)
    return block_gain_usd_per_h(site.limits, load_mw, spot.value, marginal)


def wear_usd(site: Site, at: IntColumn) -> float:
    """Give what one wake-up of these devices wears off."""
    rows = [row.wear_usd if row.model.kind is DeviceKind.ASIC else 0.0 for row in site.classes]
    return pw.total(site.spread(rows)[at])
