"""The policies for a site with power modes, duties or caps that bind: GPUs first, then miners.

The baseline S1 is the best fixed mode, known in hindsight; ``fill`` goes further and always runs
what the ceiling allows, by merit: what is left above it is earned by looking at prices.
"""

import numpy as np
from msgspec import Struct

from edge_agent.backtest.class_series import MINE
from edge_agent.backtest.difficulty import StepsAhead
from edge_agent.backtest.duties import Duty, draw, plain
from edge_agent.backtest.feeding import caps_bind
from edge_agent.backtest.fleet import (
    Fleet,
    Others,
    build_fleet,
    gpu_rows,
    others,
    settle_fleet,
    with_gpus,
)
from edge_agent.backtest.frame import Frame
from edge_agent.backtest.governed import fixed, govern
from edge_agent.backtest.hindsight_fleet import clairvoyant_fleet
from edge_agent.backtest.live_fleet import Rule, hcp_fleet
from edge_agent.backtest.policies import course, miner_codes
from edge_agent.backtest.rows import Account, Rows, with_block
from edge_agent.backtest.tariff import Contract
from edge_agent.config import Duties
from edge_agent.core.block import splits
from edge_agent.core.outlook import Knowledge
from edge_agent.core.site import FlagColumn, FloatColumn, Limits, Site
from edge_agent.core.site_model import full_load_mw

FILL = "fill"
BASELINE = "s1-ai-else-mine"
_ALWAYS = ("s0-always-mine", FILL)


class Ground(Struct, frozen=True, eq=False, kw_only=True):
    """What all policies of a back-test share."""

    fleet: Fleet
    gpus: Rows | None
    contract: Contract
    duty: Duty
    frame: Frame
    knowledge: Knowledge
    limits: Limits
    steps: StepsAhead | None


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
    """Say whether a site needs more than on and off under caps that never bind, at one price."""
    split = splits(site.limits, full_load_mw(site))
    return duties is not None or any(row.modes for row in site.classes) or caps_bind(site) or split


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
        contract=rows.contract,
        duty=duty,
        frame=frame,
        knowledge=knowledge,
        limits=site.limits,
        steps=rows.steps,
    )


def settle_policy(name: str, ground: Ground) -> Settled:
    """Run one policy."""
    gpus = _gpus(name, ground)
    beside = others(ground.fleet, gpus)
    fleet, duty = ground.fleet, ground.duty
    gap: FloatColumn | None = None
    if not len(fleet):
        counts = np.zeros((0, len(beside.load_w)))
    elif name == "hcp":
        rule = Rule(knowledge=ground.knowledge, limits=ground.limits, steps=ground.steps)
        made = hcp_fleet(fleet, duty, beside, ground.frame, ground.contract, rule)
        counts, gap = made.counts, made.gap_usd
    elif name == "clairvoyant":
        counts = clairvoyant_fleet(fleet, duty, beside)
    elif name == BASELINE:
        counts = _best_fixed(ground, beside, gpus)
    else:
        counts = govern(fleet, duty, beside, _wanted(name, ground))
    account = settle_fleet(fleet, counts, gpus)
    account = with_block(account, ground.contract, ground.frame.price)
    return Settled(account=account, counts=counts, gap_usd=gap)


def _wanted(name: str, ground: Ground) -> FlagColumn:
    """Give which steps a baseline wants; that of one class is the same on each feeder."""
    made: dict[tuple[int, int], FlagColumn] = {}
    for lot in ground.fleet.lots:
        key = (lot.of_class, lot.step)
        if key not in made and name in _ALWAYS:
            made[key] = np.ones(len(ground.frame), dtype=np.bool_)
        elif key not in made:
            made[key] = miner_codes(name, lot.series, ground.knowledge) == MINE
    return np.stack([made[lot.of_class, lot.step] for lot in ground.fleet.lots])


def _gpus(name: str, ground: Ground) -> Account:
    codes = None
    if ground.gpus is not None:
        of = BASELINE if name == FILL else name
        codes = course(of, ground.gpus, ground.frame, ground.knowledge, ground.limits)
    return with_gpus(ground.gpus, codes, ground.fleet, ground.duty)


def _best_fixed(ground: Ground, beside: Others, gpus: Account) -> FloatColumn:
    """Try each mode, the same rank in every class, and keep the best."""
    tops: dict[int, int] = {}
    for lot in ground.fleet.lots:
        tops[lot.of_class] = max(tops.get(lot.of_class, 0), lot.step)
    tried: list[tuple[float, FloatColumn]] = []
    for rank in range(max(tops.values(), default=0) + 1):
        modes = {of: min(rank, top) for of, top in tops.items()}
        counts = fixed(ground.fleet, ground.duty, beside, modes)
        own = settle_fleet(ground.fleet, counts, gpus)
        own = with_block(own, ground.contract, ground.frame.price)
        tried.append((float(own.profit_usd.sum()), counts))
    return max(tried, key=lambda row: row[0])[1]
