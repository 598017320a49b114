"""Cross-validation of the outlook: each part of a span judged by weights fitted to the others.

The weights that ship are fitted to all the months at hand, so a back-test over them tells nothing
of months nobody has seen. Here the span is cut into parts of consecutive days; in each part the
rule decides by weights that were fitted, by the very method of ``fit``, to the rest of the span.
Every part begins anew: all devices on, nothing learnt, no debt.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from edge_agent.backtest.fit import COST_SCALES, DEAR_SCALES, PRUDENCE, Sample, fit, samples
from edge_agent.backtest.frame import DAY_S, Frame, month_of, part_of
from edge_agent.backtest.hindsight import clairvoyant
from edge_agent.backtest.live import hcp
from edge_agent.backtest.policies import course
from edge_agent.backtest.report import BASELINE, captured, worst_month
from edge_agent.backtest.rows import Demand, account, build_rows
from edge_agent.core.outlook import Knowledge, Table, table_of
from edge_agent.core.site import FloatColumn, IntColumn, Site
from protocol.market import GpuRate


class Unseen(Struct, frozen=True, kw_only=True):
    """What the rule comes to on parts of a span that its weights were not fitted to.

    Args:
        uplift_captured: U of the miners in per cent, all parts together; None: nothing to capture.
        by_part: U of each part. worst_month_vs_s1: per cent of S1's profit in the month.
    """

    uplift_captured: float | None
    by_part: tuple[float | None, ...]
    worst_month_vs_s1: float | None


def parts_of(frame: Frame, count: int) -> tuple[Frame, ...]:
    """Cut a span into so many parts of whole days, equally long but for a day."""
    days = (frame.at_s - frame.at_s[0]) // DAY_S
    number = days * count // (int(days[-1]) + 1)
    return tuple(part_of(frame, number == at) for at in range(count))


def fitted_without(parts: Sequence[Frame], knowledge: Knowledge) -> tuple[Table, ...]:
    """Give for each part the weights fitted to all others; light restarts keep those that ship."""
    usual, dear = (
        [samples(part, knowledge, has_ahead=True, cost_scales=scales) for part in parts]
        for scales in (COST_SCALES, DEAR_SCALES)
    )
    out: list[Table] = []
    for left_out in range(len(parts)):
        (share, gain), (dear_share, dear_gain) = (
            fit(_others(every, left_out), knowledge, has_ahead=True) for every in (usual, dear)
        )
        out.append(
            Table(
                share=tuple(share.tolist()),
                gain=tuple(gain.tolist()),
                prudence=PRUDENCE[knowledge],
                dear=(tuple(dear_share.tolist()), tuple(dear_gain.tolist())),
                light=table_of(knowledge, has_ahead=True).light,
            )
        )
    return tuple(out)


def judge_unseen(
    site: Site,
    rates: tuple[GpuRate, ...],
    parts: Sequence[Frame],
    tables: Sequence[Table],
    knowledge: Knowledge,
    true_restart: float = 1.0,
) -> Unseen:
    """Judge each part by its weights.

    Args:
        parts: consecutive. tables: of each part. true_restart: true restart cost of a miner over
            the assumed one.
    """
    made = [
        _judged(site, rates, part, table, knowledge, true_restart)
        for part, table in zip(parts, tables, strict=True)
    ]
    own, baseline, best = (np.concatenate([row[at] for row in made]) for at in range(3))
    month: IntColumn = month_of(np.concatenate([part.at_s for part in parts]))[0]
    return Unseen(
        uplift_captured=captured(own, baseline, best),
        by_part=tuple(captured(*row) for row in made),
        worst_month_vs_s1=worst_month(own, baseline, month),
    )


def _others(every: Sequence[list[Sample]], left_out: int) -> list[Sample]:
    return [row for at, rows in enumerate(every) if at != left_out for row in rows]


def _judged(
    site: Site,
    rates: tuple[GpuRate, ...],
    part: Frame,
    table: Table,
    knowledge: Knowledge,
    true_restart: float,
) -> tuple[FloatColumn, FloatColumn, FloatColumn]:
    """Give what the miners earn by interval: ours, S1, and the clairvoyant."""
    rows = build_rows(site, part, rates, Demand(), true_restart)
    ours = hcp(rows, part.price, part.day_ahead, knowledge, site.limits, table)
    others = (course(BASELINE, rows, part, knowledge, site.limits), clairvoyant(rows))
    own, baseline, best = (account(rows, codes).asic_profit_usd for codes in (ours, *others))
    return own, baseline, best
