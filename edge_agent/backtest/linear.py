"""The clairvoyant again, as a linear programme with HiGHS: an independent check of the DP.

Per row ``x`` is the share that mines and ``u`` what wakes: maximise ``gain x - cost u`` with
``u >= x - x before``. With a cap the rows share ``sum of weight x watts <= cap``: then shares may
be fractions of devices, and the value is the bound no course can pass. Steps of a power curve are
rows that stand on the row below them, and ramps bind the change of the load. Needs the extra
``hindsight``.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core.site import FloatColumn, IntColumn


class LinearError(Exception):
    """HiGHS is not installed, or found no optimum."""


class Miners(Struct, frozen=True, eq=False, kw_only=True):
    """One row of equal miners; all begin mining, or where it is best.

    Args:
        weight: devices. gain, cost: USD per device and interval; unknown intervals hold 0.
        rise_w: watts at the meter of mining above being off. base_w: of being off.
        above: place of the row whose share this one may not exceed; -1: none. feeder: on which
            the rows hang; -1: none.
    """

    weight: float
    gain: FloatColumn
    cost: FloatColumn
    rise_w: float = 0.0
    base_w: float = 0.0
    above: int = -1
    feeder: int = -1


class Ramp(Struct, frozen=True, eq=False, kw_only=True):
    """How far the load may rise and fall between intervals; ``other_w`` is load of no row."""

    rise_w: float
    fall_w: float
    other_w: FloatColumn


class Saving(Struct, frozen=True, eq=False, kw_only=True):
    """What rows save inside a fixed-price block that is smaller than their load.

    Args:
        left_w: what all else leaves of it, by interval. usd_per_w: saved by a watt inside it;
            negative: lost.
    """

    left_w: FloatColumn
    usd_per_w: FloatColumn


def bound_usd(
    rows: tuple[Miners, ...],
    cap_w: FloatColumn | None = None,
    ramp: Ramp | None = None,
    feeders_w: FloatColumn | None = None,
    block: Saving | None = None,
) -> float:
    """Give the most that the rows can earn above being off throughout.

    Args:
        cap_w: for the rows alone. feeders_w: the same for each feeder (feeders, T). block: counts
            what the rows draw above being off.

    Raises:
        LinearError: no HiGHS, or no optimum.
    """
    try:
        import highspy  # noqa: PLC0415 - an extra; the agent runs without it
    except ImportError as exc:
        raise LinearError("highspy is missing: install the extra `hindsight`") from exc
    steps = len(rows[0].gain)
    model = highspy.HighsLp()
    shared = 0 if block is None else steps
    model.num_col_ = 2 * steps * len(rows) + shared
    model.sense_ = highspy.ObjSense.kMaximize
    gains = [np.concatenate((row.weight * row.gain, -row.weight * row.cost)) for row in rows]
    held = _constraints(rows, steps, cap_w, ramp)
    uppers = [np.ones(2 * steps * len(rows))]
    if block is not None:
        gains.append(block.usd_per_w)
        uppers.append(block.left_w)
        _add_block(held, rows, block)
    model.col_cost_ = np.concatenate(gains)
    model.col_lower_ = np.zeros(model.num_col_)
    model.col_upper_ = np.concatenate(uppers)
    if feeders_w is not None:
        _add_feeders(held, rows, feeders_w)
    model.num_row_ = len(held.lower)
    model.row_lower_, model.row_upper_ = held.lower, held.upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = held.starts, held.index
    model.a_matrix_.value_ = held.value
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # shipped so
    solver.setOptionValue("output_flag", False)  # noqa: FBT003 - the library takes it by place
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise LinearError(f"HiGHS ended with {solver.getModelStatus()}")
    return float(solver.getObjectiveValue())


class _Rows(Struct, eq=False):
    """Constraints under construction, row by row in the library's form."""

    starts: IntColumn
    index: IntColumn
    value: FloatColumn
    lower: FloatColumn
    upper: FloatColumn

    def add(
        self,
        columns: list[IntColumn],
        factors: list[float],
        upper: FloatColumn,
        lower: FloatColumn | None = None,
    ) -> None:
        """Add one constraint per element: ``lower <= sum of factor x column <= upper``."""
        count = len(upper)
        self.index = np.concatenate((self.index, np.stack(columns, axis=1).ravel()))
        self.value = np.concatenate((self.value, np.tile(np.array(factors), count)))
        ends = self.starts[-1] + len(columns) * np.arange(1, count + 1)
        self.starts = np.concatenate((self.starts, ends))
        least = np.full(count, -np.inf) if lower is None else lower
        self.lower = np.concatenate((self.lower, least))
        self.upper = np.concatenate((self.upper, upper))


