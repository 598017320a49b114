"""Difficulty steps of a span by the live agent's code: what block times told, and what decides.

What they told a day ahead is shown beside what came; what they tell in the last hours is part of
the outlook, as live.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
from msgspec import Struct

from edge_agent.backtest.beside import Beside
from edge_agent.backtest.frame import STEP_S
from edge_agent.core.difficulty import (
    BLOCK_S,
    block_s,
    blocks_left,
    blocks_seen,
    coming_step,
    next_difficulty,
)
from edge_agent.core.site import FloatColumn, IntColumn
from edge_agent.core.site_state import Blocks

DAY_BLOCKS = round(86_400 / BLOCK_S)
PERCENT = 100.0
EPOCH_MOST_S = 20 * 86_400


class DifficultyStep(Struct, frozen=True, kw_only=True):
    """One step: what was predicted a day's blocks before, and what came; in per cent.

    Args:
        at: start of the interval that first saw the new epoch. predicted: None: too few blocks of
            the epoch had been seen. came: None: the file of difficulties ends before it.
    """

    at: datetime
    predicted: float | None
    came: float | None


class StepsAhead(Struct, frozen=True, eq=False, kw_only=True):
    """What is foretold at the start of each interval, as in ``core.difficulty``; weight 0: none."""

    weight: FloatColumn
    revenue_ratio: FloatColumn


def steps_ahead(at_s: IntColumn, beside: Beside) -> StepsAhead | None:
    """Give the steps that decide; None where no file tells the height of the chain."""
    if beside.heights is None:
        return None
    weight, ratio = np.zeros(len(at_s)), np.ones(len(at_s))
    first = len(_before(at_s))
    for place, held in enumerate(_seen(np.concatenate((_before(at_s), at_s)), beside)):
        step = None if place < first else coming_step(held)
        if step is not None:
            weight[place - first], ratio[place - first] = step.weight, step.revenue_ratio
    return StepsAhead(weight=weight, revenue_ratio=ratio)


def _before(at_s: IntColumn) -> IntColumn:
    """Give the time in which the epoch that runs as the span begins is seen from its beginning."""
    return np.arange(at_s[0] - EPOCH_MOST_S, at_s[0], STEP_S)


def _seen(at_s: IntColumn, beside: Beside) -> Iterator[Blocks | None]:
    """Give the blocks seen at each instant; None before the first height."""
    assert beside.heights is not None, "only called with heights"
    held: Blocks | None = None
    for at, height in zip(at_s.tolist(), beside.heights.held(at_s).tolist(), strict=True):
        if not np.isnan(height):
            held = blocks_seen(held, int(height), at * 1_000)
        yield held


def difficulty_steps(at_s: IntColumn, beside: Beside) -> tuple[DifficultyStep, ...]:
    """Give the steps of a span; none where no file tells the height of the chain."""
    if beside.heights is None or beside.difficulty is None:
        return ()
    every = np.concatenate((_before(at_s), at_s))
    difficulty = beside.difficulty.held(every).tolist()
    last_told_s = int(beside.difficulty.at_s[-1])
    held: Blocks | None = None
    before, predicted = np.nan, None
    out: list[DifficultyStep] = []
    walk = zip(every.tolist(), _seen(every, beside), difficulty, strict=True)
    for at, seen, now in walk:
        if seen is None:
            continue
        if held is not None and seen.first_height > held.height:
            told = at <= last_told_s or now != before
            came = PERCENT * (now / before - 1.0) if told else None
            if at >= at_s[0]:
                when = datetime.fromtimestamp(at, UTC)
                out.append(DifficultyStep(at=when, predicted=predicted, came=_round(came)))
            predicted = None
        elif predicted is None and blocks_left(seen) <= DAY_BLOCKS:
            mean_s = block_s(seen)
            if mean_s is not None:
                predicted = _round(PERCENT * (next_difficulty(1.0, mean_s) - 1.0))
        held, before = seen, now
    return tuple(out)


def _round(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(value, 4)
