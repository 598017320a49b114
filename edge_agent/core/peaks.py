"""Coincident peaks (4CP, 12CP): what it is expected to cost to run through this interval.

The transmission charge of a year follows from the load at the grid's monthly peaks. Whether an
interval is the peak shows later; running through it costs ``tariff / peaks x P(peak)`` per kW. That
expectation is added to the price of energy, so the rule for money decides as with any price:
restart cost, regret and credit included. A given indicator beats the estimate from the grid's load.

The estimate: the month's largest load so far is the month's in the end with (days past / days)
when days are alike; the interval is the day's peak with one in as many as its window holds, as far
as the load comes near to the month's largest. A stop-loss bounds what a wrong indicator costs: so
many hours a month, so much forgone margin a day; then the charge counts as nothing until they end.
"""

from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.power import total
from edge_agent.core.site import CURTAILED, IDLE, NS_PER_S, FloatColumn, Limits, Site
from edge_agent.core.site_state import MarketValue, PeakState, SiteState
from protocol.market import MarketTick

PEAKS = {"4cp": 4, "12cp": 12}
_SUMMER = (6, 7, 8, 9)
SECONDS_PER_H = 3_600.0


class Peak(Struct, frozen=True, kw_only=True):
    """The expectation of an interval.

    Args:
        probability: that it is the month's peak. usd_per_mwh: what running is expected to cost.
        stopped: why it counts as nothing; empty while it counts.
    """

    probability: float
    usd_per_mwh: float
    stopped: str = ""


NONE = Peak(probability=0.0, usd_per_mwh=0.0)


def peak_seen(held: PeakState, tick: MarketTick, as_of_ns: int) -> PeakState:
    """Count the grid's load and a given indicator in; a new month begins anew."""
    month = tick.source_at.year * 12 + tick.source_at.month - 1
    if tick.grid_load_mw is not None and month >= held.month:
        before = held.most_mw if month == held.month else 0.0
        load = MarketValue(tick.grid_load_mw, as_of_ns, tick.feed)
        most = max(before, tick.grid_load_mw)
        held = replace(held, month=month, most_mw=most, load_mw=load)
    if tick.peak_probability is not None:
        given = MarketValue(tick.peak_probability, as_of_ns, tick.feed)
        held = replace(held, given=given)
    return held


def expect(limits: Limits, held: PeakState, wall: datetime, now_ns: int) -> Peak:
    """Give what running through the present interval is expected to cost."""
    peaks = PEAKS.get(limits.peak_tariff, 0)
    if not peaks or limits.peak_usd_per_kw_year <= 0.0:
        return NONE
    if not may_be_peak(limits, wall):
        return NONE
    share = _probability(limits, held, wall, now_ns)
    if share is None:
        return replace(NONE, stopped="no fresh indicator of the grid's load")
    per_kwh = limits.peak_usd_per_kw_year / peaks * share
    usd_per_mwh = per_kwh * 1_000.0 / (limits.peak_interval_s / SECONDS_PER_H)
    why = stopped(limits, held, wall)
    return Peak(probability=share, usd_per_mwh=0.0 if why else usd_per_mwh, stopped=why)


def may_be_peak(limits: Limits, wall: datetime) -> bool:
    """Say whether the tariff lets a peak fall at an instant: its months and its hours."""
    if PEAKS.get(limits.peak_tariff, 0) == len(_SUMMER) and wall.month not in _SUMMER:
        return False
    hour = wall.hour + wall.minute / 60.0
    first, last = limits.peak_from_hour_utc, limits.peak_to_hour_utc
    # A window in the local afternoon may reach over midnight UTC.
    return first <= hour < last if first < last else hour >= first or hour < last


def _window_h(limits: Limits) -> float:
    hours = limits.peak_to_hour_utc - limits.peak_from_hour_utc
    return hours if hours > 0.0 else hours + 24.0


