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
_KEEP, _WAITS, _UNKNOWN = (
    np.uint8(reason) for reason in (R.STEP_KEEP, R.STEP_WAITS, R.STEP_UNKNOWN)
)


def draft_steps(
    site: Site, state: SiteState, values: Values, draft: Draft, held: FlagColumn
) -> StepDraft | None:
    """Give the steps that money wants; None where the agent sets no power modes.

    Args:
        held: an operator keeps the device as it is.
    """
    if site.steps is None:
        return None
    reason = np.where(site.has_steps & (state.step == 0), _UNKNOWN, _KEEP)
    nothing = np.full(len(site), np.nan)
    steps = StepDraft(
        state.step_to.copy(), state.step_to.copy(), reason, nothing, nothing,
        draft.free & (draft.target == MINE) & ~held & (values.quality == FRESH),
    )  # fmt: skip
    groups = step_groups(site, state)
    if groups is not None:
        _want(site, state, groups, steps)
    return steps


def dwelt(site: Site, state: SiteState, at: IntColumn) -> FlagColumn:
    """Tell which of some miners have been in their step for the least dwell."""
    since_ns = np.maximum(state.step_since_ns[at], state.mode_since_ns[at])
    out: FlagColumn = state.now_ns - since_ns >= site.column(_dwell_ns)[at]
    return out


def _want(site: Site, state: SiteState, groups: StepGroups, steps: StepDraft) -> None:
    near = groups.near_cost_usd
    early_of = groups.target != groups.step
    ski_rental = np.array([row.ski_rental for row in site.classes])[groups.place]
    # At the latest when the regret of staying has reached the change, and more than that.
    latest = np.maximum(ski_rental * near, np.nextafter(near, np.inf))
    latest = np.where(groups.side == 0, np.inf, latest)
    # One past the last group stands for the devices in none.
    steps.gain_usd = state.step_regret_usd.copy()
    steps.cost_usd = np.append(near, np.nan).take(groups.row)
    grouped = groups.row < len(near)
    told = np.append(np.where(groups.side == 0, _KEEP, _WAITS), _KEEP).take(groups.row)
    np.copyto(steps.reason, told, where=grouped)
    due = state.step_regret_usd >= np.append(latest, np.inf).take(groups.row)
    at = np.flatnonzero((np.append(early_of, False).take(groups.row) | due) & steps.may & grouped)
    of, regret = groups.row[at], state.step_regret_usd[at]
    own, early = groups.step[of], early_of[of]
    wanted = np.where(early, groups.target[of], own + groups.side[of])
    open_to = _not_refused(wanted, own, state.no_steps[at])
    gain = np.where(early, groups.gain_usd[of], regret)
    part = np.flatnonzero(early & (open_to != wanted))
    gain[part] = between(of[part], own[part], open_to[part], groups.worth_usd)
    cost = np.where(early, groups.early_cost_usd[of], near[of])
    stayed = dwelt(site, state, at)
    change = (gain > cost) & stayed & (open_to != own)
    reason = np.where(early, np.uint8(R.STEP_GAIN), np.uint8(R.STEP_OVERDUE))
    np.copyto(reason, _WAITS, where=~(gain > cost))
    np.copyto(reason, np.uint8(R.STEP_DWELL), where=~stayed)
    np.copyto(reason, np.uint8(R.STEP_REFUSED), where=open_to == own)
    steps.wanted[at] = open_to
    steps.target[at] = np.where(change, open_to, state.step_to[at])
    steps.reason[at], steps.gain_usd[at], steps.cost_usd[at] = reason, gain, cost


def _not_refused(wanted: IntColumn, own: IntColumn, refused: CodeColumn) -> IntColumn:
    """Give the step nearest to the wanted one, on the way there, that the miner takes."""
    out = wanted.copy()
    if not refused.any():
        return out
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


def _dwell_ns(row: DeviceClass) -> float:
    return row.dwell_s * NS_PER_S
