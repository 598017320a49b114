"""The miners of a site as lots: one lot is one step of the power curve of one class on one feeder.

A lot is a row that is on or off, as a whole miner is where there are no modes: its gain, revenue,
power and restart cost are those of the step. Devices hold the lowest steps of their class first.
A step up costs what it costs from wherever it comes: miners wake into their lowest mode.
"""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.backtest.class_series import MINE, OFF, SECONDS_PER_H, STEP_H, ClassSeries
from edge_agent.backtest.duties import Duty
from edge_agent.backtest.rows import Account, Rows, account
from edge_agent.backtest.tariff import Block
from edge_agent.core.economics import W_PER_MW, restart_usd
from edge_agent.core.site import CodeColumn, FlagColumn, FloatColumn


class Lot(Struct, frozen=True, eq=False, kw_only=True):
    """One step of one class.

    Args:
        series: the step as a row: ``values`` of off are 0. of_class: place of the class. group: of
            the devices that share it, one class on one feeder. feeder: its place; -1: none. step:
            place in the group, the lowest first. count: devices. rise_w: as the caps count it.
    """

    series: ClassSeries
    of_class: int
    group: int
    feeder: int
    step: int
    count: int
    rise_w: float


class Fleet(Struct, frozen=True, eq=False, kw_only=True):
    """The miners of a site.

    Args:
        lots: group by group, the lowest step first. order: places of the lots by merit. off_usd,
            off_peak_usd: energy of all miners asleep, and its part for peaks, by interval.
            asleep_w: their load as the caps count it; off_drawn_w: at the meter, by interval.
            caps_w, asleep_feeders_w: of each feeder that can bind, and what sleeps on it.
        block: None where one price decides for all load. true_factor: true restart cost over the
            assumed one.
    """

    lots: tuple[Lot, ...]
    order: tuple[int, ...]
    off_usd: FloatColumn
    off_peak_usd: FloatColumn
    off_drawn_w: FloatColumn
    asleep_w: float
    caps_w: FloatColumn
    asleep_feeders_w: FloatColumn
    block: Block | None
    true_factor: float

    def __len__(self) -> int:
        return len(self.lots)

    @property
    def grain_w(self) -> float:
        """Give the power of the largest device in its highest mode."""
        each: dict[int, float] = {}
        for lot in self.lots:
            each[lot.group] = each.get(lot.group, 0.0) + lot.rise_w
        return max(each.values(), default=0.0)


class Others(Struct, frozen=True, eq=False, kw_only=True):
    """What is no lot: the GPUs, and all miners asleep.

    Args:
        load_w: by interval, as the caps count it. drawn_w: at the meter. rooms_w: what that leaves
            on each feeder (feeders, T).
    """

    load_w: FloatColumn
    drawn_w: FloatColumn
    rooms_w: FloatColumn


def build_fleet(rows: Rows, true_factor: float) -> Fleet:
    """Build the lots of a site's miners."""
    lots: list[Lot] = []
    # The steps of a class are the same on each feeder.
    made: dict[int, tuple[ClassSeries, ...]] = {}
    steps = rows.asked.shape[1]
    off_usd, off_peak, off_drawn = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    asleep_w, asleep_feeders = 0.0, np.zeros(len(rows.feeding))
    for at, weight in enumerate(rows.weight):
        series, feeder = rows.series(at), rows.feeder_of[at]
        if not series.is_asic:
            continue
        sleeps_w = weight * series.watts[OFF]
        asleep_w += sleeps_w * series.row.pue_max
        if feeder >= 0:
            asleep_feeders[feeder] += sleeps_w * series.row.pue_max
        off_usd = off_usd + weight * np.nan_to_num(series.values[OFF])
        off_drawn = off_drawn + sleeps_w * series.pue
        if series.peak is not None:
            off_peak = off_peak + sleeps_w * np.nan_to_num(series.peak)
        of_class = rows.class_of[at]
        if of_class not in made:
            made[of_class] = _steps_of(series, true_factor)
        lots += [
            Lot(
                series=own,
                of_class=of_class,
                group=at,
                feeder=feeder,
                step=place,
                count=round(weight),
                rise_w=own.watts[MINE] * series.row.pue_max,
            )
            for place, own in enumerate(made[of_class])
        ]
    return Fleet(
        lots=tuple(lots),
        order=tuple(sorted(range(len(lots)), key=lambda at: -_merit(lots[at]))),
        off_usd=off_usd,
        off_peak_usd=off_peak,
        off_drawn_w=off_drawn,
        asleep_w=asleep_w,
        caps_w=rows.feeding.caps_w,
        asleep_feeders_w=asleep_feeders,
        block=rows.contract.block,
        true_factor=true_factor,
    )


def gpu_rows(rows: Rows) -> Rows | None:
    """Give the rows without the miners; None when nothing is left."""
    at = [place for place in range(len(rows)) if not rows.series(place).is_asic]
    if not at:
        return None
    return replace(
        rows,
        class_of=tuple(rows.class_of[place] for place in at),
        feeder_of=tuple(rows.feeder_of[place] for place in at),
        weight=tuple(rows.weight[place] for place in at),
        asked=rows.asked[at],
    )


