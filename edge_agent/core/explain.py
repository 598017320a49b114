"""Why a device does what it does: each option's numbers, the gates, what would change it."""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import feeders as fd
from edge_agent.core import leases as ls
from edge_agent.core import power as pw
from edge_agent.core.difficulty import step_ahead
from edge_agent.core.economics import (
    Quality,
    age_s,
    best_value,
    break_even_usd_per_mwh,
    hashprice,
    learnt_cost,
    serve_usd_per_h,
    value,
)
from edge_agent.core.explain_mode import ModeExplanation, why_mode
from edge_agent.core.hygiene import doubt
from edge_agent.core.order_facts import binding, wall_ms
from edge_agent.core.orders import load_w
from edge_agent.core.peaks import peak_text
from edge_agent.core.plan import DecisionRecords, Gates, Plan, Reason
from edge_agent.core.prospect import outlook
from edge_agent.core.ready import ready_text
from edge_agent.core.reserve import reserve_text
from edge_agent.core.site import CURTAILED, IDLE, MINE, NS_PER_S, SERVE, DeviceClass, Site
from edge_agent.core.site_state import NEVER_NS, MarketValue, SiteState
from protocol.market import PRICE_USD_PER_MWH_MAX, PRICE_USD_PER_MWH_MIN
from protocol.resource import ACTIVITY_CODES, Activity, DeviceKind


class OptionValue(Struct, frozen=True, kw_only=True):
    """One option in USD per hour; None is unknown or impossible."""

    activity: Activity
    revenue_usd_per_h: float | None
    energy_usd_per_h: float | None
    margin_usd_per_h: float | None
    power_w: float
    note: str = ""


class GateResult(Struct, frozen=True, kw_only=True):
    """One gate of a change: passed or not, and the number behind it."""

    name: str
    ok: bool
    detail: str


