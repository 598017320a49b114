"""Grid orders: what the site is confirmed to draw, what must go for them, and what became of each.

An order binds ``lead_s`` before its deadline: the time in which 99 % of the devices go down, twice,
so that a second wave can replace the late ones of the first. Mining goes first, the least earning
first, then leases P4..P1. A device that is late counts as drawing, and another one goes for it.
With less notice than two waves the first one is larger, so that the load is under the limit with
99 % in spite of late devices. Nothing wakes while an order binds.
"""

from functools import lru_cache

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import power as pw
from edge_agent.core.columns import some
from edge_agent.core.order_facts import WAVES, binding, lead_s, slowest_s, wall_ms
from edge_agent.core.response import (
    Z_99,
    down_w,
    going_off,
    groups,
    quantile_s,
    response_of,
    share_after,
)
from edge_agent.core.site import (
    CURTAILED,
    FAULT,
    IDLE,
    MINE,
    NS_PER_S,
    SERVE,
    UNKNOWN,
    FlagColumn,
    FloatColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import OrderEntry, OrderSample, OrderStatus, SiteState
from edge_agent.core.sure import sure_w

SAMPLES_MAX = 96
_SAMPLE_MS = 5_000
_SAMPLES_A_SPAN = 64


class Need(Struct, frozen=True, eq=False):
    """What binding orders ask of this pass.

    Args:
        limit_w: the tightest. load_w: confirmed. horizon_s: until the first deadline, or the time
            of one wave if that is later. sure: no time for a second wave.
    """

    limit_w: float
    load_w: float
    horizon_s: float
    sure: bool


# A pass asks several times about one state: once for two sites in one process.
@lru_cache(maxsize=4)
def load_w(site: Site, state: SiteState) -> FloatColumn:
    """Give what each device is confirmed to draw at most, in site watts.

    As ``power.counted_w``, but one that goes off counts by a reading that shows it down already: a
    late device of the same switch must not hide those that went.
    """
    counted = pw.counted_w(site, state)
    at = np.flatnonzero(going_off(state) & state.reachable & (state.read_ns > state.since_ns))
    at = at[state.power_w[at] <= down_w(site, state, at)]
    if not len(at):
        return counted
    off_w = site.nameplate_w[site.class_of[at], state.target[at]]
    out: FloatColumn = counted.copy()
    out[at] = np.maximum(off_w, state.power_w[at]) * site.pue[at]
    out.flags.writeable = False
    return out


def need(site: Site, state: SiteState) -> Need | None:
    """Give what binding orders ask for; None when none binds."""
    rows = binding(site, state)
    if not rows:
        return None
    limit = min(row.order.limit_w for row in rows)
    wave_s = slowest_s(site, state)
    due_ms = min(row.order.due_ms for row in rows if row.order.limit_w == limit)
    left_s = (due_ms - wall_ms(state)) / 1_000
    load = pw.total(load_w(site, state))
    return Need(limit, load, max(left_s, wave_s), 0.0 < left_s < WAVES * wave_s)


def shed(
    site: Site,
    state: SiteState,
    ask: Need,
    leaving: FlagColumn,
    candidates: IntColumn,
) -> tuple[IntColumn, float]:
    """Give which candidates must go, and the site watts that are missing even then.

    Args:
        leaving: devices that go off in this pass anyway. candidates: in the order to go.
    """
    load = load_w(site, state)
    off = np.where(site.is_asic, CURTAILED, IDLE)
    freed = np.maximum(load - site.nameplate_w[site.class_of, off] * site.pue, 0.0)
    share = _share(site, state, ask)
    spread = share * (1.0 - share) * freed * freed if ask.sure else np.zeros(len(freed))
    # Leases that end already are counted where leases are shed.
    going = (going_off(state) | _settling(state)) & (state.lease_no < 0)
    fixed = np.where(leaving | going, 1.0, 0.0)
    mean = pw.total(fixed * share * freed)
    variance = pw.total(fixed * spread)
    wanted = ask.load_w - ask.limit_w
    if _certain(np.array([mean]), np.array([variance]))[0] >= wanted:
        return candidates[:0], 0.0
    means = mean + np.add.accumulate((share * freed)[candidates])
    variances = variance + np.add.accumulate(spread[candidates])
    enough = np.flatnonzero(_certain(means, variances) >= wanted)
    if len(enough):
        return candidates[: int(enough[0]) + 1], 0.0
    reached = means[-1] if len(means) else mean
    return candidates, max(wanted - float(reached), 0.0)


def _settling(state: SiteState) -> FlagColumn:
    """Tell which devices their switch has shown off, and no reading yet: nothing goes for them."""
    off = (state.activity == CURTAILED) | (state.activity == IDLE)
    out: FlagColumn = off & state.reachable & (state.read_ns <= state.since_ns)
    return out


def _certain(mean: FloatColumn, variance: FloatColumn) -> FloatColumn:
    out: FloatColumn = mean - Z_99 * np.sqrt(variance)
    return out


def _share(site: Site, state: SiteState, ask: Need) -> FloatColumn:
    """Give the part of each device's load that is expected to be gone by the horizon.

    Where a second wave will come, a device counts in full until it is late.
    """
    keys, of_device = groups(site)
    off = going_off(state)
    age_s = (state.now_ns - state.since_ns) / NS_PER_S
    out = np.ones(len(site))
    for at, key in enumerate(keys):
        row = response_of(site, state, key)
        mine = of_device == at
        late_s = quantile_s(row, 0.99)
        out[mine & off & (age_s > late_s)] = 0.0
        if not ask.sure:
            continue
        out[mine & (state.activity == MINE)] = share_after(row, 0.0, ask.horizon_s)
        for age in np.unique(age_s[mine & off & (age_s <= late_s)]).tolist():
            out[mine & off & (age_s == age)] = share_after(row, age, ask.horizon_s)
    return out


def follow(site: Site, state: SiteState) -> SiteState:
    """Give the state with the record of each open order brought up to the row."""
    if not any(row.open for row in state.orders):
        return state
    bound = {row.order.order_id for row in binding(site, state)}
    load = pw.total(load_w(site, state))
    return replace(
        state,
        orders=tuple(
            _follow(site, state, row, load, binds=row.order.order_id in bound) if row.open else row
            for row in state.orders
        ),
    )


def _follow(
    site: Site, state: SiteState, row: OrderEntry, load: float, *, binds: bool
) -> OrderEntry:
    now_ms, order = wall_ms(state), row.order
    if row.promised_w < 0.0:
        row = replace(row, promised_w=_promise(site, state, row, load))
    if now_ms >= order.until_ms:
        met = row.missed_ms < 0 and row.last_ms >= order.due_ms
        # Nobody looked between deadline and end: the agent was down, and nothing is proven.
        why = row.why or ("" if met else "the agent was down from deadline to end")
        status = OrderStatus.MET if met else OrderStatus.MISSED
        return replace(row, status=status, end_ms=now_ms, why=why)
    if not binds:
        return row
    over_w = load - order.limit_w
    row = _sampled(replace(row, shed_ms=now_ms) if row.shed_ms < 0 else row, now_ms, load)
    row = replace(row, reached_ms=_reached(row, now_ms, over_w))
    if now_ms < order.due_ms:
        status = OrderStatus.SHEDDING if over_w > 0.0 else OrderStatus.HOLDING
        return replace(row, status=status, last_ms=now_ms)
    since_ms = max(row.last_ms, order.due_ms)
    if over_w > 0.0:
        # What was seen above the limit now was most likely so since the row before.
        over_s = row.over_s + max(now_ms - since_ms, 0) / 1_000
        why = row.why or _why(site, state, row, over_w)
        missed_ms = now_ms if row.missed_ms < 0 else row.missed_ms
        row = replace(
            row, over_s=over_s, why=why, missed_ms=missed_ms, worst_w=max(row.worst_w, over_w)
        )
    status = OrderStatus.MISSED if row.missed_ms >= 0 else OrderStatus.HOLDING
    return replace(row, status=status, last_ms=now_ms)


def _promise(site: Site, state: SiteState, row: OrderEntry, load: float) -> float:
    """Give the load that mining and leases together can be brought down to by the deadline."""
    may = ((state.activity == MINE) | (state.activity == SERVE)) & state.reachable
    off = np.where(site.is_asic, CURTAILED, IDLE)
    freed = load_w(site, state) - site.nameplate_w[site.class_of, off] * site.pue
    notice_s = max((row.order.due_ms - row.issued_ms) / 1_000, 0.0)
    surely = sure_w(site, state, may, np.maximum(freed, 0.0), notice_s)
    return max(row.order.limit_w, load - surely)


def _reached(row: OrderEntry, now_ms: int, over_w: float) -> int:
    if over_w > 0.0:
        return -1
    return now_ms if row.reached_ms < 0 else row.reached_ms


def _sampled(row: OrderEntry, now_ms: int, load: float) -> OrderEntry:
    """Keep the load over time, at a spacing that fits the order's span."""
    span_ms = row.order.until_ms - row.shed_ms
    spacing = max(span_ms // _SAMPLES_A_SPAN, _SAMPLE_MS)
    crossed = bool(row.samples) and (
        (row.samples[-1].load_w > row.order.limit_w) != (load > row.order.limit_w)
    )
    if row.samples and now_ms - row.samples[-1].at_ms < spacing and not crossed:
        return row
    if len(row.samples) >= SAMPLES_MAX:
        return row
    return replace(row, samples=(*row.samples, OrderSample(now_ms, load)))


def _why(site: Site, state: SiteState, row: OrderEntry, over_w: float) -> str:
    """Say why an order is missed: what no notice could help, then the notice, then the rest."""
    load = load_w(site, state)
    off = np.where(site.is_asic, CURTAILED, IDLE)
    floor = np.minimum(load, site.nameplate_w[site.class_of, off] * site.pue)
    stuck = ~state.reachable | (state.activity == UNKNOWN) | (state.activity == FAULT)
    least = pw.total(np.where(stuck, load, floor))
    if least > row.order.limit_w:
        count, watts = int(stuck.sum()), pw.total(np.where(stuck, load, 0.0))
        return (
            f"no less than {least / 1e6:.3f} MW can be reached; {count} devices that are silent, "
            f"faulty or unknown count {watts / 1e6:.3f} MW of it"
        )
    slow_s, notice_s = slowest_s(site, state), (row.order.due_ms - row.issued_ms) / 1_000
    if notice_s < lead_s(site, state):
        short = f"told {max(notice_s, 0.0):.0f} s before the deadline"
        return f"{short}; 99 % of the devices go down within {slow_s:.0f} s"
    late = going_off(state) & (load > floor)
    if some(late):
        return f"{int(late.sum())} devices told to go off are not confirmed down"
    return f"the load stood {over_w / 1e6:.3f} MW above it"
