"""The site as rows of equal devices, and what each option of each row earns in each interval.

A class of miners is one row; a class of GPUs is ``slices`` rows, asked for one after the other as
the demand rises. Codes: 0 off (asleep or idle), 1 mine, 2 serve.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.frame import STEP_S, Frame
from edge_agent.core.economics import mine_usd_per_ths_h, restart_usd, usd_per_wh
from edge_agent.core.site import CodeColumn, DeviceClass, FlagColumn, FloatColumn, Site
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
            that beginning to mine costs. energy: USD of one device watt over the
            interval. watts: of off, mine and serve at the device. wear: part of assumed_start.
    """

    row: DeviceClass
    values: tuple[FloatColumn, FloatColumn, FloatColumn]
    revenue: FloatColumn
    start_mine: FloatColumn
    assumed_start: FloatColumn
    start_serve: FloatColumn
    energy: FloatColumn
    watts: tuple[float, float, float]
    wear: float = 0.0

    @property
    def is_asic(self) -> bool:
        """Say whether the class hashes SHA-256."""
        return self.row.model.kind is DeviceKind.ASIC

    @property
    def gain(self) -> FloatColumn:
        """Give what mining earns above being off."""
        return self.values[MINE] - self.values[OFF]


class Rows(Struct, frozen=True, eq=False, kw_only=True):
    """All rows of a site.

    Args:
        classes: series by class. class_of: of each row. weight: devices in each row.
        asked: (rows, T), whether the row's GPUs are asked to serve. preempt_usd: of ending a
            service that is still asked for. true_restart: true cost of a miner's restart over the
            assumed one.
    """

    classes: tuple[ClassSeries, ...]
    class_of: tuple[int, ...]
    weight: tuple[float, ...]
    asked: FlagColumn
    preempt_usd: float
    true_restart: float = 1.0

    def __len__(self) -> int:
        return len(self.weight)

    def series(self, at: int) -> ClassSeries:
        """Give the class of a row."""
        return self.classes[self.class_of[at]]


class Demand(Struct, frozen=True, kw_only=True):
    """How demand falls on the GPUs."""

    slices: int = 20
    preempt_usd: float = 0.5


def build_rows(
    site: Site,
    frame: Frame,
    rates: tuple[GpuRate, ...],
    demand: Demand,
    true_restart: float = 1.0,
) -> Rows:
    """Build the rows of a site for a span of the market.

    Args:
        true_restart: true restart cost of a miner over the assumed one.
    """
    classes = tuple(_series(row, frame, rates, true_restart) for row in site.classes)
    counts = np.bincount(site.class_of, minlength=len(classes))
    class_of: list[int] = []
    weight: list[float] = []
    asked: list[FlagColumn] = []
    never = np.zeros(len(frame), dtype=np.bool_)
    for at, series in enumerate(classes):
        serves = frame.demand is not None and not np.isnan(series.values[SERVE]).all()
        parts = 1 if series.is_asic or not serves else demand.slices
        for part in range(parts if counts[at] else 0):
            class_of.append(at)
            weight.append(float(counts[at]) / parts)
            wanted = never
            if serves and frame.demand is not None:
                wanted = frame.demand * parts > part + 0.5
                wanted = wanted & ~np.isnan(series.values[SERVE])
            asked.append(wanted)
    return Rows(
        classes=classes,
        class_of=tuple(class_of),
        weight=tuple(weight),
        asked=np.array(asked, dtype=np.bool_).reshape(len(weight), len(frame)),
        preempt_usd=demand.preempt_usd,
        true_restart=true_restart,
    )


class Account(Struct, frozen=True, eq=False, kw_only=True):
    """What a course of codes comes to, by interval (USD) and in all."""

    profit_usd: FloatColumn
    energy_usd: FloatColumn
    asic_profit_usd: FloatColumn
    load_w: FloatColumn
    switches: float
    asic_switches: float
    asic_off_share: float


def account(rows: Rows, codes: CodeColumn) -> Account:
    """Settle a course: every margin, every start, every preemption; unknown intervals settle 0."""
    steps = codes.shape[1]
    profit, energy, load = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    asic = np.zeros(steps)
    switches = asic_switches = asic_off = asics = 0.0
    for at in range(len(rows)):
        series, weight, code = rows.series(at), rows.weight[at], codes[at]
        usd = weight * settle(series, code, rows.asked[at], rows.preempt_usd)
        watts = np.asarray(series.watts)[code]
        changes = weight * float(np.count_nonzero(code != before(code)))
        profit += usd
        energy += weight * np.nan_to_num(watts * series.energy)
        load += weight * watts * series.row.pue
        switches += changes
        if series.is_asic:
            asic += usd
            asic_switches += changes
            asic_off += weight * float(np.count_nonzero(code == OFF))
            asics += weight * steps
    return Account(
        profit_usd=profit,
        energy_usd=energy,
        asic_profit_usd=asic,
        load_w=load,
        switches=switches,
        asic_switches=asic_switches,
        asic_off_share=asic_off / asics if asics else 0.0,
    )


def before(code: CodeColumn) -> CodeColumn:
    """Give the code before each interval; every span begins with all devices mining."""
    out: CodeColumn = np.concatenate((np.array([MINE], dtype=code.dtype), code[:-1]))
    return out


def settle(
    series: ClassSeries, code: CodeColumn, asked: FlagColumn, preempt_usd: float
) -> FloatColumn:
    """Give what one device earns in each interval, starts and preemptions paid."""
    last = before(code)
    usd = np.choose(code, series.values)
    usd = usd - np.where((code == MINE) & (last != MINE), series.start_mine, 0.0)
    usd = usd - np.where((code == SERVE) & (last != SERVE), series.start_serve, 0.0)
    usd = usd - np.where((last == SERVE) & (code != SERVE) & asked, preempt_usd, 0.0)
    return np.nan_to_num(usd)


def _series(
    row: DeviceClass, frame: Frame, rates: tuple[GpuRate, ...], true_restart: float
) -> ClassSeries:
    model = row.model
    is_asic = model.kind is DeviceKind.ASIC
    energy = usd_per_wh(row, frame.price) * STEP_H
    off_w = model.curtailed_w if is_asic else model.idle_w
    static = next((rate for rate in rates if rate.device_class == row.class_name), None)
    nothing = np.full(len(frame), np.nan)
    if is_asic:
        revenue_h = model.hashrate_ths * mine_usd_per_ths_h(row, frame.hashprice)
        # Where the coin is unknown nothing settles, off included.
        energy = np.where(np.isnan(revenue_h), np.nan, energy)
        serve_h = nothing
    else:
        mine_h = 0.0 if static is None else static.mine_usd_per_h * (1.0 - row.pool_fee)
        revenue_h = np.full(len(frame), mine_h)
        fallback = nothing if static is None else np.full(len(frame), static.serve_usd_per_h)
        serve_h = frame.rates.get(row.class_name, fallback)
    revenue = revenue_h * STEP_H
    assumed = restart_usd(row, np.maximum(revenue_h, 0.0))
    serve_h = serve_h if model.serve_w > 0.0 else nothing
    return ClassSeries(
        row=row,
        values=(
            -off_w * energy,
            revenue - model.mine_w * energy,
            serve_h * STEP_H - model.serve_w * energy,
        ),
        revenue=revenue,
        start_mine=assumed * true_restart if is_asic else assumed,
        assumed_start=assumed,
        start_serve=serve_h * (row.serve_start_s / SECONDS_PER_H),
        energy=energy,
        watts=(off_w, model.mine_w, model.serve_w),
        wear=row.wear_usd if is_asic else 0.0,
    )