def _constraints(
    rows: tuple[Miners, ...], steps: int, cap_w: FloatColumn | None, ramp: Ramp | None
) -> _Rows:
    none, whole = np.zeros(0), np.zeros(0, dtype=np.int64)
    held = _Rows(np.zeros(1, dtype=np.int64), whole, none, none, none)
    shares = [2 * steps * place + np.arange(steps) for place in range(len(rows))]
    for share, row in zip(shares, rows, strict=True):
        wakes = share + steps
        # x[at] - x[at - 1] - u[at] <= 0, and all mine before the first interval
        held.add([share[:1], wakes[:1]], [1.0, -1.0], np.ones(1))
        held.add([share[1:], share[:-1], wakes[1:]], [1.0, -1.0, -1.0], np.zeros(steps - 1))
        if row.above >= 0:
            held.add([share, shares[row.above]], [1.0, -1.0], np.zeros(steps))
    base_w = sum(row.weight * row.base_w for row in rows)
    watts = [row.weight * row.rise_w for row in rows]
    if cap_w is not None:
        held.add(shares, watts, cap_w - base_w)
    if ramp is not None:
        change = np.diff(ramp.other_w)
        both = [share[1:] for share in shares] + [share[:-1] for share in shares]
        factors = watts + [-each for each in watts]
        held.add(both, factors, ramp.rise_w - change, -ramp.fall_w - change)
    return held


def _add_feeders(held: _Rows, rows: tuple[Miners, ...], feeders_w: FloatColumn) -> None:
    steps = feeders_w.shape[1]
    for feeder, room_w in enumerate(feeders_w):
        own = [place for place, row in enumerate(rows) if row.feeder == feeder]
        if own:
            shares = [2 * steps * place + np.arange(steps) for place in own]
            watts = [rows[place].weight * rows[place].rise_w for place in own]
            base_w = sum(rows[place].weight * rows[place].base_w for place in own)
            # A feeder that others have filled carries none of these.
            held.add(shares, watts, np.maximum(room_w - base_w, 0.0))


def _add_block(held: _Rows, rows: tuple[Miners, ...], block: Saving) -> None:
    """Add what lies inside a block: no more than is drawn, and than the block leaves.

    Where being inside loses, the load is no convex set: then at least the part lies inside that
    does so with all on, which is the line above the true curve.
    """
    steps = len(block.left_w)
    shares = [2 * steps * place + np.arange(steps) for place in range(len(rows))]
    watts = [row.weight * row.rise_w for row in rows]
    inside = 2 * steps * len(rows) + np.arange(steps)
    held.add([inside, *shares], [1.0, *(-each for each in watts)], np.zeros(steps))
    part = np.minimum(block.left_w / max(sum(watts), 1e-9), 1.0)
    # One constraint at a time: its factors change from interval to interval.
    for at in np.flatnonzero(block.usd_per_w < 0.0).tolist():
        columns = [one[at : at + 1] for one in (inside, *shares)]
        factors = [-1.0, *(float(part[at]) * each for each in watts)]
        held.add(columns, factors, np.zeros(1))
