"""Figures: captured uplift of the decision on real prices, by knowledge and true restart cost.

Run: ``./dev bench economics --market DIR`` (the project ships no prices). The weights were fitted
to 2024-01 .. 2024-08; the figures of the later months stand beside those of the whole span.
"""

import time
from pathlib import Path

import numpy as np

from bench.figure import Figure, at_least, at_most
from edge_agent.backtest.files import time_s
from edge_agent.backtest.frame import Frame, Wish, describe, load_frame
from edge_agent.backtest.hindsight import two_states
from edge_agent.backtest.linear import Miners, bound_usd
from edge_agent.backtest.policies import NAMES
from edge_agent.backtest.report import PolicyResult, backtest
from edge_agent.backtest.rows import MINE, Demand, before, build_rows
from edge_agent.config import AgentConfig, build_site, read_config
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import Site

SITE = Path(__file__).parents[1] / "docs" / "sites" / "reference.toml"
UNSEEN_FROM = "2024-09-01"
# Targets: U at the assumed restart cost, U at a third and three times it, worst month in per cent.
TARGETS: dict[Knowledge, tuple[float, float, float]] = {
    "nowcast": (95.0, 85.0, -0.05),
    "settled": (75.0, 65.0, -0.3),
}
YEAR_TARGET_S = 20.0
YEAR_INTERVALS = 35_040


def run(market: Path = Path("market")) -> list[Figure]:
    """Measure on every price of the directory, and on the months not fitted to."""
    config = read_config(SITE)
    site = build_site(config)
    whole = load_frame(market, Wish())
    out = [_year(config, site, market)]
    for knowledge in TARGETS:
        out += _figures(config, site, whole, knowledge)
    out.append(_two_programmes(config, site, whole))
    unseen = Wish(from_s=time_s(UNSEEN_FROM))
    if whole.at_s[0] < (unseen.from_s or 0) < whole.at_s[-1]:
        later = load_frame(market, unseen)
        for knowledge in TARGETS:
            out += _figures(config, site, later, knowledge, " unseen")
    return out


def _figures(
    config: AgentConfig, site: Site, frame: Frame, knowledge: Knowledge, label: str = ""
) -> list[Figure]:
    wanted, hard, month = TARGETS[knowledge]
    conditions = {"span": describe(frame), "site": site.site_id, "notes": list(frame.notes)}
    name = f"{knowledge}{label}"
    out: list[Figure] = []
    for factor in (1.0, 1.0 / 3.0, 3.0):
        made = _ours(config, site, frame, knowledge, factor)
        own = conditions | {"true_restart": round(factor, 3)}
        target = wanted if factor == 1.0 else hard
        out.append(at_least(f"{name} U", made.asic_uplift_captured or 0.0, "%", target, own))
        if factor == 1.0:
            worst = made.asic_worst_month_vs_s1 or 0.0
            out.append(at_least(f"{name} worst month", worst, "% of S1", month, own))
    return out


def _ours(
    config: AgentConfig, site: Site, frame: Frame, knowledge: Knowledge, factor: float
) -> PolicyResult:
    rows = build_rows(site, frame, config.market.gpu_rates, Demand(), factor)
    return backtest(site, rows, frame, ("hcp",), knowledge).policies["hcp"]


def _two_programmes(config: AgentConfig, site: Site, frame: Frame) -> Figure:
    """Compare the clairvoyant's two independent solutions for the miners."""
    rows = build_rows(site, frame, config.market.gpu_rates, Demand())
    miners, total = [], 0.0
    for at, weight in enumerate(rows.weight):
        series = rows.series(at)
        if series.is_asic:
            gain, cost = np.nan_to_num(series.gain), np.nan_to_num(series.start_mine)
            codes = two_states(gain, cost)
            wakes = (codes == MINE) & (before(codes) != MINE)
            total += weight * float(gain[codes == MINE].sum() - cost[wakes].sum())
            miners.append(Miners(weight=weight, gain=gain, cost=cost))
    apart = abs(bound_usd(tuple(miners)) / total - 1.0)
    return at_most("DP against LP, no cap", apart * 1e6, "ppm", 1.0, {"span": describe(frame)})


def _year(config: AgentConfig, site: Site, market: Path) -> Figure:
    """Time one year of all policies, reading included, scaled from the span if it is shorter."""
    began = time.perf_counter()
    frame = load_frame(market, Wish())
    rows = build_rows(site, frame, config.market.gpu_rates, Demand())
    backtest(site, rows, frame, NAMES, "nowcast")
    took_s = (time.perf_counter() - began) * YEAR_INTERVALS / len(frame)
    conditions = {"devices": len(site), "policies": len(NAMES), "intervals": len(frame)}
    return at_most("back-test of a year", took_s, "s", YEAR_TARGET_S, conditions)
