"""The clairvoyant again, as a linear programme with HiGHS: an independent check of the DP.

Per row ``x`` is the share that mines and ``u`` what wakes: maximise ``gain x - cost u`` with
``u >= x - x before``. With a cap the rows share ``sum of weight x watts <= cap``: then shares may
be fractions of devices, and the value is the bound no course can pass. Needs the extra
``hindsight``.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core.site import FloatColumn


class LinearError(Exception):
    """HiGHS is not installed, or found no optimum."""


class Miners(Struct, frozen=True, eq=False, kw_only=True):
    """One row of equal miners; all begin mining.

    Args:
        weight: devices. gain, cost: USD per device and interval; unknown intervals hold 0.
        rise_w: watts at the meter of mining above being off. base_w: of being off.
    """

    weight: float
    gain: FloatColumn
    cost: FloatColumn
    rise_w: float = 0.0
    base_w: float = 0.0


def bound_usd(rows: tuple[Miners, ...], cap_w: FloatColumn | None = None) -> float:
    """Give the most that the rows can earn above being off throughout.

    Raises:
        LinearError: no HiGHS, or no optimum.
    """
    try:
        import highspy  # noqa: PLC0415 - an extra; the agent runs without it
    except ImportError as exc:
        raise LinearError("highspy is missing: install the extra `hindsight`") from exc
    steps = len(rows[0].gain)
    model = highspy.HighsLp()
    model.num_col_ = 2 * steps * len(rows)
    model.sense_ = highspy.ObjSense.kMaximize
    gains = [np.concatenate((row.weight * row.gain, -row.weight * row.cost)) for row in rows]
    model.col_cost_ = np.concatenate(gains)
    model.col_lower_ = np.zeros(model.num_col_)
    model.col_upper_ = np.ones(model.num_col_)
    starts, index, value, lower, upper = _constraints(rows, steps, cap_w, highspy.kHighsInf)
    model.num_row_ = len(lower)
    model.row_lower_, model.row_upper_ = lower, upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = starts, index
    model.a_matrix_.value_ = value
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # shipped so
    solver.setOptionValue("output_flag", False)  # noqa: FBT003 - the library takes it by place
    solver.passModel(model)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise LinearError(f"HiGHS ended with {solver.getModelStatus()}")
    return float(solver.getObjectiveValue())


def _constraints(
    rows: tuple[Miners, ...], steps: int, cap_w: FloatColumn | None, infinity: float
) -> tuple[list[int], list[int], list[float], list[float], list[float]]:
    starts, index, lower, upper = [0], [], [], []
    value: list[float] = []
    for place in range(len(rows)):
        x, u = 2 * steps * place, 2 * steps * place + steps
        for at in range(steps):
            # x[at] - x[at - 1] - u[at] <= 0, and all mine before the first interval
            before = [(x + at - 1, -1.0)] if at else []
            terms = [(x + at, 1.0), *before, (u + at, -1.0)]
            index += [column for column, _ in terms]
            value += [factor for _, factor in terms]
            starts.append(len(index))
            lower.append(-infinity)
            upper.append(0.0 if at else 1.0)
    base_w = sum(row.weight * row.base_w for row in rows)
    for at in range(0 if cap_w is None else steps):
        index += [2 * steps * place + at for place in range(len(rows))]
        value += [row.weight * row.rise_w for row in rows]
        starts.append(len(index))
        lower.append(-infinity)
        upper.append(float(cap_w[at]) - base_w if cap_w is not None else infinity)
    return starts, index, value, lower, upper
