"""The site as rows of equal devices, and what each option of each row earns in each interval.

A class of miners is one row, and one more on each feeder that can bind; a class of GPUs is
``slices`` rows there, asked for one after the other as the demand rises: demand falls evenly on the
feeders. Codes: 0 off (asleep or idle), 1 mine, 2 serve.
"""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.backtest.class_series import (
    MINE,
    OFF,
    SERVE,
    ClassSeries,
    energy_of,
    series_of,
)
from edge_agent.backtest.difficulty import StepsAhead, steps_ahead
from edge_agent.backtest.feeding import NO_FEEDERS, Feeding, feeding_of
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.tariff import Contract, contract_of
from edge_agent.core.site import CodeColumn, FlagColumn, FloatColumn, Site
from protocol.market import GpuRate


class Rows(Struct, frozen=True, eq=False, kw_only=True):
    """All rows of a site.

    Args:
        classes: series by class. class_of: of each row. weight: devices in each row.
        asked: (rows, T), whether the row's GPUs are asked to serve. preempt_usd: of ending a
            service that is still asked for. true_restart: true cost of a miner's restart over the
            assumed one. feeding: the feeders that can bind. feeder_of: of each row; -1: none.
            contract: what energy costs beside the settlement price. steps: of the difficulty; None:
            no file tells. notes: what the site has and the files do not tell, for a person.
    """

    classes: tuple[ClassSeries, ...]
    class_of: tuple[int, ...]
    weight: tuple[float, ...]
    asked: FlagColumn
    preempt_usd: float
    contract: Contract
    feeder_of: tuple[int, ...]
    feeding: Feeding = NO_FEEDERS
    true_restart: float = 1.0
    steps: StepsAhead | None = None
    notes: tuple[str, ...] = ()

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
    notes: list[str] = []
    contract = contract_of(site, frame.at_s, frame.price, frame.beside, notes)
    classes = tuple(
        series_of(row, frame, energy_of(row, frame, contract), rates, true_restart)
        for row in site.classes
    )
    if any(row.pue_by_ambient_c for row in site.classes) and frame.beside.ambient_c is None:
        notes.append("no ambient_c: every class has its constant PUE")
    feeding = feeding_of(site)
    if len(feeding):
        notes.append(f"feeders that can bind: {', '.join(feeding.names)}")
    groups = _groups(site, feeding, len(classes))
    class_of: list[int] = []
    feeder_of: list[int] = []
    weight: list[float] = []
    asked: list[FlagColumn] = []
    never = np.zeros(len(frame), dtype=np.bool_)
    for at, feeder, count in groups:
        series = classes[at]
        serves = frame.demand is not None and not np.isnan(series.values[SERVE]).all()
        parts = 1 if series.is_asic or not serves else demand.slices
        for part in range(parts):
            class_of.append(at)
            feeder_of.append(feeder)
            weight.append(float(count) / parts)
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
        contract=contract,
        feeder_of=tuple(feeder_of),
        feeding=feeding,
        true_restart=true_restart,
        steps=steps_ahead(frame.at_s, frame.beside),
        notes=tuple(notes),
    )


def _groups(site: Site, feeding: Feeding, classes: int) -> list[tuple[int, int, int]]:
    """Give (class, feeder, devices) of every group that has devices, class by class."""
    width = len(feeding) + 1
    counts = np.bincount(
        site.class_of.astype(np.int64) * width + feeding.of_device + 1, minlength=classes * width
    )
    return [
        (int(at) // width, int(at) % width - 1, int(counts[at])) for at in np.flatnonzero(counts)
    ]


class Account(Struct, frozen=True, eq=False, kw_only=True):
    """What a course of codes comes to, by interval (USD) and in all.

    Args:
        load_w: as the caps count it, at the highest PUE; feeders_w: of it on each feeder that can
            bind (feeders, T). drawn_w: at the meter, at the PUE of the time. peak_usd: the part of
            energy_usd that is the charge of the grid's peaks.
    """

    profit_usd: FloatColumn
    energy_usd: FloatColumn
    peak_usd: FloatColumn
    asic_profit_usd: FloatColumn
    load_w: FloatColumn
    drawn_w: FloatColumn
    feeders_w: FloatColumn
    switches: float
    asic_switches: float
    asic_off_share: float


def account(rows: Rows, codes: CodeColumn) -> Account:
    """Settle a course: every margin, every start, every preemption; unknown intervals settle 0."""
    steps = codes.shape[1]
    profit, energy, load = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    asic, drawn, peak = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    feeders = np.zeros((len(rows.feeding), steps))
    switches = asic_switches = asic_off = asics = 0.0
    for at in range(len(rows)):
        series, weight, code = rows.series(at), rows.weight[at], codes[at]
        usd = weight * settle(series, code, rows.asked[at], rows.preempt_usd)
        watts = np.asarray(series.watts)[code]
        changes = weight * float(np.count_nonzero(code != before(code)))
        profit += usd
        energy += weight * np.nan_to_num(watts * series.energy)
        load += weight * watts * series.row.pue_max
        drawn += weight * watts * series.pue
        if series.peak is not None:
            peak += weight * np.nan_to_num(watts * series.peak)
        if rows.feeder_of[at] >= 0:
            feeders[rows.feeder_of[at]] += weight * watts * series.row.pue_max
        switches += changes
        if series.is_asic:
            asic += usd
            asic_switches += changes
            asic_off += weight * float(np.count_nonzero(code == OFF))
            asics += weight * steps
    return Account(
        profit_usd=profit,
        energy_usd=energy,
        peak_usd=peak,
        asic_profit_usd=asic,
        load_w=load,
        drawn_w=drawn,
        feeders_w=feeders,
        switches=switches,
        asic_switches=asic_switches,
        asic_off_share=asic_off / asics if asics else 0.0,
    )


def with_block(own: Account, contract: Contract, spot: FloatColumn) -> Account:
    """Give an account with what a fixed-price block adds to the whole site's margins."""
    block = contract.block_usd(own.drawn_w, spot)
    if block is None:
        return own
    return replace(own, profit_usd=own.profit_usd + block, energy_usd=own.energy_usd - block)


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
