"""Our policy for a fleet with modes under its duties: the rule's worths, then the allocation.

Each step of each class has its regrets and its credit, as a device has where it is on or off only.
Devices in one mode are a group; the allocation moves them within what cap, orders and ramps leave.
"""

from itertools import pairwise

import numpy as np
from msgspec import Struct

from edge_agent.backtest.difficulty import StepsAhead
from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet, Lot, Others, inside_counts
from edge_agent.backtest.frame import STEP_S, Frame
from edge_agent.backtest.governed import begin
from edge_agent.backtest.live import Memory, Row, Sheets, Sight, remember
from edge_agent.backtest.tariff import Contract
from edge_agent.core.allocation import Allocation, Group, allocate
from edge_agent.core.outlook import Knowledge, Outlook
from edge_agent.core.rule import grow_regret, pay_debt
from edge_agent.core.site import FlagColumn, FloatColumn, IntColumn, Limits
from edge_agent.core.site_model import inside_usd_per_mwh
from edge_agent.core.worth import LEAST, RUNS_OR_NOT, Standing, Worths, weigh

# First lot, devices, watts by option, and feeder of a group.
_Hand = tuple[int, float, tuple[float, ...], int]


class Course(Struct, frozen=True, eq=False, kw_only=True):
    """Devices that hold each step (lots, T), and the gap of each allocation to its bound in USD."""

    counts: FloatColumn
    gap_usd: FloatColumn


class Rule(Struct, frozen=True, eq=False, kw_only=True):
    """What a decision goes by: the price it knows, the difficulty's steps, the site's limits."""

    knowledge: Knowledge
    limits: Limits
    steps: StepsAhead | None


class _Fleeting(Struct, eq=False):
    """What the run remembers from one interval to the next; it lives inside ``hcp_fleet`` only.

    Where a fixed-price block splits the load each lot has two places in all but ``held``: one of
    its devices inside the block, one of those beyond it. Which of them runs follows from ``held``.
    """

    held: FloatColumn
    regret: FloatColumn  # (2, places): of the part that runs, and of the part that does not
    debt: FloatColumn
    stayed: FloatColumn
    left: FlagColumn  # for money
    load_w: float
    roomy: FlagColumn  # the last allocation left room for more of the step


class _Seen(Struct, frozen=True, eq=False):
    """The sheets of each step of each class, which of them a place has, and who is inside.

    Args:
        inside: devices of each lot inside the block (T, lots); None: none splits the load.
    """

    memory: Memory
    sheets: Sheets
    of: IntColumn
    inside: FloatColumn | None

    def split(self, at: int, devices: FloatColumn) -> FloatColumn:
        """Split so many devices of each lot over its places: what there is lies inside first."""
        if self.inside is None:
            return devices
        inside = np.minimum(devices, self.inside[at])
        return np.concatenate((inside, devices - inside))


def hcp_fleet(
    fleet: Fleet, duty: Duty, beside: Others, frame: Frame, contract: Contract, rule: Rule
) -> Course:
    """Give the course of our decision."""
    memory = remember(frame.price, rule.knowledge, rule.limits)
    inside = None
    if fleet.block is not None:
        spot = memory.prices[0]
        cheaper = inside_usd_per_mwh(rule.limits, spot) < spot
        inside = np.ascontiguousarray(inside_counts(fleet, fleet.block, beside, cheaper).T)
    zones = (False,) if inside is None else (True, False)
    keys = [(zone, lot.of_class, lot.step) for zone in zones for lot in fleet.lots]
    every = {
        (zone, lot.of_class, lot.step): Row(lot.series, lot.of_class, zone)
        for zone in zones
        for lot in fleet.lots
    }
    places = list(every)
    of = np.array([places.index(key) for key in keys], dtype=np.int64)
    sight = Sight(
        memory=memory,
        ahead=frame.day_ahead,
        knowledge=rule.knowledge,
        contract=contract,
        steps=rule.steps,
    )
    sheets = Sheets(tuple(every.values()), sight)
    return _run(fleet, duty, beside, _Seen(memory, sheets, of, inside), rule)


