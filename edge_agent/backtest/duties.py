"""What the grid asks of a site in a back-test: a changing cap, curtailment orders, ramps.

Drawn from a seed. All is known only ``notice`` ahead; the ceiling of an interval is what may be
drawn in it so that the load can still come down in time at the ramp allowed.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.frame import HOUR_S, STEP_S
from edge_agent.config import Duties
from edge_agent.core.site import FlagColumn, FloatColumn

STEP_MIN = STEP_S / 60.0
MONTH_STEPS = 30 * 24 * HOUR_S / STEP_S
# Sums of watts in another order differ by rounding.
ROUNDING_W = 1.0


class Order(Struct, frozen=True, kw_only=True):
    """Curtail to ``to_w`` from ``due`` until ``until``; known from ``issued``; in intervals."""

    issued: int
    due: int
    until: int
    to_w: float


class Duty(Struct, frozen=True, eq=False, kw_only=True):
    """What binds the site's load; in watts at the meter, by interval.

    Args:
        cap_w: the cap. limit_w: the cap and the orders in force. ceiling_w: what may be drawn with
            what is known. rise_w, fall_w: change of load from one interval to the next.
    """

    cap_w: FloatColumn
    limit_w: FloatColumn
    ceiling_w: FloatColumn
    orders: tuple[Order, ...]
    rise_w: float
    fall_w: float


class Broken(Struct, frozen=True, kw_only=True):
    """Intervals in which a course breaks what it was asked."""

    cap: int
    ramp: int
    deadline: int
    feeder: int = 0


def plain(steps: int, cap_w: float) -> Duty:
    """Give a cap that stands, and nothing else."""
    cap = np.full(steps, cap_w)
    return Duty(cap_w=cap, limit_w=cap, ceiling_w=cap, orders=(), rise_w=np.inf, fall_w=np.inf)


def draw(wish: Duties, steps: int, grain_w: float = 0.0) -> Duty:
    """Draw the duties of a span.

    Args:
        grain_w: of one device: loads are whole devices, which the way down leaves room for.
    """
    caps, orders = np.random.default_rng(wish.seed).spawn(2)
    rise_w, fall_w = wish.rise_w_per_min * STEP_MIN, wish.fall_w_per_min * STEP_MIN
    slope_w = fall_w - 2.0 * grain_w
    cap = _caps(wish, steps, slope_w, caps)
    made = _orders(wish, steps, slope_w, orders)
    limit, ceiling = cap.copy(), cap.copy()
    for ahead in range(1, _steps(wish.notice_min) + 1):
        told = np.concatenate((cap[ahead:], np.full(min(ahead, steps), np.inf)))[:steps]
        ceiling = np.minimum(ceiling, told + slope_w * ahead)
    for order in made:
        within = slice(order.due, order.until)
        limit[within] = np.minimum(limit[within], order.to_w)
        ceiling[within] = np.minimum(ceiling[within], order.to_w)
        for at in range(order.issued, min(order.due, steps)):
            ceiling[at] = min(ceiling[at], order.to_w + slope_w * (order.due - at))
    return Duty(
        cap_w=cap,
        limit_w=limit,
        ceiling_w=ceiling,
        orders=made,
        rise_w=rise_w,
        fall_w=fall_w,
    )


def broken(duty: Duty, load_w: FloatColumn) -> Broken:
    """Count what a load breaks."""
    change = np.diff(load_w)
    over = load_w > duty.limit_w + ROUNDING_W
    ordered: FlagColumn = np.zeros(len(load_w), dtype=np.bool_)
    for order in duty.orders:
        within = slice(order.due, order.until)
        ordered[within] |= load_w[within] > order.to_w + ROUNDING_W
    steep = (change > duty.rise_w + ROUNDING_W) | (change < -duty.fall_w - ROUNDING_W)
    return Broken(
        cap=int(np.count_nonzero(over & (load_w > duty.cap_w + ROUNDING_W))),
        ramp=int(np.count_nonzero(steep)),
        deadline=int(np.count_nonzero(ordered)),
    )


def _steps(minutes: float) -> int:
    return max(round(minutes / STEP_MIN), 1)


def _caps(wish: Duties, steps: int, slope_w: float, rng: np.random.Generator) -> FloatColumn:
    """Draw caps that can be obeyed: one comes down no faster than the load can."""
    out, at = np.empty(steps), 0
    while at < steps:
        end = at + max(round(rng.exponential(wish.cap_hold_h) * HOUR_S / STEP_S), 1)
        drawn_w = rng.uniform(wish.cap_low_w, wish.cap_high_w)
        down_w = out[at - 1] - max(slope_w, 0.0) * np.arange(1, min(end, steps) - at + 1)
        out[at:end] = np.maximum(drawn_w, down_w) if at else drawn_w
        at = end
    return out


def _orders(
    wish: Duties, steps: int, slope_w: float, rng: np.random.Generator
) -> tuple[Order, ...]:
    """Draw orders that can be met: the notice leaves time for the ramp down."""
    out: list[Order] = []
    at = 0
    while wish.orders_per_month > 0.0:
        at += max(round(rng.exponential(MONTH_STEPS / wish.orders_per_month)), 1)
        to_w = rng.uniform(wish.order_low_w, wish.order_high_w)
        least = int(np.ceil((wish.cap_high_w - to_w) / slope_w))
        notice = max(least, int(rng.integers(1, _steps(wish.notice_min) + 1)))
        hours = rng.uniform(wish.order_h_least, wish.order_h_most)
        due = at + notice
        until = due + max(round(hours * HOUR_S / STEP_S), 1)
        if until >= steps:
            break
        out.append(Order(issued=at, due=due, until=until, to_w=to_w))
        at = until
    return tuple(out)
