"""The policies that a back-test compares; each gives a code per row and interval.

Definitions: gain g = margin on - margin off of an interval, c = restart cost, R = revenue of an
interval. Knowledge: ``nowcast`` sees the interval's price at its start, ``settled`` only that of
the last closed one; demand, rates and hashprice are known to all.
"""

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from edge_agent.backtest.class_series import MINE, OFF, SERVE, ClassSeries
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.hindsight import clairvoyant
from edge_agent.backtest.live import hcp
from edge_agent.backtest.rows import Rows
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import CodeColumn, FlagColumn, FloatColumn, Limits

# Waits of a strike rule in intervals after the price has fallen below the strike (30 min).
STRIKE_WAIT = 2
HYSTERESIS_OFF, HYSTERESIS_ON = 0.5, 0.1


class View(Struct, frozen=True, eq=False, kw_only=True):
    """What a baseline's rule sees of one class.

    Args:
        gain: of mining, as known at the start of each interval. asked: (rows, T), of GPUs.
    """

    series: ClassSeries
    gain: FloatColumn
    asked: FlagColumn
    preempt_usd: float
    knowledge: Knowledge


Rule = Callable[[View], CodeColumn]


def seen(column: FloatColumn, knowledge: Knowledge) -> FloatColumn:
    """Give what is known of a price-made column at the start of each interval."""
    if knowledge == "nowcast":
        return column
    out: FloatColumn = np.concatenate((np.array([np.nan]), column[:-1]))
    return out


# --- miners ----------------------------------------------------------------------------------


def _always(view: View) -> CodeColumn:
    return np.full(len(view.gain), MINE, dtype=np.uint8)


def _banded(gain: FloatColumn, low: FloatColumn, high: FloatColumn, least: int) -> CodeColumn:
    """Off below ``low``, on above ``high``, after ``least`` intervals in a state."""
    out, state, stayed = [], MINE, least
    down, up = (gain < low).tolist(), (gain > high).tolist()
    for falls, rises in zip(down, up, strict=True):
        stayed += 1
        if stayed >= least and (falls if state == MINE else rises):
            state, stayed = (OFF if state == MINE else MINE), 0
        out.append(state)
    return np.array(out, dtype=np.uint8)


def _myopic(view: View) -> CodeColumn:
    zero = np.zeros(len(view.gain))
    return _banded(view.gain, zero, zero, 1)


def _literal(view: View) -> CodeColumn:
    return _banded(view.gain, -view.series.assumed_start, view.series.assumed_start, 1)


def _hysteresis(view: View) -> CodeColumn:
    least = 1 if view.knowledge == "nowcast" else 2
    return _banded(
        view.gain, -HYSTERESIS_OFF * view.series.revenue, HYSTERESIS_ON * view.series.revenue, least
    )


def _strike(view: View) -> CodeColumn:
    out, state, calm = [], MINE, 0
    for value in view.gain.tolist():
        calm = calm + 1 if value > 0.0 else 0
        if value < 0.0:
            state = OFF
        elif calm >= STRIKE_WAIT:
            state = MINE
        out.append(state)
    return np.array(out, dtype=np.uint8)


def _ski_rental(view: View) -> CodeColumn:
    out, state, regret = [], MINE, 0.0
    limits = (0.5 * view.series.assumed_start).tolist()
    for value, limit in zip(np.nan_to_num(view.gain).tolist(), limits, strict=True):
        regret = max(0.0, regret + (-value if state == MINE else value))
        if regret >= limit and regret > 0.0:
            state, regret = (OFF if state == MINE else MINE), 0.0
        out.append(state)
    return np.array(out, dtype=np.uint8)


# --- GPUs ------------------------------------------------------------------------------------


def _gpu_mines(view: View) -> CodeColumn:
    return np.full(view.asked.shape, MINE, dtype=np.uint8)


def _gpu_serves(view: View) -> CodeColumn:
    return np.where(view.asked, SERVE, MINE).astype(np.uint8)


