"""The miners of a site as lots: one lot is one step of the power curve of one class.

A lot is a row that is on or off, as a whole miner is where there are no modes: its gain, revenue,
power and restart cost are those of the step. Devices hold the lowest steps of their class first.
A step up costs what it costs from wherever it comes: miners wake into their lowest mode.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.duties import Duty
from edge_agent.backtest.rows import (
    MINE,
    OFF,
    SECONDS_PER_H,
    STEP_H,
    Account,
    ClassSeries,
    Rows,
    account,
)
from edge_agent.core.economics import W_PER_MW, restart_usd
from edge_agent.core.site import CodeColumn, FloatColumn


class Lot(Struct, frozen=True, eq=False, kw_only=True):
    """One step of one class.

    Args:
        series: the step as a row: ``values`` of off are 0. of_class: place of the class. step:
            place in the class, the lowest first. count: devices. rise_w: at the meter.
    """

    series: ClassSeries
    of_class: int
    step: int
    count: int
    rise_w: float


class Fleet(Struct, frozen=True, eq=False, kw_only=True):
    """The miners of a site.

    Args:
        lots: class by class, the lowest step first. order: places of the lots by merit. off_usd:
            energy of all miners asleep, by interval. asleep_w: their load.
        true_factor: true restart cost over the assumed one.
    """

    lots: tuple[Lot, ...]
    order: tuple[int, ...]
    off_usd: FloatColumn
    asleep_w: float
    true_factor: float

    def __len__(self) -> int:
        return len(self.lots)

    @property
    def grain_w(self) -> float:
        """Give the power of the largest device in its highest mode."""
        each: dict[int, float] = {}
        for lot in self.lots:
            each[lot.of_class] = each.get(lot.of_class, 0.0) + lot.rise_w
        return max(each.values(), default=0.0)


def build_fleet(rows: Rows, true_factor: float) -> Fleet:
    """Build the lots of a site's miners."""
    lots: list[Lot] = []
    off_usd, asleep_w = np.zeros(rows.asked.shape[1]), 0.0
    for at, weight in enumerate(rows.weight):
        series = rows.series(at)
        if not series.is_asic:
            continue
        asleep_w += weight * series.watts[OFF] * series.row.pue
        off_usd = off_usd + weight * np.nan_to_num(series.values[OFF])
        for place, step in enumerate(series.row.steps):
            lots.append(
                Lot(
                    series=_step_series(series, place, true_factor),
                    of_class=rows.class_of[at],
                    step=place,
                    count=round(weight),
                    rise_w=step.power_w * series.row.pue,
                )
            )
    return Fleet(
        lots=tuple(lots),
        order=tuple(sorted(range(len(lots)), key=lambda at: -_merit(lots[at]))),
        off_usd=off_usd,
        asleep_w=asleep_w,
        true_factor=true_factor,
    )


def gpu_rows(rows: Rows) -> Rows | None:
    """Give the rows without the miners; None when nothing is left."""
    at = [place for place in range(len(rows)) if not rows.series(place).is_asic]
    if not at:
        return None
    return Rows(
        classes=rows.classes,
        class_of=tuple(rows.class_of[place] for place in at),
        weight=tuple(rows.weight[place] for place in at),
        asked=rows.asked[at],
        preempt_usd=rows.preempt_usd,
    )


def with_gpus(rows: Rows | None, codes: CodeColumn | None, fleet: Fleet, duty: Duty) -> Account:
    """Settle the GPUs of a course; what the ceiling cannot carry is off, the last rows first.

    AI earns ten times as much per watt as a miner: the GPUs come before the miners.
    """
    steps = len(duty.cap_w)
    if rows is None or codes is None:
        zero = np.zeros(steps)
        return Account(
            profit_usd=zero, energy_usd=zero, asic_profit_usd=zero, load_w=zero, switches=0.0,
            asic_switches=0.0, asic_off_share=0.0,
        )  # fmt: skip
    kept = codes.copy()
    made = account(rows, kept)
    for at in range(len(rows) - 1, -1, -1):
        over = made.load_w + fleet.asleep_w > duty.ceiling_w
        if not over.any():
            break
        kept[at, over] = OFF
        made = account(rows, kept)
    return made


def settle_fleet(fleet: Fleet, counts: FloatColumn, gpus: Account) -> Account:
    """Settle a course of the miners beside the GPUs.

    Args:
        counts: (lots, T), devices that hold each step. The first interval is no change.
    """
    steps = counts.shape[1]
    profit, energy = fleet.off_usd.copy(), -fleet.off_usd
    load = gpus.load_w + fleet.asleep_w
    changes = 0.0
    for lot, held in zip(fleet.lots, counts, strict=True):
        series = lot.series
        rise = np.diff(held, prepend=held[0])
        profit = profit + held * np.nan_to_num(series.values[MINE])
        profit = profit - np.maximum(rise, 0.0) * np.nan_to_num(series.start_mine)
        energy = energy + held * np.nan_to_num(series.watts[MINE] * series.energy)
        load = load + held * lot.rise_w
        changes += float(np.abs(rise).sum())
    first = [held for lot, held in zip(fleet.lots, counts, strict=True) if lot.step == 0]
    devices = sum(lot.count for lot in fleet.lots if lot.step == 0)
    on = float(np.sum(first)) / (devices * steps) if devices and steps else 1.0
    return Account(
        profit_usd=profit + gpus.profit_usd,
        energy_usd=energy + gpus.energy_usd,
        asic_profit_usd=profit,
        load_w=load,
        switches=changes + gpus.switches,
        asic_switches=changes,
        asic_off_share=1.0 - on,
    )


def _step_series(whole: ClassSeries, place: int, true_factor: float) -> ClassSeries:
    row = whole.row
    step = row.steps[place]
    per_ths = whole.revenue / row.model.hashrate_ths  # USD per TH/s and interval
    revenue = per_ths * step.rate_ths
    nothing = np.full(len(revenue), np.nan)
    reached_h = np.maximum(per_ths / STEP_H, 0.0) * step.reached_ths
    change = reached_h * row.mode_change_s / SECONDS_PER_H
    assumed = restart_usd(row, reached_h) if place == 0 else change
    return ClassSeries(
        row=row,
        values=(np.zeros(len(revenue)), revenue - step.power_w * whole.energy, nothing),
        revenue=revenue,
        start_mine=assumed * true_factor,
        assumed_start=assumed,
        start_serve=nothing,
        energy=whole.energy,
        watts=(0.0, step.power_w, 0.0),
        wear=row.wear_usd if place == 0 else 0.0,
    )


def _merit(lot: Lot) -> float:
    """Order the lots by terahashes after the pool's fee per joule at the meter."""
    row = lot.series.row
    step = row.steps[lot.step]
    return step.rate_ths * (1.0 - row.pool_fee) / (step.power_w * row.pue * W_PER_MW)
