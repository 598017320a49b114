"""What a site pays for energy beside the settlement price: a fixed-price block, and peaks.

Peaks settle at the load of the grid's largest interval of each month, which nobody knows before
the month is over. What a decision sees is the expectation of ``core.peaks``, from the grid's load
of the intervals that are over, until the stop-loss ends it; the code is that of the live agent.
"""

from datetime import UTC, datetime

import numpy as np
from msgspec import Struct

from edge_agent.backtest.beside import Beside
from edge_agent.backtest.files import Column
from edge_agent.backtest.frame import STEP_S
from edge_agent.core.block import paid_usd_per_mwh, splits
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.peaks import PEAKS, expect, may_be_peak, peak_seen, spent, stopped
from edge_agent.core.site import NS_PER_S, FloatColumn, IntColumn, Limits, Site
from edge_agent.core.site_model import (
    block_gain_usd_per_h,
    full_load_mw,
    inside_usd_per_mwh,
    marginal_usd_per_mwh,
)
from edge_agent.core.site_state import PeakState
from protocol.market import MarketTick

SECONDS_PER_H = 3_600.0
KW_PER_MW = 1_000.0


class Peaks(Struct, frozen=True, eq=False, kw_only=True):
    """A peak tariff over a span, in USD/MWh by interval.

    Args:
        expected: what a decision sees, the stop-loss apart. charge: what is settled.
    """

    limits: Limits
    at_s: IntColumn
    expected: FloatColumn
    charge: FloatColumn


class Block(Struct, frozen=True, eq=False, kw_only=True):
    """A fixed-price block that is smaller than the full load.

    Args:
        size_w: at the meter. usd_per_w: what a watt inside it saves over one beyond it, by
            interval; negative while spot is below the price inside.
    """

    size_w: float
    usd_per_w: FloatColumn

    def saved_usd(self, drawn_w: FloatColumn) -> FloatColumn:
        """Give by how much a load costs less than at spot throughout, but for a constant."""
        return self.usd_per_w * np.minimum(drawn_w, self.size_w)


class Contract(Struct, frozen=True, eq=False, kw_only=True):
    """What a site pays for energy.

    Args:
        full_mw: load with everything mining. peaks: None where none are settled. block: None where
            one price decides for all load.
    """

    limits: Limits
    full_mw: float
    peaks: Peaks | None
    block: Block | None = None

    def paid(self, spot: FloatColumn, *, inside: bool) -> FloatColumn:
        """Give the price that decides for load inside a block below the full load, or beyond it."""
        if self.block is None:
            return self.marginal(spot)
        return paid_usd_per_mwh(self.limits, float(inside), spot)

    def marginal(self, spot: FloatColumn) -> FloatColumn:
        """Give the price that decides, USD/MWh: spot, unless a block covers the whole site."""
        return marginal_usd_per_mwh(self.limits, self.full_mw, spot)

    def block_usd(self, load_w: FloatColumn, spot: FloatColumn) -> FloatColumn | None:
        """Give what the block adds to margins at the marginal price, by interval; None: no block.

        Args:
            load_w: at the meter.
        """
        if self.limits.block_mw <= 0.0:
            return None
        load_mw = load_w / W_PER_MW
        per_h = block_gain_usd_per_h(self.limits, load_mw, spot, self.marginal(spot))
        return np.nan_to_num(per_h) * (STEP_S / SECONDS_PER_H)


def contract_of(
    site: Site, at_s: IntColumn, spot: FloatColumn, beside: Beside, notes: list[str]
) -> Contract:
    """Give what a site pays for energy over a span."""
    limits = site.limits
    full_mw = full_load_mw(site)
    block: Block | None = None
    if splits(limits, full_mw):
        saved = np.nan_to_num(spot - inside_usd_per_mwh(limits, spot))
        hours = STEP_S / SECONDS_PER_H
        block = Block(size_w=limits.block_mw * W_PER_MW, usd_per_w=saved / W_PER_MW * hours)
        notes.append("the block is below the full load: miners fill it by merit, GPUs pay spot")
    peaks = _peaks(limits, at_s, beside, notes)
    return Contract(limits=limits, full_mw=full_mw, peaks=peaks, block=block)


