"""The plan of one pass: leases first, then money, under the cap.

The rule for money is ``rule`` on the outlook: early when the gain over the expected stay outweighs
the restart, at the latest when regret has reached it, off only on credit; never within the least
dwell. No value, or a stale one: hold, then the safe policy.
One group of devices (class, from, to, reason) becomes one intent.
"""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import feeders as fd
from edge_agent.core import leases as ls
from edge_agent.core import plan as p
from edge_agent.core import power as pw
from edge_agent.core.allocation import relaxed_usd
from edge_agent.core.columns import CODES, every, some, split
from edge_agent.core.draft import Draft, choose
from edge_agent.core.economics import FRESH, HOLD, Values, best_value, value
from edge_agent.core.lease_shedding import shed_leases
from edge_agent.core.mode_advice import advise
from edge_agent.core.money import NO_REASON, changes, dwelt, is_calm, safely, verdict_of
from edge_agent.core.order_facts import (
    coming_limit_w,
    is_missed,
    limit_w,
    missed_text,
)
from edge_agent.core.orders import need
from edge_agent.core.reserve import keep_reserve
from edge_agent.core.resuming import resumes
from edge_agent.core.room import (
    Room,
    admit,
    off_codes,
    off_site_w,
    shed_for_order,
    shed_mining,
)
from edge_agent.core.shedding import Excess, shed_feeders, shed_for_cap
from edge_agent.core.site import (
    CURTAILED,
    FAULT,
    IDLE,
    MAINTENANCE,
    MINE,
    NS_PER_S,
    SERVE,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import (
    HOLD_DRAIN,
    HOLD_MINE,
    HOLD_SERVE,
    SiteState,
    lease_by_id,
)
from edge_agent.core.state_facts import apply
from edge_agent.core.step_plan import draft_steps, rises, step_intents
from edge_agent.core.step_trade import trade
from protocol.resource import ACTIVITY_CODES

R = p.Reason
G = p.Gates
# In order: the first that holds is the reason; what none of them names waits for more gain.
_REASONS = (
    R.SWITCHING, R.LEASE, R.DRAINED, R.QUARANTINED, R.UNREACHABLE, R.NO_OPTION, R.HOLD_STALE,
    R.SAFE_POLICY, R.KEEP_BEST, R.GAIN, R.SKI_RENTAL, R.GAIN_BELOW_COST, R.DWELL, R.CREDIT,
)  # fmt: skip
_REASON_CODES = tuple(np.uint8(reason) for reason in _REASONS)
_RULE_GATES = np.uint8(G.CAP | G.RAMP)
_GATE_BITS = tuple(
    np.uint8(gate) for gate in (G.FRESH, G.REACHABLE, G.FREE, G.GAIN, G.HYSTERESIS, G.DWELL)
)
# For columns: numpy takes long to make a number of an enum's member.
_RAMP = np.uint8(R.RAMP)


def plan(site: Site, state: SiteState, *, acts_only: bool = False) -> p.Plan:
    """Plan for the instant of ``state``; acts on nothing.

    Args:
        acts_only: leave out what no act comes of. What is done, the alarms, and where a cap, a ramp
            or an order binds are the same. Money is known of changes for money alone; of other
            devices the records say little, and there is no sum of readings and no allocation.
    """
    goes_on = resumes(site, state)
    # Everything else plans as if it had been said: what is turned back makes its room.
    for row in goes_on:
        state = apply(site, state, f.SwitchResumed(row.switch_id, row.forward))
    values = value(site, state)
    counted = pw.counted_w(site, state)
    power = pw.view(site, state, read=not acts_only)
    acts = ls.decide(site, state, values, power)
    # What follows plans as if the lease acts were done: a lease starts in the pass that takes it.
    state = _after(site, state, acts)
    draft = (changes if acts_only else _money)(site, state, best_value(site, state))
    if acts_only and not acts and not goes_on and is_calm(site, state, power, draft):
        return p.Plan(intents=(), leases=(), records=_records(state, draft), power=power)
    keep_reserve(site, state, draft)
    starts = _admit_starts(site, state, power)
    draft.free |= starts.waiting
    _orders(site, state, draft)
    _recover(site, state, draft)
    draft.steps = draft_steps(site, state, values, draft, ls.held_code(state) != 0)
    wanted = draft.free & (draft.target == MINE)
    lease_acts, lease_intents = _cap(site, state, values, power, counted, draft, starts)
    intents = (
        lease_intents
        + _stop_intents(site, state, values, draft)
        + _groups(site, state, draft)
        + step_intents(site, state, draft)
        if state.owner
        else ()
    )
    return p.Plan(
        intents=intents,
        leases=acts + lease_acts,
        records=_records(state, draft),
        power=power,
        alarms=_alarms(site, state, power),
        feeder_bound=draft.bound,
        allocation=(
            None if acts_only else _allocation(site, state, values, counted, draft, wanted)
        ),
        resumes=goes_on,
    )


def _records(state: SiteState, draft: Draft) -> p.DecisionRecords:
    return p.DecisionRecords(
        state.activity, draft.best, draft.target, draft.gain_usd, draft.cost_usd,
        draft.reason, draft.gates,
        *(() if draft.steps is None else (draft.steps.target, draft.steps.reason)),
    )  # fmt: skip


def _money(site: Site, state: SiteState, values: Values) -> Draft:
    on = state.activity == MINE
    off = (state.activity == IDLE) | (state.activity == CURTAILED)
    runs_or_not, settled, unleased = on | off, state.switch_no < 0, state.lease_no < 0
    gain_h = values.gain_on_usd_per_h
    better = (on & (gain_h < 0.0)) | (~on & (gain_h > 0.0))
    verdict = verdict_of(site, state, values, on)
    stayed = dwelt(site, state, on)
    fresh = values.quality == FRESH
    out_of_use = state.quarantine_ns > state.now_ns
    reachable = state.reachable & ~out_of_use
    free = runs_or_not & reachable & settled & unleased
    pays = verdict.gain_usd > verdict.cost_usd
    change = free & fresh & verdict.change & pays & stayed
    other = choose(on, values.off_code, site.once(_mines))
    best = choose(better & runs_or_not, other, state.activity)
    reason = _first_that_holds((
        ~settled, ~unleased, state.activity == MAINTENANCE, out_of_use,
        ~state.reachable, ~runs_or_not, values.quality == HOLD, ~fresh,
        ~better & ~change, change & verdict.early, change, ~pays, ~stayed, ~verdict.credit,
    ))  # fmt: skip
    gates = np.full(len(site), _RULE_GATES)
    # numpy multiplies bytes faster than it shifts them.
    passed = (fresh, reachable, free, pays, verdict.change, stayed)
    for bit, flags in zip(_GATE_BITS, passed, strict=True):
        gates |= flags.view(np.uint8) * bit
    target = choose(change, other, state.activity)
    draft = Draft(target, reason, gates, verdict.gain_usd, verdict.cost_usd, best, free)
    return safely(site, values, draft)


def _mines(site: Site) -> CodeColumn:
    return np.full(len(site), MINE, dtype=np.uint8)


def _first_that_holds(conditions: tuple[FlagColumn, ...]) -> CodeColumn:
    reason = np.full(len(conditions[0]), NO_REASON)
    for holds, code in zip(reversed(conditions), reversed(_REASON_CODES), strict=True):
        if some(holds):
            reason = choose(holds, code, reason)
    return reason


def _orders(site: Site, state: SiteState, draft: Draft) -> None:
    """Grid order and operator acts come before money; dwell and gain do not bind them."""
    held = ls.held_code(state)
    curtail = state.policy is not None and state.policy.curtail
    if not curtail and not some(held):
        return
    already_off = (state.activity == IDLE) | (state.activity == CURTAILED)
    off_target = np.where(already_off, state.activity, site.once(off_codes))
    for code, target, why in (
        (HOLD_MINE, np.uint8(MINE), R.HELD),
        (HOLD_SERVE, off_target, R.HELD),
        (HOLD_DRAIN, off_target, R.DRAINED),
    ):
        where = draft.free & (held == code)
        np.copyto(draft.target, target, where=where)
        np.copyto(draft.reason, np.uint8(why), where=where)
    if curtail:
        np.copyto(draft.target, off_target, where=draft.free)
        np.copyto(draft.reason, np.uint8(R.CURTAIL_ORDER), where=draft.free)


def _recover(site: Site, state: SiteState, draft: Draft) -> None:
    """Take devices whose quarantine is over back into use: their node wants to be asked.

    A device that is out of use for another reason (lost, too hot) its node takes back by itself; a
    drained one is in somebody's hands.
    """
    over = (state.quarantine_ns > 0) & (state.quarantine_ns <= state.now_ns)
    if not some(over):
        return
    where = (
        (state.activity == FAULT)
        & over
        & state.reachable
        & (site.node_of >= 0)
        & (state.switch_no < 0)
        & (state.lease_no < 0)
        & (state.now_ns - state.failed_ns >= ls.RETRY_S * NS_PER_S)
        & (ls.held_code(state) != HOLD_DRAIN)
    )
    draft.free |= where
    np.copyto(draft.target, np.uint8(IDLE), where=where)
    np.copyto(draft.reason, np.uint8(R.QUARANTINE_OVER), where=where)


class _Starts(Struct, frozen=True, eq=False):
    """Lease starts that may go now.

    Args:
        left_w, ramp_left_w: room under the cap and in the ramp behind them. missing_w: what the
            others lack under the cap. rooms_w, lacking_w: the same by feeder.
        waiting: devices that mine while a lease holds them that does not start now.
    """

    fits: tuple[ls.Start, ...]
    left_w: float
    ramp_left_w: float
    rooms_w: FloatColumn
    lacking_w: FloatColumn
    waiting: FlagColumn
    missing_w: float = 0.0


def _admit_starts(site: Site, state: SiteState, power: p.PowerView) -> _Starts:
    """Split lease starts into those that fit under the cap and the ramp; the others wait.

    What does not fit under the cap needs load shed first. What does not fit in the ramp waits, and
    holds up what comes behind it; a full bucket lets through even a start that is larger.
    """
    left, missing, ramp = power.headroom_w, 0.0, state.ramp_left_w
    fits: list[ls.Start] = []
    starts = ls.starts(site, state)
    now = pw.counted_w(site, state)
    rooms = fd.rooms_w(site, now) if site.feeders else fd.NONE
    lacking = np.zeros(len(site.feeders))
    if not starts:
        return _Starts((), left, ramp, rooms, lacking, _waiting(state, ()))
    after = pw.counted_after_w(site, state, SERVE)
    filled = ramp >= pw.ramp_bucket_w(site)
    for start in starts:
        at = start.indices
        rise = after[at] - now[at]
        need, each = pw.total(rise), fd.need_w(site, at, rise)
        up = pw.total(pw.ramp_rise_w(site, state, at, state.activity[at], SERVE))
        full = each > np.maximum(rooms, 0.0)
        lacking += np.where(full, each, 0.0)
        # A start that raises nothing may go even with the load above the cap.
        if need > max(left, 0.0):
            missing += need
        elif some(full):
            continue
        elif up > 0.0 and up > ramp and not filled:
            ramp = 0.0
        else:
            fits.append(start)
            left -= need
            rooms = rooms - each
            ramp -= up
            filled = filled and up == 0.0
    missing = max(missing - max(left, 0.0), 0.0) if missing else 0.0
    lacking = np.where(lacking > 0.0, np.maximum(lacking - np.maximum(rooms, 0.0), 0.0), 0.0)
    waiting = _waiting(state, tuple(fits))
    return _Starts(tuple(fits), left, ramp, rooms, lacking, waiting, missing)


def _waiting(state: SiteState, fits: tuple[ls.Start, ...]) -> FlagColumn:
    """Tell which devices mine while a lease holds them that does not start now.

    Money leaves them alone; orders and the cap do not.
    """
    leased = state.lease_no >= 0
    if not some(leased):
        return leased
    out: FlagColumn = (
        (state.activity == MINE)
        & leased
        & (state.switch_no < 0)
        & state.reachable
        & (state.quarantine_ns <= state.now_ns)
    )
    for start in fits:
        out[start.indices] = False
    return out


def _cap(
    site: Site,
    state: SiteState,
    values: Values,
    power: p.PowerView,
    counted: FloatColumn,
    draft: Draft,
    starts: _Starts,
) -> tuple[tuple[p.LeaseAct, ...], tuple[p.Intent, ...]]:
    missing = starts.missing_w
    room = Room(
        counted,
        values,
        left_w=starts.left_w,
        ramp_left_w=starts.ramp_left_w,
        rooms_w=np.where(starts.lacking_w > 0.0, 0.0, starts.rooms_w) if site.feeders else fd.NONE,
        rises=rises(site, state),
    )
    ends: tuple[p.LeaseAct, ...] = ()
    if site.feeders:
        # What a feeder sheds the site need not shed again.
        ends = shed_feeders(site, state, draft, room, starts.lacking_w, starts.waiting)
    over_w = max(pw.to_shed_w(site, state, power), 0.0)
    need_w = max(over_w, missing - pw.going_down_w(site, state)) if missing else over_w
    excess = shed_for_cap(site, state, draft, room, Excess(need_w, over_w), starts.waiting)
    ask = need(site, state)
    if ask is not None:
        excess = max(excess, shed_for_order(site, state, draft, room, ask))
    if excess > 0.0:
        ends += shed_leases(site, state, counted, excess, ends)
    room = _let_down(site, state, draft, room)
    left = admit(site, state, draft, replace(room, left_w=0.0) if missing else room)
    if site.steps is not None and room.rises and need_w <= 0.0 and _has_room(starts):
        trade(site, state, draft, counted, values, left)
    return ends, tuple(_start_intent(site, state, start) for start in starts.fits)


def _has_room(starts: _Starts) -> bool:
    """Tell whether no feeder is over, and no lease lacks room: what load must leave is not free."""
    return not some(starts.rooms_w < 0.0) and not some(starts.lacking_w > 0.0)


def _let_down(site: Site, state: SiteState, draft: Draft, room: Room) -> Room:
    """Let steps go ahead of a grid order, while there is time for them; gives the room then.

    When the order binds, what is still above it is switched off as without power modes.
    """
    limit_w = coming_limit_w(site, state) if site.steps is not None else None
    if limit_w is None:
        return room
    load_w = pw.total(room.counted)
    need_w = load_w - limit_w - pw.going_down_w(site, state)
    if need_w > 0.0:
        shed_mining(site, state, draft, room, need_w, R.GRID_ORDER)
    return replace(room, left_w=min(room.left_w, limit_w - load_w), rises=False)


def _allocation(
    site: Site,
    state: SiteState,
    values: Values,
    counted: FloatColumn,
    draft: Draft,
    wanted: FlagColumn,
) -> p.AllocationView | None:
    """Compare what mines by this plan with the linear programme; what ramps up later is not asked.

    All else counts as it stands, and a wake-up as while it is open.
    """
    asked, mines = wanted & (draft.reason != _RAMP), draft.target == MINE
    earned = np.maximum(values.gain_on_usd_per_h, 0.0)
    worth = pw.total(np.where(asked & mines, earned, 0.0))
    if np.isnan(worth):
        return None
    # Where all run that should, no programme does better.
    kept = not some(asked & ~mines)
    if kept and not any(row.modes and not row.set_modes for row in site.classes):
        return p.AllocationView(worth, worth)
    at = np.flatnonzero(asked)
    usd, drawn = earned[at], counted[at]
    if some(state.activity[at] != MINE):
        woken = pw.counted_after_w(site, state, MINE)[at]
        drawn = np.where(state.activity[at] == MINE, drawn, woken)
    rise = np.maximum(drawn - site.once(off_site_w)[at], 0.0)
    room_w = pw.cap_w(site, state) - (pw.total(counted) - pw.total(counted[at]))
    room_w = max(room_w - pw.total(drawn - rise), 0.0)
    miners = site.is_asic[at]
    miners_w = room_w - pw.total(rise[~miners])
    return p.AllocationView(
        worth,
        worth if kept else relaxed_usd(rise, usd, room_w),
        advise(site, state, values, at[miners], max(miners_w, 0.0)),
    )


def _start_intent(site: Site, state: SiteState, start: ls.Start) -> p.Intent:
    first = int(start.indices[0])
    return p.Intent(
        class_index=int(site.class_of[first]),
        indices=start.indices,
        from_activity=ACTIVITY_CODES[int(state.activity[first])],
        to_activity=ACTIVITY_CODES[SERVE],
        reason=R.LEASE,
        lease_id=start.lease_id,
    )


def _stop_intents(
    site: Site, state: SiteState, values: Values, draft: Draft
) -> tuple[p.Intent, ...]:
    out: list[p.Intent] = []
    held = ls.held_code(state)
    curtail = state.policy is not None and state.policy.curtail
    curtail = curtail or limit_w(site, state) is not None
    for stop in ls.stops(site, state):
        first = int(stop.indices[0])
        entry = lease_by_id(state, stop.lease_id)
        mines = (
            not curtail
            and not _is_kept(site, draft, stop.indices)
            and every(values.gain_on_usd_per_h[stop.indices] > 0.0)
            and every(values.quality[stop.indices] == FRESH)
            and every((held[stop.indices] == 0) | (held[stop.indices] == HOLD_MINE))
            # Devices promised to another lease go idle: mining would only be stopped again.
            and entry is not None
            and every(state.lease_no[stop.indices] == entry.no)
            and not entry.detail.startswith(p.POWER_CAP)
        )
        to = MINE if mines else IDLE
        draft.target[stop.indices] = to
        draft.reason[stop.indices] = R.LEASE_END
        out.append(
            p.Intent(
                class_index=int(site.class_of[first]),
                indices=stop.indices,
                from_activity=ACTIVITY_CODES[SERVE],
                to_activity=ACTIVITY_CODES[to],
                reason=R.LEASE_END,
                lease_id=stop.lease_id,
            )
        )
    return tuple(out)


def _is_kept(site: Site, draft: Draft, at: IntColumn) -> bool:
    """Tell whether the reserve lacks those whose lease ends, and count them in: they are warm."""
    place = int(site.class_of[at[0]])
    if draft.lacks is None or draft.lacks[place] < len(at):
        return False
    draft.lacks[place] -= len(at)
    return True


def _groups(site: Site, state: SiteState, draft: Draft) -> tuple[p.Intent, ...]:
    changing: IntColumn = np.flatnonzero(draft.free & (draft.target != state.activity))
    if not len(changing):
        return ()
    codes = (
        (site.class_of[changing], len(site.classes)),
        (state.activity[changing], len(ACTIVITY_CODES)),
        (draft.target[changing], len(ACTIVITY_CODES)),
        (draft.reason[changing], CODES),
    )
    out: list[p.Intent] = []
    for (place, origin, target, reason), at in split(changing, *codes):
        gain, cost = pw.total(draft.gain_usd[at]), pw.total(draft.cost_usd[at])
        out.append(
            p.Intent(
                class_index=place,
                indices=at,
                from_activity=ACTIVITY_CODES[origin],
                to_activity=ACTIVITY_CODES[target],
                reason=R(reason),
                gain_usd=None if np.isnan(gain) else gain,
                cost_usd=None if np.isnan(cost) else cost,
            )
        )
    # What goes down comes first: it makes room.
    return tuple(sorted(out, key=lambda row: row.to_activity == ACTIVITY_CODES[MINE]))


def _alarms(site: Site, state: SiteState, power: p.PowerView) -> tuple[tuple[str, str], ...]:
    waited_ns = state.now_ns - state.over_cap_ns
    late_ns = 4 * int(site.limits.shed_after_s * NS_PER_S)
    out = tuple(("grid_order_missed", missed_text(row)) for row in state.orders if is_missed(row))
    if state.over_cap_ns < 0 or waited_ns < late_ns:
        return out[:1]
    detail = f"counted {power.counted_w:.0f} W above the cap {power.cap_w:.0f} W"
    if power.counted_w <= power.cap_w:
        detail = fd.over_text(site, state) or detail
    return (("power_over_cap", detail), *out[:1])


def _after(site: Site, state: SiteState, acts: tuple[p.LeaseAct, ...]) -> SiteState:
    for act in acts:
        for fact in _facts_of(act):
            state = apply(site, state, fact)
    return state


def _facts_of(act: p.LeaseAct) -> tuple[f.Fact, ...]:
    match act:
        case p.TakeLease(lease_id, scores):
            return (f.LeaseTaken(lease_id, tuple(score.device_id for score in scores)),)
        case p.RefuseLease(lease_id, _):
            return (f.LeaseClosed(lease_id, refused=True, final_usage_seq=0),)
        case p.EndLease(lease_id, outcome, detail):
            return (f.LeaseEnding(lease_id, outcome, detail),)
        case p.CloseLease(lease_id):
            return (f.LeaseClosed(lease_id, refused=False, final_usage_seq=0),)
        case p.ReplaceDevice(lease_id, old, new):
            return (f.LeaseReplaced(lease_id, old, new),)
