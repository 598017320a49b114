"""The rule for money: change between on and off, on columns; live and back-test call the same.

- Early, when the outlook says so: the expected gain of the interval outweighs the share of a
  restart that the future is worth; the same as gain over the expected stay above the cost.
- At the latest, when the regret of staying reaches ``ski_rental`` restarts, whatever the outlook.
- Off only on credit: a restart adds 1 to the device's debt, what being off saved and the passing of
  time pay it back. Without credit only a loss that pays the restart within the interval counts.
  So no outlook, however wrong, loses more against always-on than the credit and its refill.
- It always comes back: any gain above 0 that lasts makes regret, and coming back needs no credit.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core.columns import pick, some
from edge_agent.core.outlook import Outlook
from edge_agent.core.site import FlagColumn, FloatColumn

# Restarts that may be open against always-on, and the time in which that many are forgiven.
CREDIT = 6.0
REFILL_S = 30.0 * 86_400.0


class Verdict(Struct, frozen=True, eq=False):
    """What the rule says: change or not, why, and the money of the change over the expected stay.

    Args:
        early: by the outlook. overdue: by regret. credit: the change is affordable.
        gain_usd, cost_usd: over the expected stay. stay: expected stay in intervals.
    """

    change: FlagColumn
    early: FlagColumn
    overdue: FlagColumn
    credit: FlagColumn
    gain_usd: FloatColumn
    cost_usd: FloatColumn
    stay: FloatColumn


class Wants(Struct, frozen=True, eq=False):
    """Which changes the rule wants, and why; as in ``Verdict``."""

    change: FlagColumn
    early: FlagColumn
    overdue: FlagColumn
    credit: FlagColumn
    gain: FloatColumn  # of the change over an interval, and
    need: FloatColumn  # the share of a restart it stands against; both in prudent restart costs


def wants(
    on: FlagColumn,
    outlook: Outlook,
    cost_usd: FloatColumn,
    regret_usd: FloatColumn,
    debt: FloatColumn,
    ski_rental: FloatColumn | float,
    *,
    known: bool,
) -> Wants:
    """Say which changes the rule wants; arguments as of ``judge``."""
    gain = pick(on, -outlook.gain, outlook.gain)
    need = pick(on, outlook.share, 1.0 - outlook.share)
    earns = gain > 0.0
    early = earns & (gain > need)
    overdue = earns & (regret_usd > cost_usd)
    if some(overdue):
        overdue &= regret_usd >= ski_rental * cost_usd
    credit = ~on | (debt <= CREDIT - 1.0)
    if known:
        credit = credit | (gain > 1.0)
    return Wants((early | overdue) & credit, early, overdue, credit, gain, need)


def judge(
    on: FlagColumn,
    outlook: Outlook,
    cost_usd: FloatColumn,
    regret_usd: FloatColumn,
    debt: FloatColumn,
    ski_rental: FloatColumn | float,
    *,
    known: bool,
) -> Verdict:
    """Judge each device.

    Args:
        cost_usd: prudent restart cost. debt: open restarts. known: the interval's price is seen.
    """
    found = wants(on, outlook, cost_usd, regret_usd, debt, ski_rental, known=known)
    stay = 1.0 / found.need
    gain_usd = found.gain * stay
    gain_usd *= cost_usd
    if some(found.overdue):
        # What has cost so much already has outlasted the outlook: expect as much again.
        gain_usd = np.maximum(gain_usd, np.where(found.overdue, regret_usd, -np.inf))
    return Verdict(found.change, found.early, found.overdue, found.credit, gain_usd, cost_usd, stay)


def grow_regret(
    regret_usd: FloatColumn, on: FlagColumn, gain_usd: FloatColumn, counts: FlagColumn
) -> FloatColumn:
    """Give the regret of staying after a time in which being on earned ``gain_usd`` more."""
    return add_missed(regret_usd, pick(on, -gain_usd, gain_usd), counts)


def add_missed(regret_usd: FloatColumn, missed_usd: FloatColumn, counts: FlagColumn) -> FloatColumn:
    """Give the regret of staying after a time in which staying missed so much; never below 0."""
    return pick(counts, np.maximum(regret_usd + missed_usd, 0.0), regret_usd)


def forgive(debt: FloatColumn, dt_s: FloatColumn | float) -> FloatColumn:
    """Give the open restarts after ``dt_s`` in which nothing was off: time alone forgives."""
    if not some(debt != 0.0):
        return debt  # nothing is owed
    out: FloatColumn = np.maximum(debt - CREDIT * (dt_s / REFILL_S), 0.0)
    return out


def pay_debt(
    debt: FloatColumn,
    off: FlagColumn,
    gain_usd: FloatColumn,
    cost_usd: FloatColumn,
    counts: FlagColumn,
    dt_s: FloatColumn | float,
) -> FloatColumn:
    """Give the open restarts after ``dt_s``: time forgives, being off pays back or adds."""
    pays = counts & off & (cost_usd > 0.0)
    if not some(pays) and not some(debt != 0.0):
        return debt  # nothing is owed, and nothing added
    back = np.where(pays, -gain_usd, 0.0) / np.where(pays, cost_usd, 1.0)
    out: FloatColumn = np.maximum(debt - CREDIT * (dt_s / REFILL_S) - back, 0.0)
    return out
