"""What money wants of each miner's power step, before there is room for it, and the intents."""

import numpy as np
from msgspec import Struct

from edge_agent.core import plan as p
from edge_agent.core.columns import CODES, pick, some, split
from edge_agent.core.draft import Draft, StepDraft, choose
from edge_agent.core.economics import FRESH, Values
from edge_agent.core.order_facts import limit_w
from edge_agent.core.site import (
    MINE,
    NS_PER_S,
    CodeColumn,
    DeviceClass,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState
from edge_agent.core.step_rule import StepGroups, between, step_groups
from protocol.resource import ACTIVITY_CODES

R = p.Reason
_KEEP, _WAITS, _UNKNOWN, _GAIN, _OVERDUE, _DWELL, _REFUSED = (
    np.uint8(reason)
    for reason in (
        R.STEP_KEEP, R.STEP_WAITS, R.STEP_UNKNOWN, R.STEP_GAIN, R.STEP_OVERDUE, R.STEP_DWELL,
        R.STEP_REFUSED,
    )
)  # fmt: skip


def draft_steps(
    site: Site, state: SiteState, values: Values, draft: Draft, held: FlagColumn
) -> StepDraft | None:
    """Give the steps that money wants; None where the agent sets no power modes.

    Args:
        held: an operator keeps the device as it is.
    """
    if site.steps is None:
        return None
    unknown, keep = site.has_steps & (state.step == 0), np.full(len(site), _KEEP)
    nothing = site.once(_no_money)
    steps = StepDraft(
        state.step_to.copy(), state.step_to.copy(), choose(unknown, _UNKNOWN, keep), nothing,
        nothing,
        draft.free & (draft.target == MINE) & ~held & (values.quality == FRESH),
    )  # fmt: skip
    groups = step_groups(site, state)
    if groups is not None:
        _want(site, state, groups, steps)
    return steps


def dwelt(site: Site, state: SiteState) -> FlagColumn:
    """Tell which miners have been in their step for the least dwell."""
    since_ns = np.maximum(state.step_since_ns, state.mode_since_ns)
    out: FlagColumn = state.now_ns - since_ns >= site.column(_dwell_ns)
    return out


def _want(site: Site, state: SiteState, groups: StepGroups, steps: StepDraft) -> None:
    near, regret = groups.near_cost_usd, state.step_regret_usd
    early = groups.target != groups.step
    ski_rental = np.array([row.ski_rental for row in site.classes])[groups.place]
    # At the latest when the regret of staying has reached the change, and more than that.
    latest = np.maximum(ski_rental * near, np.nextafter(near, np.inf))
    latest = np.where(groups.side == 0, np.inf, latest)
    grouped = groups.grouped
    steps.gain_usd, steps.cost_usd = regret.copy(), groups.told(near, np.nan)
    waits = groups.told(np.where(groups.side == 0, _KEEP, _WAITS), _KEEP)
    steps.reason = choose(grouped, waits, steps.reason)
    due = regret >= groups.told(np.where(early, -np.inf, latest), np.inf)
    due &= steps.may & grouped
    if not some(due):
        return
    wish = _wish(state, groups, early, due)
    pays, stayed = wish.gain_usd > wish.cost_usd, dwelt(site, state)
    moves = wish.step != state.step
    # The last that holds is told.
    for holds, code in (
        (~wish.early, _OVERDUE), (wish.early, _GAIN), (~pays, _WAITS), (~stayed, _DWELL),
        (~moves, _REFUSED),
    ):  # fmt: skip
        steps.reason = choose(due & holds, code, steps.reason)
    steps.wanted = choose(due, wish.step, steps.wanted)
    steps.gain_usd = np.where(due, wish.gain_usd, steps.gain_usd)
    steps.cost_usd = np.where(due, wish.cost_usd, steps.cost_usd)
    steps.target = choose(due & pays & stayed & moves, wish.step, steps.target)


class _Wish(Struct, frozen=True, eq=False):
    """Where each miner that is due would go, and the money of it; of others it says nothing.

    Args:
        early: by the outlook, not by regret.
    """

    step: CodeColumn
    gain_usd: FloatColumn
    cost_usd: FloatColumn
    early: FlagColumn


def _wish(state: SiteState, groups: StepGroups, early: FlagColumn, due: FlagColumn) -> _Wish:
    wanted = np.where(early, groups.target, groups.step + groups.side)
    step, is_early = groups.told(wanted.astype(np.uint8), 0), groups.told(early, 0)
    gain = pick(is_early, groups.told(groups.gain_usd, np.nan), state.step_regret_usd)
    cost = groups.told(np.where(early, groups.early_cost_usd, groups.near_cost_usd), np.nan)
    if some(state.no_steps):
        gain = gain.copy()
        at = np.flatnonzero(due & (state.no_steps != 0))
        kind = groups.row[at]
        own, before = groups.step[kind], wanted[kind]
        open_to = _not_refused(before, own, state.no_steps[at])
        step[at] = open_to
        part = np.flatnonzero(is_early[at] & (open_to != before))
        gain[at[part]] = between(kind[part], own[part], open_to[part], groups.worth_usd)
    return _Wish(step, gain, cost, is_early)


def _not_refused(wanted: IntColumn, own: IntColumn, refused: CodeColumn) -> IntColumn:
    """Give the step nearest to the wanted one, on the way there, that the miner takes."""
    out = wanted.copy()
    toward = np.sign(own - wanted)
    for _ in range(8):
        bad = (out != own) & ((refused.astype(np.int64) >> np.maximum(out - 1, 0)) & 1 > 0)
        if not some(bad):
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
    codes = (
        (site.class_of[at], len(site.classes)),
        (state.step[at], site.steps.most + 1),
        (steps.target[at], site.steps.most + 1),
        (steps.reason[at], CODES),
    )
    out: list[tuple[bool, p.Intent]] = []
    for (place, origin, to, reason), own in split(at, *codes):
        gain = float(np.add.accumulate(steps.gain_usd[own])[-1])
        cost = float(np.add.accumulate(steps.cost_usd[own])[-1])
        money = R(reason) in _FOR_MONEY
        intent = p.Intent(
            class_index=place,
            indices=own,
            from_activity=ACTIVITY_CODES[MINE],
            to_activity=ACTIVITY_CODES[MINE],
            reason=R(reason),
            gain_usd=gain if money else None,
            cost_usd=cost if money else None,
            mode=site.steps.names[place][to - 1],
        )
        out.append((to > origin, intent))
    return tuple(intent for _, intent in sorted(out, key=lambda row: row[0]))


_FOR_MONEY = (R.STEP_GAIN, R.STEP_OVERDUE, R.STEP_TRADE)


def rises(site: Site, state: SiteState) -> bool:
    """Tell whether steps may go up: not while the grid limits the load, or is about to."""
    curtail = state.policy is not None and state.policy.curtail
    return not curtail and limit_w(site, state) is None


def _no_money(site: Site) -> FloatColumn:
    return np.full(len(site), np.nan)


def _dwell_ns(row: DeviceClass) -> float:
    return row.dwell_s * NS_PER_S
