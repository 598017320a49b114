"""What each option of each device earns per hour, from the market's last known values.

All in USD per hour and device. Off means asleep for an ASIC and idle for a GPU. A negative energy
price is income, and needs no case of its own. Inputs that are unknown or stale give no value: the
device holds, and later follows the safe policy.
"""

from enum import IntEnum
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import TypeVar

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.block import inside_share, paid_usd_per_mwh, splits
from edge_agent.core.columns import pick, some, step_place
from edge_agent.core.order_facts import under_order
from edge_agent.core.outlook import (
    INTERVAL_S,
    table_of,
)
from edge_agent.core.peaks import expect
from edge_agent.core.restart import belief_of
from edge_agent.core.rule import forgive, grow_regret, pay_debt
from edge_agent.core.site import (
    CURTAILED,
    IDLE,
    MINE,
    NS_PER_S,
    SERVE,
    SWITCHING,
    CodeColumn,
    DeviceClass,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_model import (
    class_at,
    full_load_mw,
    inside_usd_per_mwh,
    marginal_usd_per_mwh,
)
from edge_agent.core.site_state import MarketState, MarketValue, SiteState, mode_of
from protocol.resource import Activity, DeviceKind

SECONDS_PER_H = 3_600.0
W_PER_MW = 1e6
# A learnt switch cost counts from so many real switches on, and within these bounds.
COST_SAMPLES_MIN = 20.0
START_S_MIN, START_S_MAX = 0.05, 3_600.0
_MINE_W = attrgetter("model.mine_w")
_MINE_THS = attrgetter("model.hashrate_ths")
_IDLE_W = attrgetter("model.idle_w")
# The same formulas serve one instant live and whole columns of time in a back-test.
Amount = TypeVar("Amount", float, FloatColumn)


class Quality(IntEnum):
    """How far the inputs of a class can be trusted."""

    FRESH = 0
    HOLD = 1
    SAFE = 2


# For columns: numpy takes long to make a number of an enum's member.
FRESH, HOLD, SAFE = (int(quality) for quality in Quality)


class Values(Struct, frozen=True, eq=False, dict=True):
    """Value columns.

    Args:
        site, state: what is valued. quality: ``Quality`` code.
        mine_usd_per_h, off_usd_per_h: margin of each option; gain_on_usd_per_h: of mining above
            being off. revenue_usd_per_h: what mining brings before energy.
        energy_usd_per_wh: price of one device watt-hour, PUE and adder included.
        off_code: the activity that off means for the device. mine_w, off_w: device watts of both.
        step_power: of the step that is valued over the present one; None: it is that.
        block_share: of each device's load, what lies inside the site's fixed-price block; one
            number where that is the same for all.
    """

    site: Site
    state: SiteState
    quality: CodeColumn
    mine_usd_per_h: FloatColumn
    off_usd_per_h: FloatColumn
    gain_on_usd_per_h: FloatColumn
    revenue_usd_per_h: FloatColumn
    energy_usd_per_wh: FloatColumn
    off_code: CodeColumn
    mine_w: FloatColumn
    off_w: FloatColumn
    step_power: FloatColumn | None = None
    block_share: FloatColumn | float = 0.0

    @cached_property
    def restart_usd(self) -> FloatColumn:
        """Give the cost of one off -> on cycle; most passes of a replay ask for none."""
        return _restart_usd(self.site, self.state, self.earned_usd_per_h, self.energy_usd_per_wh)

    @cached_property
    def saved_mw(self) -> FloatColumn:
        """Give what being off saves at the meter."""
        rows = [class_at(row, self.state.market, self.state.now_ns) for row in self.site.classes]
        pue = self.site.spread([row.pue for row in rows])
        out: FloatColumn = self.mine_w - self.off_w
        out *= pue
        out /= W_PER_MW
        if self.step_power is not None:
            more = self.step_power - 1.0
            more *= self.mine_w
            more *= pue
            more /= W_PER_MW
            out += more
        return out

    @cached_property
    def earned_usd_per_h(self) -> FloatColumn:
        """Give what mining brings before energy; a rate below 0 is none."""
        return np.maximum(self.revenue_usd_per_h, 0.0)


def hashprice_usd_per_ths_day(
    subsidy_btc: Amount, fees_btc: Amount, btc_price_usd: Amount, difficulty: Amount
) -> Amount:
    """Give what one TH/s earns in a day.

    Source: a block takes difficulty x 2^32 hashes on average and pays subsidy + fees.
    """
    hashes_per_block = difficulty * 4_294_967_296.0
    return (subsidy_btc + fees_btc) * btc_price_usd * 86_400.0 / hashes_per_block * 1e12


def usd_per_wh(
    row: DeviceClass, price_usd_per_mwh: Amount, pue: Amount | float | None = None
) -> Amount:
    """Give what one device watt-hour of a class costs, PUE and adder included.

    Args:
        pue: of the time; None: the constant one of the class.
    """
    factor = row.pue if pue is None else pue
    return (price_usd_per_mwh + row.adder_usd_per_mwh) * factor / W_PER_MW


def mine_usd_per_ths_h(row: DeviceClass, per_ths_day: Amount) -> Amount:
    """Give what one TH/s of a class earns in an hour after the pool's fee."""
    return per_ths_day * (1.0 - row.pool_fee) / 24.0


def restart_usd(row: DeviceClass, revenue_usd_per_h: Amount) -> Amount:
    """Give the cost of one off -> on cycle: wear, and the revenue of the time without shares."""
    return _wear(row) + revenue_usd_per_h * _start_h(row)


def hashprice(market: MarketState) -> float | None:
    """Give the hashprice in USD per TH/s and day, or None while an input was never seen.

    Fees that were never seen count as none: they are a few per cent of the reward.
    """
    price, difficulty, subsidy = market.btc_price_usd, market.difficulty, market.subsidy_btc
    if price is None or difficulty is None or subsidy is None:
        return None
    fees = 0.0 if market.fees_btc is None else market.fees_btc.value
    return hashprice_usd_per_ths_day(subsidy.value, fees, price.value, difficulty.value)


def age_s(value: MarketValue | None, now_ns: int) -> float | None:
    """Give the age of a market value in seconds; None when it was never seen."""
    return None if value is None else (now_ns - value.as_of_ns) / NS_PER_S


def quality_of(site: Site, state: SiteState, row: DeviceClass) -> Quality:
    """Judge the inputs that a class needs; the worst one counts."""
    limits, market, now_ns = site.limits, state.market, state.now_ns
    ages = [(age_s(market.price_usd_per_mwh, now_ns), limits.price_stale_s)]
    if row.model.kind is DeviceKind.ASIC:
        ages += [
            (age_s(held, now_ns), limits.coin_stale_s)
            for held in (market.btc_price_usd, market.difficulty, market.subsidy_btc)
        ]
    else:
        seen = any(rate.device_class == row.class_name for rate in market.gpu_rates)
        rate_age = (now_ns - market.gpu_rates_as_of_ns) / NS_PER_S
        ages.append((rate_age if seen else None, limits.coin_stale_s))
    worst = Quality.FRESH
    for age, stale_s in ages:
        if age is None:
            worst = max(worst, Quality.HOLD)
        elif age > stale_s + limits.safe_after_s:
            worst = Quality.SAFE
        elif age > stale_s:
            worst = max(worst, Quality.HOLD)
    return worst


def gpu_mine_usd_per_h(market: MarketState, class_name: str) -> float | None:
    """Give what mining on one GPU of a class brings; None when no feed says."""
    for rate in market.gpu_rates:
        if rate.device_class == class_name:
            return rate.mine_usd_per_h
    return None


def serve_usd_per_h(market: MarketState, class_name: str) -> float | None:
    """Give the spot price of serving on one device of a class; None when no feed says."""
    for rate in market.gpu_rates:
        if rate.device_class == class_name:
            return rate.serve_usd_per_h
    return None


def energy_price(site: Site, market: MarketState) -> float | None:
    """Give the price of energy in USD/MWh: spot, unless a fixed-price block covers all."""
    held = market.price_usd_per_mwh
    if held is None or site.limits.block_mw <= 0.0:
        return None if held is None else held.value
    return marginal_usd_per_mwh(site.limits, full_load_mw(site), held.value)


# A pass asks several times for the value of one state: once for two sites in one process, or for
# three worlds.
@lru_cache(maxsize=8)
def value(site: Site, state: SiteState) -> Values:
    """Value mining and off for every device; NaN where an input was never seen."""
    market = state.market
    per_ths = hashprice(market)
    classes = [class_at(row, market, state.now_ns) for row in site.classes]
    mine_w = _or_nameplate(state.mine_w, site.column(_MINE_W))
    mine_ths = _or_nameplate(state.mine_ths, site.column(_MINE_THS))
    per_ths_h = [
        0.0
        if row.model.kind is not DeviceKind.ASIC
        else (np.nan if per_ths is None else mine_usd_per_ths_h(row, per_ths))
        for row in site.classes
    ]
    flat = [_flat_usd_per_h(market, row) for row in site.classes]
    revenue = mine_ths * site.spread(per_ths_h)
    revenue += site.spread(flat)
    idle_w = _idle_w(site, state)
    share = _block_share(site, state, classes, (revenue, mine_w, idle_w))
    energy_usd_per_wh = _energy_usd_per_wh(site, state, classes, share)
    mine_usd = mine_w * energy_usd_per_wh
    np.subtract(revenue, mine_usd, out=mine_usd)
    off_usd = -idle_w * energy_usd_per_wh
    quality = tuple(quality_of(site, state, row).value for row in site.classes)
    return Values(
        site,
        state,
        _quality_column(site, quality),
        mine_usd,
        off_usd,
        mine_usd - off_usd,
        revenue,
        energy_usd_per_wh,
        site.once(_off_codes),
        mine_w,
        idle_w,
        block_share=share,
    )


def _energy_usd_per_wh(
    site: Site, state: SiteState, classes: list[DeviceClass], share: FloatColumn | float
) -> FloatColumn:
    """Give what a device watt-hour of each device costs; NaN while no price is known."""
    market, limits = state.market, site.limits
    held = market.price_usd_per_mwh
    if held is None:
        return site.spread([np.nan for _ in classes])
    peak = expect(limits, market.peak, state.instant.wall, state.now_ns).usd_per_mwh
    if isinstance(share, float):
        price = paid_usd_per_mwh(limits, share, held.value) + peak
        return site.spread([usd_per_wh(row, price) for row in classes])
    paid = paid_usd_per_mwh(limits, share, np.full(len(site), held.value)) + peak
    pue = site.spread([row.pue for row in classes])
    out: FloatColumn = (paid + site.column(_adder)) * pue / W_PER_MW
    return out


def _block_share(
    site: Site,
    state: SiteState,
    classes: list[DeviceClass],
    mining: tuple[FloatColumn, FloatColumn, FloatColumn],
) -> FloatColumn | float:
    """Give how much of each device's load lies inside the fixed-price block.

    Leases and what draws anyway come first. On a site whose power modes are set a block below the
    full load counts for nothing: a step up would take the place of another device.

    Args:
        mining: revenue, watts of mining, watts of being off.
    """
    limits, held = site.limits, state.market.price_usd_per_mwh
    if limits.block_mw <= 0.0 or held is None:
        return 0.0
    if not splits(limits, full_load_mw(site)):
        return 1.0 if full_load_mw(site) <= limits.block_mw else 0.0
    if site.steps is not None or held.value <= inside_usd_per_mwh(limits, held.value):
        return 0.0
    revenue, mine_w, off_w = mining
    code = np.where(state.activity == SWITCHING, state.target, state.activity)
    serves, runs = (code == SERVE) | (state.lease_no >= 0), code == MINE
    waits = ((code == IDLE) | (code == CURTAILED)) & state.reachable
    waits &= state.quarantine_ns <= state.now_ns
    at = np.flatnonzero((runs | waits) & ~serves)
    mw = site.spread([row.pue for row in classes]) / W_PER_MW
    base_mw = np.where(serves, site.nameplate_w[site.class_of, SERVE], off_w) * mw
    drawn_mw = float(np.add.accumulate(base_mw)[-1])
    rise_mw = np.maximum((mine_w - off_w)[at] * mw[at], 1e-12)
    worth = revenue[at] / rise_mw - site.column(_adder)[at]
    share = np.full(len(site), min(limits.block_mw / max(drawn_mw, 1e-12), 1.0))
    share[at] = inside_share(limits.block_mw, drawn_mw, rise_mw, worth, runs[at])
    return share


@lru_cache(maxsize=8)
def _quality_column(site: Site, quality: tuple[int, ...]) -> CodeColumn:
    out: CodeColumn = np.array(quality, dtype=np.uint8).take(site.class_of, mode="clip")
    out.flags.writeable = False
    return out


# A pass asks for it twice: for the regret until now, and for the plan.
@lru_cache(maxsize=4)
def best_value(site: Site, state: SiteState) -> Values:
    """Value mining in the power mode that is best now: what being on or off is judged by.

    A miner that loses in its mode and would earn in a lower one is to take that, not to go off.
    """
    per_ths, price = hashprice(state.market), energy_price(site, state.market)
    if site.steps is None or per_ths is None or price is None:
        return value(site, state)
    usd = np.array([mine_usd_per_ths_h(row, per_ths) for row in site.classes])[:, None]
    expected = expect(site.limits, state.market.peak, state.instant.wall, state.now_ns)
    rows = [class_at(row, state.market, state.now_ns) for row in site.classes]
    per_wh = np.array([usd_per_wh(row, price + expected.usd_per_mwh) for row in rows])[:, None]
    margin = site.steps.rate_ths * usd - site.steps.power_w * per_wh
    best = np.argmax(margin[:, 1:], axis=1) + 1
    place = step_place(site, state.step)
    rate, power = (
        _over_step(table, best).take(place, mode="clip")
        for table in (site.steps.rate_ths, site.steps.power_w)
    )
    values = value(site, state)
    revenue = values.revenue_usd_per_h * rate
    mine_usd = values.mine_w * power
    mine_usd *= values.energy_usd_per_wh
    np.subtract(revenue, mine_usd, out=mine_usd)
    return replace(
        values,
        mine_usd_per_h=mine_usd,
        gain_on_usd_per_h=mine_usd - values.off_usd_per_h,
        revenue_usd_per_h=revenue,
        step_power=power,
    )


def _over_step(table: FloatColumn, best: IntColumn) -> FloatColumn:
    """Give, by class and step, what the best step has over it; 1 where the step is unknown."""
    top = table[np.arange(len(table)), best][:, None]
    out: FloatColumn = np.divide(top, table, out=np.ones_like(table), where=table > 0.0)
    out[:, 0] = 1.0
    return out.ravel()


def _in_step(site: Site, state: SiteState, at: IntColumn, step: CodeColumn) -> SiteState:
    """Give the state with what some miners would do in another step, by the curve."""
    assert site.steps is not None, "only called with steps"
    classes, was = site.class_of[at], state.step[at]
    columns = {}
    for name, table in (("mine_w", site.steps.power_w), ("mine_ths", site.steps.rate_ths)):
        column: FloatColumn = getattr(state, name).copy()
        known = ~np.isnan(column[at])
        measured = column[at] * (table[classes, step] / table[classes, was])
        column[at] = np.where(known, measured, table[classes, step])
        columns[name] = column
    return replace(state, **columns)


def grow(
    site: Site, state: SiteState, values: Values, dt_s: float
) -> tuple[FloatColumn, FloatColumn]:
    """Give regret and debt after ``dt_s`` more seconds at the values that held meanwhile."""
    on = state.activity == MINE
    off = (state.activity == IDLE) | (state.activity == CURTAILED)
    gain = values.gain_on_usd_per_h * (dt_s / SECONDS_PER_H)
    counts = (on | off) & (values.quality == FRESH)
    if some(np.isnan(gain)):
        counts &= ~np.isnan(gain)
    # Time in a fast replay stands for more: intervals, not seconds, pay the debt back.
    passed = site.spread([dt_s / row.interval_s * INTERVAL_S for row in site.classes])
    misses = counts & ((on & (gain < 0.0)) | (off & (gain > 0.0)))
    # Where all do what pays and have done so, there is nothing to regret.
    stays = not some(misses) and not some(state.regret_usd != 0.0)
    regret = state.regret_usd if stays else grow_regret(state.regret_usd, on, gain, counts)
    # What an order keeps off is no doing of the outlook.
    waits = counts & off & ~under_order(state)
    if not some(waits):
        return regret, forgive(state.debt, passed)
    cost = table_of(site.limits.price_knowledge, has_ahead=True).prudence * values.restart_usd
    return regret, pay_debt(state.debt, waits, gain, cost, counts, passed)


def break_even_usd_per_mwh(site: Site, state: SiteState, index: int) -> float | None:
    """Give the energy price at which mining on a device earns exactly what being off earns."""
    row = class_at(site.classes[int(site.class_of[index])], state.market, state.now_ns)
    if site.steps is not None and state.step[index] > 1:
        # The lowest mode is the last that pays.
        state = _in_step(site, state, np.array([index]), np.array([1], dtype=np.uint8))
    values = value(site, state)
    revenue = float(values.revenue_usd_per_h[index])
    mine_w = float(state.mine_w[index])
    saved_w = (row.model.mine_w if np.isnan(mine_w) else mine_w) - _off_w(row)
    if np.isnan(revenue) or saved_w <= 0.0:
        return None
    peak = expect(site.limits, state.market.peak, state.instant.wall, state.now_ns)
    added = row.adder_usd_per_mwh + peak.usd_per_mwh
    return revenue / (saved_w * row.pue / W_PER_MW) - added


def learnt_cost(
    state: SiteState, row: DeviceClass, *, ready: bool = False
) -> tuple[float, float | None] | None:
    """Give seconds and Wh of one off -> on cycle of a GPU, as learnt; None: not enough was.

    The way off counts once it is learnt as well; until then it is free, as in the constant. Energy
    is known when that of each way is.

    Args:
        ready: of one whose miner is held ready.
    """
    if row.model.kind is DeviceKind.ASIC or not state.switch_costs:
        return None
    ways = {
        (cost.from_activity, cost.to_activity): cost
        for cost in state.switch_costs
        if cost.device_class == row.class_name
        and cost.samples >= COST_SAMPLES_MIN
        # The way off is to nothing that could be made ready.
        and cost.ready == (ready and cost.to_activity is Activity.MINE)
    }
    on = ways.get((Activity.IDLE, Activity.MINE))
    if on is None:
        return None
    off = ways.get((Activity.MINE, Activity.IDLE))
    seconds, energy = on.seconds, on.energy_wh
    if off is not None:
        seconds += off.seconds
        energy = None if energy is None or off.energy_wh is None else energy + off.energy_wh
    return min(max(seconds, START_S_MIN), START_S_MAX), energy


def _restart_usd(
    site: Site, state: SiteState, earned: FloatColumn, energy_usd_per_wh: FloatColumn
) -> FloatColumn:
    """Give the believed cost of a restart: as assumed until what happened has taught otherwise."""
    learnt = [learnt_cost(state, row) for row in site.classes]
    if not state.restarts and not any(learnt):
        out = earned * site.column(_start_h)
        out += site.column(_wear)
        return out
    factors = [belief_of(state.restarts, row.class_name).used for row in site.classes]
    start_h = [
        _start_h(row) * factor if cost is None else cost[0] / SECONDS_PER_H
        for row, cost, factor in zip(site.classes, learnt, factors, strict=True)
    ]
    wear = [
        _wear(row) * max(factor, 1.0) for row, factor in zip(site.classes, factors, strict=True)
    ]
    # What mining itself draws stands in its margin already; only what is above it is a cost.
    above_wh = [
        0.0 if cost is None or cost[1] is None else max(cost[1] - row.model.mine_w * hours, 0.0)
        for row, cost, hours in zip(site.classes, learnt, start_h, strict=True)
    ]
    out = earned * site.spread(start_h)
    out += site.spread(wear)
    if any(above_wh):
        above = site.spread(above_wh)
        out += np.where(above > 0.0, above * np.maximum(energy_usd_per_wh, 0.0), 0.0)
    _ready_usd(site, state, earned, out)
    return out


def _ready_usd(site: Site, state: SiteState, earned: FloatColumn, cost_usd: FloatColumn) -> None:
    """Put in what a restart costs where the miner is held ready, once that was learnt."""
    for entry in state.prepares:
        at = site.index_of(entry.device_id)
        if at is None or not entry.ready or entry.enters is not Activity.MINE:
            continue
        learnt = learnt_cost(state, site.classes[int(site.class_of[at])], ready=True)
        if learnt is not None:
            # A way that was learnt to be no shorter is none.
            cost_usd[at] = min(cost_usd[at], earned[at] * learnt[0] / SECONDS_PER_H)


def _or_nameplate(column: FloatColumn, nameplate: FloatColumn) -> FloatColumn:
    return pick(np.isnan(column), nameplate, column)


def _idle_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device draws when off: asleep for a miner, unless it is idle."""
    idle = (mode_of(state) == IDLE) & site.is_asic
    off_w = site.column(_off_w)
    if not some(idle):
        return off_w
    out: FloatColumn = np.where(idle, site.column(_IDLE_W), off_w)
    return out


def _flat_usd_per_h(market: MarketState, row: DeviceClass) -> float:
    if row.model.kind is DeviceKind.ASIC:
        return 0.0
    rate = gpu_mine_usd_per_h(market, row.class_name)
    return float("nan") if rate is None else rate * (1.0 - row.pool_fee)


def _off_code(row: DeviceClass) -> int:
    return CURTAILED if row.model.kind is DeviceKind.ASIC else IDLE


def _off_codes(site: Site) -> CodeColumn:
    return site.column(_off_code).astype(np.uint8)


def _adder(row: DeviceClass) -> float:
    return row.adder_usd_per_mwh


def _off_w(row: DeviceClass) -> float:
    is_asic = row.model.kind is DeviceKind.ASIC
    return row.model.curtailed_w if is_asic else row.model.idle_w


def _wear(row: DeviceClass) -> float:
    return row.wear_usd if row.model.kind is DeviceKind.ASIC else 0.0


def _start_h(row: DeviceClass) -> float:
    start_s = row.warmup_s if row.model.kind is DeviceKind.ASIC else row.mine_start_s
    return start_s / SECONDS_PER_H