def _peaks(limits: Limits, at_s: IntColumn, beside: Beside, notes: list[str]) -> Peaks | None:
    if not PEAKS.get(limits.peak_tariff, 0) or limits.peak_usd_per_kw_year <= 0.0:
        return None
    if beside.grid_load is None:
        notes.append("no grid_load_mw: the peak tariff is neither settled nor decided by")
        return None
    return Peaks(
        limits=limits,
        at_s=at_s,
        expected=_expected(limits, at_s, beside),
        charge=_charge(limits, at_s, beside.grid_load),
    )


def _expected(limits: Limits, at_s: IntColumn, beside: Beside) -> FloatColumn:
    """Give the expectation of each interval as the live agent has it, without what it has spent."""
    held = PeakState()
    out = np.zeros(len(at_s))
    nothing = [None] * len(at_s)
    loads = nothing if beside.grid_load_mw is None else beside.grid_load_mw.tolist()
    given = nothing if beside.peak_probability is None else beside.peak_probability.tolist()
    for place, (at, load_mw, share) in enumerate(zip(at_s.tolist(), loads, given, strict=True)):
        wall, now_ns = datetime.fromtimestamp(at, UTC), at * NS_PER_S
        tick = MarketTick(
            feed="csv",
            measured_at=wall,
            source_at=wall,
            grid_load_mw=_known(load_mw),
            peak_probability=_known(share),
        )
        held = peak_seen(held, tick, now_ns)
        out[place] = expect(limits, held, wall, now_ns).usd_per_mwh
    return out


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else value


def _charge(limits: Limits, at_s: IntColumn, load: Column) -> FloatColumn:
    """Give the charge of the intervals in which the months' peaks fell, by all that the file holds.

    A peak is metered over the tariff's interval, or over the file's step where that is longer.
    """
    out = np.zeros(len(at_s))
    span_s = max(round(limits.peak_interval_s), load.step_s)
    for peak_s in _monthly(limits, load, span_s):
        overlap = np.minimum(at_s + STEP_S, peak_s + span_s) - np.maximum(at_s, peak_s)
        share = np.maximum(overlap, 0) / span_s
        per_kw = limits.peak_usd_per_kw_year / PEAKS[limits.peak_tariff]
        out += per_kw * KW_PER_MW * share / (STEP_S / SECONDS_PER_H)
    return out


def _monthly(limits: Limits, load: Column, span_s: int) -> list[int]:
    """Give the start of each month's largest interval, of those in which a peak may fall."""
    known = ~np.isnan(load.value)
    bins, place = np.unique(load.at_s[known] // span_s, return_inverse=True)
    mean = np.bincount(place, load.value[known]) / np.bincount(place)
    most: dict[tuple[int, int], tuple[float, int]] = {}
    for start, value in zip((bins * span_s).tolist(), mean.tolist(), strict=True):
        wall = datetime.fromtimestamp(start, UTC)
        month = (wall.year, wall.month)
        if may_be_peak(limits, wall) and value > most.get(month, (0.0, 0))[0]:
            most[month] = (value, start)
    return [start for _, start in most.values()]


class StopLoss:
    """Counts what avoiding peaks has taken in a course, and says when that is enough."""

    def __init__(self, peaks: Peaks | None) -> None:
        self._peaks = peaks
        self._held = PeakState()

    def counts(self, at: int) -> bool:
        """Say whether an interval has an expectation that counts."""
        peaks = self._peaks
        if peaks is None or peaks.expected[at] <= 0.0:
            return False
        return not stopped(peaks.limits, self._held, self._wall(peaks, at))

    def spend(self, at: int, forgone_usd: float) -> None:
        """Count an interval in which so much was forgone for a peak."""
        if self._peaks is not None:
            self._held = spent(self._held, self._wall(self._peaks, at), forgone_usd, STEP_S)

    @staticmethod
    def _wall(peaks: Peaks, at: int) -> datetime:
        return datetime.fromtimestamp(int(peaks.at_s[at]), UTC)