def with_gpus(rows: Rows | None, codes: CodeColumn | None, fleet: Fleet, duty: Duty) -> Account:
    """Settle the GPUs of a course; what ceiling or feeder cannot carry is off, the last rows first.

    AI earns ten times as much per watt as a miner: the GPUs come before the miners.
    """
    steps = len(duty.cap_w)
    if rows is None or codes is None:
        zero = np.zeros(steps)
        return Account(
            profit_usd=zero, energy_usd=zero, peak_usd=zero, asic_profit_usd=zero, load_w=zero,
            drawn_w=zero, feeders_w=np.zeros((len(fleet.caps_w), steps)), switches=0.0,
            asic_switches=0.0, asic_off_share=0.0,
        )  # fmt: skip
    return account(rows, _carried(rows, codes, fleet, duty))


def _carried(rows: Rows, codes: CodeColumn, fleet: Fleet, duty: Duty) -> CodeColumn:
    """Give the codes with what cannot be carried switched off."""
    kept = codes.copy()
    made = account(rows, kept)
    load_w = made.load_w + fleet.asleep_w
    feeders_w = made.feeders_w + fleet.asleep_feeders_w[:, None]
    for at in range(len(rows) - 1, -1, -1):
        feeder = rows.feeder_of[at]
        over = load_w > duty.ceiling_w
        if feeder >= 0:
            over = over | (feeders_w[feeder] > fleet.caps_w[feeder])
        if not over.any():
            continue
        series = rows.series(at)
        watts = np.asarray(series.watts)[kept[at]]
        freed = np.where(
            over, rows.weight[at] * series.row.pue_max * (watts - series.watts[OFF]), 0.0
        )
        load_w = load_w - freed
        if feeder >= 0:
            feeders_w[feeder] -= freed
        kept[at, over] = OFF
    return kept


def others(fleet: Fleet, gpus: Account) -> Others:
    """Give what is no lot beside a course of the GPUs."""
    asleep = fleet.asleep_feeders_w[:, None]
    return Others(
        load_w=gpus.load_w + fleet.asleep_w,
        drawn_w=gpus.drawn_w + fleet.off_drawn_w,
        rooms_w=fleet.caps_w[:, None] - (gpus.feeders_w + asleep),
    )


def drawn_w(lot: Lot) -> FloatColumn | float:
    """Give what one device of a lot adds at the meter, by interval."""
    return lot.series.watts[MINE] * lot.series.pue


def inside_counts(fleet: Fleet, block: Block, beside: Others, cheaper: FlagColumn) -> FloatColumn:
    """Give how many devices of each lot fit into the block, by merit (lots, T).

    Args:
        cheaper: the price inside is known to be below spot; else nothing counts as inside.
    """
    out = np.zeros((len(fleet), len(beside.drawn_w)))
    left_w = np.where(cheaper, block.size_w - beside.drawn_w, 0.0)
    for place in fleet.order:
        lot = fleet.lots[place]
        each_w = drawn_w(lot)
        most = out[place - 1] if lot.step else float(lot.count)  # the lower step comes first
        fits = np.minimum(np.floor(np.maximum(left_w, 0.0) / each_w), most)
        out[place] = fits
        left_w = left_w - fits * each_w
    return out


def settle_fleet(fleet: Fleet, counts: FloatColumn, gpus: Account) -> Account:
    """Settle a course of the miners beside the GPUs.

    Args:
        counts: (lots, T), devices that hold each step. The first interval is no change.
    """
    steps = counts.shape[1]
    profit, energy, peak = fleet.off_usd.copy(), -fleet.off_usd, fleet.off_peak_usd.copy()
    load, drawn = gpus.load_w + fleet.asleep_w, gpus.drawn_w + fleet.off_drawn_w
    feeders = gpus.feeders_w + fleet.asleep_feeders_w[:, None]
    changes = 0.0
    for lot, held in zip(fleet.lots, counts, strict=True):
        series = lot.series
        rise = np.diff(held, prepend=held[0])
        profit = profit + held * np.nan_to_num(series.values[MINE])
        profit = profit - np.maximum(rise, 0.0) * np.nan_to_num(series.start_mine)
        energy = energy + held * np.nan_to_num(series.watts[MINE] * series.energy)
        load = load + held * lot.rise_w
        drawn = drawn + held * series.watts[MINE] * series.pue
        if series.peak is not None:
            peak = peak + held * np.nan_to_num(series.watts[MINE] * series.peak)
        if lot.feeder >= 0:
            feeders[lot.feeder] += held * lot.rise_w
        changes += float(np.abs(rise).sum())
    first = [held for lot, held in zip(fleet.lots, counts, strict=True) if lot.step == 0]
    devices = sum(lot.count for lot in fleet.lots if lot.step == 0)
    on = float(np.sum(first)) / (devices * steps) if devices and steps else 1.0
    return Account(
        profit_usd=profit + gpus.profit_usd,
        energy_usd=energy + gpus.energy_usd,
        peak_usd=peak + gpus.peak_usd,
        asic_profit_usd=profit,
        load_w=load,
        drawn_w=drawn,
        feeders_w=feeders,
        switches=changes + gpus.switches,
        asic_switches=changes,
        asic_off_share=1.0 - on,
    )


def _steps_of(series: ClassSeries, true_factor: float) -> tuple[ClassSeries, ...]:
    return tuple(_step_series(series, at, true_factor) for at in range(len(series.row.steps)))


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
        told_energy=whole.told_energy,
        watts=(0.0, step.power_w, 0.0),
        pue=whole.pue,
        peak=whole.peak,
        wear=row.wear_usd if place == 0 else 0.0,
    )


def _merit(lot: Lot) -> float:
    """Order the lots by terahashes after the pool's fee per joule at the meter."""
    row = lot.series.row
    step = row.steps[lot.step]
    return step.rate_ths * (1.0 - row.pool_fee) / (step.power_w * row.pue_max * W_PER_MW)
