"""Fits the weights of the outlook to a span of prices and prints ``core/outlook_table.py``.

Run: ``python -m edge_agent.backtest.fit --market DIR`` (all months; ``--from`` and ``--to`` cut).

Value iteration with a linear estimate: ``D = clip(gain + share, 0, 1)`` in restart costs, the share
regressed on the next interval's D. Each span is used at several levels of hashprice and of restart
cost, so that the weights know ratios only. Weights on the last price are kept >= 0, in company as
well: a higher price never makes staying on look better. Calm intervals, where nothing is to be
decided, hardly count; weights in company are drawn to 0 where few intervals speak for them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from msgspec import Struct

from edge_agent.backtest.class_series import STEP_H
from edge_agent.backtest.files import time_s
from edge_agent.backtest.frame import Frame, Wish, load_frame
from edge_agent.backtest.live import hours_told, remember
from edge_agent.core.economics import W_PER_MW, mine_usd_per_ths_h, restart_usd
from edge_agent.core.outlook import (
    AHEAD,
    AHEAD_RAMPS,
    LIGHT_MOST,
    NOW_RAMPS,
    RISE_RAMPS,
    SEEN_RAMPS,
    Knowledge,
    basis,
)
from edge_agent.core.site import DeviceClass, FlagColumn, FloatColumn, Limits
from protocol.resource import MODELS

REVENUE_SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)
COST_SCALES = (0.6, 1.0, 2.0)
# For the weights where a restart is dear, and where it is light.
DEAR_SCALES, LIGHT_SCALES = (2.5, 4.0, 6.5), (0.1, 0.2, 0.4)
ROUNDS = 14
GAIN_BOUND = 6.0
PRUDENCE: dict[Knowledge, float] = {"nowcast": 1.0, "settled": 1.1}
# Calm: all gains of the last intervals and of this and the next hour are above so many restarts.
CALM_ABOVE, CALM_WEIGHT = 0.5, 0.03
RIDGE, COMPANY_RIDGE = 1.0, 30.0


class Sample(Struct, frozen=True, eq=False):
    """Consecutive intervals at one level of hashprice and cost: gain in restarts, terms, weight."""

    gain: FloatColumn
    terms: FloatColumn
    weight: FloatColumn


def samples(
    frame: Frame,
    knowledge: Knowledge,
    *,
    has_ahead: bool,
    cost_scales: tuple[float, ...] = COST_SCALES,
) -> list[Sample]:
    """Give a sample for each level of hashprice and cost."""
    row = DeviceClass(model=MODELS["S21"])
    model = row.model
    saved_mwh = (model.mine_w - model.curtailed_w) * row.pue * STEP_H / W_PER_MW
    memory = remember(frame.price, knowledge, Limits(power_cap_w=1.0))
    ahead = frame.day_ahead if has_ahead else None
    out: list[Sample] = []
    for scale in REVENUE_SCALES:
        revenue_h = scale * model.hashrate_ths * mine_usd_per_ths_h(row, frame.hashprice)
        for cost_scale in cost_scales:
            cost = cost_scale * restart_usd(row, revenue_h)

            def gain(
                price: FloatColumn,
                revenue_h: FloatColumn = revenue_h,
                cost: FloatColumn = cost,
            ) -> FloatColumn:
                paid = saved_mwh * (price + row.adder_usd_per_mwh)
                result: FloatColumn = (revenue_h * STEP_H - paid) / cost
                return result

            term = cost / (revenue_h * STEP_H)
            if cost_scales is LIGHT_SCALES:
                term = np.minimum(term, LIGHT_MOST)
            told = [gain(price) for price in memory.prices]
            hours = [] if ahead is None else [gain(hour) for hour in hours_told(ahead)]
            usual = cost_scales is COST_SCALES
            terms = np.stack(basis(told, hours, term, in_company=usual), axis=1)
            now = gain(frame.price)
            whole = ~np.isnan(now) & ~np.isnan(terms).any(axis=1)
            calm = np.minimum.reduce([*told, *hours[:2]]) >= CALM_ABOVE
            # A change of mode is decided in calm intervals too.
            light = cost_scales is LIGHT_SCALES
            weight = np.where(calm & (not light), CALM_WEIGHT, 1.0)
            out.append(Sample(now[whole], terms[whole], weight[whole]))
    return out


def fit(
    sets: list[Sample], knowledge: Knowledge, *, has_ahead: bool
) -> tuple[FloatColumn, FloatColumn]:
    """Give the weights of the share, and of the gain (empty where it is known)."""
    bound, ridge = _bound_and_ridge(sets[0].terms.shape[1], has_ahead=has_ahead)
    right = [(row.terms * row.weight[:, None]).T for row in sets]
    square = np.diag(ridge)
    for row, turned in zip(sets, right, strict=True):
        square = square + turned @ row.terms
    expected = [row.gain for row in sets]
    about_gain = np.zeros(0)
    if knowledge == "settled":
        clipped = [np.clip(row.gain, -GAIN_BOUND, GAIN_BOUND) for row in sets]
        seen = [turned @ gain for turned, gain in zip(right, clipped, strict=True)]
        about_gain = _solve(square, np.sum(seen, axis=0), bound)
        expected = [row.terms @ about_gain for row in sets]
    share = np.zeros(len(square))
    share[0] = 0.5
    for number in range(ROUNDS):
        total = np.zeros(len(square))
        for row, turned, gain in zip(sets, right, expected, strict=True):
            worth = np.clip(gain + np.clip(row.terms @ share, 0.0, 1.0), 0.0, 1.0)
            total += turned @ np.concatenate((worth[1:], np.ones(1)))
        fresh = _solve(square, total, bound)
        share = fresh if number == 0 else 0.5 * (share + fresh)
    return share, about_gain


def _bound_and_ridge(count: int, *, has_ahead: bool) -> tuple[FlagColumn, FloatColumn]:
    """Say which of so many weights are kept >= 0, and how strongly each is drawn to 0."""
    alone = 1 + sum(map(len, SEEN_RAMPS))
    alone += AHEAD * len(AHEAD_RAMPS) + len(RISE_RAMPS) if has_ahead else 0
    place = np.arange(count)
    company = (place >= alone) & (place < count - 1)
    bound: FlagColumn = company | ((place >= 1) & (place <= len(NOW_RAMPS)))
    return bound, np.where(company, COMPANY_RIDGE, RIDGE)


def _solve(square: FloatColumn, right: FloatColumn, bound: FlagColumn) -> FloatColumn:
    """Solve the least squares with the bound weights kept >= 0."""
    free = np.ones(len(right), dtype=np.bool_)
    while True:
        out = np.zeros(len(right))
        out[free] = np.linalg.solve(square[np.ix_(free, free)], right[free])
        negative = bound & (out < 0.0)
        if not negative.any():
            return out
        free &= ~negative


def _lines(weights: FloatColumn) -> str:
    numbers = [f"{weight:.4f}" for weight in weights]
    if not numbers:
        return "        (),\n"
    rows = [", ".join(numbers[at : at + 8]) for at in range(0, len(numbers), 8)]
    return "        (\n" + "".join(f"            {row},\n" for row in rows) + "        ),\n"


def main(argv: list[str] | None = None) -> int:
    """Print the module with the fitted weights."""
    program = "python -m edge_agent.backtest.fit"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--market", required=True, type=Path)
    parser.add_argument("--from", dest="start", type=time_s)
    parser.add_argument("--to", dest="end", type=time_s)
    args = parser.parse_args(argv)
    frame = load_frame(args.market, Wish(from_s=args.start, to_s=args.end))
    sys.stdout.write(
        '"""Weights of the outlook; made by ``python -m edge_agent.backtest.fit``.\n'
        "\n"
        f"Fitted to {len(frame)} intervals of 15 minutes. Each entry: weights of the\n"
        "share, of the gain where the price is not known yet, the prudence on the\n"
        'assumed restart cost, and share and gain where a restart is dear and light.\n"""\n'
        "\n# fmt: off\n"
        "_Weights = tuple[float, ...]\n"
        "TABLES: dict[\n"
        "    tuple[str, bool],\n"
        "    tuple[_Weights, _Weights, float, tuple[_Weights, _Weights], "
        "tuple[_Weights, _Weights]],\n"
        "] = {\n"
    )
    for knowledge, prudence in PRUDENCE.items():
        for has_ahead in (True, False):
            lines = [
                "".join(
                    map(
                        _lines,
                        fit(
                            samples(frame, knowledge, has_ahead=has_ahead, cost_scales=scales),
                            knowledge,
                            has_ahead=has_ahead,
                        ),
                    )
                )
                for scales in (COST_SCALES, DEAR_SCALES, LIGHT_SCALES)
            ]
            sys.stdout.write(
                f'    ("{knowledge}", {has_ahead}): (\n{lines[0]}        {prudence},\n'
                f"        (\n{lines[1]}        ),\n        (\n{lines[2]}        ),\n    ),\n"
            )
    sys.stdout.write("}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