def _known_values(view: View) -> list[FloatColumn]:
    """Give the margins at the energy price as known; before the first one energy counts as free."""
    series = view.series
    paid = np.nan_to_num(seen(series.told_energy, view.knowledge))
    return [
        value + watts * (series.energy - paid)
        for value, watts in zip(series.values, series.watts, strict=True)
    ]


def _gpu_greedy(view: View) -> CodeColumn:
    off, mine, serve = _known_values(view)
    other = np.where(mine > off, MINE, OFF)
    best = np.maximum(mine, off)
    out: CodeColumn = np.where(view.asked & (serve > best), SERVE, other).astype(np.uint8)
    return out


def _gpu_literal(view: View) -> CodeColumn:
    """Change to the best when its gain over the interval exceeds the cost of the change."""
    rows, steps = view.asked.shape
    # What follows upon each state, asked to serve or not, is the same for all rows.
    after = np.stack([_literal_steps(view, asked=False), _literal_steps(view, asked=True)], axis=1)
    by_time = np.ascontiguousarray(view.asked.T).view(np.uint8)
    state = np.full(rows, MINE, dtype=np.uint8)
    out = np.empty((steps, rows), dtype=np.uint8)
    for at in range(steps):
        out[at] = state = after[at, by_time[at], state]
    return np.ascontiguousarray(out.T)


def _literal_steps(view: View, *, asked: bool) -> CodeColumn:
    """Give what the literal rule makes of each state: (T, state)."""
    now = np.stack(_known_values(view))
    if not asked:
        now[SERVE] = -np.inf
    every = np.arange(now.shape[1])
    best = np.argmax(np.nan_to_num(now, nan=-np.inf), axis=0)
    start = view.series.assumed_start
    cost = np.choose(best, (np.zeros(len(start)), start, view.series.start_serve))
    out = np.empty((len(every), 3), dtype=np.uint8)
    for state in (OFF, MINE, SERVE):
        left = OFF if state == SERVE and not asked else state
        paid = cost + np.where((left == SERVE) & (best != SERVE), view.preempt_usd, 0.0)
        gain = now[best, every] - now[left]
        out[:, state] = np.where((best != left) & (gain > paid), best, left)
    return out


_POLICIES: dict[str, tuple[Rule, Rule]] = {
    "s0-always-mine": (_always, _gpu_mines),
    "s1-ai-else-mine": (_always, _gpu_serves),
    "myopic": (_myopic, _gpu_greedy),
    "literal-rule-15min": (_literal, _gpu_literal),
    "strike": (_strike, _gpu_greedy),
    "hysteresis": (_hysteresis, _gpu_greedy),
    "ski-rental": (_ski_rental, _gpu_greedy),
}
NAMES = ("hcp", *_POLICIES, "clairvoyant")


def course(name: str, rows: Rows, frame: Frame, knowledge: Knowledge, limits: Limits) -> CodeColumn:
    """Give the codes of a policy."""
    if name == "clairvoyant":
        return clairvoyant(rows)
    if name == "hcp":
        return hcp(rows, frame.price, frame.day_ahead, knowledge, limits)
    gpu = _POLICIES[name][1]
    out = np.empty(rows.asked.shape, dtype=np.uint8)
    for place, series in enumerate(rows.classes):
        at = [number for number, of in enumerate(rows.class_of) if of == place]
        if at:
            view = _view(series, rows.asked[at], rows.preempt_usd, knowledge)
            out[at] = miner_codes(name, series, knowledge) if series.is_asic else gpu(view)
    return out


def miner_codes(name: str, series: ClassSeries, knowledge: Knowledge) -> CodeColumn:
    """Give the codes of a baseline for a row that is on or off."""
    return _POLICIES[name][0](_view(series, np.zeros((0, 0), dtype=np.bool_), 0.0, knowledge))


def _view(series: ClassSeries, asked: FlagColumn, preempt_usd: float, knowledge: Knowledge) -> View:
    saved_w = series.watts[MINE] - series.watts[OFF]
    return View(
        series=series,
        gain=series.revenue - saved_w * seen(series.told_energy, knowledge),
        asked=asked,
        preempt_usd=preempt_usd,
        knowledge=knowledge,
    )
