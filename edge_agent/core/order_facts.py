"""Grid orders in the state: taken, taken back, binding, and what is off because of one."""

from functools import lru_cache

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.response import groups, quantile_s, response_of
from edge_agent.core.site import MINE, NS_PER_S, SERVE, FlagColumn, Site
from edge_agent.core.site_state import OrderEntry, OrderStatus, SiteState, mode_of
from protocol.units import to_ms

OPEN_MAX = 64
KEPT_MAX = 128
# Two passes, the commit, and the reading that confirms.
MARGIN_S = 15.0
# Before an order binds, for changes of power mode and the readings that confirm them.
STEP_AHEAD_S = 90.0
# First wave, and a second one for the devices of it that are late.
WAVES = 2.0
SHARE = 0.99
_RESTORE_MS = 3_600_000
# A switch that an order opened may close after its end.
_LATE_MS = 180_000


def wall_ms(state: SiteState) -> int:
    """Give the wall time of the last row."""
    return to_ms(state.instant.wall)


def order_seen(state: SiteState, order: f.GridOrder) -> SiteState:
    """Give the state with an order; one with a known id, or one too many, changes nothing."""
    known = any(row.order.order_id == order.order_id for row in state.orders)
    if known or sum(row.open for row in state.orders) >= OPEN_MAX:
        return state
    closed = [row for row in state.orders if not row.open]
    dropped = {row.order.order_id for row in closed[: max(len(closed) - KEPT_MAX, 0)]}
    kept = tuple(row for row in state.orders if row.order.order_id not in dropped)
    return replace(state, orders=(*kept, OrderEntry(order, wall_ms(state))))


def order_cancelled(state: SiteState, fact: f.OrderCancelled) -> SiteState:
    """Give the state with an open order ended early."""
    now_ms = wall_ms(state)

    def ended(row: OrderEntry) -> OrderEntry:
        if row.order.order_id != fact.order_id or not row.open:
            return row
        # What was missed before stays missed.
        status = OrderStatus.CANCELLED if row.missed_ms < 0 else OrderStatus.MISSED
        return replace(row, status=status, end_ms=now_ms)

    return replace(state, orders=tuple(ended(row) for row in state.orders))


# A pass asks several times about one state: once for two sites in one process.
@lru_cache(maxsize=4)
def slowest_s(site: Site, state: SiteState) -> float:
    """Give the time in which 99 % of the devices that draw power go down, of the slowest group."""
    mode = mode_of(state)
    drawing = (mode == MINE) | (mode == SERVE) | (state.switch_no >= 0)
    keys, of_device = groups(site)
    present = np.flatnonzero(np.bincount(of_device[drawing], minlength=len(keys))).tolist()
    times = [quantile_s(response_of(site, state, keys[at]), SHARE) for at in present]
    return max(times, default=0.0)


def lead_s(site: Site, state: SiteState) -> float:
    """Give how long before its deadline an order begins to bind."""
    return WAVES * slowest_s(site, state) + MARGIN_S


def binding(site: Site, state: SiteState) -> tuple[OrderEntry, ...]:
    """Give the orders that bind now; the tightest of them counts."""
    if not any(row.open for row in state.orders):
        return ()
    now_ms, lead_ms = wall_ms(state), int(lead_s(site, state) * 1_000)
    # Once it sheds it goes on: a lead that was learnt shorter meanwhile wakes nothing again.
    return tuple(
        row
        for row in state.orders
        if row.open
        and now_ms < row.order.until_ms
        and (row.shed_ms >= 0 or now_ms >= row.order.due_ms - lead_ms)
    )


def limit_w(site: Site, state: SiteState) -> float | None:
    """Give the load that orders allow now; None when none binds."""
    return min((row.order.limit_w for row in binding(site, state)), default=None)


def coming_limit_w(site: Site, state: SiteState) -> float | None:
    """Give the load that orders which bind soon will allow; None when none is that near.

    Before an order binds there is time to lower power modes, which is slower than switching off.
    """
    if not any(row.open for row in state.orders):
        return None
    now_ms = wall_ms(state)
    ahead_ms = int((lead_s(site, state) + STEP_AHEAD_S) * 1_000)
    bound = {row.order.order_id for row in binding(site, state)}
    return min(
        (
            row.order.limit_w
            for row in state.orders
            if row.open
            and row.order.order_id not in bound
            and row.order.due_ms - ahead_ms <= now_ms < row.order.until_ms
        ),
        default=None,
    )


def next_ms(site: Site, state: SiteState) -> int | None:
    """Give the next instant at which an order changes what is to be done."""
    now_ms, lead_ms = wall_ms(state), int(lead_s(site, state) * 1_000)
    times = [
        at
        for row in state.orders
        if row.open
        for at in (row.order.due_ms - lead_ms, row.order.due_ms, row.order.until_ms)
        if at > now_ms
    ]
    return min(times, default=None)


def off_by_order(state: SiteState) -> FlagColumn:
    """Tell which devices went off under an order that is over: they need not stay their dwell."""
    out: FlagColumn = np.zeros(len(state.activity), dtype=np.bool_)
    now_ms = wall_ms(state)
    for row in state.orders:
        if row.open or row.shed_ms < 0 or now_ms - row.end_ms > _RESTORE_MS:
            continue
        began_ns = state.now_ns - (now_ms - row.shed_ms) * (NS_PER_S // 1_000)
        ended_ns = state.now_ns - (now_ms - row.end_ms - _LATE_MS) * (NS_PER_S // 1_000)
        out |= (state.mode_since_ns >= began_ns) & (state.mode_since_ns <= ended_ns)
    return out


def under_order(state: SiteState) -> FlagColumn:
    """Tell which devices changed their mode while an order that still stands binds."""
    out: FlagColumn = np.zeros(len(state.activity), dtype=np.bool_)
    now_ms = wall_ms(state)
    for row in state.orders:
        if row.open and row.shed_ms >= 0:
            began_ns = state.now_ns - (now_ms - row.shed_ms) * (NS_PER_S // 1_000)
            out |= state.mode_since_ns >= began_ns
    return out


def is_missed(row: OrderEntry) -> bool:
    """Tell whether an open order is missed already."""
    return row.open and row.missed_ms >= 0


def missed_text(row: OrderEntry) -> str:
    """Say by how much an order is missed, and why."""
    asked = row.order.limit_w / 1e6
    return f"{row.order.order_id}: {row.worst_w / 1e6:.3f} MW above {asked:.3f} MW; {row.why}"