def _run(fleet: Fleet, duty: Duty, beside: Others, seen: _Seen, rule: Rule) -> Course:
    memory, sheets, limits = seen.memory, seen.sheets, rule.limits
    known = rule.knowledge == "nowcast"
    base_w = beside.load_w
    count, steps = len(fleet), len(base_w)
    zones = len(seen.of) // max(count, 1)
    ski_rental = np.tile([lot.series.row.ski_rental for lot in fleet.lots], zones)
    stays = np.tile(np.array([_stays_s(lot) for lot in fleet.lots]).T / STEP_S, zones)
    total = np.array([float(lot.count) for lot in fleet.lots])
    watts = np.array([lot.rise_w for lot in fleet.lots])
    zero, never = np.zeros(len(seen.of)), np.zeros(len(seen.of), dtype=np.bool_)
    feeder = np.array([lot.feeder for lot in fleet.lots], dtype=np.int64)
    rooms = np.ascontiguousarray(beside.rooms_w.T)
    start = np.array(begin(fleet, float(duty.ceiling_w[0] - base_w[0]), rooms[0].tolist()))
    now = _Fleeting(
        start, np.zeros((2, len(zero))), zero, np.full(len(zero), np.inf), never,
        float(base_w[0] + np.sum(start * watts)), never,
    )  # fmt: skip
    hands, out, gaps = _hands(fleet), np.empty((steps, count)), np.zeros(steps)
    last_gain, last_cost = zero, np.ones(count)
    fresh, ceilings, bases = memory.fresh.tolist(), duty.ceiling_w.tolist(), base_w.tolist()
    for at in range(steps):
        gain, expected, share, cost = sheets.at(at)[:, seen.of]
        if at and fresh[at - 1]:
            runs, size = seen.split(at, now.held), seen.split(at, total)
            both = np.array((runs > 0.0, (runs < size) & (now.roomy | now.left)))
            now.regret = grow_regret(now.regret, RUNS_OR_NOT, last_gain, both)
            now.debt = pay_debt(now.debt, now.left, last_gain, last_cost, ~never, STEP_S)
        now.stayed = now.stayed + 1.0
        if fresh[at]:
            standing = Standing(regret_usd=now.regret, debt=now.debt, dwelt=now.stayed >= stays)
            worths = weigh(Outlook(expected, share), cost, standing, ski_rental, known=known)
        else:
            safe = bool(memory.safe[at])
            worths = _held(len(zero), mine=safe and limits.safe_policy == "mine", safe=safe)
        ceiling, base = ceilings[at], bases[at]
        if at:
            ceiling = min(ceiling, now.load_w + duty.rise_w)
        least = now.load_w - duty.fall_w - base if at else 0.0
        groups, owners = _groups(hands, now.held, worths, _inside(seen, at))
        fed = tuple(rooms[at].tolist())
        made = allocate(groups, ceiling - base, fed, least_w=max(least, 0.0))
        gaps[at] = made.gap
        held = _counts(count, made, owners)
        _move(now, held, worths, fleet, seen, at)
        now.load_w = base + float(np.sum(held * watts))
        roomy = _room_w(ceiling - now.load_w, rooms[at], held * watts, feeder) > watts
        now.roomy = np.tile(roomy, zones)
        out[at] = held
        if sheets.stop_loss.counts(at):
            sheets.stood_off(at, seen.split(at, total) - seen.split(at, held), seen.of)
        last_gain, last_cost = gain, cost
    return Course(counts=np.ascontiguousarray(out.T), gap_usd=gaps)


def _stays_s(lot: Lot) -> tuple[float, float]:
    """Give the least stay on and off; a higher step is no cycle of the device: the dwell counts."""
    row = lot.series.row
    return (row.dwell_s, row.dwell_s) if lot.step else (row.least_up_s, row.least_down_s)


