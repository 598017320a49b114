"""What a site earns per hour in a state: one valuation for what was and what would have been."""

import numpy as np

from edge_agent.core import power as pw
from edge_agent.core.economics import energy_price, value
from edge_agent.core.site import CURTAILED, IDLE, MINE, SERVE, SWITCHING, IntColumn, Site
from edge_agent.core.site_model import block_gain_usd_per_h
from edge_agent.core.site_state import LeaseStatus, SiteState
from protocol.resource import DeviceKind


def profit_usd_per_h(site: Site, state: SiteState) -> float | None:
    """Give mining revenue and leases at their price, less energy; None while a price is unknown.

    A switching device earns nothing and draws what its dearer side draws; one that is lost or
    unknown costs the energy of its last reading.
    """
    values = value(site, state)
    classes = site.class_of
    sides_w = np.maximum(
        site.nameplate_w[classes, state.origin], site.nameplate_w[classes, state.target]
    )
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
    served = 0.0
    for entry in state.leases:
        if entry.lease is not None and entry.status is LeaseStatus.RUNNING:
            served += float(entry.lease.price_usd_per_h) * len(entry.slots)
    return total + served + block_usd_per_h(site, state)


def block_usd_per_h(site: Site, state: SiteState) -> float:
    """Give what a fixed-price block adds, at the load as far as it is known."""
    spot, marginal = state.market.price_usd_per_mwh, energy_price(site, state.market)
    if spot is None or marginal is None or site.limits.block_mw <= 0.0:
        return 0.0
    read_w = pw.measured_w(site, state)
    load_mw = (pw.total(pw.counted_w(site, state)) if read_w is None else read_w) / 1e6
    return block_gain_usd_per_h(site.limits, load_mw, spot.value, marginal)


def wear_usd(site: Site, at: IntColumn) -> float:
    """Give what one wake-up of these devices wears off."""
    rows = [row.wear_usd if row.model.kind is DeviceKind.ASIC else 0.0 for row in site.classes]
    return pw.total(site.spread(rows)[at])
