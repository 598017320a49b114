"""What a site's energy really costs: pure formulas beside ``economics``.

Every field behind them has a default that changes nothing.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from edge_agent.core.site import MINE, NS_PER_S, DeviceClass, FloatColumn, Limits, Site
from edge_agent.core.site_state import MarketState

AMBIENT_STALE_S = 3_600.0
# One instant live, columns of time in a back-test.
Amount = TypeVar("Amount", float, FloatColumn)


def pue_at(table: Sequence[tuple[float, float]], ambient_c: float, otherwise: float) -> float:
    """Give the PUE at an ambient temperature: linear between the given points, flat beyond them.

    Args:
        table: (temperature, PUE) in ascending order; empty gives ``otherwise``.
    """
    if not table:
        return otherwise
    before_c, before = table[0]
    if ambient_c <= before_c:
        return before
    for at_c, pue in table[1:]:
        if ambient_c <= at_c:
            return before + (pue - before) * (ambient_c - before_c) / (at_c - before_c)
        before_c, before = at_c, pue
    return before


def class_at(row: DeviceClass, market: MarketState, now_ns: int) -> DeviceClass:
    """Give a class with the PUE of now; its constant one while the temperature is not known."""
    held = market.ambient_c
    if not row.pue_by_ambient_c or held is None:
        return row
    if now_ns - held.as_of_ns > AMBIENT_STALE_S * NS_PER_S:
        return row
    return replace(row, pue=pue_at(row.pue_by_ambient_c, held.value, row.pue))


@lru_cache(maxsize=4)
def full_load_mw(site: Site) -> float:
    """Give the load with everything mining, at nameplate."""
    total = 0.0
    for at in site.class_of.tolist():
        total += float(site.nameplate_w[at, MINE]) * site.classes[at].pue
    return total / 1e6


def marginal_usd_per_mwh(limits: Limits, full_mw: float, spot: Amount) -> Amount:
    """Give what one megawatt-hour more or less is worth: the price that decides.

    A fixed-price block that covers the whole site is paid for anyway: energy not used is sold at
    spot less the fee, or is lost where it may not be sold. Above the block spot decides; how load
    shares a smaller one is ``block``.
    """
    covered = limits.block_mw > 0.0 and full_mw <= limits.block_mw
    return inside_usd_per_mwh(limits, spot) if covered else spot


def inside_usd_per_mwh(limits: Limits, spot: Amount) -> Amount:
    """Give what a megawatt-hour inside a block is worth if it is not used."""
    if limits.block_resale == "none":
        return abs(spot) * 0.0
    return spot - limits.block_fee_usd_per_mwh


def energy_usd_per_h(limits: Limits, load_mw: Amount, spot: Amount) -> Amount:
    """Give what energy costs per hour with the block and its resale; negative is income."""
    block = limits.block_mw
    over, unused = np.maximum(load_mw - block, 0.0), np.maximum(block - load_mw, 0.0)
    resale = 0.0 * unused
    if limits.block_resale == "spot":
        resale = (spot - limits.block_fee_usd_per_mwh) * unused
    cost: Amount = block * limits.block_usd_per_mwh + over * spot - resale
    return cost


def block_gain_usd_per_h(limits: Limits, load_mw: Amount, spot: Amount, marginal: Amount) -> Amount:
    """Give what the block adds to earnings that were computed at the marginal price."""
    return load_mw * marginal - energy_usd_per_h(limits, load_mw, spot)
