"""One back-test: a site, a span, and what each policy comes to against S1 and the best."""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.frame import Frame, describe, month_of
from edge_agent.backtest.policies import course
from edge_agent.backtest.rows import Account, Rows, account
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import FloatColumn, IntColumn, Site

BASELINE, BEST = "s1-ai-else-mine", "clairvoyant"


class PolicyResult(Struct, frozen=True, kw_only=True):
    """What one policy comes to over the span; None: nothing to compare with.

    Args:
        switches: device changes of activity. uplift_captured: U in per cent, of the whole site and
            of the miners alone. worst_month_vs_s1: per cent of S1's profit in the month.
        cap_violations: intervals with the load above the site's cap.
    """

    profit_usd: float
    energy_cost_usd: float
    switches: int
    uplift_captured: float | None
    worst_month_vs_s1: float | None
    cap_violations: int
    asic_profit_usd: float
    asic_uplift_captured: float | None
    asic_worst_month_vs_s1: float | None
    share_of_clairvoyant: float | None
    asic_off_share: float


class Report(Struct, frozen=True, kw_only=True):
    """The answer of ``hcp-agent backtest``."""

    site: str
    devices: int
    knowledge: str
    span: str
    intervals: int
    settled_intervals: int
    notes: tuple[str, ...]
    policies: dict[str, PolicyResult]


def backtest(
    site: Site, rows: Rows, frame: Frame, names: tuple[str, ...], knowledge: Knowledge
) -> Report:
    """Run policies over a span; the baseline and the clairvoyant run in any case."""
    wanted = dict.fromkeys((BASELINE, BEST, *names))
    accounts = {
        name: account(rows, course(name, rows, frame, knowledge, site.limits)) for name in wanted
    }
    month, _ = month_of(frame.at_s)
    settled = ~np.isnan(frame.price) & ~np.isnan(frame.hashprice)
    return Report(
        site=site.site_id,
        devices=len(site),
        knowledge=knowledge,
        span=describe(frame),
        intervals=len(frame),
        settled_intervals=int(settled.sum()),
        notes=frame.notes,
        policies={
            name: result(accounts[name], accounts[BASELINE], accounts[BEST], month, site)
            for name in names
        },
    )


def result(
    own: Account, baseline: Account, best: Account, month: IntColumn, site: Site
) -> PolicyResult:
    """Compare one account with the baseline and the best."""
    profit = _total(own.profit_usd)
    return PolicyResult(
        profit_usd=round(profit, 2),
        energy_cost_usd=round(_total(own.energy_usd), 2),
        switches=round(own.switches),
        uplift_captured=captured(own.profit_usd, baseline.profit_usd, best.profit_usd),
        worst_month_vs_s1=worst_month(own.profit_usd, baseline.profit_usd, month),
        cap_violations=int(np.count_nonzero(own.load_w > site.limits.power_cap_w)),
        asic_profit_usd=round(_total(own.asic_profit_usd), 2),
        asic_uplift_captured=captured(
            own.asic_profit_usd, baseline.asic_profit_usd, best.asic_profit_usd
        ),
        asic_worst_month_vs_s1=worst_month(own.asic_profit_usd, baseline.asic_profit_usd, month),
        share_of_clairvoyant=_share(profit, _total(best.profit_usd)),
        asic_off_share=round(own.asic_off_share, 6),
    )


def captured(own: FloatColumn, baseline: FloatColumn, best: FloatColumn) -> float | None:
    """Give the captured uplift U in per cent; None where there is nothing to capture."""
    room = _total(best) - _total(baseline)
    if room <= 0.005:
        return None
    return round(100.0 * (_total(own) - _total(baseline)) / room, 4)


def worst_month(own: FloatColumn, baseline: FloatColumn, month: IntColumn) -> float | None:
    """Give the worst calendar month against the baseline in per cent of its profit there."""
    mine, base = np.bincount(month, own), np.bincount(month, baseline)
    usable = base > 0.0
    if not usable.any():
        return None
    return round(float(np.min(100.0 * (mine - base)[usable] / base[usable])), 4)


def _share(own: float, best: float) -> float | None:
    return round(100.0 * own / best, 4) if best > 0.0 else None


def _total(column: FloatColumn) -> float:
    return float(np.add.accumulate(column)[-1]) if len(column) else 0.0
