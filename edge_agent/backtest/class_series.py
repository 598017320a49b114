"""One class of devices over time: what each option earns in each interval, and what it draws.

Energy is settled at the PUE of the outside air where the class has a table and the temperature is
known, and at the charge of the grid's peaks where the site has such a tariff. What the caps count
is the highest PUE, as live.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.frame import STEP_S, Frame
from edge_agent.backtest.tariff import Contract
from edge_agent.core.economics import W_PER_MW, mine_usd_per_ths_h, restart_usd, usd_per_wh
from edge_agent.core.site import DeviceClass, FloatColumn
from edge_agent.core.site_model import pue_at
from protocol.market import GpuRate
from protocol.resource import DeviceKind

OFF, MINE, SERVE = 0, 1, 2
STEP_H = STEP_S / 3_600.0
SECONDS_PER_H = 3_600.0


class ClassSeries(Struct, frozen=True, eq=False, kw_only=True):
    """One class over time: USD per device and interval; NaN where the market is unknown.

    Args:
        values: margin of off, mine and serve (serve is NaN for what cannot). revenue: of mining.
        start_mine, start_serve: true cost of beginning. assumed_start: what the policies believe
            that beginning to mine costs. energy: USD of one device watt over the interval.
            told_energy: the same without what only the end of the month tells; peak: that part.
            watts: of off, mine and serve at the device. wear: part of assumed_start. pue: of the
            time.
    """

    row: DeviceClass
    values: tuple[FloatColumn, FloatColumn, FloatColumn]
    revenue: FloatColumn
    start_mine: FloatColumn
    assumed_start: FloatColumn
    start_serve: FloatColumn
    energy: FloatColumn
    told_energy: FloatColumn
    watts: tuple[float, float, float]
    pue: FloatColumn | float
    wear: float = 0.0
    peak: FloatColumn | None = None

    @property
    def is_asic(self) -> bool:
        """Say whether the class hashes SHA-256."""
        return self.row.model.kind is DeviceKind.ASIC

    @property
    def gain(self) -> FloatColumn:
        """Give what mining earns above being off."""
        return self.values[MINE] - self.values[OFF]


class Energy(Struct, frozen=True, eq=False, kw_only=True):
    """What energy costs one class: USD of one device watt over the interval, as in the series."""

    pue: FloatColumn | float
    told: FloatColumn
    settled: FloatColumn
    peak: FloatColumn | None


def pue_of(row: DeviceClass, ambient_c: FloatColumn | None) -> FloatColumn | float:
    """Give the PUE of a class over time, as ``site_model.class_at`` does live."""
    if not row.pue_by_ambient_c or ambient_c is None:
        return row.pue
    values, place = np.unique(ambient_c, return_inverse=True)
    found = [
        row.pue if np.isnan(value) else pue_at(row.pue_by_ambient_c, value, row.pue)
        for value in values.tolist()
    ]
    out: FloatColumn = np.array(found)[place]
    return out


def energy_of(row: DeviceClass, frame: Frame, contract: Contract) -> Energy:
    """Give what energy costs a class."""
    pue = pue_of(row, frame.beside.ambient_c)
    told = usd_per_wh(row, contract.marginal(frame.price), pue) * STEP_H
    if contract.peaks is None:
        return Energy(pue=pue, told=told, settled=told, peak=None)
    peak = contract.peaks.charge * pue / W_PER_MW * STEP_H
    return Energy(pue=pue, told=told, settled=told + peak, peak=peak)


def series_of(
    row: DeviceClass,
    frame: Frame,
    energy: Energy,
    rates: tuple[GpuRate, ...],
    true_restart: float,
) -> ClassSeries:
    """Give a class over time.

    Args:
        rates: of GPU classes that the frame has no offers for. true_restart: true restart cost of a
            miner over the assumed one.
    """
    model = row.model
    is_asic = model.kind is DeviceKind.ASIC
    off_w = model.curtailed_w if is_asic else model.idle_w
    settled, told = energy.settled, energy.told
    static = next((rate for rate in rates if rate.device_class == row.class_name), None)
    nothing = np.full(len(frame), np.nan)
    if is_asic:
        revenue_h = model.hashrate_ths * mine_usd_per_ths_h(row, frame.hashprice)
        # Where the coin is unknown nothing settles, off included.
        settled, told = (np.where(np.isnan(revenue_h), np.nan, one) for one in (settled, told))
        serve_h = nothing
    else:
        mine_h = 0.0 if static is None else static.mine_usd_per_h * (1.0 - row.pool_fee)
        revenue_h = np.full(len(frame), mine_h)
        fallback = nothing if static is None else np.full(len(frame), static.serve_usd_per_h)
        serve_h = frame.rates.get(row.class_name, fallback)
    # What is not settled is charged for no peak either.
    peak = None if energy.peak is None else np.where(np.isnan(settled), np.nan, energy.peak)
    revenue = revenue_h * STEP_H
    assumed = restart_usd(row, np.maximum(revenue_h, 0.0))
    serve_h = serve_h if model.serve_w > 0.0 else nothing
    return ClassSeries(
        row=row,
        values=(
            -off_w * settled,
            revenue - model.mine_w * settled,
            serve_h * STEP_H - model.serve_w * settled,
        ),
        revenue=revenue,
        start_mine=assumed * true_restart if is_asic else assumed,
        assumed_start=assumed,
        start_serve=serve_h * (row.serve_start_s / SECONDS_PER_H),
        energy=settled,
        told_energy=told,
        watts=(off_w, model.mine_w, model.serve_w),
        pue=energy.pue,
        wear=row.wear_usd if is_asic else 0.0,
        peak=peak,
    )
