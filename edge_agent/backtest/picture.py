"""A back-test as a picture: one policy against the clairvoyant and S1."""

import numpy as np

from edge_agent.backtest.frame import Frame, describe
from edge_agent.backtest.plot import Picture, break_even
from edge_agent.backtest.policies import course
from edge_agent.backtest.report import BASELINE, BEST
from edge_agent.backtest.rows import MINE, OFF, STEP_H, Rows, account
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import FloatColumn, Site


def backtest_picture(
    site: Site, rows: Rows, frame: Frame, name: str, knowledge: Knowledge
) -> Picture:
    """Give the columns of a back-test's picture; without miners the GPUs stand for them."""
    codes = {
        policy: course(policy, rows, frame, knowledge, site.limits)
        for policy in dict.fromkeys((name, BEST, BASELINE))
    }
    accounts = {policy: account(rows, taken) for policy, taken in codes.items()}
    base = accounts[BASELINE].profit_usd
    miners = [at for at in range(len(rows)) if rows.series(at).is_asic] or list(range(len(rows)))
    weight = np.array([rows.weight[at] for at in miners])
    on = codes[name][miners] == MINE
    return Picture(
        title=f"{site.site_id}  {describe(frame)}  {name}, {knowledge}",
        at_s=frame.at_s,
        price=frame.price,
        break_even=_break_even(rows, miners),
        mining=weight @ on / weight.sum(),
        load_mw=accounts[name].load_w / W_PER_MW,
        cap_mw=np.full(len(frame), site.limits.power_cap_w / W_PER_MW),
        above_s1_usd={
            policy: made.profit_usd - base
            for policy, made in accounts.items()
            if policy in (name, BEST) and policy != BASELINE
        },
    )


def _break_even(rows: Rows, miners: list[int]) -> FloatColumn:
    """Give the fleet's break-even: all its revenue over all that it saves."""
    revenue = np.zeros(rows.asked.shape[1])
    saved_mw, adder = 0.0, 0.0
    for at in miners:
        series, weight = rows.series(at), rows.weight[at]
        rise_mw = weight * (series.watts[MINE] - series.watts[OFF]) * series.row.pue / W_PER_MW
        revenue = revenue + weight * series.revenue / STEP_H
        saved_mw += rise_mw
        adder += rise_mw * series.row.adder_usd_per_mwh
    mean_adder = adder / saved_mw if saved_mw > 0.0 else 0.0
    return break_even(revenue, np.full(len(revenue), saved_mw), mean_adder)
