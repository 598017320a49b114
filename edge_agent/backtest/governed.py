"""Courses of a fleet under its duties: each policy says what it wants, the duties what it gets.

Every policy obeys cap, orders and ramps by the same means, so that they differ in judgement alone.
"""

from operator import mul

import numpy as np

from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet
from edge_agent.core.site import FlagColumn, FloatColumn

# Place, step, devices, watts of a lot.
_Place = tuple[int, int, float, float]


def begin(fleet: Fleet, room_w: float) -> list[float]:
    """Give the devices that hold each step at the start: as many as fit, by merit."""
    return _fill(_by_merit(fleet), [True] * len(fleet), room_w)


def govern(fleet: Fleet, duty: Duty, base_w: FloatColumn, wanted: FlagColumn) -> FloatColumn:
    """Give the devices that hold each step in each interval.

    Args:
        base_w: load of all that is no lot. wanted: (lots, T), which steps a policy wants.
    """
    steps = len(base_w)
    watts = [lot.rise_w for lot in fleet.lots]
    lots = _by_merit(fleet)
    out = np.empty((steps, len(fleet)))
    held: list[float] = []
    last_w = 0.0
    wishes = wanted.T.tolist()
    for at, (ceiling, base) in enumerate(
        zip(duty.ceiling_w.tolist(), base_w.tolist(), strict=True)
    ):
        if not at:
            made = held = _fill(lots, wishes[0], ceiling - base)
            load_w = _load(made, watts)
        else:
            room = min(ceiling, last_w + duty.rise_w) - base
            made = _fill(lots, wishes[at], room)
            load_w = _load(made, watts)
            short = last_w - duty.fall_w - base - load_w
            held = _keep(fleet, made, held, short) if short > 0.0 else made
        last_w = base + (load_w if held is made else _load(held, watts))
        out[at] = held
    return np.ascontiguousarray(out.T)


def fixed(fleet: Fleet, duty: Duty, base_w: FloatColumn, modes: dict[int, int]) -> FloatColumn:
    """Give the course of a fleet in one fixed mode; devices that do not fit sleep.

    Args:
        modes: per class the highest step that its devices hold.
    """
    classes = sorted(
        {lot.of_class for lot in fleet.lots},
        key=lambda of: min(fleet.order.index(at) for at in _lots(fleet, of)),
    )
    whole = []
    for of in classes:
        places = _lots(fleet, of)[: modes[of] + 1]
        each_w = sum(fleet.lots[at].rise_w for at in places)
        whole.append((places, each_w, fleet.lots[places[0]].count))
    out = np.zeros((len(fleet), len(base_w)))
    last_w = np.inf
    for at, (ceiling, base) in enumerate(
        zip(duty.ceiling_w.tolist(), base_w.tolist(), strict=True)
    ):
        room = min(ceiling, last_w + duty.rise_w) - base
        load = base
        for places, each_w, count in whole:
            held = min(count, max(int(room / each_w), 0))
            room -= held * each_w
            load += held * each_w
            out[places, at] = held
        last_w = load
    return out


def _lots(fleet: Fleet, of_class: int) -> list[int]:
    return [at for at, lot in enumerate(fleet.lots) if lot.of_class == of_class]


def _by_merit(fleet: Fleet) -> list[_Place]:
    """Give the lots as plain values: a year's fill looks at each of them a million times."""
    return [
        (at, fleet.lots[at].step, float(fleet.lots[at].count), fleet.lots[at].rise_w)
        for at in fleet.order
    ]


def _fill(lots: list[_Place], wanted: list[bool], room_w: float) -> list[float]:
    """Fill a room with the wanted steps by merit; a step needs the one below it."""
    held = [0.0] * len(lots)
    for at, step, count, rise_w in lots:
        if room_w <= 0.0:
            break
        if wanted[at]:
            there = held[at - 1] if step else count
            held[at] = more = min(there, float(int(room_w / rise_w)))
            room_w -= more * rise_w
    return held


def _keep(fleet: Fleet, made: list[float], held: list[float], short_w: float) -> list[float]:
    """Keep so many of the steps held before that the load does not fall too fast."""
    out = list(made)
    for at in fleet.order:
        lot = fleet.lots[at]
        below = held[at] if lot.step == 0 else min(held[at], out[at - 1])
        more = min(max(below - out[at], 0.0), float(int(short_w / lot.rise_w) + 1))
        out[at] += more
        short_w -= more * lot.rise_w
        if short_w <= 0.0:
            break
    return out


def _load(held: list[float], watts: list[float]) -> float:
    load_w: float = sum(map(mul, held, watts))
    return load_w
