"""The power rule: what each device counts for, the cap, the ramp, and who is shed first.

A device counts for the largest of its last reading, the nameplate of its mode and, while a switch
is open, both sides of it with inrush; unknown, faulty or unreachable counts as its highest
nameplate. Where the agent sets power modes, mining counts as the confirmed step (an unknown one as
the highest), and as both steps while a change is open. It counts for less only once that is
confirmed: a switch that closed, and a lower reading. One that is asked to hold an engine ready
counts as what it will enter until that engine was seen to be ready, and paused. All sums are in
site watts (device watts x PUE), in index order, so that they repeat bit for bit.
"""

from functools import lru_cache
from operator import attrgetter

import numpy as np

from edge_agent.core.columns import every, kept, some, step_place
from edge_agent.core.order_facts import limit_w
from edge_agent.core.plan import PowerView
from edge_agent.core.site import (
    CODE_OF,
    CURTAILED,
    FAULT,
    IDLE,
    MINE,
    NS_PER_S,
    SERVE,
    SWITCHING,
    UNKNOWN,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import SiteState, is_off, mode_of

# Refill below the ramp, so that bucket and refill together stay within one minute's ramp.
BUCKET_S = 6.0
# A reading so little above a step is of the step: the noise of the sensors.
READ_SLACK = 1.03
_INRUSH_W = attrgetter("model.inrush_w")


# A pass asks several times for the count of one state: once for two sites in one process.
@lru_cache(maxsize=8)
def counted_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device counts for against the cap, in site watts."""
    count = mode_plate_w(site, state)
    open_now = state.activity == SWITCHING
    if some(open_now):
        sides = sides_w(site, state)
        switching = np.where(_wakes(state), np.maximum(sides, inrush_w(site)), sides)
        count = np.where(open_now, switching, count)
    if busy := preparing_w(site, state):
        count = count.copy()
        for at, plate in busy:
            count[at] = max(count[at], plate)
    unsure = ~state.reachable | (state.activity == UNKNOWN) | (state.activity == FAULT)
    if some(unsure):
        count = np.where(unsure, np.maximum(site.once(highest_w), count), count)
    # A reading that is not known is none.
    out: FloatColumn = np.fmax(count, state.power_w) * site.pue
    out.flags.writeable = False
    return out


# A pass asks several times for the count of one state: once for two sites in one process.
@lru_cache(maxsize=8)
def counted_total_w(site: Site, state: SiteState) -> float:
    """Give the sum of what the devices count for, in site watts."""
    return total(counted_w(site, state))


def mode_plate_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device counts for in its mode, in device watts, before any reading."""
    return _plate_w(site, mode_of(state), state.step, state.step_to)


def preparing_w(site: Site, state: SiteState) -> list[tuple[int, float]]:
    """Give what each device that makes an engine ready may draw meanwhile, in device watts."""
    busy = [row for row in state.prepares if row.draws]
    found = [(site.index_of(row.device_id), CODE_OF[row.enters]) for row in busy]
    return [
        (at, float(site.nameplate_w[site.class_of[at], code]))
        for at, code in found
        if at is not None
    ]


def counted_after_w(site: Site, state: SiteState, target: int) -> FloatColumn:
    """Give what each device would count for while a switch to ``target`` is open."""
    sides = np.maximum(
        plate_w(site, state, state.origin), plate_w(site, state, _all_in(site, target))
    )
    if target in (MINE, SERVE):
        off = (state.activity == CURTAILED) | (state.activity == IDLE)
        sides = np.where(off, np.maximum(sides, inrush_w(site)), sides)
    out: FloatColumn = np.maximum(sides * site.pue, counted_w(site, state))
    return out


@lru_cache(maxsize=8)
def _all_in(site: Site, activity: int) -> CodeColumn:
    return np.full(len(site), activity, dtype=np.uint8)


def plate_w(site: Site, state: SiteState, code: CodeColumn) -> FloatColumn:
    """Give what each device counts for in an activity, in device watts, before any reading."""
    return _plate_w(site, code, state.step, state.step_to)


@kept
def _plate_w(site: Site, code: CodeColumn, step: CodeColumn, step_to: CodeColumn) -> FloatColumn:
    watts = site.activity_w(code)
    if site.steps is not None:
        np.copyto(watts, _mining_w(site, step, step_to), where=code == MINE)
    return watts


def sides_w(site: Site, state: SiteState) -> FloatColumn:
    """Give the larger side of each device's switch in device watts, inrush not counted."""
    return np.maximum(plate_w(site, state, state.origin), plate_w(site, state, state.target))


def step_w(site: Site, step: CodeColumn) -> FloatColumn:
    """Give what each device draws at most in a step, in site watts.

    Args:
        step: of each device; 0 is unknown and counts as the highest.
    """
    out: FloatColumn = step_device_w(site, step) * site.pue
    return out


@kept
def step_device_w(site: Site, step: CodeColumn) -> FloatColumn:
    """Give what each device draws at most in a step, in device watts; as ``step_w``."""
    assert site.steps is not None, "asked only where the agent sets modes"
    out: FloatColumn = site.steps.power_w.ravel().take(step_place(site, step), mode="clip")
    return out


def mining_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device counts for while it mines, in device watts, before any reading."""
    return _mining_w(site, state.step, state.step_to)


@kept
def _mining_w(site: Site, step: CodeColumn, step_to: CodeColumn) -> FloatColumn:
    if site.steps is None:
        return site.once(_mine_plate_w)
    out = step_device_w(site, step)
    if step_to is not step and some(step_to != step):
        out = np.maximum(out, step_device_w(site, step_to))
    return out


def _mine_plate_w(site: Site) -> FloatColumn:
    out: FloatColumn = site.nameplate_w[site.class_of, MINE]
    return out


def inrush_w(site: Site) -> FloatColumn:
    """Give the inrush of each device in device watts."""
    return site.column(_INRUSH_W)


def total(column: FloatColumn) -> float:
    """Sum in index order; np.sum's pairwise order depends on the length and the machine."""
    return float(np.add.accumulate(column)[-1]) if len(column) else 0.0


def measured_w(site: Site, state: SiteState) -> float | None:
    """Give the sum of readings in site watts; None while no device has been read.

    A reachable device whose firmware gives no power stands in it with the nameplate of its mode.
    """
    known = state.reachable & ~np.isnan(state.power_w)
    if not some(known):
        return None
    watts = state.power_w
    if not every(known):
        mode = np.where(state.reachable, mode_plate_w(site, state), 0.0)
        watts = np.where(known, watts, mode)
    return total(watts * site.pue)


def read_w(site: Site, state: SiteState) -> float:
    """Give the sum of true readings only: a lower bound of the load."""
    known = truly_read(site, state)
    return total(np.where(known, np.where(known, state.power_w, 0.0) * site.pue, 0.0))


def truly_read(site: Site, state: SiteState) -> FlagColumn:
    """Tell whose power was read after its last change: an older reading says nothing about now."""
    since_ns = state.mode_since_ns
    if site.steps is not None:
        since_ns = np.maximum(since_ns, state.step_since_ns)
    out: FlagColumn = state.reachable & ~np.isnan(state.power_w) & (state.read_ns >= since_ns)
    return out


def cap_w(site: Site, state: SiteState) -> float:
    """Give the cap in force; the hub's policy may only tighten the local one."""
    local = site.limits.power_cap_w
    policy = state.policy
    if policy is None or policy.power_cap_w is None:
        return local
    return min(local, policy.power_cap_w)


def ramp_bucket_w(site: Site) -> float:
    """Give the wake-up watts that may be spent at once: always enough for one device."""
    largest = max((row.model.inrush_w * row.pue for row in site.classes), default=0.0)
    return max(site.limits.ramp_w_per_s * BUCKET_S, largest)


def refill_ramp(site: Site, state: SiteState, dt_s: float) -> float:
    """Give the wake-up watts left after ``dt_s`` more seconds."""
    rate = site.limits.ramp_w_per_s
    bucket = ramp_bucket_w(site)
    refill = max(rate - bucket / 60.0, rate * 0.1)
    return min(bucket, state.ramp_left_w + refill * dt_s)


def ramp_rise_w(
    site: Site, state: SiteState, at: IntColumn, origin: CodeColumn, target: int
) -> FloatColumn:
    """Give the site watts by which a change raises the load of devices that are off; else 0."""
    classes = site.class_of[at]
    after_w = site.nameplate_w[classes, target]
    if site.steps is not None and target == MINE:
        after_w = mining_w(site, state)[at]
    rise = (after_w - site.nameplate_w[classes, origin]) * site.pue[at]
    out: FloatColumn = np.where(is_off(origin), np.maximum(rise, 0.0), 0.0)
    return out


def view(site: Site, state: SiteState, *, read: bool = True) -> PowerView:
    """Sum the site's power; what is free ends at the cap or, tighter, at a grid order's limit.

    Args:
        read: sum the readings too.
    """
    load = counted_total_w(site, state)
    cap = cap_w(site, state)
    ordered = limit_w(site, state)
    free = cap - load if ordered is None else min(cap, ordered) - load
    measured = measured_w(site, state) if read else None
    return PowerView(cap, load, measured, free, state.ramp_left_w)


def over_cap_since(site: Site, state: SiteState) -> int:
    """Give since when the counted load stands above the cap (boottime ns); -1 when it does not."""
    if counted_total_w(site, state) <= cap_w(site, state):
        return -1
    return state.now_ns if state.over_cap_ns < 0 else state.over_cap_ns


def to_shed_w(site: Site, state: SiteState, power: PowerView) -> float:
    """Give how many site watts must go now, beyond what open switches already bring down.

    True readings above the cap shed at once; a counted load above it has ``shed_after_s`` to be
    confirmed lower, unless a step is going up: what that will draw no reading can know yet.
    """
    excess = power.counted_w - power.cap_w
    if excess <= 0.0:
        return 0.0
    waited = state.over_cap_ns >= 0 and state.now_ns - state.over_cap_ns >= int(
        site.limits.shed_after_s * NS_PER_S
    )
    below = read_w(site, state) <= power.cap_w
    if below and not waited and not some(stepping_up(site, state)):
        return 0.0
    return max(excess - going_down_w(site, state), 0.0)


def going_down_w(site: Site, state: SiteState) -> float:
    """Give the site watts that open switches will free when they are confirmed."""
    return total(going_down_each_w(site, state))


def going_down_each_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device's open switch will free when it is confirmed, in site watts."""
    counted = counted_w(site, state)
    after = site.activity_w(state.target) * site.pue
    down = np.where(state.activity == SWITCHING, counted - after, 0.0)
    if site.steps is not None:
        stepping = stepping_down(site, state)
        down = np.where(stepping, counted - step_w(site, state.step_to), down)
    back = turning_back(site, state)
    if back.any():
        down = np.where(back, counted - before_w(site, state), down)
    out: FloatColumn = np.maximum(down, 0.0)
    return out


def stepping_down(site: Site, state: SiteState) -> FlagColumn:
    """Tell which devices a change of step still brings down.

    One that does not read lower ``shed_after_s`` after the change began is not waited for: what it
    should have freed is freed by others, or by turning it off.
    """
    if not some(state.step_to != state.step):
        return np.zeros(len(site), dtype=np.bool_)
    lower, before = step_device_w(site, state.step_to), step_device_w(site, state.step)
    open_down = (state.step_to != state.step) & (state.switch_no >= 0) & (lower < before)
    young = state.now_ns - state.step_since_ns <= int(site.limits.shed_after_s * NS_PER_S)
    read = (state.read_ns > state.step_since_ns) & (state.power_w <= lower * READ_SLACK)
    out: FlagColumn = open_down & state.reachable & (young | read)
    return out


def stepping_up(site: Site, state: SiteState) -> FlagColumn:
    """Tell which devices an open change of step brings up.

    One is begun only where it fits; an agent that is given a lower cap may find that it does not.
    One of a former life does not go up before it is known to fit (``resuming``).
    """
    if site.steps is None or not some(state.step_to != state.step):
        return np.zeros(len(site), dtype=np.bool_)
    after, before = step_device_w(site, state.step_to), step_device_w(site, state.step)
    out: FlagColumn = (state.step_to != state.step) & (state.switch_no >= 0) & (after > before)
    if state.held:
        out &= ~np.isin(state.switch_no, [row.no for row in state.held])
    return out


def turning_back(site: Site, state: SiteState) -> FlagColumn:
    """Tell which devices a switch of a former life is being undone on; not waited for too long."""
    young_ns = int(site.limits.shed_after_s * NS_PER_S)
    nos = [row.no for row in state.held if row.back and state.now_ns - row.since_ns <= young_ns]
    if not nos:
        return np.zeros(len(site), dtype=np.bool_)
    out: FlagColumn = np.isin(state.switch_no, nos) & state.reachable
    return out


def before_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device counts for once its open switch is undone, in site watts."""
    out: FloatColumn = plate_w(site, state, state.origin) * site.pue
    if site.steps is None:
        return out
    return np.where(state.step_to != state.step, step_w(site, state.step), out)


def highest_w(site: Site) -> FloatColumn:
    """Give what each device counts for while nothing is known of it, in device watts."""
    out: FloatColumn = site.nameplate_w[site.class_of, UNKNOWN]
    return out


def _wakes(state: SiteState) -> FlagColumn:
    off = (state.origin == CURTAILED) | (state.origin == IDLE)
    on = (state.target == MINE) | (state.target == SERVE)
    out: FlagColumn = off & on
    return out
