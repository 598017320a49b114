"""What money wants of each miner's power step, before there is room for it, and the intents."""

import numpy as np

from edge_agent.core import plan as p
from edge_agent.core.draft import Draft, StepDraft
from edge_agent.core.economics import FRESH, Values
from edge_agent.core.order_facts import limit_w
from edge_agent.core.site import (
    MINE,
    NS_PER_S,
    CodeColumn,
    DeviceClass,
    FlagColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_rule import StepGroups, between, step_groups
from protocol.resource import ACTIVITY_CODES

R = p.Reason


def draft_steps(
    site: Site, state: SiteState, values: Values, draft: Draft, held: FlagColumn
) -> StepDraft | None:
    """Give the steps that money wants; None where the agent sets no power modes.

    Args:
        held: an operator keeps the device as it is.
    """
    if site.steps is None:
        return None
    n = len(site)
    nan = np.full(n, np.nan)
    unknown = site.has_steps & (state.step == 0)
    reason = np.where(unknown, np.uint8(R.STEP_UNKNOWN), np.uint8(R.STEP_KEEP))
    steps = StepDraft(
        state.step_to.copy(), state.step_to.copy(), reason, nan, nan.copy(),
        np.zeros(n, dtype=np.bool_),
    )  # fmt: skip
    groups = step_groups(site, state)
    if groups is None:
        return steps
    at = groups.at
    stays = draft.free & (draft.target == MINE) & ~held & (values.quality == FRESH)
    _want(site, state, groups, stays[at], steps)
    return steps


def _want(
    site: Site, state: SiteState, groups: StepGroups, stays: FlagColumn, steps: StepDraft
) -> None:
    at, of = groups.at, groups.of
    own = groups.step[of]
    regret, near = state.step_regret_usd[at], groups.near_cost_usd[of]
    early = groups.target[of] != own
    latest = site.column(_ski_rental)[at] * near
    overdue = ~early & (groups.side[of] != 0) & (regret > near) & (regret >= latest)
    wanted = np.where(early, groups.target[of], np.where(overdue, own + groups.side[of], own))
    open_to = _not_refused(wanted, own, state.no_steps[at])
    worth = between(groups, of, own, open_to, groups.worth_usd)
    gain = np.where(early, worth, regret)
    cost = np.where(early, groups.early_cost_usd[of], near)
    pays = gain > cost
    since_ns = np.maximum(state.step_since_ns[at], state.mode_since_ns[at])
    dwelt = state.now_ns - since_ns >= site.column(_dwell_ns)[at]
    change = stays & pays & dwelt & (open_to != own)
    reason = np.select(
        [groups.side[of] == 0, (wanted != own) & (open_to == own), wanted == own, ~dwelt, early],
        [R.STEP_KEEP, R.STEP_REFUSED, R.STEP_WAITS, R.STEP_DWELL, R.STEP_GAIN],
        R.STEP_OVERDUE,
    )
    # The outlook may want what does not pay at this moment's price.
    reason = np.where(change, np.where(early, R.STEP_GAIN, R.STEP_OVERDUE), reason)
    steps.wanted[at] = np.where(stays, open_to, own)
    steps.target[at] = np.where(change, open_to, state.step_to[at])
    steps.reason[at] = reason
    steps.gain_usd[at], steps.cost_usd[at] = gain, cost
    steps.may[at] = stays & dwelt


def _not_refused(wanted: IntColumn, own: IntColumn, refused: CodeColumn) -> IntColumn:
    """Give the step nearest to the wanted one, on the way there, that the miner takes."""
    out = wanted.copy()
    toward = np.sign(own - wanted)
    for _ in range(8):
        bad = (out != own) & ((refused.astype(np.int64) >> np.maximum(out - 1, 0)) & 1 > 0)
        if not bad.any():
            break
        out = np.where(bad, out + toward, out)
    return out


def step_intents(site: Site, state: SiteState, draft: Draft) -> tuple[p.Intent, ...]:
    """Give the changes of step, those that go down first: they make room."""
    steps = draft.steps
    if steps is None or site.steps is None:
        return ()
    runs = draft.free & (state.activity == MINE) & (draft.target == MINE) & (state.switch_no < 0)
    at = np.flatnonzero(runs & (state.step > 0) & (steps.target != state.step))
    if not len(at):
        return ()
    key = (
        (site.class_of[at].astype(np.int64) << 24)
        | (state.step[at].astype(np.int64) << 16)
        | (steps.target[at].astype(np.int64) << 8)
        | steps.reason[at].astype(np.int64)
    )
    out: list[tuple[bool, p.Intent]] = []
    for group in np.unique(key):
        own = at[key == group]
        to = int(group) >> 8 & 255
        place = int(group) >> 24
        gain = float(np.add.accumulate(steps.gain_usd[own])[-1])
        cost = float(np.add.accumulate(steps.cost_usd[own])[-1])
        money = R(int(group) & 255) in _FOR_MONEY
        intent = p.Intent(
            class_index=place,
            indices=own,
            from_activity=ACTIVITY_CODES[MINE],
            to_activity=ACTIVITY_CODES[MINE],
            reason=R(int(group) & 255),
            gain_usd=gain if money else None,
            cost_usd=cost if money else None,
            mode=site.steps.names[place][to - 1],
        )
        out.append((to > (int(group) >> 16 & 255), intent))
    return tuple(intent for _, intent in sorted(out, key=lambda row: row[0]))


_FOR_MONEY = (R.STEP_GAIN, R.STEP_OVERDUE, R.STEP_TRADE)


def rises(site: Site, state: SiteState) -> bool:
    """Tell whether steps may go up: not while the grid limits the load, or is about to."""
    curtail = state.policy is not None and state.policy.curtail
    return not curtail and limit_w(site, state) is None


def _ski_rental(row: DeviceClass) -> float:
    return row.ski_rental


def _dwell_ns(row: DeviceClass) -> float:
    return row.dwell_s * NS_PER_S
