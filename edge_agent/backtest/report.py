"""One back-test: a site, a span, and what each policy comes to against S1 and the best."""

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.backtest.difficulty import DifficultyStep, difficulty_steps
from edge_agent.backtest.duties import ROUNDING_W, Broken, broken
from edge_agent.backtest.feeding import Feeding
from edge_agent.backtest.frame import Frame, describe, month_of
from edge_agent.backtest.policies import course
from edge_agent.backtest.policies_fleet import (
    FILL,
    Ground,
    build_ground,
    has_fleet,
    settle_policy,
)
from edge_agent.backtest.rows import Account, Rows, account, with_block
from edge_agent.config import Duties
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import FloatColumn, IntColumn, Site

BASELINE, BEST = "s1-ai-else-mine", "clairvoyant"


class PolicyResult(Struct, frozen=True, kw_only=True):
    """What one policy comes to over the span; None: nothing to compare with.

    Args:
        switches: device changes of activity. uplift_captured: U in per cent, of the whole site and
            of the miners alone. worst_month_vs_s1: per cent of S1's profit in the month.
        cap_violations: intervals with the load above the site's cap; ramp_violations: with a
            steeper change of load than allowed; deadline_violations: above what an order asks;
            feeder_violations: with any feeder above its cap.
        peak_charge_usd: the part of the energy's cost that is for the grid's peaks.
        asic_uplift_over_fill: U of the miners against always running what the ceiling allows.
        allocation_gap_usd: what the bounds of all allocations are above what they gave.
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
    ramp_violations: int = 0
    deadline_violations: int = 0
    feeder_violations: int = 0
    violations: int = 0
    peak_charge_usd: float = 0.0
    asic_uplift_over_fill: float | None = None
    allocation_gap_usd: float | None = None


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
    difficulty_steps: tuple[DifficultyStep, ...] = ()


def backtest(
    site: Site,
    rows: Rows,
    frame: Frame,
    names: tuple[str, ...],
    knowledge: Knowledge,
    duties: Duties | None = None,
) -> Report:
    """Run policies over a span; the baseline and the clairvoyant run in any case.

    Args:
        duties: a changing cap and orders; none: the site's cap stands.
    """
    wanted = dict.fromkeys((BASELINE, BEST, *names))
    if has_fleet(site, duties):
        policies = _with_fleet(site, rows, frame, wanted, knowledge, duties)
    else:
        policies = _on_off(site, rows, frame, wanted, knowledge)
    settled = ~np.isnan(frame.price) & ~np.isnan(frame.hashprice)
    above = _above_best(policies)
    return Report(
        site=site.site_id,
        devices=len(site),
        knowledge=knowledge,
        span=describe(frame),
        intervals=len(frame),
        settled_intervals=int(settled.sum()),
        notes=(*frame.notes, *rows.notes, *above),
        policies={name: policies[name] for name in names},
        difficulty_steps=difficulty_steps(frame.at_s, frame.beside),
    )


def _above_best(policies: dict[str, PolicyResult]) -> tuple[str, ...]:
    """Say where a policy came out above the clairvoyant: of unlike classes it is a best found."""
    best_usd = policies[BEST].profit_usd
    above = [name for name, row in policies.items() if row.profit_usd > best_usd + 0.01]
    if not above:
        return ()
    return (f"{', '.join(above)}: above the best course found with all known; U counts against it",)


def _on_off(
    site: Site, rows: Rows, frame: Frame, names: dict[str, None], knowledge: Knowledge
) -> dict[str, PolicyResult]:
    accounts = {
        name: with_block(
            account(rows, course(name, rows, frame, knowledge, site.limits)),
            rows.contract,
            frame.price,
        )
        for name in names
    }
    month, _ = month_of(frame.at_s)
    cap_w = site.limits.power_cap_w
    return {
        name: result(
            own,
            accounts[BASELINE],
            accounts[BEST],
            month,
            Broken(cap=int(np.count_nonzero(own.load_w > cap_w)), ramp=0, deadline=0),
        )
        for name, own in accounts.items()
    }


def _with_fleet(
    site: Site,
    rows: Rows,
    frame: Frame,
    names: dict[str, None],
    knowledge: Knowledge,
    duties: Duties | None,
) -> dict[str, PolicyResult]:
    ground = build_ground(site, rows, frame, duties, knowledge)
    made = {name: _ran(name, ground, rows.feeding) for name in (*names, FILL)}
    baseline, best, fill = (made[name].account for name in (BASELINE, BEST, FILL))
    month, _ = month_of(frame.at_s)
    out: dict[str, PolicyResult] = {}
    for name, row in made.items():
        own = row.account
        compared = result(own, baseline, best, month, row.breaks)
        over = captured(own.asic_profit_usd, fill.asic_profit_usd, best.asic_profit_usd)
        out[name] = replace(compared, asic_uplift_over_fill=over, allocation_gap_usd=row.gap_usd)
    return out


class _Ran(Struct, frozen=True, eq=False, kw_only=True):
    """What is kept of a policy's run: a column of each feeder or lot is not."""

    account: Account
    breaks: Broken
    gap_usd: float | None


def _ran(name: str, ground: Ground, feeding: Feeding) -> _Ran:
    made = settle_policy(name, ground)
    own = made.account
    breaks = replace(broken(ground.duty, own.load_w), feeder=over_feeders(feeding, own.feeders_w))
    return _Ran(
        account=replace(own, feeders_w=np.zeros((0, 0))),
        breaks=breaks,
        gap_usd=None if made.gap_usd is None else round(_total(made.gap_usd), 2),
    )


def over_feeders(feeding: Feeding, feeders_w: FloatColumn) -> int:
    """Count the intervals in which any feeder is above its cap."""
    over = feeders_w > feeding.caps_w[:, None] + ROUNDING_W
    return int(np.count_nonzero(over.any(axis=0)))


def result(
    own: Account, baseline: Account, best: Account, month: IntColumn, breaks: Broken
) -> PolicyResult:
    """Compare one account with the baseline and the best."""
    profit = _total(own.profit_usd)
    return PolicyResult(
        profit_usd=round(profit, 2),
        energy_cost_usd=round(_total(own.energy_usd), 2),
        switches=round(own.switches),
        uplift_captured=captured(own.profit_usd, baseline.profit_usd, best.profit_usd),
        worst_month_vs_s1=worst_month(own.profit_usd, baseline.profit_usd, month),
        cap_violations=breaks.cap,
        asic_profit_usd=round(_total(own.asic_profit_usd), 2),
        asic_uplift_captured=captured(
            own.asic_profit_usd, baseline.asic_profit_usd, best.asic_profit_usd
        ),
        asic_worst_month_vs_s1=worst_month(own.asic_profit_usd, baseline.asic_profit_usd, month),
        share_of_clairvoyant=_share(profit, _total(best.profit_usd)),
        asic_off_share=round(own.asic_off_share, 6),
        ramp_violations=breaks.ramp,
        deadline_violations=breaks.deadline,
        feeder_violations=breaks.feeder,
        violations=breaks.cap + breaks.ramp + breaks.deadline + breaks.feeder,
        peak_charge_usd=round(_total(own.peak_usd), 2),
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