def _hands(fleet: Fleet) -> list[_Hand]:
    """Give each group: its first lot, its devices, the watts of its options, and its feeder."""
    out: list[_Hand] = []
    for place, lot in enumerate(fleet.lots):
        if lot.step:
            first, count, watts, feeder = out[-1]
            out[-1] = (first, count, (*watts, watts[-1] + lot.rise_w), feeder)
        else:
            out.append((place, float(lot.count), (0.0, 0.0 + lot.rise_w), lot.feeder))
    return out


def _room_w(
    room_w: float, rooms_w: FloatColumn, load_w: FloatColumn, feeder: IntColumn
) -> FloatColumn:
    """Give the room that is left for each lot, on the site and on its feeder."""
    left = rooms_w - np.bincount(feeder + 1, load_w, len(rooms_w) + 1)[1:]
    # A lot on no feeder takes the last place.
    out: FloatColumn = np.minimum(np.append(left, np.inf)[feeder], room_w)
    return out


def _held(count: int, *, mine: bool, safe: bool) -> Worths:
    """Give the worths without a price that can be trusted: hold, then the safe policy."""
    keep = np.full(count, LEAST if mine or not safe else -LEAST)
    start = np.full(count, LEAST if mine else -LEAST)
    none = np.zeros(count, dtype=np.bool_)
    return Worths(keep, start, none, none)


def _inside(seen: _Seen, at: int) -> list[float] | None:
    return None if seen.inside is None else seen.inside[at].tolist()


def _groups(
    hands: list[_Hand], held: FloatColumn, worths: Worths, inside: list[float] | None
) -> tuple[tuple[Group, ...], tuple[tuple[int, int], ...]]:
    """Give the devices by class, mode and steps inside the block, with (first lot, steps) of each.

    Args:
        inside: devices of each lot inside the block; None: none splits the load.
    """
    groups: list[Group] = []
    owners: list[tuple[int, int]] = []
    keep, start, counts = worths.keep_usd.tolist(), worths.start_usd.tolist(), held.tolist()
    beyond = 0 if inside is None else len(counts)  # places of those beyond the block come second
    for first, count, watts, feeder in hands:
        size = len(watts) - 1
        above = counts[first : first + size]
        fits = [0.0] * size if inside is None else inside[first : first + size]
        # The devices in a row, those in the highest modes first: from mark to mark they are alike.
        marks = sorted({0.0, count, *above, *fits})
        for low, high in reversed(list(pairwise(marks))):
            worth, refused = [0.0], False
            for step in range(size):
                own = first + step + (0 if low < fits[step] else beyond)
                usd = keep[own] if low < above[step] else start[own]
                # No step is taken for the sake of those above it.
                usd = min(usd, -LEAST) if refused else usd
                refused = usd < 0.0
                worth.append(worth[-1] + usd)
            devices = round(high - low)
            groups.append(Group(count=devices, watts=watts, worth=tuple(worth), feeder=feeder))
            owners.append((first, size))
    return tuple(groups), tuple(owners)


def _counts(lots: int, made: Allocation, owners: tuple[tuple[int, int], ...]) -> FloatColumn:
    held = [0.0] * lots
    for counts, (first, size) in zip(made.counts, owners, strict=True):
        for step in range(size):
            held[first + step] += sum(counts[step + 1 :])
    return np.array(held)


def _move(
    now: _Fleeting, held: FloatColumn, worths: Worths, fleet: Fleet, seen: _Seen, at: int
) -> None:
    """Take note of what an allocation has changed."""
    moved = held - now.held
    if moved.any():
        before, after = seen.split(at, now.held), seen.split(at, held)
        rises, falls = after > before, after < before
        ends, begins = falls & worths.leaves, rises & worths.starts
        back = rises & now.left
        now.debt = np.where(back, now.debt + 1.0, now.debt)
        now.left = (now.left | ends) & ~rises
        now.regret = np.where((begins | ends, rises | ends), 0.0, now.regret)
        now.stayed = np.where(ends | begins, 0.0, now.stayed)
        for place in np.flatnonzero(moved > 0.0):
            lot = fleet.lots[place]
            if lot.step == 0:
                seen.sheets.restarted(lot.of_class, float(moved[place]), fleet.true_factor)
    now.held = held
