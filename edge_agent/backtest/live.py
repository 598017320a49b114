"""Our policy in a back-test: ``core.outlook`` and ``core.rule``, the functions of the live plan.

A pass stands at the start of each interval. Regret and debt grow at the price that was known while
the interval ran, as in ``core.passes``. An unknown price holds its last value, then the device,
then the safe policy, at the ages of the site's limits.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.class_series import MINE, OFF, SERVE, STEP_H, ClassSeries
from edge_agent.backtest.difficulty import StepsAhead
from edge_agent.backtest.frame import HOUR_S, STEP_S
from edge_agent.backtest.rows import Rows
from edge_agent.backtest.tariff import Contract, StopLoss
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.outlook import HOURS, Change, Knowledge, Known, Outlook, Table, forecast
from edge_agent.core.peaks import for_peak
from edge_agent.core.power import total
from edge_agent.core.restart import RestartBelief, believed_usd, learn, lost_s
from edge_agent.core.rule import grow_regret, pay_debt, wants
from edge_agent.core.site import CodeColumn, FlagColumn, FloatColumn, IntColumn, Limits


class Memory(Struct, frozen=True, eq=False, kw_only=True):
    """The price as known at each instant, and how long it may be believed.

    Args:
        prices: the last known one and the two intervals before it. fresh: it may be acted on.
        safe: it is so old that the safe policy rules.
    """

    prices: tuple[FloatColumn, FloatColumn, FloatColumn]
    fresh: FlagColumn
    safe: FlagColumn


def remember(price: FloatColumn, knowledge: Knowledge, limits: Limits) -> Memory:
    """Give what is known of the price at the start of each interval."""
    lag = 0 if knowledge == "nowcast" else 1
    steps = len(price)
    place = np.where(np.isnan(price), -1, np.arange(steps))
    last = np.maximum.accumulate(place)  # of the last known price
    last = np.concatenate((np.full(lag, -1), last[: steps - lag]))
    age_s = (np.arange(steps) - lag - last) * STEP_S
    known = last >= 0
    fresh = known & (age_s <= limits.price_stale_s)
    safe = known & (age_s > limits.price_stale_s + limits.safe_after_s)
    columns = [np.where(known, price[np.maximum(last, 0)], np.nan)]
    for back in (1, 2):
        older = price[np.maximum(last - back, 0)]
        # As live: what was not seen is as the last known price.
        columns.append(np.where((last - back < 0) | np.isnan(older), columns[0], older))
    return Memory(prices=(columns[0], columns[1], columns[2]), fresh=fresh, safe=safe)


def hcp(
    rows: Rows,
    price: FloatColumn,
    ahead: FloatColumn | None,
    knowledge: Knowledge,
    limits: Limits,
    table: Table | None = None,
) -> CodeColumn:
    """Give the course of our decision.

    Args:
        table: weights to try; none: those that ship.
    """
    memory = remember(price, knowledge, limits)
    sight = Sight(
        memory=memory,
        ahead=ahead,
        knowledge=knowledge,
        contract=rows.contract,
        steps=rows.steps,
        table=table,
    )
    sheets = Sheets(_rows_of(rows.classes), sight)
    return _run(rows, sheets, memory, limits, known=knowledge == "nowcast")


class Sight(Struct, frozen=True, eq=False, kw_only=True):
    """What a decision sees of the market.

    Args:
        ahead: day-ahead price of each interval's hour; None: there is none. steps: of the
            difficulty; None: no file tells. table: weights to try; None: those that ship.
    """

    memory: Memory
    ahead: FloatColumn | None
    knowledge: Knowledge
    contract: Contract
    steps: StepsAhead | None
    table: Table | None = None


class Row(Struct, frozen=True, eq=False):
    """A row that a decision is made about.

    Args:
        of_class: whose restarts teach about it. inside: its load lies inside a fixed-price block.
    """

    series: ClassSeries
    of_class: int
    inside: bool = False


def _rows_of(classes: tuple[ClassSeries, ...]) -> tuple[Row, ...]:
    return tuple(Row(series, at) for at, series in enumerate(classes))


class Sheets:
    """What the decision sees of each row over time, made again when a restart has taught.

    Where a peak of the grid is expected there are two of each: with the charge, and without it for
    when the stop-loss has ended it.

    Args:
        every: the rows.
    """

    def __init__(self, every: tuple[Row, ...], sight: Sight) -> None:
        self._every, self._sight = every, sight
        self._beliefs = {row.of_class: RestartBelief() for row in every}
        peaks = sight.contract.peaks
        charges = [np.zeros(1)] if peaks is None else [np.zeros(1), peaks.expected]
        self._charges = charges
        # (T, column, row): known gain, outlook gain, share, prudent cost.
        self._by_time = [
            np.ascontiguousarray(
                np.stack([_sheet(row, 1.0, charge, sight) for row in every]).transpose(2, 1, 0)
            )
            for charge in charges
        ]
        self.stop_loss = StopLoss(peaks)

    def at(self, at: int) -> FloatColumn:
        """Give (known gain, outlook gain, share, prudent cost) by row for an interval."""
        out: FloatColumn = self._by_time[self.stop_loss.counts(at)][at]
        return out

    def stood_off(self, at: int, off: FloatColumn, of: IntColumn | slice) -> None:
        """Count what devices that were off in an interval forwent for a peak of the grid.

        Args:
            at: an interval that counts. off: devices. of: the row of each.
        """
        plain, with_charge = (sheet[at, 0, of] for sheet in self._by_time)
        self.stop_loss.spend(at, total(off * for_peak(plain, with_charge)))

    def restarted(self, of_class: int, devices: float, true_factor: float) -> None:
        """Learn from devices of a class that woke: how long they took, and the energy of it."""
        before = self._beliefs[of_class]
        row = next(row.series.row for row in self._every if row.of_class == of_class)
        seen_s = true_factor * row.warmup_s
        idle_wh = row.model.mine_w * seen_s / 3_600.0
        lost = lost_s(seen_s, idle_wh, row.model.mine_w)
        after = learn(before, row.warmup_s, lost, devices)
        self._beliefs[of_class] = after
        if after.used == before.used:
            return
        for place, own in enumerate(self._every):
            if own.of_class == of_class:
                for sheet, charge in zip(self._by_time, self._charges, strict=True):
                    made = _sheet(own, after.used, charge, self._sight)
                    sheet[:, :, place] = made.T


def _sheet(row: Row, factor: float, charge: FloatColumn, sight: Sight) -> FloatColumn:
    """Give (known gain, outlook gain, share, prudent cost) over time.

    Args:
        factor: believed restart cost over the assumed one. charge: expected for peaks, USD/MWh.
    """
    series = row.series
    saved_w = (series.watts[MINE] - series.watts[OFF]) * series.pue
    saved_mwh = saved_w * STEP_H / W_PER_MW

    def paid(price: FloatColumn) -> FloatColumn:
        return sight.contract.paid(price, inside=row.inside)

    prices = tuple(map(paid, sight.memory.prices))
    gain = series.revenue - saved_mwh * (prices[0] + charge + series.row.adder_usd_per_mwh)

    def told(hours: tuple[FloatColumn, ...]) -> tuple[Outlook, FloatColumn]:
        known = Known(
            price=prices[0],
            older=(prices[1], prices[2]),
            ahead=hours,
            change=_change(series, sight.steps),
        )
        cost = believed_usd(series.wear, series.assumed_start - series.wear, factor)
        return forecast(
            sight.knowledge,
            known,
            gain,
            saved_mwh,
            cost,
            series.revenue,
            sight.table,
        )

    outlook, cost = told(())
    columns = [gain, outlook.gain, outlook.share, cost]
    if sight.ahead is not None:
        hours = tuple(map(paid, hours_told(sight.ahead)))
        better, better_cost = told(hours)
        has = ~np.isnan(hours[0] + hours[1] + hours[2])
        pairs = ((gain, gain), (better.gain, outlook.gain), (better.share, outlook.share))
        columns = [np.where(has, new, old) for new, old in (*pairs, (better_cost, cost))]
    return np.stack(columns)


def _change(series: ClassSeries, steps: StepsAhead | None) -> Change | None:
    """Give what a coming step of the difficulty changes for a row of miners."""
    if steps is None or not series.is_asic:
        return None
    return Change(
        weight=steps.weight, gain_usd=np.nan_to_num(series.revenue * (steps.revenue_ratio - 1.0))
    )


def hours_told(ahead: FloatColumn) -> tuple[FloatColumn, ...]:
    """Give the day-ahead price of each interval's hour, the two after it, and the one before."""
    hours = [later(ahead, number) for number in range(HOURS)]
    by = HOUR_S // STEP_S
    before = np.concatenate((np.full(min(by, len(ahead)), np.nan), ahead[:-by]))
    # As live: what was not told is as the hour itself.
    return (*hours, np.where(np.isnan(before), ahead, before))