class Explanation(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent why DEV``; ``fence``: of a GPU, as its host tells it now."""

    device_id: str
    device_class: str
    activity: Activity
    since_s: float
    reachable: bool
    lease_id: str | None
    switch_id: str | None
    price_usd_per_mwh: float | None
    price_age_s: float | None
    hashprice_usd_per_ths_day: float | None
    break_even_usd_per_mwh: float | None
    options: tuple[OptionValue, ...]
    best: Activity
    gain_usd: float | None
    cost_usd: float | None
    gates: tuple[GateResult, ...]
    reason: str
    verdict: str
    would_change: tuple[str, ...]
    price_doubt: str | None = None
    grid_order: str | None = None
    peak: str | None = None
    mode: ModeExplanation | None = None
    prepared: str | None = None
    fence: str | None = None


_SENTENCE: dict[Reason, str] = {
    Reason.KEEP_BEST: "it already does what earns most",
    Reason.GAIN: "the change earns more than it costs over the expected stay",
    Reason.SKI_RENTAL: "staying has cost as much as the change would: it changes at the latest now",
    Reason.HYSTERESIS: "the outlook says that the gain will not last: it waits",
    Reason.CREDIT: "restarts of late cost more than they saved: only a certain saving counts",
    Reason.GAIN_BELOW_COST: "the gain over the expected stay is below the cost of the change",
    Reason.DWELL: "it has not yet stayed its least time",
    Reason.HOLD_STALE: "market values are missing or stale: it holds",
    Reason.SAFE_POLICY: "market values have been stale too long: the safe policy rules",
    Reason.LEASE: "a lease holds it",
    Reason.LEASE_END: "its lease ends",
    Reason.CAP: "there is no room under the power cap",
    Reason.RAMP: "the wake-up ramp has no room yet",
    Reason.CURTAIL_ORDER: "the grid order to curtail is in force",
    Reason.DRAINED: "an operator drained it",
    Reason.HELD: "an operator holds it",
    Reason.QUARANTINED: "it is in quarantine after failed switches",
    Reason.UNREACHABLE: "it cannot be reached: it counts with its nameplate",
    Reason.SWITCHING: "a switch is under way",
    Reason.NO_OPTION: "its activity offers no choice",
    Reason.SHED: "load must go to keep the power cap",
    Reason.QUARANTINE_OVER: "its quarantine is over: it is tried again",
    Reason.GRID_ORDER: "a grid order limits the site's load",
    Reason.RESERVE: "it is kept warm for a burst of demand",
    Reason.NOT_OWNER: "this store does not own the site",
}


def why(site: Site, state: SiteState, plan: Plan, index: int) -> Explanation:
    """Explain one device at the instant of the state, by the plan made from that state."""
    records = plan.records
    market, row = state.market, site.classes[int(site.class_of[index])]
    reason = Reason(int(records.reason[index]))
    lease = ls.lease_of(state, index)
    switch_no = int(state.switch_no[index])
    switch = next((entry for entry in state.switches if entry.no == switch_no), None)
    best = ACTIVITY_CODES[int(records.best[index])]
    target = ACTIVITY_CODES[int(records.target[index])]
    activity = ACTIVITY_CODES[int(state.activity[index])]
    verb = f"keeps {activity.value}" if target == activity else f"goes to {target.value}"
    price = market.price_usd_per_mwh
    kept = reserve_text(site, state, index) if reason is Reason.RESERVE else ""
    return Explanation(
        device_id=site.devices[index].device_id,
        device_class=row.class_name,
        activity=activity,
        since_s=(state.now_ns - int(state.since_ns[index])) / NS_PER_S,
        reachable=bool(state.reachable[index]),
        lease_id=None if lease is None else lease.lease_id,
        switch_id=None if switch is None else switch.switch_id,
        price_usd_per_mwh=None if price is None else price.value,
        price_age_s=age_s(price, state.now_ns),
        hashprice_usd_per_ths_day=hashprice(market),
        break_even_usd_per_mwh=break_even_usd_per_mwh(site, state, index),
        options=_options(site, state, row, index),
        best=best,
        gain_usd=_known(float(records.gain_usd[index])),
        cost_usd=_known(float(records.cost_usd[index])),
        gates=_gates(site, state, plan, records, index),
        reason=reason.name.lower(),
        verdict=f"{verb}: {_SENTENCE[reason]}{_of_feeder(site, plan, index)}{kept}"
        f"{_of_block(site, state, index)}{_of_step(site, state, index)}",
        would_change=_would_change(site, state, plan, reason, index),
        price_doubt=doubt(site.limits, market, state.now_ns),
        grid_order=_grid_order(site, state),
        peak=peak_text(site.limits, market.peak, state.instant.wall, state.now_ns),
        mode=why_mode(site, state, plan, index),
        prepared=ready_text(state.prepares, site.devices[index].device_id, state.now_ns),
    )


def _of_feeder(site: Site, plan: Plan, index: int) -> str:
    if plan.feeder_bound is None or not plan.feeder_bound[index]:
        return ""
    return f" of feeder {site.devices[index].feeder}"


def _of_block(site: Site, state: SiteState, index: int) -> str:
    """Say how much of the device's load a block pays that is smaller than the site."""
    share = value(site, state).block_share
    if isinstance(share, float):
        return ""
    part = 100.0 * float(share[index])
    return f"; {part:.0f} % of its energy lies inside the fixed-price block"


def _of_step(site: Site, state: SiteState, index: int) -> str:
    """Say which step of the difficulty has a part in the outlook of a miner."""
    step = step_ahead(state.market)
    if step is None or not site.is_asic[index] or site.limits.price_knowledge == "settled":
        return ""
    percent = 100.0 * (1.0 / step.revenue_ratio - 1.0)
    return f"; a difficulty step of {percent:+.1f} % is near, with weight {step.weight:.2f}"


def _free_text(site: Site, state: SiteState, plan: Plan, index: int) -> str:
    """Say what is free under the cap, and on the device's feeder where it has one."""
    text = f"{plan.power.headroom_w / 1e3:.1f} kW free under the cap"
    at = int(site.feeder_of[index])
    if at < 0:
        return text
    free_w = float(fd.rooms_w(site, pw.counted_w(site, state))[at])
    return f"{text}, {free_w / 1e3:.1f} kW on feeder {site.feeders[at].name}"


def _grid_order(site: Site, state: SiteState) -> str | None:
    rows = binding(site, state)
    if not rows:
        return None
    row = min(rows, key=lambda one: one.order.limit_w)
    left_s = (row.order.until_ms - wall_ms(state)) / 1_000
    load_mw = pw.total(load_w(site, state)) / 1e6
    return (
        f"{row.order.order_id}: at most {row.order.limit_w / 1e6:.3f} MW for {left_s:.0f} s more, "
        f"{load_mw:.3f} MW confirmed"
    )


def _options(site: Site, state: SiteState, row: DeviceClass, index: int) -> tuple[OptionValue, ...]:
    values = value(site, state)
    per_wh = _known(float(values.energy_usd_per_wh[index]))
    known_w = float(state.mine_w[index])
    mine_w = row.model.mine_w if np.isnan(known_w) else known_w
    is_asic = row.model.kind is DeviceKind.ASIC
    mine = _option(Activity.MINE, _known(float(values.revenue_usd_per_h[index])), mine_w, per_wh)
    off = _option(
        Activity.CURTAILED if is_asic else Activity.IDLE,
        0.0,
        row.model.curtailed_w if is_asic else row.model.idle_w,
        per_wh,
    )
    if is_asic or row.model.serve_w <= 0.0:
        return (mine, off)
    spot = serve_usd_per_h(state.market, row.class_name)
    serve = _option(
        Activity.SERVE, spot, row.model.serve_w, per_wh, "at the spot rate; only by a lease"
    )
    return (serve, mine, off)


def _option(
    activity: Activity, revenue: float | None, power_w: float, per_wh: float | None, note: str = ""
) -> OptionValue:
    energy = None if per_wh is None else power_w * per_wh
    return OptionValue(
        activity=activity,
        revenue_usd_per_h=revenue,
        energy_usd_per_h=energy,
        margin_usd_per_h=None if revenue is None or energy is None else revenue - energy,
        power_w=power_w,
        note=note,
    )


def _gates(
    site: Site, state: SiteState, plan: Plan, records: DecisionRecords, index: int
) -> tuple[GateResult, ...]:
    bits = Gates(int(records.gates[index]))
    row = site.classes[int(site.class_of[index])]
    stayed_s = (state.now_ns - int(state.mode_since_ns[index])) / NS_PER_S
    price_age = age_s(state.market.price_usd_per_mwh, state.now_ns)
    gain, cost = float(records.gain_usd[index]), float(records.cost_usd[index])
    age = "never seen" if price_age is None else f"{price_age:.0f} s old"
    details = (
        (Gates.FRESH, "fresh", f"price {age}, stale after {site.limits.price_stale_s:.0f} s"),
        (Gates.REACHABLE, "reachable", "answers and is not in quarantine"),
        (Gates.FREE, "free", "no lease, no open switch, an activity that can change"),
        (
            Gates.GAIN,
            "gain",
            f"gain {gain:.4f} USD against cost {cost:.4f} USD{_learnt(state, row)}",
        ),
        (
            Gates.HYSTERESIS,
            "hysteresis",
            _latest(row, float(state.regret_usd[index]), cost),
        ),
        (Gates.DWELL, "dwell", f"stayed {stayed_s:.0f} s of {_least_s(state, row, index):.0f} s"),
        (Gates.CAP, "cap", _free_text(site, state, plan, index)),
        (Gates.RAMP, "ramp", f"{plan.power.ramp_left_w / 1e3:.1f} kW of wake-up ramp left"),
    )
    return tuple(
        GateResult(name=name, ok=bool(bits & bit), detail=detail) for bit, name, detail in details
    )


def _learnt(state: SiteState, row: DeviceClass) -> str:
    cost = learnt_cost(state, row)
    return "" if cost is None else f" (off and on take {cost[0]:.2f} s, as learnt)"


def _least_s(state: SiteState, row: DeviceClass, index: int) -> float:
    on = state.activity[index] == MINE
    return row.least_up_s if on else row.least_down_s


def _latest(row: DeviceClass, regret_usd: float, cost_usd: float) -> str:
    limit_usd = row.ski_rental * cost_usd
    return f"by the outlook, at the latest at regret {limit_usd:.4f} USD; now {regret_usd:.4f} USD"


def _would_change(
    site: Site, state: SiteState, plan: Plan, reason: Reason, index: int
) -> tuple[str, ...]:
    row = site.classes[int(site.class_of[index])]
    out: list[str] = []
    values = value(site, state)
    if values.quality[index] != Quality.FRESH:
        out.append("fresh market values (price, coin and rates)")
    break_even = break_even_usd_per_mwh(site, state, index)
    if break_even is not None and state.activity[index] in (MINE, IDLE, CURTAILED):
        sentence = _price_sentence(site, state, break_even, index)
        out += [] if sentence is None else [sentence]
    left_s = (
        _least_s(state, row, index) - (state.now_ns - int(state.mode_since_ns[index])) / NS_PER_S
    )
    if left_s > 0.0:
        out.append(f"{left_s:.0f} s more in this activity (least dwell)")
    if reason in (Reason.CAP, Reason.SHED):
        need_w = float(pw.counted_after_w(site, state, MINE)[index])
        free = _free_text(site, state, plan, index)
        out.append(f"{need_w / 1e3:.1f} kW for it under the cap; there are {free}")
    if reason is Reason.RAMP:
        out.append(f"the ramp of {site.limits.ramp_w_per_s * 60 / 1e3:.1f} kW per minute")
    if reason is Reason.QUARANTINED:
        left = (int(state.quarantine_ns[index]) - state.now_ns) / NS_PER_S
        out.append(f"{left:.0f} s, or `undrain` by an operator")
    if reason in (Reason.DRAINED, Reason.HELD):
        until = int(state.hold_until_ns[index])
        ends = "until released" if until == NEVER_NS else f"{(until - state.now_ns) / 1e9:.0f} s"
        out.append(f"the end of the hold ({ends})")
    if reason is Reason.GRID_ORDER:
        out.append("the end of the grid order, and then the wake-up ramp")
    lease = ls.lease_of(state, index)
    if lease is not None and lease.unsure:
        out.append("the hub's word on its lease: the agent has started anew")
    if state.activity[index] == SERVE:
        out.append("the end of its lease")
    return tuple(out)


def _price_sentence(site: Site, state: SiteState, break_even: float, index: int) -> str | None:
    """Give the price at which the outlook would change the device, found by bisection."""
    on = bool(state.activity[index] == MINE)
    held = state.market.price_usd_per_mwh
    if held is None:
        return None
    stays, changes = break_even, PRICE_USD_PER_MWH_MAX if on else PRICE_USD_PER_MWH_MIN
    if not _early(site, state, held, changes, index):
        return None
    for _ in range(40):
        middle = 0.5 * (stays + changes)
        if _early(site, state, held, middle, index):
            changes = middle
        else:
            stays = middle
    side, verb = ("above", "off") if on else ("below", "on")
    at = f"a price {side} {changes:.2f} USD/MWh switches it {verb}"
    return f"{at} (break-even {break_even:.2f})"


def _early(site: Site, state: SiteState, held: MarketValue, price: float, index: int) -> bool:
    market = replace(state.market, price_usd_per_mwh=replace(held, value=price))
    told = replace(state, market=market)
    expected, _ = outlook(site, told, best_value(site, told))
    on = bool(state.activity[index] == MINE)
    gain, share = float(expected.gain[index]), float(expected.share[index])
    return -gain > share if on else gain > 1.0 - share


def _known(number: float) -> float | None:
    return None if np.isnan(number) else number