def _probability(limits: Limits, held: PeakState, wall: datetime, now_ns: int) -> float | None:
    stale_ns = limits.price_stale_s * NS_PER_S
    if held.given is not None and now_ns - held.given.as_of_ns <= stale_ns:
        return held.given.value
    load = held.load_mw
    if load is None or held.most_mw <= 0.0 or now_ns - load.as_of_ns > stale_ns:
        return None
    # From 1 on only a new record may be the peak.
    ramp = max(1.0 - limits.peak_near, 1e-9)
    within = min(max(load.value / held.most_mw - 1.0 + ramp, 0.0) / ramp, 1.0)
    first = datetime(wall.year, wall.month, 1, tzinfo=UTC)
    days = ((first + timedelta(days=32)).replace(day=1) - first) // timedelta(days=1)
    intervals = max(_window_h(limits) * SECONDS_PER_H / limits.peak_interval_s, 1.0)
    return within * wall.day / days / intervals


def stopped(limits: Limits, held: PeakState, wall: datetime) -> str:
    """Say why avoiding peaks has ended for the month or the day; empty while it has not."""
    held = _today(held, wall)
    if held.curtailed_s >= limits.peak_stop_h_per_month * SECONDS_PER_H:
        return f"stop-loss: {held.curtailed_s / SECONDS_PER_H:.1f} h curtailed this month"
    if held.forgone_usd >= limits.peak_stop_usd_per_day:
        return f"stop-loss: {held.forgone_usd:.2f} USD forgone today"
    return ""


def _today(held: PeakState, wall: datetime) -> PeakState:
    """Give the counts of this month and day."""
    month, day = wall.year * 12 + wall.month - 1, wall.toordinal()
    if held.spent_month != month:
        held = replace(held, spent_month=month, curtailed_s=0.0)
    return held if held.spent_day == day else replace(held, spent_day=day, forgone_usd=0.0)


class Margins(Protocol):
    """What is asked of the values of a pass."""

    @property
    def gain_on_usd_per_h(self) -> FloatColumn:
        """Give what mining earns above being off, the expected charge included."""
        ...

    @property
    def saved_mw(self) -> FloatColumn:
        """Give what being off saves at the meter."""
        ...


def spend(site: Site, state: SiteState, margins: Margins, dt_s: float) -> PeakState:
    """Count what was off for a peak, after ``dt_s`` more at the values that held meanwhile."""
    held, wall = state.market.peak, state.instant.wall
    peak = expect(site.limits, held, wall, state.now_ns)
    if peak.usd_per_mwh <= 0.0:
        return held
    gain_h = margins.gain_on_usd_per_h
    plain = gain_h + margins.saved_mw * peak.usd_per_mwh
    off = (state.activity == CURTAILED) | (state.activity == IDLE)
    forgone = total(np.where(off, for_peak(plain, gain_h), 0.0))
    return spent(held, wall, forgone * dt_s / SECONDS_PER_H, dt_s)


def for_peak(plain: FloatColumn, gain: FloatColumn) -> FloatColumn:
    """Give what a device forgoes by being off for the peak alone: without it, it would earn.

    Args:
        plain: of mining above being off without the expected charge. gain: with it.
    """
    out: FloatColumn = np.where((plain > 0.0) & (gain <= 0.0), plain, 0.0)
    return out


def spent(held: PeakState, wall: datetime, forgone_usd: float, dt_s: float) -> PeakState:
    """Count a time in which so much was forgone; nothing forgone is no time spent."""
    if forgone_usd <= 0.0:
        return held
    held = _today(held, wall)
    return replace(
        held, curtailed_s=held.curtailed_s + dt_s, forgone_usd=held.forgone_usd + forgone_usd
    )


def peak_text(limits: Limits, held: PeakState, wall: datetime, now_ns: int) -> str | None:
    """Say what the expected charge is, and how much of the stop-loss is used."""
    if limits.peak_tariff == "none":
        return None
    peak = expect(limits, held, wall, now_ns)
    held = _today(held, wall)
    load = held.load_mw
    seen = "" if load is None else f" (grid {load.value:,.0f} of {held.most_mw:,.0f} MW)"
    used = (
        f"{held.curtailed_s / SECONDS_PER_H:.1f} of {limits.peak_stop_h_per_month:g} h this month, "
        f"{held.forgone_usd:,.2f} of {limits.peak_stop_usd_per_day:,.0f} USD forgone today"
    )
    stopped = f"; {peak.stopped}" if peak.stopped else ""
    return (
        f"{limits.peak_tariff.upper()}: {peak.probability * 100.0:.2f} % that this interval is the "
        f"month's peak{seen}: {peak.usd_per_mwh:,.2f} USD/MWh expected; {used}{stopped}"
    )
