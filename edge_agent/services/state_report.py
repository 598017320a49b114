"""What the agent says of itself: the site report, live totals, and the status for the local API."""

from datetime import datetime
from functools import lru_cache

import numpy as np
from msgspec import Struct

from edge_agent.core import feeders as fd
from edge_agent.core import power as pw
from edge_agent.core.curtailable import curtailable
from edge_agent.core.device_time import ActivityTime
from edge_agent.core.economics import age_s, value
from edge_agent.core.hygiene import doubt
from edge_agent.core.leases import usable
from edge_agent.core.order_facts import is_missed, missed_text
from edge_agent.core.plan import (
    AllocationView,
    Intent,
    LeaseAct,
    ModeAdvice,
    Plan,
    PowerView,
    Reason,
    TakeLease,
)
from edge_agent.core.profit import block_usd_per_h
from edge_agent.core.site import (
    ACTIVITIES,
    FAULT,
    MINE,
    NS_PER_S,
    SERVE,
    CodeColumn,
    Site,
)
from edge_agent.core.site_state import HOLD_CODES, LeaseStatus, SiteState
from edge_agent.services.lease_events import UrlOf
from edge_agent.services.mode_lines import mode_of_miner, modes_by_class
from edge_agent.services.prewarm_metrics import PrewarmView
from protocol.event import ClassReport, HeldLease, SiteLive, SiteReport, SwitchReport
from protocol.resource import ACTIVITY_CODES

VIEW_VERSION = 1
_ACTIVITY_NAMES = tuple(activity.value for activity in ACTIVITY_CODES)


class MarketLine(Struct, frozen=True, kw_only=True):
    """One market input with its age; None was never seen."""

    name: str
    value: float | None
    age_s: float | None
    feed: str | None


class SwitchStats(Struct, frozen=True, kw_only=True):
    """Finished switches kept in memory; quantiles of how long they took."""

    count: int
    open: int
    p50_ms: float | None
    p99_ms: float | None
    rolled_back: int
    quarantined: int


class ProblemLine(Struct, frozen=True, kw_only=True):
    """Something a person should look at, and the command that shows more."""

    code: str
    detail: str
    next_command: str


