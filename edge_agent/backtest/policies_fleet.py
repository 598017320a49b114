"""The policies for a site with power modes or duties: GPUs first, miners in what is left.

The baseline S1 is the best fixed mode, known in hindsight; ``fill`` goes further and always runs
what the ceiling allows, by merit: what is left above it is earned by looking at prices.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.duties import Duty, draw, plain
from edge_agent.backtest.fleet import Fleet, build_fleet, gpu_rows, settle_fleet, with_gpus
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.governed import fixed, govern
from edge_agent.backtest.hindsight_fleet import clairvoyant_fleet
from edge_agent.backtest.live_fleet import hcp_fleet
from edge_agent.backtest.policies import course, miner_codes
from edge_agent.backtest.rows import MINE, Account, Rows
from edge_agent.config import Duties
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import FloatColumn, Limits, Site
from protocol.resource import DeviceKind

FILL = "fill"
BASELINE = "s1-ai-else-mine"
_ALWAYS = ("s0-always-mine", FILL)


class Ground(Struct, frozen=True, eq=False, kw_only=True):
    """What all policies of a back-test share."""

    fleet: Fleet
    gpus: Rows | None
    duty: Duty
    frame: Frame
    knowledge: Knowledge
    limits: Limits


class Settled(Struct, frozen=True, eq=False, kw_only=True):
    """One policy's account and course.

    Args:
        counts: (lots, T), devices that hold each step. gap_usd: of its allocations to their bounds,
            by interval.
    """

    account: Account
    counts: FloatColumn
    gap_usd: FloatColumn | None


def has_fleet(site: Site, duties: Duties | None) -> bool:
    """Say whether a site needs more than each device on or off by itself.

    It does with modes, with duties, and where its cap cannot carry everything at once.
    """
    return (
        duties is not None
        or any(row.modes for row in site.classes)
        or _most_w(site) > site.limits.power_cap_w
    )


def _most_w(site: Site) -> float:
    """Give the highest load at the meter that courses of a back-test can come to."""
    by_class = np.bincount(site.class_of, minlength=len(site.classes)).tolist()
    most_w = 0.0
    for row, count in zip(site.classes, by_class, strict=True):
        model = row.model
        off_w = model.curtailed_w if model.kind is DeviceKind.ASIC else model.idle_w
        most_w += count * max(model.mine_w, model.serve_w, off_w) * row.pue
    return most_w


def build_ground(
    site: Site, rows: Rows, frame: Frame, duties: Duties | None, knowledge: Knowledge
) -> Ground:
    """Build what all policies share."""
    fleet = build_fleet(rows, rows.true_restart)
    steps = len(frame)
    duty = (
        plain(steps, site.limits.power_cap_w)
        if duties is None
        else draw(duties, steps, fleet.grain_w)
    )
    return Ground(
        fleet=fleet,
        gpus=gpu_rows(rows),
        duty=duty,
        frame=frame,
        knowledge=knowledge,
        limits=site.limits,
    )


def settle_policy(name: str, ground: Ground) -> Settled:
    """Run one policy."""
    gpus = _gpus(name, ground)
    base_w = gpus.load_w + ground.fleet.asleep_w
    gap: FloatColumn | None = None
    if not ground.fleet.lots:
        counts = np.zeros((0, len(base_w)))
    elif name == "hcp":
        prices = (ground.frame.price, ground.frame.day_ahead)
        made = hcp_fleet(ground.fleet, ground.duty, base_w, prices, ground.knowledge, ground.limits)
        counts, gap = made.counts, made.gap_usd
    elif name == "clairvoyant":
        counts = clairvoyant_fleet(ground.fleet, ground.duty, base_w)
    elif name == BASELINE:
        counts = _best_fixed(ground, base_w, gpus)
    else:
        codes = [
            np.full(len(base_w), MINE)
            if name in _ALWAYS
            else miner_codes(name, lot.series, ground.knowledge)
            for lot in ground.fleet.lots
        ]
        counts = govern(ground.fleet, ground.duty, base_w, np.stack(codes) == MINE)
    account = settle_fleet(ground.fleet, counts, gpus)
    return Settled(account=account, counts=counts, gap_usd=gap)


def _gpus(name: str, ground: Ground) -> Account:
    codes = None
    if ground.gpus is not None:
        of = BASELINE if name == FILL else name
        codes = course(of, ground.gpus, ground.frame, ground.knowledge, ground.limits)
    return with_gpus(ground.gpus, codes, ground.fleet, ground.duty)


def _best_fixed(ground: Ground, base_w: FloatColumn, gpus: Account) -> FloatColumn:
    """Try each mode, the same rank in every class, and keep the best."""
    tops: dict[int, int] = {}
    for lot in ground.fleet.lots:
        tops[lot.of_class] = max(tops.get(lot.of_class, 0), lot.step)
    tried: list[tuple[float, FloatColumn]] = []
    for rank in range(max(tops.values(), default=0) + 1):
        modes = {of: min(rank, top) for of, top in tops.items()}
        counts = fixed(ground.fleet, ground.duty, base_w, modes)
        profit_usd = settle_fleet(ground.fleet, counts, gpus).profit_usd.sum()
        tried.append((float(profit_usd), counts))
    return max(tried, key=lambda row: row[0])[1]
