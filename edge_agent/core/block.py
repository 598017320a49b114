"""A fixed-price block smaller than the site: what each part of the load pays.

The block is paid for whatever is drawn. A megawatt-hour inside it costs what it could be sold for
(nothing, where it may not be sold), one beyond it costs spot. Load fills the block in merit order,
what is worth most a megawatt-hour first: then nothing outside could pay more for a place inside,
and where spot is above the inner price no other choice of loads earns more. Below it (a negative
spot price) one more megawatt-hour is always one beyond the block, and spot decides for all.
"""

import numpy as np

from edge_agent.core.site import FlagColumn, FloatColumn, Limits
from edge_agent.core.site_model import Amount, inside_usd_per_mwh

# What runs keeps its place inside until another is worth so much more: no order of two that are
# nearly alike is worth a restart, and what was measured of them moves by as much.
STAYS = 0.05


def paid_usd_per_mwh(limits: Limits, share: Amount | float, spot: Amount) -> Amount:
    """Give the price that decides for load of which a share 0..1 lies inside the block."""
    if isinstance(share, float):
        if share == 0.0:
            return spot
        if share == 1.0:
            return inside_usd_per_mwh(limits, spot)
    out: Amount = spot + share * (inside_usd_per_mwh(limits, spot) - spot)
    return out


def splits(limits: Limits, full_mw: float) -> bool:
    """Say whether a block is smaller than the full load, and has a price of its own inside."""
    has_price = limits.block_resale == "none" or limits.block_fee_usd_per_mwh > 0.0
    return 0.0 < limits.block_mw < full_mw and has_price


def inside_share(
    block_mw: float,
    base_mw: float,
    load_mw: FloatColumn,
    worth_usd_per_mwh: FloatColumn,
    runs: FlagColumn | None = None,
) -> FloatColumn:
    """Give the share of each load that lies inside the block.

    Args:
        base_mw: what runs in any case and comes first. load_mw: of each that may run. worth: what
            a megawatt-hour of it earns. runs: those that do; None: order by worth alone.
    """
    worth = worth_usd_per_mwh
    if runs is not None:
        worth = np.where(runs, worth + STAYS * np.abs(worth), worth)
    order = np.argsort(-worth, kind="stable")
    sizes = load_mw[order]
    before = np.add.accumulate(sizes) - sizes
    left = np.maximum(block_mw - base_mw - before, 0.0)
    share = np.empty(len(load_mw))
    share[order] = np.minimum(left / np.maximum(sizes, 1e-12), 1.0)
    return share
