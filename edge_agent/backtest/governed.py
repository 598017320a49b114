"""Courses of a fleet under its duties: each policy says what it wants, the duties what it gets.

Every policy obeys cap, orders and ramps by the same means, so that they differ in judgement alone.
"""

from operator import mul

import numpy as np

from edge_agent.backtest.duties import Duty
from edge_agent.backtest.fleet import Fleet, Others
from edge_agent.core.site import FlagColumn, FloatColumn

# Place, step, devices, watts, feeder of a lot.
_Place = tuple[int, int, float, float, int]


def begin(fleet: Fleet, room_w: float, rooms_w: list[float]) -> list[float]:
    """Give the devices that hold each step at the start: as many as fit, by merit.

    Args:
        room_w: for the lots, on the site. rooms_w: on each feeder.
    """
    return _fill(_by_merit(fleet), [True] * len(fleet), room_w, list(rooms_w))


def govern(fleet: Fleet, duty: Duty, beside: Others, wanted: FlagColumn) -> FloatColumn:
    """Give the devices that hold each step in each interval.

    Args:
        wanted: (lots, T), which steps a policy wants.
    """
    steps = len(beside.load_w)
    watts = [lot.rise_w for lot in fleet.lots]
    lots = _by_merit(fleet)
    out = np.empty((steps, len(fleet)))
    held: list[float] = []
    last_w = 0.0
    wishes, rooms = wanted.T.tolist(), beside.rooms_w.T.tolist()
    for at, (ceiling, base) in enumerate(
        zip(duty.ceiling_w.tolist(), beside.load_w.tolist(), strict=True)
    ):
        left = rooms[at]  # what the fill leaves on each feeder
        if not at:
            made = held = _fill(lots, wishes[0], ceiling - base, left)
            load_w = _load(made, watts)
        else:
            room = min(ceiling, last_w + duty.rise_w) - base
            made = _fill(lots, wishes[at], room, left)
            load_w = _load(made, watts)
            short = last_w - duty.fall_w - base - load_w
            held = _keep(fleet, made, held, short, left) if short > 0.0 else made
        last_w = base + (load_w if held is made else _load(held, watts))
        out[at] = held
    return np.ascontiguousarray(out.T)


def fixed(fleet: Fleet, duty: Duty, beside: Others, modes: dict[int, int]) -> FloatColumn:
    """Give the course of a fleet in one fixed mode; devices that do not fit sleep.

    Args:
        modes: per class the highest step that its devices hold.
    """
    whole = _whole(fleet, modes)
    out = np.zeros((len(fleet), len(beside.load_w)))
    last_w = np.inf
    rooms = beside.rooms_w.T.tolist()
    for at, (ceiling, base) in enumerate(
        zip(duty.ceiling_w.tolist(), beside.load_w.tolist(), strict=True)
    ):
        room = min(ceiling, last_w + duty.rise_w) - base
        load = base
        left = rooms[at]
        for places, each_w, count, feeder in whole:
            space = room if feeder < 0 else min(room, left[feeder])
            held = min(count, max(int(space / each_w), 0))
            room -= held * each_w
            load += held * each_w
            if feeder >= 0:
                left[feeder] -= held * each_w
            out[places, at] = held
        last_w = load
    return out


def _whole(fleet: Fleet, modes: dict[int, int]) -> list[tuple[list[int], float, int, int]]:
    """Give each group by merit: the places of its steps, watts of a device, devices, feeder."""
    groups: dict[int, list[int]] = {}
    for place in fleet.order:
        groups.setdefault(fleet.lots[place].group, [])
    for place, lot in enumerate(fleet.lots):
        if lot.step <= modes[lot.of_class]:
            groups[lot.group].append(place)
    out = []
    for places in groups.values():
        first = fleet.lots[places[0]]
        each_w = sum(fleet.lots[at].rise_w for at in places)
        out.append((places, each_w, first.count, first.feeder))
    return out


def _by_merit(fleet: Fleet) -> list[_Place]:
    """Give the lots as plain values: a year's fill looks at each of them a million times."""
    lots = fleet.lots
    return [
        (at, lots[at].step, float(lots[at].count), lots[at].rise_w, lots[at].feeder)
        for at in fleet.order
    ]


def _fill(
    lots: list[_Place], wanted: list[bool], room_w: float, rooms_w: list[float]
) -> list[float]:
    """Fill the rooms with the wanted steps by merit; a step needs the one below it.

    Args:
        rooms_w: on each feeder; what is left stays in it.
    """
    held = [0.0] * len(lots)
    for at, step, count, rise_w, feeder in lots:
        if room_w <= 0.0:
            break
        if wanted[at]:
            there = held[at - 1] if step else count
            space = room_w if feeder < 0 else max(min(room_w, rooms_w[feeder]), 0.0)
            held[at] = more = min(there, float(int(space / rise_w)))
            room_w -= more * rise_w
            if feeder >= 0:
                rooms_w[feeder] -= more * rise_w
    return held


def _keep(
    fleet: Fleet, made: list[float], held: list[float], short_w: float, rooms_w: list[float]
) -> list[float]:
    """Keep so many of the steps held before that the load does not fall too fast.

    A feeder's cap comes before the ramp: what it has no room for is not kept.
    """
    out = list(made)
    for at in fleet.order:
        lot = fleet.lots[at]
        below = held[at] if lot.step == 0 else min(held[at], out[at - 1])
        more = min(max(below - out[at], 0.0), float(int(short_w / lot.rise_w) + 1))
        if lot.feeder >= 0:
            more = min(more, float(int(max(rooms_w[lot.feeder], 0.0) / lot.rise_w)))
            rooms_w[lot.feeder] -= more * lot.rise_w
        out[at] += more
        short_w -= more * lot.rise_w
        if short_w <= 0.0:
            break
    return out


def _load(held: list[float], watts: list[float]) -> float:
    load_w: float = sum(map(mul, held, watts))
    return load_w