class Status(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent status``."""

    v: int
    site_id: str
    at: datetime
    agent_epoch: int
    owner: bool
    hub_heard_age_s: float | None
    nodes: tuple[tuple[str, bool], ...]
    power_w: float | None
    power_counted_w: float
    power_cap_w: float
    market: tuple[MarketLine, ...]
    hashprice_usd_per_ths_day: float | None
    earning_usd_per_h: float | None
    hashrate_ths: float | None
    classes: tuple[ClassReport, ...]
    leases: tuple[HeldLease, ...]
    switches: SwitchStats
    passes: int
    pass_us: int
    problems: tuple[ProblemLine, ...]
    feeders: tuple[fd.FeederView, ...] = ()
    order_limit_w: float | None = None
    curtailable_mw_5s: float | None = None
    curtailable_mw_10min: float | None = None
    prewarm: PrewarmView | None = None


class DeviceLine(Struct, frozen=True, kw_only=True):
    """One row of ``hcp-agent devices``."""

    device_id: str
    device_class: str
    node_id: str | None
    activity: str
    since_s: float
    reachable: bool
    power_w: float | None
    hashrate_ths: float | None
    temp_c: float | None
    lease_id: str | None
    hold: str
    quarantined: bool
    reason: str | None
    mode: str | None = None


class IntentLine(Struct, frozen=True, kw_only=True):
    """One intent of a plan, readable."""

    device_class: str
    from_activity: str
    to_activity: str
    devices: int
    first_devices: tuple[str, ...]
    reason: str
    lease_id: str | None
    gain_usd: float | None
    cost_usd: float | None
    mode: str = ""


class ReasonCount(Struct, frozen=True, array_like=True):
    """How many devices have a reason."""

    reason: str
    devices: int


class AllocationLine(Struct, frozen=True, kw_only=True):
    """How near the miners are to the best that the cap allows."""

    worth_usd_per_h: float
    bound_usd_per_h: float
    gap_usd_per_h: float
    modes: ModeAdvice | None = None


class PlanView(Struct, frozen=True, kw_only=True):
    """The answer to ``hcp-agent plan``: what would be done now.

    ``allocation`` is None while a price is unknown.
    """

    v: int
    at: datetime
    intents: tuple[IntentLine, ...]
    lease_acts: tuple[str, ...]
    power: PowerView
    reasons: tuple[ReasonCount, ...]
    allocation: AllocationLine | None = None
    mode_reasons: tuple[ReasonCount, ...] = ()


class TimeLine(Struct, frozen=True, kw_only=True):
    """Ledger of one device's time."""

    device_id: str
    times: tuple[ActivityTime, ...]


# After a pass the same counts go into the capacity, the live totals and often a report.
@lru_cache(maxsize=4)
def class_reports(site: Site, state: SiteState) -> tuple[ClassReport, ...]:
    """Count the devices of each class by activity."""
    free = usable(state) & (state.lease_no < 0) & (state.switch_no < 0)
    classes = len(site.classes)
    rows = site.class_of * ACTIVITIES + state.activity
    counts = np.bincount(rows, minlength=classes * ACTIVITIES).reshape(classes, ACTIVITIES)
    frees = np.bincount(site.class_of[free], minlength=classes)
    return tuple(
        ClassReport(
            device_class=row.class_name,
            kind=row.model.kind.value,
            total=sum(own),
            free=unleased if row.model.serve_w > 0.0 else 0,
            by_activity={_ACTIVITY_NAMES[code]: count for code, count in enumerate(own) if count},
            by_mode=modes,
        )
        for row, own, unleased, modes in zip(
            site.classes, counts.tolist(), frees.tolist(), modes_by_class(site, state), strict=True
        )
    )


def held_leases(state: SiteState, url_of: UrlOf) -> tuple[HeldLease, ...]:
    """Give the leases that the site really holds.

    Args:
        url_of: gives where requests to a lease's work come in.
    """
    return tuple(
        HeldLease(
            lease_id=entry.lease_id,
            attempt=entry.attempt,
            generation=1 if entry.lease is None else entry.lease.generation,
            state=entry.status.value,
            devices=tuple(slot.device_id for slot in entry.slots),
            endpoint_url=url_of(entry),
        )
        for entry in state.leases
        if entry.status not in (LeaseStatus.CLOSED, LeaseStatus.RECEIVED)
    )


def site_report(site: Site, state: SiteState, at: datetime, url_of: UrlOf) -> SiteReport:
    """Give what the site has and really runs."""
    can_go = curtailable(site, state)
    return SiteReport(
        at=at,
        power_w=pw.measured_w(site, state),
        power_cap_w=pw.cap_w(site, state),
        classes=class_reports(site, state),
        leases=held_leases(state, url_of),
        curtailable_mw_5s=sum((row.curtailable_mw_5s for row in can_go), 0.0),
        curtailable_mw_10min=sum((row.curtailable_mw_10min for row in can_go), 0.0),
    )


def earning_usd_per_h(site: Site, state: SiteState) -> float | None:
    """Give what the site earns now: mining margin, and leases at their price, less energy."""
    values = value(site, state)
    serve_w = site.nameplate_w[site.class_of, SERVE]
    energy = np.where(
        state.activity == SERVE, -serve_w * values.energy_usd_per_wh, values.off_usd_per_h
    )
    margin = np.where(state.activity == MINE, values.mine_usd_per_h, energy)
    total = pw.total(margin)
    if np.isnan(total):
        return None
    served = 0.0
    for entry in state.leases:
        if entry.lease is not None and entry.status is LeaseStatus.RUNNING:
            served += float(entry.lease.price_usd_per_h) * len(entry.slots)
    return total + served + block_usd_per_h(site, state)


def site_live(site: Site, state: SiteState, at: datetime, backlog_records: int) -> SiteLive:
    """Give the site's totals for dashboards."""
    price = state.market.price_usd_per_mwh
    return SiteLive(
        at=at,
        power_w=pw.measured_w(site, state),
        power_cap_w=pw.cap_w(site, state),
        price_usd_per_mwh=None if price is None else price.value,
        earning_usd_per_h=earning_usd_per_h(site, state),
        hashrate_ths=hashrate_ths(site, state),
        classes=class_reports(site, state),
        backlog_records=backlog_records,
    )


def hashrate_ths(site: Site, state: SiteState) -> float | None:
    """Give the measured SHA-256 rate of the miners; None while none has been read."""
    known = site.is_asic & state.reachable & ~np.isnan(state.hashrate_ths)
    return pw.total(state.hashrate_ths[known]) if known.any() else None


def market_lines(state: SiteState) -> tuple[MarketLine, ...]:
    """Give the market inputs with their ages."""
    market = state.market
    named = (
        ("price_usd_per_mwh", market.price_usd_per_mwh),
        ("btc_price_usd", market.btc_price_usd),
        ("difficulty", market.difficulty),
        ("subsidy_btc", market.subsidy_btc),
        ("fees_btc", market.fees_btc),
    )
    return tuple(
        MarketLine(
            name=name,
            value=None if held is None else held.value,
            age_s=age_s(held, state.now_ns),
            feed=None if held is None else held.feed,
        )
        for name, held in named
    )


def switch_stats(recent: tuple[SwitchReport, ...], open_switches: int) -> SwitchStats:
    """Summarise finished switches (nearest-rank quantiles)."""
    took = sorted(report.took_us / 1_000 for report in recent)
    return SwitchStats(
        count=len(took),
        open=open_switches,
        p50_ms=took[(len(took) - 1) // 2] if took else None,
        p99_ms=took[min(int(len(took) * 0.99), len(took) - 1)] if took else None,
        rolled_back=sum(report.rolled_back for report in recent),
        quarantined=sum(report.quarantined for report in recent),
    )


def problems(site: Site, state: SiteState) -> tuple[ProblemLine, ...]:
    """List what a person should look at, worst first."""
    out = _caps(site, state)
    down = [node for node in site.nodes if node not in state.nodes_up]
    if down:
        out.append(_problem("node_unreachable", ", ".join(down[:8]), "hcp-agent status --json"))
    price_age = age_s(state.market.price_usd_per_mwh, state.now_ns)
    if price_age is None or price_age > site.limits.price_stale_s:
        said = "never seen" if price_age is None else f"{price_age:.0f} s old"
        out.append(_problem("price_stale", said, "hcp-agent status"))
    in_doubt = doubt(site.limits, state.market, state.now_ns)
    if in_doubt is not None:
        out.append(_problem("price_in_doubt", in_doubt, "hcp-agent market"))
    missed = [missed_text(row) for row in state.orders if is_missed(row)]
    if missed:
        out.append(_problem("grid_order_missed", missed[0], "hcp-agent order list"))
    if state.suspect:
        out.append(_problem("clock_suspect", "more than 2 s from the hub's", "timedatectl"))
    if not state.owner:
        out.append(_problem("not_owner", "the hub names another store", "hcp-agent hub status"))
    for code, name in ((FAULT, "device_fault"),):
        found = np.flatnonzero(state.activity == code)
        if len(found):
            first = site.devices[int(found[0])].device_id
            out.append(_problem(name, f"{len(found)} devices", f"hcp-agent why {first}"))
    quarantined = np.flatnonzero(state.quarantine_ns > state.now_ns)
    if len(quarantined):
        first = site.devices[int(quarantined[0])].device_id
        detail = f"{len(quarantined)} devices"
        out.append(_problem("quarantined", detail, f"hcp-agent undrain {first}"))
    miners_down = np.flatnonzero(site.is_asic & ~state.reachable)
    if len(miners_down):
        first = site.devices[int(miners_down[0])].device_id
        detail = f"{len(miners_down)} miners"
        out.append(_problem("miner_unreachable", detail, f"hcp-agent why {first}"))
    return tuple(out)


def _caps(site: Site, state: SiteState) -> list[ProblemLine]:
    out: list[ProblemLine] = []
    power = pw.view(site, state)
    if power.counted_w > power.cap_w:
        detail = f"counted {power.counted_w:.0f} W above the cap of {power.cap_w:.0f} W"
        out.append(_problem("power_over_cap", detail, "hcp-agent plan"))
    over = fd.over_text(site, state)
    if over is not None:
        out.append(_problem("feeder_over_cap", over, "hcp-agent plan"))
    return out


def device_lines(site: Site, state: SiteState, plan: Plan | None) -> tuple[DeviceLine, ...]:
    """Give every device."""
    lease_ids = {entry.no: entry.lease_id for entry in state.leases}
    return tuple(
        DeviceLine(
            device_id=device.device_id,
            device_class=device.device_class,
            node_id=device.node_id,
            activity=ACTIVITY_CODES[int(state.activity[at])].value,
            since_s=(state.now_ns - int(state.since_ns[at])) / NS_PER_S,
            reachable=bool(state.reachable[at]),
            power_w=_known(state.power_w[at]),
            hashrate_ths=_known(state.hashrate_ths[at]),
            temp_c=_known(state.temp_c[at]),
            lease_id=lease_ids.get(int(state.lease_no[at])),
            hold=_hold(state, at),
            quarantined=bool(state.quarantine_ns[at] > state.now_ns),
            reason=None if plan is None else Reason(int(plan.records.reason[at])).name.lower(),
            mode=mode_of_miner(site, state, at),
        )
        for at, device in enumerate(site.devices)
    )


def plan_view(site: Site, plan: Plan, at: datetime) -> PlanView:
    """Give a plan as a person or a script reads it."""
    return PlanView(
        v=VIEW_VERSION,
        at=at,
        intents=tuple(_intent_line(site, intent) for intent in plan.intents),
        lease_acts=tuple(_act_line(act) for act in plan.leases),
        power=plan.power,
        reasons=_counted(plan.records.reason),
        allocation=_allocation_line(plan.allocation),
        mode_reasons=(
            ()
            if plan.records.step_reason is None
            else _counted(plan.records.step_reason[site.has_steps])
        ),
    )


def _counted(reasons: CodeColumn) -> tuple[ReasonCount, ...]:
    counts = np.bincount(reasons, minlength=len(Reason))
    return tuple(
        ReasonCount(Reason(code).name.lower(), int(count))
        for code, count in enumerate(counts)
        if count
    )


def _allocation_line(view: AllocationView | None) -> AllocationLine | None:
    if view is None:
        return None
    return AllocationLine(
        worth_usd_per_h=view.worth_usd_per_h,
        bound_usd_per_h=view.bound_usd_per_h,
        gap_usd_per_h=view.gap_usd_per_h,
        modes=view.modes,
    )


def _intent_line(site: Site, intent: Intent) -> IntentLine:
    return IntentLine(
        device_class=site.classes[intent.class_index].class_name,
        from_activity=intent.from_activity.value,
        to_activity=intent.to_activity.value,
        devices=len(intent.indices),
        first_devices=tuple(site.devices[int(at)].device_id for at in intent.indices[:8]),
        reason=intent.reason.name.lower(),
        lease_id=intent.lease_id,
        gain_usd=intent.gain_usd,
        cost_usd=intent.cost_usd,
        mode=intent.mode,
    )


def _act_line(act: LeaseAct) -> str:
    name = type(act).__name__
    if isinstance(act, TakeLease):
        devices = ", ".join(score.device_id for score in act.scores[:8])
        return f"{name} {act.lease_id}: {devices}"
    return f"{name} {act.lease_id}"


def _problem(code: str, detail: str, next_command: str) -> ProblemLine:
    return ProblemLine(code=code, detail=detail, next_command=next_command)


def _hold(state: SiteState, at: int) -> str:
    held = int(state.hold[at]) if state.hold_until_ns[at] > state.now_ns else 0
    return HOLD_CODES[held].value


def _known(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
