"""`hcp-agent backtest`: reads the directory and the site's file, runs, prints."""

import argparse
import sys
from pathlib import Path

import msgspec
from msgspec import structs

from edge_agent.backtest.files import time_s
from edge_agent.backtest.frame import Wish, load_frame
from edge_agent.backtest.picture import backtest_picture
from edge_agent.backtest.plot import PlotError, PlotNameError, check_plot, draw
from edge_agent.backtest.policies import NAMES
from edge_agent.backtest.policies_fleet import FILL, has_fleet
from edge_agent.backtest.report import Report, backtest
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.config import Duties, build_site, read_config
from edge_agent.core.outlook import Knowledge

SCHEMA_VERSION = 1
_EXIT_OK, _EXIT_PROBLEM, _EXIT_USAGE = 0, 1, 2


class UsageError(Exception):
    """An option that means nothing."""


def run_backtest(args: argparse.Namespace) -> int:
    """Run the command; give the exit code."""
    try:
        report = _report(args)
    except (UsageError, PlotNameError) as exc:
        sys.stderr.write(f"hcp-agent: {exc}\n")
        return _EXIT_USAGE
    except (PlotError, OSError) as exc:
        sys.stderr.write(f"hcp-agent: {exc}\n")
        return _EXIT_PROBLEM
    if args.json:
        body = {"v": SCHEMA_VERSION} | msgspec.to_builtins(report)
        sys.stdout.write(msgspec.json.encode(body).decode() + "\n")
    else:
        sys.stdout.write(_text(report) + "\n")
    return _EXIT_OK


def _report(args: argparse.Namespace) -> Report:
    names = tuple(dict.fromkeys(name for group in args.policy for name in group)) or NAMES
    known = (*NAMES, FILL)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"--policy {unknown[0]}: no such policy; there are: {', '.join(known)}")
    if not 0.0 <= args.true_restart <= 1e6:
        raise UsageError("--true-restart: want a factor within 0..1e6")
    if args.plot:
        check_plot(Path(args.plot))
    config = read_config(Path(args.site))
    site = build_site(config)
    own = config.backtest
    duties = _duties(own.duties, args.seed)
    if FILL in names and not has_fleet(site, duties):
        raise UsageError(f"--policy {FILL}: the site has no modes, duties or caps that bind")
    from_s, to_s = _instant("--from", args.start), _instant("--to", args.end)
    if from_s is not None and to_s is not None and to_s <= from_s:
        raise UsageError(f"--to {args.end}: want a time after --from {args.start}")
    wish = Wish(
        price=args.price,
        day_ahead=args.day_ahead,
        from_s=from_s,
        to_s=to_s,
        demand_quantile=own.demand_quantile,
        more=tuple(
            Path(feed.directory) for feed in (config.market, *config.feeds) if feed.kind == "csv"
        ),
    )
    frame = load_frame(Path(args.market), wish)
    demand = Demand(slices=own.demand_slices, preempt_usd=own.preempt_usd)
    rows = build_rows(site, frame, config.market.gpu_rates, demand, args.true_restart)
    knowledge: Knowledge = args.knowledge
    report = backtest(site, rows, frame, names, knowledge, duties)
    if args.plot:
        # Ours where it was asked for, else the first that was.
        name = "hcp" if "hcp" in names else names[0]
        draw(backtest_picture(site, rows, frame, name, knowledge, duties), Path(args.plot))
    return report


def _duties(duties: Duties | None, seed: int | None) -> Duties | None:
    if seed is None:
        return duties
    if duties is None:
        raise UsageError("--seed: the site's file has no [backtest.duties] to draw")
    if seed < 0:
        raise UsageError("--seed: want a number from 0 up")
    return structs.replace(duties, seed=seed)


def _instant(option: str, text: str) -> int | None:
    if not text:
        return None
    at_s = time_s(text)
    if at_s is None:
        raise UsageError(f"{option} {text}: want an ISO 8601 time, e.g. 2024-05-01")
    return at_s


def _text(report: Report) -> str:
    head = f"{report.site}: {report.devices} devices, {report.span}, {report.knowledge}"
    lines = [head, *(f"note: {note}" for note in report.notes)]
    lines.append(
        f"{'policy':<20}{'profit USD':>16}{'energy USD':>16}{'switches':>12}{'U %':>11}"
        f"{'miners U %':>12}{'worst month %':>15}{'violations':>12}"
    )
    for name, row in report.policies.items():
        lines.append(
            f"{name:<20}{row.profit_usd:>16,.0f}{row.energy_cost_usd:>16,.0f}{row.switches:>12,}"
            f"{_known(row.uplift_captured):>11}{_known(row.asic_uplift_captured):>12}"
            f"{_known(row.worst_month_vs_s1, 3):>15}{row.violations:>12}"
        )
    return "\n".join([*lines, *_steps(report)])


def _steps(report: Report) -> list[str]:
    """Say how well block times told the difficulty's steps a day ahead."""
    apart = sorted(
        abs(row.predicted - row.came)
        for row in report.difficulty_steps
        if row.predicted is not None and row.came is not None
    )
    if not apart:
        return []
    median, most = apart[len(apart) // 2], apart[-1]
    told = f"difficulty: {len(apart)} steps, told by block times a day ahead"
    return [f"{told} within {median:.2f} points (median), {most:.2f} at most"]


def _known(value: float | None, places: int = 2) -> str:
    return "-" if value is None else f"{value:,.{places}f}"
