"""Money in the plan of a pass: what the rule says of each device, and what may come of it.

A pass asks about all devices, for its records. A replay that wants the acts alone asks about those
that may change, and leaves a pass in which nothing can.
"""

from operator import attrgetter

import numpy as np

from edge_agent.core import plan as p
from edge_agent.core.columns import some
from edge_agent.core.draft import Draft
from edge_agent.core.economics import FRESH, SAFE, Values
from edge_agent.core.order_facts import off_by_order
from edge_agent.core.prospect import outlook
from edge_agent.core.rule import Verdict, judge
from edge_agent.core.site import (
    CURTAILED,
    IDLE,
    MINE,
    NS_PER_S,
    DeviceClass,
    FlagColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import LeaseStatus, SiteState

R = p.Reason
NO_REASON = np.uint8(R.HYSTERESIS)
_SKI_RENTAL = attrgetter("ski_rental")


def is_calm(site: Site, state: SiteState, power: p.PowerView, draft: Draft) -> bool:
    """Tell whether nothing but money could move a device, and money moves none."""
    return not (
        some(draft.free & (draft.target != state.activity))
        or power.counted_w > power.cap_w
        or state.over_cap_ns >= 0
        or (state.policy is not None and state.policy.curtail)
        or any(row.open for row in state.orders)
        or any(row.status is not LeaseStatus.CLOSED for row in state.leases)
        or some(state.lease_no >= 0)
        or some(state.hold)
        or some(state.quarantine_ns)
        or any(max(row.warm_reserve, row.warm_reserve_max) > 0 for row in site.classes)
        or site.feeders
        or site.steps is not None
    )


def changes(site: Site, state: SiteState, values: Values) -> Draft:
    """Draft for money as for the records, but ask about those devices alone that may change."""
    on = state.activity == MINE
    off = (state.activity == IDLE) | (state.activity == CURTAILED)
    free = (on | off) & state.reachable & (state.switch_no < 0) & (state.lease_no < 0)
    free &= state.quarantine_ns <= state.now_ns
    may = free & (values.quality == FRESH)
    if site.limits.price_knowledge == "nowcast":
        # Where the price is known the rule wants nothing that loses at it.
        gain_h = values.gain_on_usd_per_h
        may &= (on & (gain_h < 0.0)) | (off & (gain_h > 0.0))
    at = np.flatnonzero(may)
    at = at[dwelt(site, state, on, at)]
    nothing = np.full(len(site), np.nan)
    none = np.zeros(len(site), dtype=np.uint8)
    draft = Draft(
        state.activity.copy(), np.full(len(site), NO_REASON), none, nothing, nothing,
        state.activity, free,
    )  # fmt: skip
    if len(at):
        _change(values, draft, at, verdict_of(site, state, values, on, at))
    return safely(site, values, draft)


def _change(values: Values, draft: Draft, at: IntColumn, verdict: Verdict) -> None:
    """Let those of devices ``at`` change that the rule wants changed, and that it pays for."""
    draft.gain_usd, draft.cost_usd = draft.gain_usd.copy(), draft.cost_usd.copy()
    draft.gain_usd[at], draft.cost_usd[at] = verdict.gain_usd, verdict.cost_usd
    change = verdict.change & (verdict.gain_usd > verdict.cost_usd)
    for moved, why in ((verdict.early, R.GAIN), (~verdict.early, R.SKI_RENTAL)):
        own = at[change & moved]
        draft.reason[own] = why
        mines = draft.target[own] == MINE
        draft.target[own] = np.where(mines, values.off_code[own], np.uint8(MINE))


def verdict_of(
    site: Site,
    state: SiteState,
    values: Values,
    on: FlagColumn,
    at: IntColumn | slice = slice(None),
) -> Verdict:
    """Ask outlook and rule about devices ``at``."""
    expected, cost = outlook(site, state, values, at)
    return judge(
        on[at], expected, cost, state.regret_usd[at], state.debt[at], site.column(_SKI_RENTAL)[at],
        known=site.limits.price_knowledge == "nowcast",
    )  # fmt: skip


def dwelt(
    site: Site, state: SiteState, on: FlagColumn, at: IntColumn | slice = slice(None)
) -> FlagColumn:
    """Tell which of devices ``at`` have stayed as long as they must."""
    least_ns = site.column(_up_ns)[at]
    if any(row.least_up_s != row.least_down_s for row in site.classes):
        least_ns = np.where(on[at], least_ns, site.column(_down_ns)[at])
    out: FlagColumn = state.now_ns - state.mode_since_ns[at] >= least_ns
    return out | off_by_order(state)[at] if state.orders else out


def safely(site: Site, values: Values, draft: Draft) -> Draft:
    """Let what has had no value for long follow the safe policy."""
    safe = draft.free & (values.quality == SAFE)
    if some(safe):
        safe_code = np.uint8(MINE) if site.limits.safe_policy == "mine" else values.off_code
        np.copyto(draft.target, safe_code, where=safe)
        np.copyto(draft.reason, np.uint8(R.SAFE_POLICY), where=safe)
    draft.bound = np.zeros(len(site), dtype=np.bool_) if site.feeders else None
    return draft


def _up_ns(row: DeviceClass) -> float:
    return row.least_up_s * NS_PER_S


def _down_ns(row: DeviceClass) -> float:
    return row.least_down_s * NS_PER_S
