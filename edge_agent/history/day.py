"""A day of the journal as sums on 15-minute intervals: what was earned, drawn, done and known.

Energy is settled at the interval's price, the mean of the prices that held in it (with settled
knowledge those heard one interval later); coins are worth what they were worth at the time. Time
that no row covers, or without a price, is left out of every world alike and named.
"""

from datetime import datetime, timedelta

import numpy as np
from msgspec import Struct

from edge_agent.backtest.frame import STEP_S
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.site import CURTAILED, IDLE, SERVE, SWITCHING, FlagColumn, FloatColumn, Site
from edge_agent.core.site_state import SiteState, mode_of
from edge_agent.history.doings import Doings
from edge_agent.services.cleared_worlds import KINDS

STEPS = 86_400 // STEP_S
# Worlds by place: the real one, then those cleared of one kind of trouble more each.
WORLDS = 1 + len(KINDS)


class Sums(Struct, eq=False):
    """What one world comes to by interval; filled by the walk, whole once it is over.

    Args:
        revenue_usd: of mining. wh: at the meter. fees_usd: adders on the energy price.
        serve_usd: of leases. wear_usd: of wake-ups.
    """

    revenue_usd: FloatColumn
    wh: FloatColumn
    fees_usd: FloatColumn
    serve_usd: FloatColumn
    wear_usd: FloatColumn

    def profit_usd(self, price: FloatColumn) -> FloatColumn:
        """Give the profit of each interval; one without a price comes to nothing."""
        energy = self.wh / W_PER_MW * price + self.fees_usd
        return np.nan_to_num(self.revenue_usd + self.serve_usd - energy - self.wear_usd)


class DeviceSums(Struct, eq=False):
    """What each device comes to, (interval, device).

    Args:
        revenue_usd, wh, wear_usd: in the real world. could_usd, could_wh: revenue and device
            watt-hours if it mined, in the world cleared of everything. busy_h, busy_wh: there, for
            leases and what is no choice of the rule. hours: by activity, in the real world.
    """

    revenue_usd: FloatColumn
    wh: FloatColumn
    wear_usd: FloatColumn
    could_usd: FloatColumn
    could_wh: FloatColumn
    busy_h: FloatColumn
    busy_wh: FloatColumn
    hours: FloatColumn


class Gap(Struct, frozen=True, kw_only=True):
    """Time that is in no figure, and why."""

    from_at: datetime
    to_at: datetime
    why: str
    seconds: float


class Day(Struct, frozen=True, kw_only=True, eq=False):
    """A day, walked through.

    Args:
        price: settled, by interval; NaN unknown. told: the same with what was known of the
            intervals before the day in front. ahead: day-ahead prices as the outlook takes them.
            step: (weight, revenue ratio) of a coming step of the difficulty.
        worlds: sums of the real world and of those cleared of trouble. begin: the state of the
            world cleared of everything when the day began. notes: what a person should know.
    """

    site: Site
    start: datetime
    price: FloatColumn
    told: FloatColumn
    ahead: FloatColumn
    step: FloatColumn
    covered_h: FloatColumn
    worlds: tuple[Sums, ...]
    devices: DeviceSums
    begin: SiteState
    doings: Doings
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]

    def at(self, place: int) -> datetime:
        """Give the start of an interval."""
        return self.start + timedelta(seconds=STEP_S * place)


def is_busy(state: SiteState) -> FlagColumn:
    """Say which devices serve a lease, or are on their way to or from it."""
    serving = (state.activity == SERVE) | (
        (state.activity == SWITCHING) & ((state.origin == SERVE) | (state.target == SERVE))
    )
    out: FlagColumn = serving | (state.lease_no >= 0)
    return out


def begins_on(state: SiteState) -> FlagColumn:
    """Say which devices do not begin the day asleep or idle."""
    mode = np.where(state.activity == SWITCHING, state.target, mode_of(state))
    out: FlagColumn = (mode != IDLE) & (mode != CURTAILED)
    return out