def later(column: FloatColumn, hours: int) -> FloatColumn:
    """Give what a column will be so many hours later, as far as the span tells."""
    by = hours * HOUR_S // STEP_S
    out = np.concatenate((column[by:], np.full(min(by, len(column)), np.nan)))
    return out[: len(column)]


def _run(rows: Rows, sheets: Sheets, memory: Memory, limits: Limits, *, known: bool) -> CodeColumn:
    count, steps = rows.asked.shape
    of, weight = np.array(rows.class_of, dtype=np.int64), np.array(rows.weight)
    every = [rows.series(at).row for at in range(count)]
    asics = np.array([rows.series(at).is_asic for at in range(count)])
    ski_rental = np.array([row.ski_rental for row in every])
    up = np.array([row.least_up_s for row in every]) / STEP_S
    down = np.array([row.least_down_s for row in every]) / STEP_S
    state = np.full(count, MINE, dtype=np.uint8)
    regret, debt = np.zeros(count), np.zeros(count)
    stayed = np.full(count, np.inf)
    none = np.zeros(count, dtype=np.bool_)
    last_gain, last_cost = np.zeros(count), np.ones(count)
    out = np.empty((steps, count), dtype=np.uint8)
    by_time: FlagColumn = np.ascontiguousarray(rows.asked.T)
    any_asked: list[bool] = np.asarray(by_time.any(axis=1)).tolist()
    fresh, safe = memory.fresh.tolist(), memory.safe.tolist()
    for at in range(steps):
        gain, expected, share, cost = sheets.at(at)[:, of]
        serves, on, asked = state == SERVE, state == MINE, by_time[at]
        counts = none
        if at and fresh[at - 1]:
            counts = ~serves
            regret = grow_regret(regret, on, last_gain, counts)
        debt = pay_debt(debt, state == OFF, last_gain, last_cost, counts, STEP_S)
        done = serves & ~asked
        if done.any():
            state = np.where(done, np.where(gain > 0.0, MINE, OFF), state).astype(np.uint8)
            regret, stayed, on = (
                np.where(done, 0.0, regret),
                np.where(done, 0.0, stayed),
                state == MINE,
            )
        stayed = stayed + 1.0
        change = none
        if fresh[at] or safe[at]:
            # Who served until now has had its change, and who is asked will.
            free = ~asked & ~serves & (stayed >= np.where(on, up, down))
            if fresh[at]:
                outlook = Outlook(expected, share)
                found = wants(on, outlook, cost, regret, debt, ski_rental, known=known)
                change = found.change & free
            else:
                change = free & (on != (limits.safe_policy == "mine"))
        if any_asked[at] or change.any():
            wakes = change & ~on
            state = np.where(asked, SERVE, np.where(change, np.where(on, OFF, MINE), state))
            moved = change | asked
            regret, stayed = np.where(moved, 0.0, regret), np.where(change, 0.0, stayed)
            debt = debt + wakes
            for row in np.flatnonzero(wakes & asics):
                sheets.restarted(int(of[row]), rows.weight[row], rows.true_restart)
            state = state.astype(np.uint8)
        out[at] = state
        if sheets.stop_loss.counts(at):
            sheets.stood_off(at, np.where(state == OFF, weight, 0.0), of)
        last_gain, last_cost = gain, cost
    return np.ascontiguousarray(out.T)
