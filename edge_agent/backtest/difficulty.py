"""Difficulty steps of a span: what block times told a day ahead, by the live agent's code.

The prediction decides nothing, live or here: it is shown, and its error is told.
"""

from datetime import UTC, datetime

import numpy as np
from msgspec import Struct

from edge_agent.backtest.beside import Beside
from edge_agent.backtest.frame import STEP_S
from edge_agent.core.site import IntColumn
from edge_agent.core.site_model import (
    BLOCK_S,
    block_s,
    blocks_left,
    blocks_seen,
    next_difficulty,
)
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


def difficulty_steps(at_s: IntColumn, beside: Beside) -> tuple[DifficultyStep, ...]:
    """Give the steps of a span; none where no file tells the height of the chain."""
    if beside.heights is None or beside.difficulty is None:
        return ()
    # The epoch that runs as the span begins is seen from its own beginning, where the file has it.
    every = np.concatenate((np.arange(at_s[0] - EPOCH_MOST_S, at_s[0], STEP_S), at_s))
    heights = beside.heights.held(every).tolist()
    difficulty = beside.difficulty.held(every).tolist()
    last_told_s = int(beside.difficulty.at_s[-1])
    held: Blocks | None = None
    before, predicted = np.nan, None
    out: list[DifficultyStep] = []
    for at, height, now in zip(every.tolist(), heights, difficulty, strict=True):
        if np.isnan(height):
            continue
        seen = blocks_seen(held, int(height), at * 1_000)
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
