"""A back-test as a picture: one policy against the clairvoyant and S1."""

import numpy as np

from edge_agent.backtest.class_series import MINE, OFF, STEP_H
from edge_agent.backtest.fleet import Fleet
from edge_agent.backtest.frame import Frame, describe
from edge_agent.backtest.plot import Picture, break_even
from edge_agent.backtest.policies import course
from edge_agent.backtest.policies_fleet import build_ground, has_fleet, settle_policy
from edge_agent.backtest.report import BASELINE, BEST
from edge_agent.backtest.rows import Rows, account
from edge_agent.config import Duties
from edge_agent.core.economics import W_PER_MW
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import CodeColumn, FloatColumn, Site


def backtest_picture(
    site: Site,
    rows: Rows,
    frame: Frame,
    name: str,
    knowledge: Knowledge,
    duties: Duties | None = None,
) -> Picture:
    """Give the columns of a back-test's picture; without miners the GPUs stand for them."""
    names = tuple(dict.fromkeys((name, BEST, BASELINE)))
    shares: dict[str, FloatColumn] = {}
    miners = [at for at in range(len(rows)) if rows.series(at).is_asic] or list(range(len(rows)))
    if has_fleet(site, duties):
        ground = build_ground(site, rows, frame, duties, knowledge)
        made = {policy: settle_policy(policy, ground) for policy in names}
        accounts = {policy: row.account for policy, row in made.items()}
        shares = mode_shares(ground.fleet, made[name].counts)
        mining = sum(shares.values(), np.zeros(len(frame)))
        if not shares:
            # What the ceiling keeps off of the GPUs shows in the load.
            mining = _mining(rows, miners, course(name, rows, frame, knowledge, site.limits))
        cap_w = ground.duty.limit_w
    else:
        codes = {policy: course(policy, rows, frame, knowledge, site.limits) for policy in names}
        accounts = {policy: account(rows, taken) for policy, taken in codes.items()}
        mining = _mining(rows, miners, codes[name])
        cap_w = np.full(len(frame), site.limits.power_cap_w)
    base = accounts[BASELINE].profit_usd
    return Picture(
        title=f"{site.site_id}  {describe(frame)}  {name}, {knowledge}",
        at_s=frame.at_s,
        price=frame.price,
        break_even=_break_even(rows, miners),
        mining=mining,
        modes=shares if len(shares) > 1 else {},
        load_mw=accounts[name].load_w / W_PER_MW,
        cap_mw=cap_w / W_PER_MW,
        above_s1_usd={
            policy: own.profit_usd - base
            for policy, own in accounts.items()
            if policy in (name, BEST) and policy != BASELINE
        },
    )


def mode_shares(fleet: Fleet, counts: FloatColumn) -> dict[str, FloatColumn]:
    """Give the share of the miners in each mode over time, the lowest mode first.

    Args:
        counts: (lots, T), devices that hold each step: those of a mode hold its step and no higher.
    """
    devices = float(sum(lot.count for lot in fleet.lots if lot.step == 0))
    out: dict[str, FloatColumn] = {}
    for at, lot in enumerate(fleet.lots):
        last = at + 1 == len(fleet) or fleet.lots[at + 1].step == 0
        held = counts[at] if last else counts[at] - counts[at + 1]
        mode = lot.series.row.steps[lot.step].mode
        out[mode] = out.get(mode, np.zeros(counts.shape[1])) + held / devices
    return out


def _mining(rows: Rows, miners: list[int], codes: CodeColumn) -> FloatColumn:
    weight = np.array([rows.weight[at] for at in miners])
    out: FloatColumn = weight @ (codes[miners] == MINE) / max(weight.sum(), 1.0)
    return out


def _break_even(rows: Rows, miners: list[int]) -> FloatColumn:
    """Give the fleet's break-even: all its revenue over all that it saves."""
    revenue = np.zeros(rows.asked.shape[1])
    saved_mw, adder = np.zeros(len(revenue)), np.zeros(len(revenue))
    for at in miners:
        series, weight = rows.series(at), rows.weight[at]
        rise_mw = weight * (series.watts[MINE] - series.watts[OFF]) * series.pue / W_PER_MW
        revenue = revenue + weight * series.revenue / STEP_H
        saved_mw = saved_mw + rise_mw
        adder = adder + rise_mw * series.row.adder_usd_per_mwh
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_adder = adder / saved_mw
    return break_even(revenue, saved_mw, mean_adder)
