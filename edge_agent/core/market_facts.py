"""How a market tick changes the state: each value judged (``hygiene``), then taken or not."""

from typing import Any

import numpy as np
from msgspec.structs import replace

from edge_agent.core import hygiene as hy
from edge_agent.core.difficulty import blocks_seen
from edge_agent.core.economics import W_PER_MW, gpu_mine_usd_per_h, hashprice, mine_usd_per_ths_h
from edge_agent.core.outlook import HOURS, INTERVAL_S, SEEN
from edge_agent.core.peaks import peak_seen
from edge_agent.core.site import NS_PER_S, DeviceClass, IntColumn, Site
from edge_agent.core.site_model import class_at
from edge_agent.core.site_state import MarketState, MarketValue, SiteState, Told
from protocol.market import MarketTick
from protocol.resource import DeviceKind
from protocol.units import to_ms

_INTERVALS_PER_H = 4


def market_seen(site: Site, state: SiteState, tick: MarketTick) -> MarketState:
    """Give the market after a tick; what its feed said before may be newer, then that stays."""
    behind_s = max((state.instant.wall - tick.measured_at).total_seconds(), 0.0)
    as_of_ns = state.now_ns - int(behind_s * NS_PER_S)
    market = state.market
    for name in (*hy.COIN_CHECKS, hy.PRICE):
        value: float | None = getattr(tick, name)
        before = hy.told_of(market, name, tick.feed)
        if value is None or (before is not None and before.as_of_ns > as_of_ns):
            continue
        row = Told(name, tick.feed, value, as_of_ns, to_ms(tick.source_at))
        if name == hy.PRICE:
            market = _price(site, state, market, row, tick)
        else:
            market = _coin(site, state, market, row)
    if tick.ambient_c is not None:
        ambient = MarketValue(tick.ambient_c, as_of_ns, tick.feed)
        market = replace(market, ambient_c=ambient)
    if tick.block_height is not None:
        seen = blocks_seen(market.blocks, tick.block_height, to_ms(tick.source_at))
        market = replace(market, blocks=seen)
    if tick.grid_load_mw is not None or tick.peak_probability is not None:
        market = replace(market, peak=peak_seen(market.peak, tick, as_of_ns))
    return _rates(market, tick, as_of_ns)


def curve(site: Site, market: MarketState, now_ns: int) -> tuple[hy.Step, ...]:
    """Give the site's mining by break-even, at nameplate; classes whose revenue is unknown not."""
    per_ths = hashprice(market)
    counts: IntColumn = site.once(_class_counts)
    steps: list[hy.Step] = []
    for kept, count in zip(site.classes, counts.tolist(), strict=True):
        row = class_at(kept, market, now_ns)
        revenue = _revenue_usd_per_h(market, row, per_ths)
        is_asic = row.model.kind is DeviceKind.ASIC
        off_w = row.model.curtailed_w if is_asic else row.model.idle_w
        mw = (row.model.mine_w - off_w) * row.pue / W_PER_MW
        if revenue is not None and mw > 0.0 and count:
            steps.append(hy.Step(revenue / mw - row.adder_usd_per_mwh, mw * count))
    return tuple(steps)


def _class_counts(site: Site) -> IntColumn:
    out: IntColumn = np.bincount(site.class_of, minlength=len(site.classes)).astype(np.int64)
    return out


def _revenue_usd_per_h(
    market: MarketState, row: DeviceClass, per_ths: float | None
) -> float | None:
    if row.model.kind is DeviceKind.ASIC:
        return (
            None if per_ths is None else row.model.hashrate_ths * mine_usd_per_ths_h(row, per_ths)
        )
    rate = gpu_mine_usd_per_h(market, row.class_name)
    return None if rate is None else rate * (1.0 - row.pool_fee)


def _coin(site: Site, state: SiteState, market: MarketState, row: Told) -> MarketState:
    row = hy.judge_coin(site.limits, market, row, state.now_ns)
    market = replace(market, told=hy.put_told(market, row))
    held: MarketValue | None = getattr(market, row.name)
    if row.verdict != hy.OK or (held is not None and held.as_of_ns > row.as_of_ns):
        return market
    taken: dict[str, Any] = {row.name: MarketValue(row.value, row.as_of_ns, row.feed)}
    return replace(market, **taken)


def _price(
    site: Site, state: SiteState, market: MarketState, row: Told, tick: MarketTick
) -> MarketState:
    interval_ms = int(INTERVAL_S * 1_000)
    steps = curve(site, market, state.now_ns)
    out = hy.judge_price(site.limits, market, row, steps, interval_ms, state.now_ns)
    market = replace(market, told=out.told, at_risk_usd_per_h=out.at_risk_usd_per_h)
    taken, held = out.taken, market.price_usd_per_mwh
    if taken is None:
        return market
    number = taken.source_ms // interval_ms
    changes = _older(market, number)
    changes |= _hour_before(market, number)
    if held is None or number > market.interval_no:
        changes["usual"] = hy.learn(market.usual, taken.value)
    # Another feed may know no day-ahead prices; those of this hour stay true.
    if tick.day_ahead_usd_per_mwh or held is None or held.feed == tick.feed:
        changes["day_ahead_usd_per_mwh"] = tick.day_ahead_usd_per_mwh[:HOURS]
    value = MarketValue(taken.value, taken.as_of_ns, taken.feed)
    return replace(market, price_usd_per_mwh=value, interval_no=number, **changes)


def _hour_before(market: MarketState, number: int) -> dict[str, Any]:
    """Keep the day-ahead price of the hour before the price's, when the hours move on."""
    passed = number // _INTERVALS_PER_H - market.interval_no // _INTERVALS_PER_H
    told = market.day_ahead_usd_per_mwh
    if passed <= 0:
        return {}
    return {"day_ahead_before_usd_per_mwh": told[passed - 1] if passed <= len(told) else None}


def _older(market: MarketState, number: int) -> dict[str, Any]:
    """Move the intervals on in the source's time; what was not heard is as the one before it."""
    held = market.price_usd_per_mwh
    if held is None or number <= market.interval_no:
        return {}
    passed = min(number - market.interval_no, SEEN - 1)
    older = (held.value,) * passed + market.older_usd_per_mwh
    return {"older_usd_per_mwh": older[: SEEN - 1]}


def _rates(market: MarketState, tick: MarketTick, as_of_ns: int) -> MarketState:
    if not tick.gpu_rates:
        return market
    told = {rate.device_class for rate in tick.gpu_rates}
    kept = tuple(row for row in market.gpu_rates if row.device_class not in told)
    return replace(market, gpu_rates=kept + tick.gpu_rates, gpu_rates_as_of_ns=as_of_ns)
