"""What is known of the time to come, for each device: prices seen and told, and a coming change."""

from functools import lru_cache

import numpy as np
from msgspec.structs import replace

from edge_agent.core.block import paid_usd_per_mwh
from edge_agent.core.difficulty import step_ahead
from edge_agent.core.economics import SECONDS_PER_H, Values
from edge_agent.core.outlook import HOURS, SEEN, Change, Known, Outlook, blocks_of, forecast
from edge_agent.core.site import DeviceClass, FloatColumn, IntColumn, Limits, Site
from edge_agent.core.site_state import MarketState, SiteState

# Fewer devices are not worth a look of their own.
_BLOCK_MIN = 256


def outlook(
    site: Site, state: SiteState, values: Values, at: IntColumn | slice = slice(None)
) -> tuple[Outlook, FloatColumn]:
    """Give the outlook and the prudent restart cost of devices ``at``."""
    lengths_s = {row.interval_s for row in site.classes}
    interval_h: FloatColumn | float = (
        lengths_s.pop() / SECONDS_PER_H if len(lengths_s) == 1 else site.column(_interval_h)[at]
    )
    known = paid_prices(site.limits, state.market, _of(values.block_share, at))
    return forecast(
        site.limits.price_knowledge,
        replace(known, change=_coming(site, state, values, at, interval_h)),
        values.gain_on_usd_per_h[at] * interval_h,
        values.saved_mw[at] * interval_h,
        values.restart_usd[at],
        values.earned_usd_per_h[at] * interval_h,
        blocks=_alike(site) if isinstance(at, slice) else None,
    )


def _coming(
    site: Site,
    state: SiteState,
    values: Values,
    at: IntColumn | slice,
    interval_h: FloatColumn | float,
) -> Change | None:
    """Give what a coming step of the difficulty changes for devices ``at``; mostly none is near."""
    if step_ahead(state.market) is None:
        return None
    coin_usd = values.earned_usd_per_h[at] * interval_h
    return coming_change(state.market, np.where(site.is_asic[at], coin_usd, 0.0))


@lru_cache(maxsize=4)
def _alike(site: Site) -> tuple[slice, ...]:
    """Cut the site into blocks for the outlook, of one class each as far as they get large."""
    starts = [0]
    for at in (np.flatnonzero(np.diff(site.class_of)) + 1).tolist():
        if at - starts[-1] >= _BLOCK_MIN:
            starts.append(at)
    stops = (*starts[1:], len(site))
    return tuple(
        block for start, stop in zip(starts, stops, strict=True) for block in blocks_of(stop, start)
    )


def paid_prices(limits: Limits, market: MarketState, share: FloatColumn | float) -> Known:
    """Give the prices that a decision sees as load pays them of which a share is in the block."""
    known = known_prices(market)
    if isinstance(share, float) and share == 0.0:
        return known

    def paid(price: FloatColumn | float) -> FloatColumn | float:
        return paid_usd_per_mwh(limits, share, price)  # type: ignore[type-var]  # either

    older = (paid(known.older[0]), paid(known.older[1]))
    return Known(price=paid(known.price), older=older, ahead=tuple(map(paid, known.ahead)))


def _of(share: FloatColumn | float, at: IntColumn | slice) -> FloatColumn | float:
    return share if isinstance(share, float) else share[at]


def coming_change(market: MarketState, coin_usd: FloatColumn) -> Change | None:
    """Give what a coming step of the difficulty changes; None while none is near.

    Args:
        coin_usd: what mining the coin earns in an interval.
    """
    step = step_ahead(market)
    if step is None:
        return None
    return Change(weight=step.weight, gain_usd=coin_usd * (step.revenue_ratio - 1.0))


def known_prices(market: MarketState) -> Known:
    """Give the prices that a decision sees; what was not seen yet is as the last known one."""
    price = float("nan") if market.price_usd_per_mwh is None else market.price_usd_per_mwh.value
    older = (*market.older_usd_per_mwh, *(SEEN - 1) * (price,))[: SEEN - 1]
    ahead = market.day_ahead_usd_per_mwh
    if len(ahead) == HOURS:
        before = market.day_ahead_before_usd_per_mwh
        ahead = (*ahead, ahead[0] if before is None else before)
    else:
        ahead = ()
    return Known(price=price, older=(older[0], older[1]), ahead=ahead)


def _interval_h(row: DeviceClass) -> float:
    return row.interval_s / SECONDS_PER_H
